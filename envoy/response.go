package envoy

import (
	"encoding/json"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/keyporter/keyporter/authz"
)

// The headers that tell the upstream who is calling. A client's own never arrive there.
const (
	HeaderUser    = headerPrefix + "user"
	HeaderAccount = headerPrefix + "account"
	HeaderPlan    = headerPrefix + "plan"
	HeaderKeyID   = headerPrefix + "key-id"
	HeaderCharge  = headerPrefix + "charge"
)

const (
	headerPrefix        = "x-keyporter-"
	headerAPIKey        = "x-api-key"
	headerAuthorization = "authorization"
	headerCookie        = "cookie"
	headerPath          = ":path"
)

// MetadataKey is the one key under which the facts of a decision go to Envoy as dynamic metadata, in
// the namespace envoy.filters.http.ext_authz.
const MetadataKey = "keyporter"

// metadataCharge is the fact that names the charge.
const metadataCharge = "charge"

func isIdentityHeader(name string) bool {
	switch name {
	case HeaderUser, HeaderAccount, HeaderPlan, HeaderKeyID, HeaderCharge:
		return true
	}
	return false
}

// encode answers a call with d.
func encode(c *call, d *authz.Decision) *authv3.CheckResponse {
	switch {
	case d.Allowed() && d.Rule != nil && d.Rule.Answer == authz.AnswerCredits:
		return answered(d)
	case d.Allowed():
		return allowed(c, d)
	}
	return denied(c, d)
}

// answered lets nothing pass: it is the answer itself, which Envoy delivers like a denial.
func answered(d *authz.Decision) *authv3.CheckResponse {
	body, err := json.Marshal(struct {
		Success bool          `json:"success"`
		Credits authz.Credits `json:"credits"`
	}{true, d.Charge.Credits})
	if err != nil {
		return denied(&call{}, &authz.Decision{}) // cannot be: plain numbers
	}
	headers := append([]*corev3.HeaderValueOption{
		overwrite("content-type", "application/json"),
		overwrite("cache-control", "no-store"),
	}, meterHeaders(&d.Charge)...)
	return &authv3.CheckResponse{
		Status: &statuspb.Status{Code: int32(codes.PermissionDenied)}, // any but 0, so that it goes no further
		HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
			Status: &typev3.HttpStatus{Code: typev3.StatusCode_OK}, Headers: headers, Body: string(body),
		}},
		DynamicMetadata: facts(d),
	}
}

// allowed lets a request pass, with our headers in place of the client's and without a credential.
func allowed(c *call, d *authz.Decision) *authv3.CheckResponse {
	ok := &authv3.OkHttpResponse{
		HeadersToRemove:      c.imposing,
		ResponseHeadersToAdd: meterHeaders(&d.Charge),
	}
	identify(ok, d)
	strip(ok, &d.Rewrite)
	return &authv3.CheckResponse{
		Status:          &statuspb.Status{},
		HttpResponse:    &authv3.CheckResponse_OkResponse{OkResponse: ok},
		DynamicMetadata: facts(d),
	}
}

// meterHeaders tell a client where it stands after its request.
func meterHeaders(c *authz.Charge) []*corev3.HeaderValueOption {
	headers := rateHeaders(c.Rate)
	if c.Credits.Limited() {
		headers = append(headers, overwrite("x-credits-remaining", strconv.FormatInt(c.Credits.Remaining(), 10)))
	}
	return headers
}

// rateHeaders tell a client where it stands with the rate limit. Nothing is told where there is none.
func rateHeaders(r authz.Rate) []*corev3.HeaderValueOption {
	if !r.Limited() {
		return nil
	}
	return []*corev3.HeaderValueOption{
		overwrite("x-ratelimit-limit", r.Limit.String()),
		overwrite("x-ratelimit-remaining", strconv.FormatInt(r.Remaining, 10)),
		overwrite("x-ratelimit-reset", seconds(r.Reset)),
	}
}

// seconds rounds up, so that who waits that long has waited long enough.
func seconds(d time.Duration) string {
	return strconv.FormatInt(int64((d+time.Second-1)/time.Second), 10)
}

// identify overwrites our headers, and removes those that have no value.
func identify(ok *authv3.OkHttpResponse, d *authz.Decision) {
	p := &d.Principal
	for _, h := range [...]struct{ name, value string }{
		{HeaderUser, p.User},
		{HeaderAccount, p.Account},
		{HeaderPlan, p.Plan},
		{HeaderKeyID, p.KeyID},
		{HeaderCharge, d.Charge.ID},
	} {
		if h.value == "" {
			ok.HeadersToRemove = append(ok.HeadersToRemove, h.name)
			continue
		}
		ok.Headers = append(ok.Headers, overwrite(h.name, h.value))
	}
}

// strip takes every credential out of the request.
func strip(ok *authv3.OkHttpResponse, w *authz.Rewrite) {
	if w.Path != "" {
		ok.Headers = append(ok.Headers, overwrite(headerPath, w.Path))
	}
	if w.RemoveAPIKey {
		ok.HeadersToRemove = append(ok.HeadersToRemove, headerAPIKey)
	}
	if w.RemoveAuthorization {
		ok.HeadersToRemove = append(ok.HeadersToRemove, headerAuthorization)
	}
	switch {
	case w.RemoveCookie, !utf8.ValidString(w.Cookie): // the field holds nothing else; better no cookie than ours
		ok.HeadersToRemove = append(ok.HeadersToRemove, headerCookie)
	case w.Cookie != "":
		ok.Headers = append(ok.Headers, overwrite(headerCookie, w.Cookie))
	}
}

// overwrite sets a header, whether or not the request has it. Envoy's versions disagree on which of
// the two fields counts, so both say the same: a client's value must never stand beside ours.
func overwrite(name, value string) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{
		Header:       &corev3.HeaderValue{Key: name, Value: value},
		Append:       wrapperspb.Bool(false), //lint:ignore SA1019 the one that Envoy up to 1.36 and from 1.38 on reads
		AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}
}

// facts tells Envoy, for its access log, what was decided and for whom. Never a credential.
func facts(d *authz.Decision) *structpb.Struct {
	p := &d.Principal
	fields := map[string]*structpb.Value{"reason": structpb.NewStringValue(d.Reason.String())}
	for _, f := range [...]struct{ name, value string }{
		{"user", p.User},
		{"account", p.Account},
		{"plan", p.Plan},
		{"key_id", p.KeyID},
		{metadataCharge, d.Charge.Receipt},
	} {
		if f.value != "" {
			fields[f.name] = structpb.NewStringValue(f.value)
		}
	}
	own := structpb.NewStructValue(&structpb.Struct{Fields: fields})
	return &structpb.Struct{Fields: map[string]*structpb.Value{MetadataKey: own}}
}

// denied answers with what d's reason means to a client. It never allows.
func denied(c *call, d *authz.Decision) *authv3.CheckResponse {
	denial := denialOf(d.Reason)
	answer := denial.http
	if c.grpc {
		answer = denial.grpc
	}
	switch {
	case d.Location != "":
		answer = sentTo(d.Location)
	case d.Reason == authz.MethodNotAllowed && d.Rule != nil:
		answer = withHeader(answer, "allow", d.Rule.Allow())
	case d.Reason == authz.RateLimited:
		answer = usedUp(answer, d, d.Charge.Rate.Reset)
	case d.Reason == authz.CreditsExhausted:
		answer = usedUp(answer, d, d.Charge.Credits.Reset)
	}
	return &authv3.CheckResponse{
		Status:          denial.status,
		HttpResponse:    answer,
		DynamicMetadata: facts(d),
	}
}

// sentTo sends a browser elsewhere. It is a denial: nothing goes on to the page.
func sentTo(location string) *authv3.CheckResponse_DeniedResponse {
	return &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
		Status:  &typev3.HttpStatus{Code: typev3.StatusCode_SeeOther},
		Headers: []*corev3.HeaderValueOption{overwrite("location", location), overwrite("cache-control", "no-store")},
	}}
}

// usedUp tells the limit, and when to come again.
func usedUp(r *authv3.CheckResponse_DeniedResponse, d *authz.Decision, reset time.Duration) *authv3.CheckResponse_DeniedResponse {
	r = withHeader(r, "retry-after", seconds(max(reset, 1)))
	r.DeniedResponse.Headers = append(r.DeniedResponse.Headers, meterHeaders(&d.Charge)...)
	r.DeniedResponse.Body = d.Outcome().Body()
	return r
}

// denial is the part of a refusal that depends on nothing but its reason. It is shared by all
// answers, so that refusals that must look alike are the same bytes; nobody may change it.
type denial struct {
	status *statuspb.Status
	http   *authv3.CheckResponse_DeniedResponse // for all clients but
	grpc   *authv3.CheckResponse_DeniedResponse // those that speak gRPC
}

var denials = makeDenials()

func makeDenials() []denial {
	all := make([]denial, 0, len(authz.Reasons()))
	for _, reason := range authz.Reasons() {
		all = append(all, makeDenial(reason))
	}
	return all
}

// denialOf returns the denial of reason.
func denialOf(reason authz.Reason) *denial {
	if int(reason) >= len(denials) {
		reason = authz.Undecided
	}
	return &denials[reason]
}

// makeDenial makes the denial of reason. Being allowed is no reason to deny, so whoever asks for
// that has not decided.
func makeDenial(reason authz.Reason) denial {
	if reason == authz.Allowed {
		reason = authz.Undecided
	}
	o := reason.Outcome()
	http := deniedResponse(o)
	return denial{
		// Any code but 0 denies. Which one has no meaning to Envoy.
		status: &statuspb.Status{Code: int32(max(o.GRPC, 1))},
		http:   http,
		grpc:   withHeader(http, "grpc-status", strconv.FormatUint(uint64(o.GRPC), 10)),
	}
}

func deniedResponse(o authz.Outcome) *authv3.CheckResponse_DeniedResponse {
	headers := []*corev3.HeaderValueOption{
		overwrite("content-type", "application/json"),
		overwrite("cache-control", "no-store"),
	}
	switch o.Status {
	case 401:
		headers = append(headers, overwrite("www-authenticate", `Bearer realm="keyporter"`))
	case 503:
		headers = append(headers, overwrite("retry-after", "1"))
	}
	return &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
		Status:  &typev3.HttpStatus{Code: typev3.StatusCode(o.Status)},
		Headers: headers,
		Body:    o.Body(),
	}}
}

// withHeader returns a copy of r with one header more.
func withHeader(r *authv3.CheckResponse_DeniedResponse, name, value string) *authv3.CheckResponse_DeniedResponse {
	return &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
		Status:  r.DeniedResponse.Status,
		Headers: append(slices.Clone(r.DeniedResponse.Headers), overwrite(name, value)),
		Body:    r.DeniedResponse.Body,
	}}
}

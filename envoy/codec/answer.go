package codec

import (
	"cmp"
	"encoding/json"
	"strconv"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc/codes"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/usage"
)

// The headers that identify the caller to the upstream. A client's own never arrive there.
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
	headerAccept        = "accept"
	headerContentType   = "content-type"
	headerProtocols     = "sec-websocket-protocol"
	headerOrigin        = "origin"
	headerRequestMethod = "access-control-request-method"
	headerLength        = "content-length"

	// headerTransferEncoding is the client's transfer-encoding, which Envoy removes before it asks;
	// the generated configuration keeps a copy under this name.
	headerTransferEncoding = headerPrefix + "transfer-encoding"
)

// overrides are the headers that override the method of a request in some frameworks.
var overrides = [...]string{"x-http-method-override", "x-http-method", "x-method-override"}

// MetadataKey is the one key of the facts of a decision in Envoy's dynamic metadata, in the
// namespace envoy.filters.http.ext_authz.
const MetadataKey = "keyporter"

// metadataCharge is the fact with the charge's receipt.
const metadataCharge = "charge"

func isIdentityHeader(name string) bool {
	switch name {
	case HeaderUser, HeaderAccount, HeaderPlan, HeaderKeyID, HeaderCharge:
		return true
	}
	return false
}

// Answer is the answer to one call, in either encoding. [Answer.Fill] makes it. It has room for the
// longest answer, so that it needs no allocation. The zero Answer is a denial with 503.
type Answer struct {
	// Selection is what [Answer.Fill] writes of an allowed request.
	Selection Selection

	passes bool
	code   codes.Code // of a denial
	status int        // HTTP status of a denial
	// headers go to the upstream if the request passes, else to the client. back goes to the client
	// if the request passes.
	headers list[header]
	back    list[header]
	// spoofed and remove are the headers to remove from a request that passes: those that imitate
	// ours, and others.
	spoofed  []string
	remove   list[string]
	body     string
	metadata list[header] // sorted by name
}

// list holds a few items in place. The longest list has eleven: the headers to a client of gRPC
// from another origin that is out of credits.
type list[T any] struct {
	n   int
	all [12]T
}

func (l *list[T]) add(one T) {
	l.all[l.n] = one
	l.n++
}

func (l *list[T]) items() []T { return l.all[:l.n] }

// header is a name with a value: a text or a number.
type header struct {
	name, value string
	number      int64
	counts      bool // the value is the number
	mode        mode
}

// mode says how a header combines with an existing one.
type mode uint8

const (
	overwrites mode = iota // the existing one is replaced
	yields                 // the existing one stays, and ours is left out
	appends                // both stay
	modes
)

func (h *header) text() string {
	if h.counts {
		return strconv.FormatInt(h.number, 10)
	}
	return h.value
}

func text(name, value string) header             { return header{name: name, value: value} }
func number(name string, n int64) header         { return header{name: name, number: n, counts: true} }
func (a *Answer) set(name, value string)         { a.headers.add(text(name, value)) }
func (a *Answer) setNumber(name string, n int64) { a.headers.add(number(name, n)) }

// Fill turns the zero Answer into the answer to a call that was decided as d.
func (a *Answer) Fill(c *Call, d *authz.Decision) {
	a.addMetadata(d)
	switch {
	case d.Allowed() && d.Rule != nil && d.Rule.Answer == authz.AnswerCredits:
		a.balance(d)
	case d.Allowed():
		a.allow(c, d)
	case d.Reason == authz.Preflight:
		a.preflight(d)
	default:
		a.deny(c, d)
	}
}

// preflight lets nothing pass: it answers a browser in place of the upstream.
func (a *Answer) preflight(d *authz.Decision) {
	a.code, a.status = codes.PermissionDenied, 204 // any code but 0, so that it goes no further
	x := &d.CrossOrigin
	for _, h := range [...]struct{ name, value string }{
		{"access-control-allow-origin", x.Origin},
		{"access-control-allow-methods", x.Methods},
		{"access-control-allow-headers", x.Headers},
		{"access-control-max-age", x.MaxAge},
	} {
		if h.value != "" {
			a.set(h.name, h.value)
		}
	}
	a.set("vary", "Origin, Access-Control-Request-Method, Access-Control-Request-Headers")
}

// exposed lists our headers that a page of another origin may read. An answer may have only some of
// them.
const exposed = "x-ratelimit-limit, x-ratelimit-remaining, x-ratelimit-reset, x-credits-remaining, retry-after, www-authenticate, allow"

// exposeHeaders tells pages of other origins which headers they may read. If the upstream answers,
// its own CORS headers take precedence.
func (a *Answer) exposeHeaders(x *authz.CrossOrigin) {
	if !x.Vary {
		return
	}
	headers, own, vary := &a.headers, overwrites, overwrites
	if a.passes {
		headers, own, vary = &a.back, yields, appends
	}
	if x.Origin != "" {
		headers.add(header{name: "access-control-allow-origin", value: x.Origin, mode: own})
		headers.add(header{name: "access-control-expose-headers", value: exposed, mode: own})
	}
	headers.add(header{name: "vary", value: "Origin", mode: vary})
}

// balance lets nothing pass: it is the answer itself, which Envoy delivers like a denial.
func (a *Answer) balance(d *authz.Decision) {
	body, err := json.Marshal(struct {
		Success bool          `json:"success"`
		Credits usage.Credits `json:"credits"`
	}{true, d.Charge.Credits})
	if err != nil {
		a.deny(&Call{}, &authz.Decision{}) // impossible: plain numbers
		return
	}
	// Any code but 0 denies, so that the request goes no further.
	a.code, a.status, a.body = codes.PermissionDenied, 200, string(body)
	a.set(headerContentType, "application/json")
	a.set("cache-control", "no-store")
	meterHeaders(&a.headers, &d.Charge)
	a.exposeHeaders(&d.CrossOrigin)
}

// verdict returns the gRPC code of the call's status, and the HTTP status of a denial. Any code but
// OK denies.
func (a *Answer) verdict() (codes.Code, int) {
	if a.passes {
		return codes.OK, 0
	}
	return cmp.Or(a.code, codes.Unavailable), cmp.Or(a.status, 503)
}

// allow lets a request pass, with our headers in place of the client's and without a credential.
func (a *Answer) allow(c *Call, d *authz.Decision) {
	a.passes = true
	a.spoofed = c.spoofed
	meterHeaders(&a.back, &d.Charge)
	a.exposeHeaders(&d.CrossOrigin)
	a.identify(d)
	a.strip(&d.Rewrite)
}

// meterHeaders adds the client's limits after its request. It adds nothing for a limit that does
// not exist.
func meterHeaders(headers *list[header], c *usage.Charge) {
	if r := &c.Rate; r.Limited() {
		headers.add(number("x-ratelimit-limit", int64(r.Limit)))
		headers.add(number("x-ratelimit-remaining", r.Remaining))
		headers.add(number("x-ratelimit-reset", seconds(r.Reset)))
	}
	if c.Credits.Limited() {
		headers.add(number("x-credits-remaining", c.Credits.Remaining()))
	}
}

// seconds rounds up, so that a client that waits this long has waited long enough.
func seconds(d time.Duration) int64 { return int64((d + time.Second - 1) / time.Second) }

// identify overwrites our headers, and removes those without a value and those that are not
// selected.
func (a *Answer) identify(d *authz.Decision) {
	p := &d.Principal
	for _, h := range [...]struct {
		fact        FactSet
		name, value string
	}{
		{FactUser, HeaderUser, p.User},
		{FactAccount, HeaderAccount, p.Account},
		{FactPlan, HeaderPlan, p.Plan},
		{FactKeyID, HeaderKeyID, p.KeyID},
		{FactCharge, HeaderCharge, d.Charge.ID},
	} {
		if h.value == "" || !a.Selection.header(h.fact) {
			a.remove.add(h.name)
			continue
		}
		a.set(h.name, h.value)
	}
}

// strip removes every credential from the request.
func (a *Answer) strip(w *authz.Rewrite) {
	if w.Path != "" {
		a.set(headerPath, w.Path)
	}
	if w.RemoveAPIKey {
		a.remove.add(headerAPIKey)
	}
	if w.RemoveAuthorization {
		a.remove.add(headerAuthorization)
	}
	switch {
	// A header field holds only UTF-8: better no cookie than ours.
	case w.RemoveCookie, !utf8.ValidString(w.Cookie):
		a.remove.add(headerCookie)
	case w.Cookie != "":
		a.set(headerCookie, w.Cookie)
	}
	switch {
	case !utf8.ValidString(w.Protocols): // the field holds only UTF-8; better none than a key
		a.remove.add(headerProtocols)
	case w.Protocols != "":
		a.set(headerProtocols, w.Protocols)
	}
	if w.RemoveOverrides {
		for _, name := range overrides {
			a.remove.add(name)
		}
	}
}

// addMetadata adds the decision and its principal for Envoy's access log. It never adds a
// credential.
func (a *Answer) addMetadata(d *authz.Decision) {
	p := &d.Principal
	for _, f := range [...]struct {
		fact        FactSet // 0: always
		name, value string
	}{
		{FactAccount, "account", p.Account},
		{0, metadataCharge, d.Charge.Receipt},
		{0, "key_id", p.KeyID},
		{FactPlan, "plan", p.Plan},
		{0, "reason", d.Reason.String()},
		{0, "user", p.User},
	} {
		if f.value != "" && (f.fact == 0 || a.Selection.Metadata&f.fact != 0) {
			a.metadata.add(text(f.name, f.value))
		}
	}
}

// anyMethod lists the common methods, for a rule that permits all but CONNECT and TRACE.
const anyMethod = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"

// deny answers a client with the denial for d's reason. It never allows.
func (a *Answer) deny(c *Call, d *authz.Decision) {
	denial := denialOf(d.Reason)
	a.code, a.status = denial.code, denial.status
	if d.Location != "" {
		// This sends a browser elsewhere. It is a denial: nothing goes on to the page.
		a.status = 303 // See Other
		a.set("location", d.Location)
		a.set("cache-control", "no-store")
		return
	}
	a.body = denial.body
	if d.Problem != authz.NoProblem {
		a.body = problemBody(d.Problem)
	}
	for _, h := range denial.headers {
		a.headers.add(h)
	}
	if c.grpc {
		a.setNumber("grpc-status", denial.grpc)
	}
	switch {
	case d.Reason == authz.MethodNotAllowed && d.Rule != nil:
		a.set("allow", cmp.Or(d.Rule.Allow(), anyMethod))
	case d.Reason == authz.RateLimited:
		a.usedUp(d, d.Charge.Rate.Reset)
	case d.Reason == authz.CreditsExhausted:
		a.usedUp(d, d.Charge.Credits.Reset)
	}
	a.exposeHeaders(&d.CrossOrigin)
}

// usedUp adds the limits, and the time to wait.
func (a *Answer) usedUp(d *authz.Decision, reset time.Duration) {
	a.setNumber("retry-after", seconds(max(reset, 1)))
	meterHeaders(&a.headers, &d.Charge)
	a.body = d.Outcome().Body()
}

// denial is the part of a refusal that depends on its reason alone. All answers share it, so that
// refusals that must look alike are the same bytes. It must not be changed.
type denial struct {
	code    codes.Code
	status  int
	headers []header
	body    string
	grpc    int64 // the status for clients of gRPC
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

// problemBodies are the bodies of refusals of invalid requests.
var problemBodies = makeProblemBodies()

func makeProblemBodies() map[authz.Problem]string {
	bodies := map[authz.Problem]string{}
	for _, problem := range authz.Problems() {
		bodies[problem] = problem.Outcome().Body()
	}
	return bodies
}

// problemBody returns the body of the refusal of an invalid request.
func problemBody(problem authz.Problem) string {
	if body, ok := problemBodies[problem]; ok {
		return body
	}
	return denialOf(authz.Undecided).body
}

// challenge returns the value of www-authenticate (RFC 6750 section 3): with an error if a
// credential was sent, and the same error for every invalid credential.
func challenge(reason authz.Reason) string {
	const plain = `Bearer realm="keyporter"`
	switch reason {
	case authz.AmbiguousKey, authz.MalformedKey, authz.ForgedKey, authz.UnknownKey, authz.RevokedKey:
		return plain + `, error="invalid_token"`
	}
	return plain
}

// makeDenial makes the denial of reason. Allowed is no reason to deny, so it yields the denial of
// Undecided.
func makeDenial(reason authz.Reason) denial {
	if reason == authz.Allowed {
		reason = authz.Undecided
	}
	o := reason.Outcome()
	headers := []header{text(headerContentType, "application/json"), text("cache-control", "no-store")}
	switch {
	case o.Status == 401:
		headers = append(headers, text("www-authenticate", challenge(reason)))
	case o.Status == 503, reason == authz.TooManyPreflights:
		headers = append(headers, text("retry-after", "1"))
	}
	// Any code but 0 denies. The choice has no meaning to Envoy.
	return denial{code: codes.Code(max(o.GRPC, 1)), status: o.Status, headers: headers, body: o.Body(), grpc: int64(o.GRPC)}
}

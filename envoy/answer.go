package envoy

import (
	"cmp"
	"encoding/json"
	"strconv"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc/codes"

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
	headerAccept        = "accept"
	headerContentType   = "content-type"
	headerProtocols     = "sec-websocket-protocol"
	headerOrigin        = "origin"
	headerRequestMethod = "access-control-request-method"
	headerLength        = "content-length"

	// headerTransferEncoding is the client's transfer-encoding, which Envoy has taken out of the
	// request before it asks; the generated configuration keeps a copy under this name.
	headerTransferEncoding = headerPrefix + "transfer-encoding"
)

// overrides are the headers by which a request asks some frameworks to take it for one of another
// method.
var overrides = [...]string{"x-http-method-override", "x-http-method", "x-method-override"}

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

// answer is what Envoy is told about one call, whichever way it is encoded. It is made by fill, and has room
// for the longest of answers, so that it need not be allocated. The zero answer is a denial with 503.
type answer struct {
	passes bool
	code   codes.Code // of a denial
	status int        // HTTP status of a denial
	// headers go to the upstream where the request passes, else to the client; back goes to the client where
	// it passes.
	headers list[header]
	back    list[header]
	// The headers that are removed from a request that passes: what imitates ours, and others.
	imposing []string
	remove   list[string]
	body     string
	facts    list[header] // sorted by name
}

// list holds a few things in place. The longest, of headers to a client out of credits that speaks
// gRPC from another origin, has eleven.
type list[T any] struct {
	n   int
	all [12]T
}

func (l *list[T]) add(one T) {
	l.all[l.n] = one
	l.n++
}

func (l *list[T]) items() []T { return l.all[:l.n] }

// header is a name with a value: a text, or else a number.
type header struct {
	name, value string
	number      int64
	counts      bool // the value is the number
	mode        mode
}

// mode says what becomes of a header that is there already.
type mode uint8

const (
	overwrites mode = iota // it is replaced
	yields                 // it stays, and ours is left out
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
func (a *answer) set(name, value string)         { a.headers.add(text(name, value)) }
func (a *answer) setNumber(name string, n int64) { a.headers.add(number(name, n)) }

// fill makes the zero answer the one to a call that was decided as d.
func (a *answer) fill(c *call, d *authz.Decision) {
	a.tell(d)
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

// preflight lets nothing pass: it answers a browser for the upstream.
func (a *answer) preflight(d *authz.Decision) {
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

// exposed are the headers of ours that a page of another origin may read. Some answers have them
// all.
const exposed = "x-ratelimit-limit, x-ratelimit-remaining, x-ratelimit-reset, x-credits-remaining, retry-after, www-authenticate, allow"

// share tells pages of other origins what they may read. Of the upstream's answer, its own word
// counts.
func (a *answer) share(x *authz.CrossOrigin) {
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
func (a *answer) balance(d *authz.Decision) {
	body, err := json.Marshal(struct {
		Success bool          `json:"success"`
		Credits authz.Credits `json:"credits"`
	}{true, d.Charge.Credits})
	if err != nil {
		a.deny(&call{}, &authz.Decision{}) // cannot be: plain numbers
		return
	}
	a.code, a.status, a.body = codes.PermissionDenied, 200, string(body) // any code but 0, so that it goes no further
	a.set(headerContentType, "application/json")
	a.set("cache-control", "no-store")
	meterHeaders(&a.headers, &d.Charge)
	a.share(&d.CrossOrigin)
}

// verdict returns the code of the call's status, of which any but OK denies, and the HTTP status of a denial.
func (a *answer) verdict() (codes.Code, int) {
	if a.passes {
		return codes.OK, 0
	}
	return cmp.Or(a.code, codes.Unavailable), cmp.Or(a.status, 503)
}

// allow lets a request pass, with our headers in place of the client's and without a credential.
func (a *answer) allow(c *call, d *authz.Decision) {
	a.passes = true
	a.imposing = c.imposing
	meterHeaders(&a.back, &d.Charge)
	a.share(&d.CrossOrigin)
	a.identify(d)
	a.strip(&d.Rewrite)
}

// meterHeaders tell a client where it stands after its request. Nothing is told where there is no limit.
func meterHeaders(headers *list[header], c *authz.Charge) {
	if r := &c.Rate; r.Limited() {
		headers.add(number("x-ratelimit-limit", int64(r.Limit)))
		headers.add(number("x-ratelimit-remaining", r.Remaining))
		headers.add(number("x-ratelimit-reset", seconds(r.Reset)))
	}
	if c.Credits.Limited() {
		headers.add(number("x-credits-remaining", c.Credits.Remaining()))
	}
}

// seconds rounds up, so that who waits that long has waited long enough.
func seconds(d time.Duration) int64 { return int64((d + time.Second - 1) / time.Second) }

// identify overwrites our headers, and removes those that have no value.
func (a *answer) identify(d *authz.Decision) {
	p := &d.Principal
	for _, h := range [...]struct{ name, value string }{
		{HeaderUser, p.User},
		{HeaderAccount, p.Account},
		{HeaderPlan, p.Plan},
		{HeaderKeyID, p.KeyID},
		{HeaderCharge, d.Charge.ID},
	} {
		if h.value == "" {
			a.remove.add(h.name)
			continue
		}
		a.set(h.name, h.value)
	}
}

// strip takes every credential out of the request.
func (a *answer) strip(w *authz.Rewrite) {
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
	case w.RemoveCookie, !utf8.ValidString(w.Cookie): // the field holds nothing else; better no cookie than ours
		a.remove.add(headerCookie)
	case w.Cookie != "":
		a.set(headerCookie, w.Cookie)
	}
	switch {
	case !utf8.ValidString(w.Protocols): // the field holds nothing else; better none than a key
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

// tell tells Envoy, for its access log, what was decided and for whom. Never a credential.
func (a *answer) tell(d *authz.Decision) {
	p := &d.Principal
	for _, f := range [...]struct{ name, value string }{
		{"account", p.Account},
		{metadataCharge, d.Charge.Receipt},
		{"key_id", p.KeyID},
		{"plan", p.Plan},
		{"reason", d.Reason.String()},
		{"user", p.User},
	} {
		if f.value != "" {
			a.facts.add(text(f.name, f.value))
		}
	}
}

// anyMethod are the methods in common use, for a rule that permits all but CONNECT and TRACE.
const anyMethod = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"

// deny answers with what d's reason means to a client. It never allows.
func (a *answer) deny(c *call, d *authz.Decision) {
	denial := denialOf(d.Reason)
	a.code, a.status = denial.code, denial.status
	if d.Location != "" {
		// A browser is sent elsewhere. It is a denial: nothing goes on to the page.
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
	a.share(&d.CrossOrigin)
}

// usedUp tells the limit, and when to come again.
func (a *answer) usedUp(d *authz.Decision, reset time.Duration) {
	a.setNumber("retry-after", seconds(max(reset, 1)))
	meterHeaders(&a.headers, &d.Charge)
	a.body = d.Outcome().Body()
}

// denial is the part of a refusal that depends on nothing but its reason. It is shared by all
// answers, so that refusals that must look alike are the same bytes; nobody may change it.
type denial struct {
	code    codes.Code
	status  int
	headers []header
	body    string
	grpc    int64 // the status for those that speak gRPC
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

// problemBodies are the bodies of the refusals of requests that something is wrong with.
var problemBodies = makeProblemBodies()

func makeProblemBodies() map[authz.Problem]string {
	bodies := map[authz.Problem]string{}
	for _, problem := range authz.Problems() {
		bodies[problem] = problem.Outcome().Body()
	}
	return bodies
}

// problemBody returns the body of the refusal of a request that something is wrong with.
func problemBody(problem authz.Problem) string {
	if body, ok := problemBodies[problem]; ok {
		return body
	}
	return denialOf(authz.Undecided).body
}

// challenge returns the value of www-authenticate (RFC 6750 section 3): with an error where a
// credential was sent, and the same for each that opens nothing.
func challenge(reason authz.Reason) string {
	const plain = `Bearer realm="keyporter"`
	switch reason {
	case authz.AmbiguousKey, authz.MalformedKey, authz.ForgedKey, authz.UnknownKey, authz.RevokedKey:
		return plain + `, error="invalid_token"`
	}
	return plain
}

// makeDenial makes the denial of reason. Being allowed is no reason to deny, so whoever asks for
// that has not decided.
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
	// Any code but 0 denies. Which one has no meaning to Envoy.
	return denial{code: codes.Code(max(o.GRPC, 1)), status: o.Status, headers: headers, body: o.Body(), grpc: int64(o.GRPC)}
}

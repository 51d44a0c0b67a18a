package authz

import (
	"encoding/json"
	"strings"

	"github.com/keyporter/keyporter/usage"
)

// Reason is the reason for a decision. The zero value denies: an empty Decision is answered with
// 503. Only [Allowed] lets a request pass.
type Reason uint8

// The reasons, in the order of the checks. An earlier reason hides the later ones.
const (
	Undecided         Reason = iota // the store failed, or the deadline passed
	Allowed                         // the only reason that lets a request pass
	BadPath                         // the path is not canonical
	BadQuery                        // the query holds an illegal byte
	DisguisedKey                    // a query name becomes api_key only when decoded
	BadHeader                       // a header is ambiguous
	TooLarge                        // the request headers exceed the size limit
	NoRoute                         // no rule, or one of kind none, matches the path
	OtherSpelling                   // the normal form matches a rule with other requirements
	Preflight                       // a CORS preflight that Keyporter answers for the upstream
	UnknownRule                     // the table lacks the rule that Envoy names
	TooManyPreflights               // too many preflights for the upstream in this second
	MethodNotAllowed                // the rule does not permit the method
	MissingSession                  // a session route without a session cookie
	BadSession                      // several session cookies, or one of wrong shape or tag
	UnknownSession                  // no such session, or it has expired
	RevokedSession                  // the session was revoked, or its user disabled
	MissingKey                      // an API route without a key in any place
	AmbiguousKey                    // several values in the winning place
	MalformedKey                    // the value is not shaped like a key
	ForgedKey                       // the value is shaped like a key, but its tag is wrong
	UnknownKey                      // no such key
	RevokedKey                      // the key was revoked or replaced
	UserDisabled                    // the key's user is not active
	AccountInactive                 // the key's account is suspended or cancelled
	NoAPIAccess                     // the plan does not include API access
	RateLimited                     // the plan's limit of requests in any window is reached
	CreditsExhausted                // the credits of the month are used up
	reasonCount
)

// Outcome is the client's view of a Reason. Several reasons share one, so that an answer does not
// distinguish an unknown key from a revoked one.
type Outcome struct {
	Status int    // HTTP status
	GRPC   uint32 // gRPC status code, sent to gRPC clients only
	Code   string // stable public code
	Text   string // for people to read
	// Credits is the client's usage of credits, if they are the reason; else nil.
	Credits *usage.Credits
}

var (
	badRequest        = Outcome{Status: 400, GRPC: 3, Code: "bad_request", Text: "The request is not acceptable."}
	headersTooLarge   = Outcome{Status: 431, GRPC: 8, Code: "headers_too_large", Text: "Request header fields too large."}
	notFound          = Outcome{Status: 404, GRPC: 5, Code: "not_found", Text: "Not found."}
	methodNotAllowed  = Outcome{Status: 405, GRPC: 12, Code: "method_not_allowed", Text: "Method not allowed."}
	unauthorized      = Outcome{Status: 401, GRPC: 16, Code: "unauthorized", Text: "Unauthorized"}
	apiAccessRequired = Outcome{Status: 403, GRPC: 7, Code: "api_access_required", Text: "API access is not included in your plan."}
	rateLimited       = Outcome{Status: 429, GRPC: 8, Code: "rate_limited", Text: "Rate limit exceeded."}
	tooManyPreflights = Outcome{Status: 429, GRPC: 8, Code: "rate_limited", Text: "Too many preflight requests. Please retry."}
	creditsExhausted  = Outcome{Status: 429, GRPC: 8, Code: "credits_exhausted", Text: "Monthly credit limit reached."}
	unavailable       = Outcome{Status: 503, GRPC: 14, Code: "unavailable", Text: "Service temporarily unavailable. Please retry."}
)

// reasons is the only mapping from a reason to its outcome.
var reasons = [reasonCount]struct {
	label string // in metrics and explanations
	Outcome
}{
	Undecided:         {"undecided", unavailable},
	Allowed:           {"allowed", Outcome{Status: 200}},
	BadPath:           {"bad_path", badRequest},
	BadQuery:          {"bad_query", badRequest},
	DisguisedKey:      {"disguised_key", badRequest},
	BadHeader:         {"bad_header", badRequest},
	TooLarge:          {"too_large", headersTooLarge},
	NoRoute:           {"no_route", notFound},
	OtherSpelling:     {"other_spelling", notFound},
	Preflight:         {"preflight", Outcome{Status: 204}},
	UnknownRule:       {"unknown_rule", unavailable},
	TooManyPreflights: {"too_many_preflights", tooManyPreflights},
	MethodNotAllowed:  {"method_not_allowed", methodNotAllowed},
	MissingSession:    {"missing_session", unauthorized},
	BadSession:        {"bad_session", unauthorized},
	UnknownSession:    {"unknown_session", unauthorized},
	RevokedSession:    {"revoked_session", unauthorized},
	MissingKey:        {"missing_key", unauthorized},
	AmbiguousKey:      {"ambiguous_key", unauthorized},
	MalformedKey:      {"malformed_key", unauthorized},
	ForgedKey:         {"forged_key", unauthorized},
	UnknownKey:        {"unknown_key", unauthorized},
	RevokedKey:        {"revoked_key", unauthorized},
	UserDisabled:      {"user_disabled", apiAccessRequired},
	AccountInactive:   {"account_inactive", apiAccessRequired},
	NoAPIAccess:       {"no_api_access", apiAccessRequired},
	RateLimited:       {"rate_limited", rateLimited},
	CreditsExhausted:  {"credits_exhausted", creditsExhausted},
}

// Reasons returns all reasons, for metrics that start at zero and for tests of completeness.
func Reasons() []Reason {
	all := make([]Reason, reasonCount)
	for i := range all {
		all[i] = Reason(i)
	}
	return all
}

// String returns the label of r in metrics, such as "unknown_key".
func (r Reason) String() string { return reasons[r.known()].label }

// Outcome returns the client's view of r.
func (r Reason) Outcome() Outcome { return reasons[r.known()].Outcome }

// known maps values outside the table to Undecided, which denies.
func (r Reason) known() Reason {
	if r >= reasonCount {
		return Undecided
	}
	return r
}

// Body returns the JSON body of a denial. It avoids encoding/json, so that denied requests cost no
// more than allowed ones.
func (o Outcome) Body() string {
	b := make([]byte, 0, 256)
	b = append(b, `{"success":false,"error":`...)
	b = appendJSON(b, o.Text)
	b = append(b, `,"code":`...)
	b = appendJSON(b, o.Code)
	if o.Credits != nil {
		b = append(b, `,"credits":`...)
		b = o.Credits.AppendJSON(b)
	}
	return string(append(b, '}'))
}

// appendJSON appends text as a JSON string.
func appendJSON(b []byte, text string) []byte {
	for i := range len(text) {
		if c := text[i]; c < ' ' || c > '~' || strings.IndexByte("\"\\<>&", c) >= 0 {
			quoted, err := json.Marshal(text)
			if err != nil {
				panic("authz: a text does not encode: " + err.Error()) // impossible
			}
			return append(b, quoted...)
		}
	}
	return append(append(append(b, '"'), text...), '"')
}

// rateLimitedText tells a client about an exhausted rate limit.
func rateLimitedText(r usage.Rate) string { return "Rate limit exceeded. Max " + r.String() + "." }

// creditsExhaustedText tells a client about exhausted credits.
func creditsExhaustedText(c usage.Credits) string {
	return "Monthly credit limit reached (" + c.Limit.String() + "). Resets next month."
}

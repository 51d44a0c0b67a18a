package authz

import (
	"encoding/json"
	"strings"
)

// Reason says why a request was decided as it was. The zero value denies: a Decision that nobody
// filled in is answered with 503. Only [Allowed] lets a request pass.
type Reason uint8

// The reasons in the order in which they are checked. A refusal for an earlier one hides the later.
const (
	Undecided         Reason = iota // the store or a deadline kept us from deciding
	Allowed                         // the one reason that lets a request pass
	BadPath                         // the path is not canonical
	BadQuery                        // the query holds a byte that may not stand there
	DisguisedKey                    // a query name only decodes to api_key
	BadHeader                       // a header cannot be read in one way
	TooLarge                        // the headers of the request are larger than what is decided
	NoRoute                         // no rule, or one of kind none, matches the path
	OtherSpelling                   // another rule, that asks for something else, matches the path's normal form
	Preflight                       // a CORS preflight, which is answered for the upstream
	UnknownRule                     // Envoy names a rule that the table does not have
	TooManyPreflights               // more preflights for the upstream in this second than may pass
	MethodNotAllowed                // the rule does not allow the method
	MissingSession                  // a session route without a session cookie
	BadSession                      // a session cookie of a wrong shape or tag, or several
	UnknownSession                  // no such session, or it has expired
	RevokedSession                  // the session was revoked or its user disabled
	MissingKey                      // an API route without a key in any place
	AmbiguousKey                    // several values in the place that won
	MalformedKey                    // not of the shape of a key
	ForgedKey                       // of the shape of a key, but with a wrong tag
	UnknownKey                      // no such key
	RevokedKey                      // the key was revoked or replaced
	UserDisabled                    // the key's user is not active
	AccountInactive                 // the key's account is suspended or cancelled
	NoAPIAccess                     // the plan does not include API access
	RateLimited                     // as many requests as the plan's limit in the last window
	CreditsExhausted                // the credits of the month are used up
	reasonCount
)

// Outcome is what a client sees of a Reason. Several reasons share one, so that an answer does not
// tell an unknown key from a revoked one.
type Outcome struct {
	Status int    // HTTP status
	GRPC   uint32 // gRPC status code, sent to gRPC clients only
	Code   string // stable public code
	Text   string // for people
	// Credits is where the client stands, if that is why; else nil.
	Credits *Credits
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

// reasons is the one place that maps a reason to what the world sees of it.
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

// Reasons lists all reasons, for metrics that start at zero and for tests of completeness.
func Reasons() []Reason {
	all := make([]Reason, reasonCount)
	for i := range all {
		all[i] = Reason(i)
	}
	return all
}

// String returns the label of r in metrics, such as "unknown_key".
func (r Reason) String() string { return reasons[r.known()].label }

// Outcome returns what a client sees of r.
func (r Reason) Outcome() Outcome { return reasons[r.known()].Outcome }

// known maps a value outside the table to the one that denies.
func (r Reason) known() Reason {
	if r >= reasonCount {
		return Undecided
	}
	return r
}

// Body returns the JSON body of a denial. It is written by hand, since a flood of refusals must cost no more than
// as many requests that pass.
func (o Outcome) Body() string {
	b := make([]byte, 0, 256)
	b = append(b, `{"success":false,"error":`...)
	b = appendJSON(b, o.Text)
	b = append(b, `,"code":`...)
	b = appendJSON(b, o.Code)
	if o.Credits != nil {
		b = append(b, `,"credits":`...)
		b = o.Credits.appendJSON(b)
	}
	return string(append(b, '}'))
}

// appendJSON appends a text in quotes.
func appendJSON(b []byte, text string) []byte {
	for i := range len(text) {
		if c := text[i]; c < ' ' || c > '~' || strings.IndexByte("\"\\<>&", c) >= 0 {
			quoted, err := json.Marshal(text)
			if err != nil {
				panic("authz: a text does not encode: " + err.Error()) // cannot be
			}
			return append(b, quoted...)
		}
	}
	return append(append(append(b, '"'), text...), '"')
}

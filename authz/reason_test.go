package authz_test

import (
	"encoding/json"
	"regexp"
	"testing"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/usage"
)

// These are the bodies of all denials, to the byte.
const (
	badRequest   = `{"success":false,"error":"The request is not acceptable.","code":"bad_request"}`
	notFound     = `{"success":false,"error":"Not found.","code":"not_found"}`
	wrongMethod  = `{"success":false,"error":"Method not allowed.","code":"method_not_allowed"}`
	unauthorized = `{"success":false,"error":"Unauthorized","code":"unauthorized"}`
	noAPIAccess  = `{"success":false,"error":"API access is not included in your plan.","code":"api_access_required"}`
	rateLimited  = `{"success":false,"error":"Rate limit exceeded.","code":"rate_limited"}`
	unavailable  = `{"success":false,"error":"Service temporarily unavailable. Please retry.","code":"unavailable"}`
)

const creditsExhausted = `{"success":false,"error":"Monthly credit limit reached.","code":"credits_exhausted"}`

var wantReasons = map[authz.Reason]struct {
	label  string
	status int
	grpc   uint32
	body   string
}{
	authz.Undecided:         {"undecided", 503, 14, unavailable},
	authz.Allowed:           {"allowed", 200, 0, ""},
	authz.BadPath:           {"bad_path", 400, 3, badRequest},
	authz.BadQuery:          {"bad_query", 400, 3, badRequest},
	authz.DisguisedKey:      {"disguised_key", 400, 3, badRequest},
	authz.BadHeader:         {"bad_header", 400, 3, badRequest},
	authz.TooLarge:          {"too_large", 431, 8, `{"success":false,"error":"Request header fields too large.","code":"headers_too_large"}`},
	authz.NoRoute:           {"no_route", 404, 5, notFound},
	authz.OtherSpelling:     {"other_spelling", 404, 5, notFound},
	authz.Preflight:         {"preflight", 204, 0, ""},
	authz.UnknownRule:       {"unknown_rule", 503, 14, unavailable},
	authz.TooManyPreflights: {"too_many_preflights", 429, 8, `{"success":false,"error":"Too many preflight requests. Please retry.","code":"rate_limited"}`},
	authz.MethodNotAllowed:  {"method_not_allowed", 405, 12, wrongMethod},
	authz.MissingSession:    {"missing_session", 401, 16, unauthorized},
	authz.BadSession:        {"bad_session", 401, 16, unauthorized},
	authz.UnknownSession:    {"unknown_session", 401, 16, unauthorized},
	authz.RevokedSession:    {"revoked_session", 401, 16, unauthorized},
	authz.MissingKey:        {"missing_key", 401, 16, unauthorized},
	authz.AmbiguousKey:      {"ambiguous_key", 401, 16, unauthorized},
	authz.MalformedKey:      {"malformed_key", 401, 16, unauthorized},
	authz.ForgedKey:         {"forged_key", 401, 16, unauthorized},
	authz.UnknownKey:        {"unknown_key", 401, 16, unauthorized},
	authz.RevokedKey:        {"revoked_key", 401, 16, unauthorized},
	authz.UserDisabled:      {"user_disabled", 403, 7, noAPIAccess},
	authz.AccountInactive:   {"account_inactive", 403, 7, noAPIAccess},
	authz.NoAPIAccess:       {"no_api_access", 403, 7, noAPIAccess},
	authz.RateLimited:       {"rate_limited", 429, 8, rateLimited},
	authz.CreditsExhausted:  {"credits_exhausted", 429, 8, creditsExhausted},
}

// Every reason has a row, a label of its own and its exact answer, and only one reason allows.
func TestEveryReasonHasItsAnswer(t *testing.T) {
	labels := map[string]bool{}
	for _, reason := range authz.Reasons() {
		want, ok := wantReasons[reason]
		if !ok {
			t.Errorf("%v has no row in this test", reason)
			continue
		}
		if label := reason.String(); label != want.label || labels[label] || !regexp.MustCompile(`^[a-z]+(_[a-z]+)*$`).MatchString(label) {
			t.Errorf("the label %q, want %q, once", label, want.label)
		}
		labels[reason.String()] = true
		o := reason.Outcome()
		if o.Status != want.status || o.GRPC != want.grpc {
			t.Errorf("%v: %d, gRPC %d; want %d, %d", reason, o.Status, o.GRPC, want.status, want.grpc)
		}
		d := authz.Decision{Reason: reason}
		if d.Allowed() != (reason == authz.Allowed) {
			t.Errorf("%v allows: %v", reason, d.Allowed())
		}
		if d.Allowed() || reason == authz.Preflight { // allowed, or answered without a body
			continue
		}
		if o.Body() != want.body || !json.Valid([]byte(o.Body())) {
			t.Errorf("%v: body %s, want %s", reason, o.Body(), want.body)
		}
	}
	if len(labels) != len(wantReasons) {
		t.Errorf("%d reasons, want %d", len(labels), len(wantReasons))
	}
}

// Every problem is a 400 with a text of its own, which names the refused part of the request and
// quotes nothing of it.
func TestEveryProblemHasItsText(t *testing.T) {
	texts := map[string]bool{}
	for _, problem := range authz.Problems() {
		o := problem.Outcome()
		if o.Status != 400 || o.GRPC != 3 || o.Code != "bad_request" || o.Text != problem.String() || texts[o.Text] {
			t.Errorf("%d: %+v", problem, o)
		}
		texts[o.Text] = true
		if !regexp.MustCompile(`^The (path|query|header [a-z-]+|request headers) (was|were) refused: .*\.$`).MatchString(o.Text) {
			t.Errorf("%q does not say which part was refused", o.Text)
		}
	}
	for _, none := range []authz.Problem{authz.NoProblem, authz.Problem(len(authz.Problems()) + 1), 255} {
		if o := none.Outcome(); o.Status != 503 {
			t.Errorf("%d: %+v, want 503", none, o)
		}
	}
}

// A Reason out of range denies with 503.
func TestAReasonOutOfRangeDenies(t *testing.T) {
	for n := len(authz.Reasons()); n < 256; n++ {
		d := authz.Decision{Reason: authz.Reason(n)}
		if o := d.Reason.Outcome(); d.Allowed() || o.Status != 503 || o.GRPC != 14 || o.Body() != unavailable || d.Reason.String() != "undecided" {
			t.Errorf("%d: allowed %v, %+v", n, d.Allowed(), o)
		}
		authz.Explain(d, nil)
	}
}

// The hand-written body of a denial equals the output of the JSON encoder.
func TestTheBodyIsJSON(t *testing.T) {
	for _, o := range []authz.Outcome{
		{}, authz.UnknownKey.Outcome(), {Text: "a \"quoted\" <text> & \\ ü \n", Code: "c"},
		{Text: "t", Code: "c", Credits: &usage.Credits{Counted: true, Used: 7, Limit: 5}},
		{Text: "t", Code: "c", Credits: &usage.Credits{Counted: true, Used: -1, Limit: usage.Unlimited}},
	} {
		want, err := json.Marshal(struct {
			Success bool           `json:"success"`
			Error   string         `json:"error"`
			Code    string         `json:"code"`
			Credits *usage.Credits `json:"credits,omitempty"`
		}{false, o.Text, o.Code, o.Credits})
		if err != nil || o.Body() != string(want) {
			t.Errorf("%s, want %s (%v)", o.Body(), want, err)
		}
	}
}

package codec_test

import (
	"slices"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/envoy/codec"
	"github.com/keyporter/keyporter/envoy/codec/codectest"
	"github.com/keyporter/keyporter/usage"
)

var ada = authz.Principal{KeyID: "k1", User: "ada", Account: "acme", Plan: "pro"}

// An allow sets each of our headers or removes it, removes imitations, and strips what the decision
// requires. No client value remains beside ours.
func TestAllow(t *testing.T) {
	adaHeaders := map[string]string{
		"x-keyporter-user": "ada", "x-keyporter-account": "acme", "x-keyporter-plan": "pro", "x-keyporter-key-id": "k1",
	}
	for _, test := range []struct {
		name      string
		d         authz.Decision
		headers   []string // of the client
		selection codec.Selection
		set       map[string]string
		remove    []string
	}{
		{
			name: "a key", d: authz.Decision{Principal: ada},
			set: adaHeaders, remove: []string{"x-keyporter-charge"},
		},
		{
			name: "a charge", d: authz.Decision{Principal: ada, Charge: usage.Charge{ID: "charge-1", Receipt: "receipt-1"}},
			headers: []string{"x-keyporter-charge", "eve"}, selection: codec.Selection{Headers: codec.DefaultHeaders | codec.FactCharge},
			set: merged(adaHeaders, "x-keyporter-charge", "charge-1"),
		},
		{
			name: "a charge whose name nobody asked for", d: authz.Decision{Principal: ada, Charge: usage.Charge{ID: "charge-1", Receipt: "receipt-1"}},
			set: adaHeaders, remove: []string{"x-keyporter-charge"},
		},
		{
			name: "one header", d: authz.Decision{Principal: ada}, selection: codec.Selection{Headers: codec.FactUser},
			set:    map[string]string{"x-keyporter-user": "ada"},
			remove: []string{"x-keyporter-account", "x-keyporter-charge", "x-keyporter-key-id", "x-keyporter-plan"},
		},
		{
			name: "a session has no key", d: authz.Decision{Principal: authz.Principal{User: "ada", Account: "acme", Plan: "pro"}},
			set:    map[string]string{"x-keyporter-user": "ada", "x-keyporter-account": "acme", "x-keyporter-plan": "pro"},
			remove: []string{"x-keyporter-charge", "x-keyporter-key-id"},
		},
		{
			name:   "nobody, on a public route",
			remove: []string{"x-keyporter-account", "x-keyporter-charge", "x-keyporter-key-id", "x-keyporter-plan", "x-keyporter-user"},
		},
		{
			name: "imitations of our headers", d: authz.Decision{Principal: ada},
			headers: []string{
				"x-keyporter-user", "eve", "X_Keyporter_User", "eve", "x.keyporter.user", "eve", "x-keyporter_charge", "9",
				"x-keyporter-new", "1", "x_api_key", "k", "x.api-key", "k", "x-keyporters", "harmless", "xx-keyporter-user", "harmless",
			},
			set: adaHeaders,
			remove: []string{
				"x-keyporter-charge", "x-keyporter-new", "x-keyporter_charge", "x.api-key", "x.keyporter.user", "x_api_key", "x_keyporter_user",
			},
		},
		{
			name: "every credential", d: authz.Decision{Principal: ada, Rewrite: authz.Rewrite{
				Path: "/a?b=%zz", RemoveAPIKey: true, RemoveAuthorization: true, RemoveCookie: true,
			}},
			set:    merged(adaHeaders, ":path", "/a?b=%zz"),
			remove: []string{"authorization", "cookie", "x-api-key", "x-keyporter-charge"},
		},
		{
			name: "a cookie among others", d: authz.Decision{Principal: ada, Rewrite: authz.Rewrite{Cookie: "a=1; b=2"}},
			set: merged(adaHeaders, "cookie", "a=1; b=2"), remove: []string{"x-keyporter-charge"},
		},
		{
			name: "a cookie that does not fit the field", d: authz.Decision{Principal: ada, Rewrite: authz.Rewrite{Cookie: "a=\xff"}},
			set: adaHeaders, remove: []string{"cookie", "x-keyporter-charge"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.d.Reason = authz.Allowed
			out := answerOf(test.d, codectest.Check("GET", "/a", test.headers...), test.selection)
			if out.GetStatus().GetCode() != 0 || out.GetOkResponse() == nil {
				t.Fatalf("not allowed: %v", out)
			}
			removed := slices.Sorted(slices.Values(out.GetOkResponse().GetHeadersToRemove()))
			if diff := cmp.Diff(test.remove, removed); diff != "" {
				t.Errorf("removed headers (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(merged(test.set), headers(t, out.GetOkResponse().GetHeaders())); diff != "" {
				t.Errorf("set headers (-want +got):\n%s", diff)
			}
		})
	}
}

// A client receives the state of its rate limit, and nothing if it has none.
func TestAllowTellsTheRateLimit(t *testing.T) {
	for _, test := range []struct {
		rate usage.Rate
		want map[string]string
	}{
		{
			usage.Rate{Limit: 60, Window: time.Minute, Remaining: 12, Reset: 1500 * time.Millisecond},
			map[string]string{"x-ratelimit-limit": "60", "x-ratelimit-remaining": "12", "x-ratelimit-reset": "2"},
		},
		{usage.Rate{Limit: usage.Unlimited, Window: time.Minute}, map[string]string{}},
		{usage.Rate{}, map[string]string{}},
	} {
		out := answerTo(authz.Decision{Reason: authz.Allowed, Principal: ada, Charge: usage.Charge{Rate: test.rate}}, codectest.Check("GET", "/a"))
		if diff := cmp.Diff(test.want, headers(t, out.GetOkResponse().GetResponseHeadersToAdd())); diff != "" {
			t.Errorf("%+v (-want +got):\n%s", test.rate, diff)
		}
	}
}

// It also receives the state of its credits, if there is a limit.
func TestAllowTellsTheCredits(t *testing.T) {
	for _, test := range []struct {
		credits usage.Credits
		want    map[string]string
	}{
		{usage.Credits{Counted: true, Used: 142, Limit: 20000}, map[string]string{"x-credits-remaining": "19858"}},
		{usage.Credits{Counted: true, Used: 10, Limit: 9}, map[string]string{"x-credits-remaining": "0"}},
		{usage.Credits{Counted: true, Used: 142, Limit: usage.Unlimited}, map[string]string{}},
		{usage.Credits{}, map[string]string{}},
	} {
		out := answerTo(authz.Decision{Reason: authz.Allowed, Principal: ada, Charge: usage.Charge{Credits: test.credits}}, codectest.Check("GET", "/a"))
		if diff := cmp.Diff(test.want, headers(t, out.GetOkResponse().GetResponseHeadersToAdd())); diff != "" {
			t.Errorf("%+v (-want +got):\n%s", test.credits, diff)
		}
	}
}

// The balance is answered here: with 200, and never by letting the request pass. The access log
// gets it under the receipt of its own charge.
func TestTheBalanceIsAnsweredHere(t *testing.T) {
	rule := &authz.Rule{Kind: authz.KindAPIKey, Methods: []string{"GET"}, Answer: authz.AnswerCredits}
	for _, test := range []struct {
		credits usage.Credits
		body    string
		left    string
	}{
		{usage.Credits{Counted: true, Used: 142, Limit: 20000}, `{"success":true,"credits":{"used":142,"limit":20000,"remaining":19858}}`, "19858"},
		{usage.Credits{Counted: true, Used: 3, Limit: usage.Unlimited}, `{"success":true,"credits":{"used":3,"limit":"unlimited","remaining":"unlimited"}}`, ""},
	} {
		for _, contentType := range []string{"", "application/grpc"} {
			d := authz.Decision{Reason: authz.Allowed, Rule: rule, Principal: ada, Charge: usage.Charge{
				ID: "charge-1", Receipt: "receipt-1", Credits: test.credits,
				Rate: usage.Rate{Limit: 60, Window: time.Minute, Remaining: 12, Reset: time.Second},
			}}
			out := answerTo(d, codectest.Check("GET", "/a", "content-type", contentType))
			if out.GetStatus().GetCode() == 0 || out.GetOkResponse() != nil {
				t.Fatalf("it goes on to the upstream: %v", out)
			}
			denied := out.GetDeniedResponse()
			if denied.GetStatus().GetCode() != 200 || denied.GetBody() != test.body {
				t.Errorf("answered %v %s, want 200 %s", denied.GetStatus(), denied.GetBody(), test.body)
			}
			want := map[string]string{
				"content-type": "application/json", "cache-control": "no-store",
				"x-ratelimit-limit": "60", "x-ratelimit-remaining": "12", "x-ratelimit-reset": "1",
			}
			if test.left != "" {
				want["x-credits-remaining"] = test.left
			}
			if diff := cmp.Diff(want, headers(t, denied.GetHeaders())); diff != "" {
				t.Errorf("headers (-want +got):\n%s", diff)
			}
			own, _ := out.GetDynamicMetadata().AsMap()["keyporter"].(map[string]any)
			if own["charge"] != "receipt-1" || own["reason"] != "allowed" {
				t.Errorf("the access log is told %v", own)
			}
		}
	}
	refused := answerTo(authz.Decision{Reason: authz.CreditsExhausted, Rule: rule, Principal: ada}, codectest.Check("GET", "/a"))
	if got := refused.GetDeniedResponse().GetStatus().GetCode(); got != 429 {
		t.Errorf("without credits: %v", got)
	}
}

// Envoy receives who was decided about and why, on allows and denials, under one key, and nothing
// that it does not need.
func TestMetadata(t *testing.T) {
	whole := codec.Selection{Metadata: codec.FactAccount | codec.FactPlan}
	for _, test := range []struct {
		d         authz.Decision
		selection codec.Selection
		want      map[string]any
	}{
		{
			authz.Decision{Reason: authz.Allowed, Principal: ada}, codec.Selection{},
			map[string]any{"reason": "allowed", "user": "ada", "key_id": "k1"},
		},
		{
			authz.Decision{Reason: authz.Allowed, Principal: ada}, whole,
			map[string]any{"reason": "allowed", "user": "ada", "account": "acme", "plan": "pro", "key_id": "k1"},
		},
		{
			authz.Decision{Reason: authz.NoAPIAccess, Principal: ada}, whole,
			map[string]any{"reason": "no_api_access", "user": "ada", "account": "acme", "plan": "pro", "key_id": "k1"},
		},
		{authz.Decision{Reason: authz.UnknownKey}, whole, map[string]any{"reason": "unknown_key"}},
		{
			authz.Decision{Reason: authz.Allowed, Charge: usage.Charge{ID: "charge-1", Receipt: "receipt-1"}}, codec.Selection{},
			map[string]any{"reason": "allowed", "charge": "receipt-1"},
		},
	} {
		got := answerOf(test.d, codectest.Check("GET", "/a"), test.selection).GetDynamicMetadata().AsMap()
		if diff := cmp.Diff(map[string]any{"keyporter": test.want}, got); diff != "" {
			t.Errorf("metadata of %v (-want +got):\n%s", test.d.Reason, diff)
		}
	}
}

// Only the one reason that allows has status code 0, the only part that Envoy reads.
func TestOnlyAllowedAllows(t *testing.T) {
	for reason := range authz.Reason(255) {
		out := answerTo(authz.Decision{Reason: reason, Principal: ada}, codectest.Check("GET", "/a"))
		allowed := out.GetStatus().GetCode() == 0 || out.GetOkResponse() != nil
		if allowed != (reason == authz.Allowed) {
			t.Errorf("reason %v: allowed is %v", reason, allowed)
		}
	}
}

// sentAKey are the reasons of a 401 for a client that has sent something as a key.
var sentAKey = map[authz.Reason]bool{
	authz.AmbiguousKey: true, authz.MalformedKey: true, authz.ForgedKey: true, authz.UnknownKey: true, authz.RevokedKey: true,
}

// Every denial has the status, the body and the headers of its reason, whatever the method.
func TestDenial(t *testing.T) {
	rule := &authz.Rule{Methods: []string{"GET", "POST"}}
	for _, reason := range authz.Reasons() {
		if reason == authz.Allowed {
			continue
		}
		for _, method := range []string{"GET", "HEAD"} {
			d := authz.Decision{Reason: reason, Rule: rule, Charge: usage.Charge{
				Rate:    usage.Rate{Limit: 60, Window: time.Minute, Reset: 29*time.Second + 1},
				Credits: usage.Credits{Counted: true, Used: 7, Limit: 9, Reset: 30 * time.Second},
			}}
			out := answerTo(d, codectest.Check(method, "/a")).GetDeniedResponse()
			want := map[string]string{"content-type": "application/json", "cache-control": "no-store"}
			body := d.Outcome().Body()
			switch reason {
			case authz.Preflight:
				want, body = map[string]string{"vary": "Origin, Access-Control-Request-Method, Access-Control-Request-Headers"}, ""
			case authz.TooManyPreflights:
				want["retry-after"] = "1"
			}
			switch reason.Outcome().Status {
			case 401:
				want["www-authenticate"] = `Bearer realm="keyporter"`
				if sentAKey[reason] {
					want["www-authenticate"] += `, error="invalid_token"`
				}
			case 405:
				want["allow"] = "GET, HEAD, POST"
			case 429:
				if reason == authz.TooManyPreflights {
					break
				}
				want["retry-after"] = "30"
				want["x-ratelimit-limit"], want["x-ratelimit-remaining"], want["x-ratelimit-reset"] = "60", "0", "30"
				want["x-credits-remaining"] = "2"
			case 503:
				want["retry-after"] = "1"
			}
			if diff := cmp.Diff(want, headers(t, out.GetHeaders())); diff != "" {
				t.Errorf("headers of %v (-want +got):\n%s", reason, diff)
			}
			if int(out.GetStatus().GetCode()) != reason.Outcome().Status || out.GetBody() != body {
				t.Errorf("%v: answered %v %s", reason, out.GetStatus(), out.GetBody())
			}
		}
	}
}

// A gRPC client gets grpc-status as well, and nobody else does.
func TestDenialOfGRPC(t *testing.T) {
	for contentType, want := range map[string]string{
		"application/grpc": "16", "Application/gRPC+proto": "16", "application/json": "", "text/application/grpc": "", "": "",
	} {
		out := answerTo(authz.Decision{Reason: authz.UnknownKey}, codectest.Check("POST", "/a", "content-type", contentType))
		if got := headers(t, out.GetDeniedResponse().GetHeaders())["grpc-status"]; got != want {
			t.Errorf("content type %q: grpc-status is %q, want %q", contentType, got, want)
		}
	}
}

// A client cannot tell an unknown key from a malformed, forged or revoked one: the answers are the
// same bytes; and so are the answers to clients without a key.
func TestUnauthorizedIsOneAnswerOfTwo(t *testing.T) {
	firsts := map[bool][]byte{} // whether something was sent as a key → the first answer
	for _, reason := range authz.Reasons() {
		if reason.Outcome().Status != 401 {
			continue
		}
		out := answerTo(authz.Decision{Reason: reason, Principal: ada}, codectest.Check("GET", "/a"))
		got, err := proto.MarshalOptions{Deterministic: true}.Marshal(out.GetDeniedResponse())
		if err != nil {
			t.Fatal(err)
		}
		first, ok := firsts[sentAKey[reason]]
		if !ok {
			firsts[sentAKey[reason]] = got
		} else if string(got) != string(first) {
			t.Errorf("%v is answered %q, others %q", reason, got, first)
		}
	}
}

// answerTo returns the answer to a Check that was decided as d.
func answerTo(d authz.Decision, in *authv3.CheckRequest) *authv3.CheckResponse {
	return answerOf(d, in, codec.Selection{})
}

// answerOf is answerTo with a selection.
func answerOf(d authz.Decision, in *authv3.CheckRequest, s codec.Selection) *authv3.CheckResponse {
	out, _ := codec.Answers(in, &d, s)
	return out
}

// headers returns name → value and checks that each says in both ways that it overwrites.
func headers(t *testing.T, options []*corev3.HeaderValueOption) map[string]string {
	t.Helper()
	got := map[string]string{}
	for _, o := range options {
		name := o.GetHeader().GetKey()
		//lint:ignore SA1019 both forms must say the same
		if o.GetAppend() == nil || o.GetAppend().GetValue() || o.GetAppendAction() != corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD {
			t.Errorf("header %s does not overwrite: %v", name, o)
		}
		if _, twice := got[name]; twice {
			t.Errorf("header %s is set twice", name)
		}
		got[name] = o.GetHeader().GetValue()
	}
	return got
}

// merged returns a copy of m with more pairs.
func merged(m map[string]string, pairs ...string) map[string]string {
	all := map[string]string{}
	for name, value := range m {
		all[name] = value
	}
	for i := 0; i < len(pairs); i += 2 {
		all[pairs[i]] = pairs[i+1]
	}
	return all
}

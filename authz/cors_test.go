package authz_test

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/usage"
)

// shared returns a world with this CORS configuration.
func shared(t *testing.T, c authz.CORS, rules ...authz.Rule) *world {
	t.Helper()
	w := newWorld(t, rules...)
	routes, err := w.Routes.WithCORS(c)
	if err != nil {
		t.Fatal(err)
	}
	w.Routes = routes
	return w
}

// For each kind of rule with each setting of cors, this test checks the answer to a preflight, the
// pages that may read an answer, and the request that reaches the upstream.
func TestWhoIsAnsweredAcrossOrigins(t *testing.T) {
	const app = "https://app.example"
	key, session, public := authz.KindAPIKey, authz.KindSession, authz.KindPublic
	for _, row := range []struct {
		name      string
		rule      authz.Rule
		preflight authz.Reason
		reads     string // the origin that may read the answer or refusal
	}{
		{"a key rule", authz.Rule{Kind: key}, authz.Preflight, app},
		{"a public rule", authz.Rule{Kind: public}, authz.Preflight, app},
		{"a session rule", authz.Rule{Kind: session}, authz.MissingSession, ""},
		{"a public rule of the page", authz.Rule{Kind: public, To: authz.ToPage}, authz.Allowed, ""},
		{"a key rule that has it off", authz.Rule{Kind: key, CORS: authz.CORSOff}, authz.MissingKey, ""},
		{"a rule whose upstream answers", authz.Rule{Kind: key, CORS: authz.CORSUpstream}, authz.Allowed, app},
		{"a rule without OPTIONS", authz.Rule{Kind: key, Methods: []string{"GET"}}, authz.Preflight, app},
	} {
		row.rule.Path = "/a"
		w := shared(t, authz.CORS{Origins: []string{app}}, row.rule)
		passed := 0
		w.PassPreflight = func() bool { passed++; return true }
		d := w.expect(t, row.name+", preflight", authz.Request{Method: "OPTIONS", Path: "/a", Origin: app, RequestMethod: "GET"}, row.preflight)
		if (row.preflight == authz.Preflight) != (d.CrossOrigin.Methods != "") || d.Charge != (usage.Charge{}) {
			t.Errorf("%s: a preflight gets %+v, charged %+v", row.name, d.CrossOrigin, d.Charge)
		}
		if want := row.rule.CORS == authz.CORSUpstream; (passed == 1) != want || d.Rewrite.RemoveOverrides != want {
			t.Errorf("%s: %d preflights passed to the upstream, rewritten %+v", row.name, passed, d.Rewrite)
		}
		for _, r := range []authz.Request{
			{Method: "GET", Path: "/a", Origin: app, APIKey: []string{w.ada}},
			{Method: "GET", Path: "/a", Origin: app, APIKey: []string{w.forged}},
		} {
			d, err := w.decide(t, r)
			if err != nil || d.CrossOrigin.Origin != row.reads || d.CrossOrigin.Vary != (row.reads != "") || d.CrossOrigin.Methods != "" {
				t.Errorf("%s: %v gets %+v, %v; want %q as the reader", row.name, d.Reason, d.CrossOrigin, err, row.reads)
			}
		}
	}
}

// Without PassPreflight, no preflight reaches the upstream.
func TestUpstreamPreflightsAreBounded(t *testing.T) {
	w := newWorld(t, authz.Rule{Path: "/a", Kind: authz.KindAPIKey, CORS: authz.CORSUpstream})
	r := authz.Request{Method: "OPTIONS", Path: "/a", Origin: "https://a.example", RequestMethod: "GET"}
	w.expect(t, "nobody has said", r, authz.TooManyPreflights)
	w.PassPreflight = func() bool { return false }
	w.expect(t, "no more", r, authz.TooManyPreflights)
	w.PassPreflight = func() bool { return true }
	w.expect(t, "one more", r, authz.Allowed)
	for _, body := range []authz.Request{{Length: "1"}, {Length: "x"}, {Length: "00"}, {TransferEncoding: "chunked"}} {
		r.Length, r.TransferEncoding = body.Length, body.TransferEncoding
		if d := w.expect(t, fmt.Sprintf("%+v", body), r, authz.BadHeader); d.Problem != authz.PreflightBody {
			t.Errorf("%+v: %v", body, d.Problem)
		}
	}
	r.Length, r.TransferEncoding = "0", ""
	w.expect(t, "an empty body", r, authz.Allowed)
}

// Only the form that browsers send is a valid origin.
func TestOrigins(t *testing.T) {
	good := []string{
		"https://a.example", "http://localhost:3000", "https://a-b.example:8443", "http://127.0.0.1:8080", "http://[::1]:3000", "https://xn--bcher-kva.example",
		"chrome-extension://abcdef", "https://a_b.example", "http://a",
	}
	for _, origin := range good {
		if problems := (&authz.CORS{Origins: []string{origin}}).Problems(); len(problems) > 0 {
			t.Errorf("%s: %v", origin, problems)
		}
	}
	for _, origin := range []string{
		"", "null", "a.example", "https://", "https://a.example/", "https://a.example/x", "https://A.example", "HTTPS://a.example", "https://a.example:443", "http://a.example:80",
		"https://a.example:0", "https://a.example:x", "https://u@a.example", "https://*.a.example", "https://a.example?x", "https://a.example#x", "https://[::g]", "https://[a]",
		"https://-a.example", "https://a.example ", "https://bücher.example", "https://a.example,https://b.example", "//a.example",
	} {
		if problems := (&authz.CORS{Origins: []string{origin}}).Problems(); len(problems) == 0 {
			t.Errorf("%q is taken for an origin", origin)
		}
	}
	for _, c := range []authz.CORS{
		{}, {Origins: []string{"*", "https://a.example"}}, {Origins: []string{"http://a", "http://a"}}, {Origins: good, Headers: []string{"*"}},
		{Origins: good, MaxAge: time.Millisecond}, {Origins: good, MaxAge: 25 * time.Hour}, {Origins: good, MaxAge: -1},
	} {
		if len(c.Problems()) == 0 {
			t.Errorf("%+v has no problem", c)
		}
	}
}

// A key is removed from sec-websocket-protocol with its comma; the rest stays byte for byte.
func TestProtocolsWithoutTheKey(t *testing.T) {
	w := newWorld(t, everything)
	rapid.Check(t, func(t *rapid.T) {
		var headers []string
		var want []string
		keys := 0
		for range rapid.IntRange(1, 3).Draw(t, "headers") {
			var all, kept []string
			for range rapid.IntRange(1, 4).Draw(t, "items") {
				item := rapid.SampledFrom([]string{"chat", " chat ", "super.chat;q=1", "\tx", "wh_short", ""}).Draw(t, "item")
				if rapid.Bool().Draw(t, "is a key") {
					item = rapid.SampledFrom([]string{"", " ", "bearer."}).Draw(t, "before") + w.ada
					keys++
				} else {
					kept = append(kept, item)
				}
				all = append(all, item)
			}
			headers = append(headers, strings.Join(all, ","))
			if rest := strings.Join(kept, ","); strings.Trim(rest, " \t,") != "" {
				want = append(want, strings.TrimLeft(rest, " \t"))
			}
		}
		r := authz.Request{Method: "GET", Path: "/x", Protocols: headers}
		switch {
		case keys == 0:
			if d := w.expect(t, "no key", r, authz.Allowed); d.Rewrite.Protocols != "" {
				t.Errorf("%q was changed to %q", headers, d.Rewrite.Protocols)
			}
		case len(want) == 0:
			w.expect(t, "keys alone", r, authz.BadHeader)
		default:
			if d := w.expect(t, "a key", r, authz.Allowed); d.Rewrite.Protocols != strings.Join(want, ", ") {
				t.Errorf("%q became %q, want %q", headers, d.Rewrite.Protocols, want)
			}
		}
	})
}

// A path with escaped separators stays below its rule, however often an upstream decodes it.
func TestEscapesStayBelowTheirRule(t *testing.T) {
	w := newWorld(t, everything, authz.Rule{Path: "/b/*", Kind: authz.KindAPIKey, Encoded: true}, authz.Rule{Path: "/b", Kind: authz.KindSession})
	allowed := 0
	rapid.Check(t, func(t *rapid.T) {
		piece := rapid.SampledFrom([]string{"%23", "%3F", "%3f", "%25", "%252", "2", "e", "%2e", "%2F", "/", ".", "..", "a", "%20", "%C3%A7", "%3B", "api_key=", "&", "zz"})
		path := "/b/" + strings.Join(rapid.SliceOfN(piece, 1, 6).Draw(t, "pieces"), "")
		d, err := w.decide(t, authz.Request{Method: "GET", Path: path, APIKey: []string{w.ada}})
		if err != nil || !d.Allowed() {
			return
		}
		allowed++
		decoded := path
		for range 3 {
			decoded = decodeLeniently(decoded)
			whole, query, _ := strings.Cut(decoded, "?")
			whole, _, _ = strings.Cut(whole, "#")
			if !strings.HasPrefix(whole, "/b/") || strings.HasSuffix(whole, "/.") || strings.HasSuffix(whole, "/..") || strings.Contains(decoded, "/../") || strings.HasSuffix(decoded, "/..") || strings.Contains(decoded, "//") ||
				strings.Count(decoded, "/") != strings.Count(path, "/") || strings.Contains(query, "api_key") {
				t.Errorf("%s is allowed, and some read %s", path, decoded)
			}
		}
	})
	if allowed == 0 {
		t.Error("nothing was allowed: this proves nothing")
	}
}

// decodeLeniently decodes the valid escapes of s and keeps the others, as lenient programs do.
func decodeLeniently(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+3], 16, 8); err == nil {
				b.WriteByte(byte(c))
				i += 2
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// A preflight for another spelling of a path is answered if the request that it asks about would
// pass.
func TestPreflightsForOtherSpellings(t *testing.T) {
	const app = "https://app.example"
	w := shared(t, authz.CORS{Origins: []string{app}},
		authz.Rule{Path: "/a/*", Kind: authz.KindAPIKey}, authz.Rule{Path: "/a/list", Kind: authz.KindAPIKey, Methods: []string{"GET"}},
		authz.Rule{Path: "/b/*", Kind: authz.KindAPIKey, CORS: authz.CORSOff}, authz.Rule{Path: "/b/list", Kind: authz.KindAPIKey, Methods: []string{"GET"}})
	for _, row := range []struct {
		path, method string
		want         authz.Reason
	}{
		{"/a/list.json", "GET", authz.Preflight},
		{"/a/List", "GET", authz.Preflight},
		{"/a/list.json", "DELETE", authz.OtherSpelling},
		// an ordinary OPTIONS, which /b/list does not permit
		{"/b/list.json", "GET", authz.OtherSpelling},
	} {
		w.expect(t, row.path+" "+row.method, authz.Request{Method: "OPTIONS", Path: row.path, Origin: app, RequestMethod: row.method}, row.want)
	}
}

// A rule with an answer by Keyporter cannot leave preflights to the upstream.
func TestAnAnswerOfOursHasNoUpstream(t *testing.T) {
	_, err := authz.NewRouteTable([]authz.Rule{{Path: "/a", Kind: authz.KindAPIKey, Methods: []string{"GET"}, Answer: authz.AnswerCredits, CORS: authz.CORSUpstream}})
	if err == nil {
		t.Error("cors: upstream beside answer: credits is no error")
	}
}

package e2e_test

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// corsTable is a route table that allows pages of other origins.
const corsTable = `
cors:
  origins: ["https://app.example.com", "http://localhost:3000"]
routes:
  - {paths: ["/v1/brands", "/v1/brands/*"], kind: api_key}
  - {paths: /v1/credits, kind: api_key, methods: [GET], answer: credits}
  - {paths: /v1/read, kind: api_key, methods: [GET, POST]}
  - {paths: /v1/off, kind: api_key, cors: off}
  - {paths: /v1/own, kind: api_key, cors: upstream}
  - {paths: /open, kind: public}
  - {paths: /own, kind: session}
  - {paths: [/api, /api/regenerate, "/api/-/*"], kind: session, to: page}
  - {paths: [/api/-/login, /api/-/logout, "/api/-/static/*"], kind: public, to: page}
`

const (
	allowOrigin   = "Access-Control-Allow-Origin"
	exposeHeaders = "Access-Control-Expose-Headers"
	shownHeaders  = "x-ratelimit-limit, x-ratelimit-remaining, x-ratelimit-reset, x-credits-remaining, retry-after, www-authenticate, allow"
	app           = "https://app.example.com"
)

// preflight is a browser's preflight before a page sends method with the header x-api-key.
func preflight(target, origin, method string, header ...string) request {
	return request{method: "OPTIONS", target: target, header: append([]string{
		"Origin: " + origin, "Access-Control-Request-Method: " + method, "Access-Control-Request-Headers: x-api-key",
	}, header...)}
}

// The authorizer answers a browser's preflight itself, free of charge and regardless of
// credentials, on routes that the table opens to other origins. On all other routes, a preflight is
// an ordinary request.
func TestPreflights(t *testing.T) {
	t.Parallel()
	s := start(t, stackConfig{config: corsTable})
	key := s.user("ann", "metered", "--credits", "1000")
	all := "GET, HEAD, POST, PUT, PATCH, DELETE"
	for _, row := range []struct {
		name string
		request
		status                   int
		origin, methods, headers string
	}{
		{"a key route", preflight("/v1/brands", app, "GET"), 204, app, all, "x-api-key, authorization, content-type"},
		{"below it, with a query", preflight("/v1/brands/7/?page=2", app, "DELETE"), 204, app, all, "x-api-key, authorization, content-type"},
		{"another origin of the list", preflight("/v1/brands", "http://localhost:3000", "GET"), 204, "http://localhost:3000", all, "x-api-key, authorization, content-type"},
		{"a method of nobody's", preflight("/v1/brands", app, "PROPFIND"), 204, app, all + ", PROPFIND", "x-api-key, authorization, content-type"},
		{"a method that is never permitted", preflight("/v1/brands", app, "TRACE"), 204, app, all, "x-api-key, authorization, content-type"},
		{"a rule with methods", preflight("/v1/read", app, "GET"), 204, app, "GET, HEAD, POST", "x-api-key, authorization, content-type"},
		{"a method that the rule lacks", preflight("/v1/read", app, "PUT"), 204, app, "GET, HEAD, POST", "x-api-key, authorization, content-type"},
		{"the balance", preflight("/v1/credits", app, "GET"), 204, app, "GET, HEAD", "x-api-key, authorization, content-type"},
		{"a public route", preflight("/open", app, "GET"), 204, app, all, "x-api-key, authorization, content-type"},
		{"a good key beside it", preflight("/v1/brands", app, "GET", "X-API-Key: "+key), 204, app, all, "x-api-key, authorization, content-type"},
		{"a bad key beside it", preflight("/v1/brands", app, "GET", "X-API-Key: wh_bad"), 204, app, all, "x-api-key, authorization, content-type"},
		{"an origin that is not listed", preflight("/v1/brands", "https://evil.example", "GET"), 204, "", "", ""},
		{"an origin that begins like one", preflight("/v1/brands", app+".evil.example", "GET"), 204, "", "", ""},
		{"the origin null", preflight("/v1/brands", "null", "GET"), 204, "", "", ""},
		{"a path that is not canonical", preflight("/v1/brands;x", app, "GET"), 400, "", "", ""},
		{"a path without a rule", preflight("/v1/nothing", app, "GET"), 404, "", "", ""},
		{"another spelling of a key route", preflight("/v1/Brands", app, "GET"), 404, "", "", ""},
		{"a rule that has it off", preflight("/v1/off", app, "GET"), 401, "", "", ""},
		{"a session route", preflight("/own", app, "GET"), 401, "", "", ""},
		{"the page", preflight("/api", app, "GET"), 401, "", "", ""},
		{"a public route of the page", preflight("/api/-/login", app, "GET"), 405, "", "", ""},
	} {
		for _, version := range versions {
			a := s.over(version, row.request)
			what := row.name + ", " + version
			if a.status != row.status {
				t.Errorf("%s: %d %s, want %d", what, a.status, a.body, row.status)
			}
			for name, want := range map[string]string{
				allowOrigin: row.origin, "Access-Control-Allow-Methods": row.methods, "Access-Control-Allow-Headers": row.headers,
			} {
				if got := a.header.Get(name); got != want {
					t.Errorf("%s: %s is %q, want %q", what, name, got, want)
				}
			}
			if row.status == 204 && (a.body != "" || a.header.Get("Vary") != "Origin, Access-Control-Request-Method, Access-Control-Request-Headers") {
				t.Errorf("%s: varies by %q, body %q", what, a.header.Values("Vary"), a.body)
			}
			if got := a.header.Get("Access-Control-Max-Age"); (got == "600") != (row.origin != "") {
				t.Errorf("%s: Access-Control-Max-Age is %q", what, got)
			}
			for name := range a.header {
				if name == "Access-Control-Allow-Credentials" {
					t.Errorf("%s: credentials are allowed", what)
				}
			}
		}
	}
	for _, incomplete := range []request{ // not preflights
		{method: "OPTIONS", target: "/v1/brands", header: []string{"Origin: " + app}},
		{method: "OPTIONS", target: "/v1/brands", header: []string{"Access-Control-Request-Method: GET"}},
		{method: "GET", target: "/v1/brands", header: []string{"Origin: " + app, "Access-Control-Request-Method: GET"}},
	} {
		if a := s.send(incomplete); a.status != 401 {
			t.Errorf("%s %q: %d, want 401", incomplete.method, incomplete.header, a.status)
		}
	}
	s.chargedNothing()
}

// A page of another origin reads denials and answers, with our headers. Caches learn that answers
// depend on the origin, for any caller, and CORS headers of the upstream take precedence.
func TestPagesOfOtherOriginsReadAnswers(t *testing.T) {
	t.Parallel()
	s := start(t, stackConfig{config: corsTable})
	key := s.user("ann", "metered", "--credits", "1000", "--rate-limit", "100")
	good := "X-API-Key: " + key
	for _, row := range []struct {
		name   string
		target string
		header []string
		method string
		status int
		origin string // the origin that may read it
		varies bool
	}{
		{"a yes", "/v1/brands", []string{good, "Origin: " + app}, "GET", 200, app, true},
		{"a yes without an origin", "/v1/brands", []string{good}, "GET", 200, "", true},
		{"a yes to another origin", "/v1/brands", []string{good, "Origin: https://evil.example"}, "GET", 200, "", true},
		{"the balance", "/v1/credits", []string{good, "Origin: " + app}, "GET", 200, app, true},
		{"no key", "/v1/brands", []string{"Origin: " + app}, "GET", 401, app, true},
		{"a bad key", "/v1/brands", []string{"X-API-Key: wh_bad", "Origin: " + app}, "GET", 401, app, true},
		{"a bad key without an origin", "/v1/brands", []string{"X-API-Key: wh_bad"}, "GET", 401, "", true},
		{"a method that is not allowed", "/v1/read", []string{good, "Origin: " + app}, "DELETE", 405, app, true},
		{"a failing upstream", "/v1/brands", []string{good, "Origin: " + app, "x-test-answer: 500"}, "GET", 500, app, true},
		{"a public route", "/open", []string{"Origin: " + app}, "GET", 200, app, true},
		{"a rule that has it off", "/v1/off", []string{good, "Origin: " + app}, "GET", 200, "", false},
		{"a session route", "/own", []string{"Origin: " + app}, "GET", 401, "", false},
		{"no rule", "/v1/nothing", []string{good, "Origin: " + app}, "GET", 404, "", false},
		{"what Envoy refuses by itself", "/v1/brands/%2f", []string{good, "Origin: " + app}, "GET", 400, "", false},
		{"what the upstream says", "/v1/brands", []string{good, "Origin: " + app, "x-test-answer: cors"}, "GET", 200, "https://upstream.example", true},
	} {
		for _, version := range versions {
			a := s.over(version, request{method: row.method, target: row.target, header: row.header})
			what := row.name + ", " + version
			if a.status != row.status {
				t.Errorf("%s: %d %s, want %d", what, a.status, a.body, row.status)
			}
			if got := a.header.Values(allowOrigin); strings.Join(got, "|") != row.origin {
				t.Errorf("%s: %s is %q, want %q", what, allowOrigin, got, row.origin)
			}
			if got := a.header.Get(exposeHeaders); row.origin == app && got != shownHeaders || row.origin == "" && got != "" {
				t.Errorf("%s: %s is %q", what, exposeHeaders, got)
			}
			if row.origin == "https://upstream.example" && (a.header.Get(exposeHeaders) != "x-own" || a.header.Get("Vary") != "Accept-Encoding,Origin") {
				t.Errorf("%s: the upstream's own headers became %v", what, a.header)
			}
			if got := variesByOrigin(a.header); got != row.varies {
				t.Errorf("%s: varies by %q", what, a.header.Values("Vary"))
			}
		}
	}
}

func variesByOrigin(header http.Header) bool {
	for _, value := range header.Values("Vary") {
		for name := range strings.SplitSeq(value, ",") {
			if strings.EqualFold(strings.TrimSpace(name), "origin") {
				return true
			}
		}
	}
	return false
}

// With "*" the answer contains a literal "*", so that a shared cache needs one answer for all.
func TestAnyOriginMayRead(t *testing.T) {
	t.Parallel()
	s := start(t, stackConfig{config: strings.Replace(corsTable, `["https://app.example.com", "http://localhost:3000"]`, `"*"`, 1)})
	key := s.user("ann", "pro")
	for _, r := range []request{
		preflight("/v1/brands", "https://anybody.example", "GET"), preflight("/v1/brands", "null", "GET"),
		{target: "/v1/brands", header: []string{"Origin: https://anybody.example", "X-API-Key: " + key}},
		{target: "/v1/brands", header: []string{"Origin: null"}},
	} {
		if got := s.send(r).header.Get(allowOrigin); got != "*" {
			t.Errorf("%s %q: %s is %q, want *", r.verb(), r.header, allowOrigin, got)
		}
	}
}

// With `cors: upstream` a preflight without a body goes to the upstream, free of charge, and
// carries nothing that could open or change anything there.
func TestPreflightsOfTheUpstream(t *testing.T) {
	t.Parallel()
	s := start(t, stackConfig{config: corsTable, flags: []string{"--upstream-preflights", "20"}})
	key, cookie := s.user("ann", "metered", "--credits", "1000"), "a=1; "+s.session("ann")
	r := preflight("/v1/own?a=1&api_key="+key+"&b=%20", app, "PUT", "X-API-Key: "+key, "Authorization: Basic eDp5", "Cookie: "+cookie,
		"x-http-method-override: DELETE", "X-HTTP-Method: DELETE", "X-Method-Override: DELETE", "x-keyporter-user: eve", "x-keyporter-new: eve", "x-test-id: it")
	for _, version := range versions {
		a := s.over(version, r)
		seen, arrived := s.upstream.take("it")
		if got := a.header.Get(allowOrigin); got != "" || !variesByOrigin(a.header) {
			t.Errorf("%s: %s is %q, though the upstream has said nothing; varies by %q", version, allowOrigin, got, a.header.Values("Vary"))
		}
		if a.status != 200 || !arrived || seen.method != "OPTIONS" || seen.target != "/v1/own?a=1&b=%20" {
			t.Fatalf("%s: %d %s, arrived: %v %s %s", version, a.status, a.body, arrived, seen.method, seen.target)
		}
		for name, values := range seen.header {
			if strings.HasPrefix(name, "X-Keyporter") || strings.Contains(strings.ToLower(name), "method-override") || name == "X-Http-Method" ||
				name == "Authorization" || name == "Cookie" || name == "X-Api-Key" {
				t.Errorf("%s: the upstream saw %s: %q", version, name, values)
			}
		}
		if seen.header.Get("Access-Control-Request-Method") != "PUT" || seen.header.Get("Origin") != app {
			t.Errorf("%s: the upstream saw %v", version, seen.header)
		}
	}
	for _, version := range versions {
		body := preflight("/v1/own", app, "PUT")
		body.form = "a=1"
		if a := s.over(version, body); a.status != 400 || !strings.Contains(a.body, "a CORS preflight has no body") {
			t.Errorf("%s: with a body: %d %s, want 400", version, a.status, a.body)
		}
	}
	// the headers alone announce a body
	chunked := preflight("/v1/own", app, "PUT", "Transfer-Encoding: chunked")
	if a := s.send(chunked); a.status != 400 || !strings.Contains(a.body, "a CORS preflight has no body") {
		t.Errorf("with chunks: %d %s, want 400", a.status, a.body)
	}
	// More than the limit of a second, until one is rejected: a busy machine sends them slowly.
	many := make([]request, 200)
	for i := range many {
		many[i] = preflight("/v1/own", app, "PUT")
	}
	partstest.EventuallyNil(t, "a preflight is refused", func() error {
		var statuses tally
		s.sendAll(many, func(_ int, a sent) {
			statuses.add(a.status)
			if a.status == 429 && (a.answer.header.Get("Retry-After") != "1" || !strings.Contains(a.body, `"code":"rate_limited"`)) {
				t.Errorf("refused with %v %s", a.answer.header, a.body)
			}
		})
		if n := statuses.of; n[200] == 0 || n[200]+n[429] != len(many) {
			t.Fatalf("%d preflights were answered %v, want 200 for some and 429 for all others", len(many), n)
		}
		if statuses.of[429] == 0 {
			return errors.New("all have passed")
		}
		return nil
	})
	s.chargedNothing()
	mustNotContain(t, "what Envoy and Keyporter wrote", s.written(), key)
}

// `keyporter check` explains a preflight and the headers that a page may read.
func TestCheckExplainsOrigins(t *testing.T) {
	t.Parallel()
	s := start(t, stackConfig{config: corsTable, noEnvoy: true, flags: patient})
	out, _, status := s.try("check", "OPTIONS", "/v1/brands", "-H", "Origin: "+app, "-H", "Access-Control-Request-Method: GET")
	if want := "answered: preflight"; status != 1 || !strings.Contains(out, want) {
		t.Errorf("exit status %d: %s, want %q", status, out, want)
	}
	out, _, _ = s.try("check", "/v1/brands", "-H", "Origin: "+app)
	if want := fmt.Sprintf("pages of %s may read the answer", app); !strings.Contains(out, want) {
		t.Errorf("%s, want %q", out, want)
	}
}

package e2e_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// credentials are the credentials that each request of a test carries.
type credentials struct{ key, cookie string }

func (c credentials) headers() map[string][]string {
	return map[string][]string{
		"a key":               {"X-API-Key: " + c.key},
		"a session":           {"Cookie: " + c.cookie},
		"a key and a session": {"X-API-Key: " + c.key, "Cookie: " + c.cookie},
		"nothing":             nil,
	}
}

// Every route of the contract's table with each kind of credential: a key opens no session route, a
// session no API route, and a path without a rule is not found.
func TestEveryRouteWithEachCredential(t *testing.T) {
	t.Parallel()
	s := start(t, stackConfig{})
	c := credentials{s.user("ann", "pro"), s.session("ann")}
	kinds := map[string]map[string]int{ // kind → credential → status
		"api_key": {"a key": 200, "a session": 401, "a key and a session": 200, "nothing": 401},
		"session": {"a key": 401, "a session": 200, "a key and a session": 200, "nothing": 401},
		"login":   {"a key": 200, "a session": 200, "a key and a session": 200, "nothing": 200},
		"logout":  {"a key": 405, "a session": 405, "a key and a session": 405, "nothing": 405}, // a GET changes nothing
		// by the page, which does not have this file
		"static": {"a key": 404, "a session": 404, "a key and a session": 404, "nothing": 404},
		"page":   {"a key": 401, "a session": 404, "a key and a session": 404, "nothing": 401},
		"none":   {"a key": 404, "a session": 404, "a key and a session": 404, "nothing": 404},
	}
	routes := map[string]string{ // path → kind
		"/": "none", "/admin": "none", "/apix": "none", "/API": "none", "/v1/brands": "none", "/api/v1/": "none",
		"/api/v1/other": "none", "/api/v1/tiktok-shop": "none", "/api/v1/brandsx": "none", "/api/v1/brands-x/y": "none", "/api/v1/Brands": "none",
		"/api/-/login": "login", "/api/-/logout": "logout", "/api/-/static/x.css": "static", "/api/-/x": "page", "/api/-/static": "page",
		"/api": "session", "/api/": "session", "/api/other": "session", "/api/tiktok-shop/x": "session", "/api/product-detail/x": "session",
		"/api/magic-ai": "session", "/api/brands": "session", "/api/markalar": "session", "/api/v1x": "session", "/api/adlibraryx": "session",
		"/api/v1/tiktok-shop/credits": "api_key", "/api/v1/tiktok-shop/x": "api_key", "/api/v1/tiktok-shop/x/y": "api_key",
	}
	for _, resource := range []string{"adlibrary", "magic-ai", "store-tracker", "store-explorer", "brands", "markalar"} {
		routes["/api/v1/"+resource] = "api_key"
		routes["/api/v1/"+resource+"/x"] = "api_key"
		routes["/api/v1/"+resource+"/x/y/"] = "api_key"
		routes["/api/v1/"+resource+"x"] = "none"
	}
	for _, resource := range []string{"adlibrary", "store-tracker", "store-explorer"} {
		routes["/api/"+resource] = "api_key"
		routes["/api/"+resource+"/x"] = "api_key"
	}
	var requests []request
	var rows []string
	var want []int
	for path, kind := range routes {
		for name, header := range c.headers() {
			requests = append(requests, request{target: path, header: header})
			rows = append(rows, fmt.Sprintf("%s with %s", path, name))
			want = append(want, kinds[kind][name])
		}
	}
	s.sendAll(requests, func(i int, o sent) {
		if o.status != want[i] {
			t.Errorf("%s: %d %s, want %d", rows[i], o.status, o.body, want[i])
		}
		if o.arrived && strings.Contains(o.target, "markalar") && !strings.Contains(o.seen.target, "/brands") {
			t.Errorf("%s: the upstream saw %s, want brands", rows[i], o.seen.target)
		}
		if o.status != 200 && o.arrived {
			t.Errorf("%s: refused, yet the upstream was called", rows[i])
		}
	})
	t.Logf("%d requests", len(requests))
}

// hostile are forms that some programs resolve and others do not.
var hostile = []string{
	".", "..", "%2e", "%2e%2e", ".%2e", "%2E.", "..;", ".;", "..;x=y", ";", ";x", "x;y=z", "%3b", "..%3b", "%2f", "%2F", "..%2f", "%5c",
	"%5C", "\\", "..\\", "..%5c", "%00", "x%00y", "%252f", "%252e%252e", "%255c", "%25", "%25%32%66", "%", "%z", "%zz", "%2", "%61", "%41",
	"%7e", "%2d", "%5f", "%30", "%0a", "%0d%0a", "%09", "%7f", "%c0%af", "%c0%ae%c0%ae", "%e0%80%af", "%ff", "%c3", "\xc3\xa9", "\xff", "#", "x#y",
	"%23", "%3f", "", "x y", "*", "%u002f", "..%ef%bc%8f", "%c1%9c", "%f0%80%80%af",
}

// No hostile path is allowed outside the rule that it is sent for. At every segment, through Envoy,
// a request is either rejected or arrives at a path of the API with nothing left to resolve.
func TestHostilePathsOpenNothing(t *testing.T) {
	partstest.Slow(t)
	t.Parallel()
	s := start(t, stackConfig{})
	key := s.user("ann", "pro")
	var requests []request
	for _, form := range slices.Concat(hostile, loose, unseen, odd, suffixes, []string{"V1", "Brands", "%EF%BC%A2", "br%EF%BD%81nds", "%C4%B1", "%C5%BF", "%E2%84%AA"}) {
		for _, path := range []string{
			"/%s", "/%s/api/v1/brands", "/api/%s/v1/brands", "/api/%s", "/api/v1/%s", "/api/v1/%s/brands", "/api/v1/brands%s", "/api/v1/brands%sx",
			"/api/v1/brands/%s", "/api/v1/brands/%s/x", "/api/v1/brands/%s/admin", "/api/v1/brands/x%sx/y", "/api/v1/brands/%s/%s/%s/admin",
			"/api/v1/brands/../%s/admin", "/%sapi/v1/brands", "/api%sv1/brands",
		} {
			target := strings.ReplaceAll(path, "%s", form)
			if strings.Contains(target, " ") {
				continue // not a valid request line
			}
			requests = append(requests, request{target: target, header: []string{"X-API-Key: " + key}})
		}
	}
	arrived := make(chan string, len(requests))
	s.sendAll(requests, func(_ int, o sent) {
		if !o.arrived {
			if o.status < 400 && o.status != 307 {
				t.Errorf("%q: %d without the upstream", o.target, o.status)
			}
			return
		}
		arrived <- o.seen.target
		if problem := outside(o.seen.target); problem != "" {
			t.Errorf("%q arrived as %q: %s", o.target, o.seen.target, problem)
		}
	})
	t.Logf("%d requests, %d arrived, all below the API's paths", len(requests), len(arrived))

	// The direct questions imitate a proxy that resolves nothing: an allowed path needs no
	// resolving.
	c, allowed := newChecker(t, s.replicas[0]), 0
	for _, r := range requests {
		status, err := c.status(strings.ToValidUTF8(r.target, "!"), "x-api-key", key)
		if err != nil {
			t.Errorf("%q: %v", r.target, err)
		}
		if status != 200 {
			continue
		}
		allowed++
		if problem := outside(r.target); problem != "" {
			t.Errorf("%q is allowed straight: %s", r.target, problem)
		}
	}
	t.Logf("%d requests straight, %d allowed", len(requests), allowed)
	s.hasNoOtherSpelling("Cookie: " + s.session("ann"))
}

// hasNoOtherSpelling fails the test if a session opens a path that some upstreams treat as a
// metered one.
func (s *stack) hasNoOtherSpelling(session string) {
	s.t.Helper()
	var requests []request
	for _, path := range respelled {
		targets := append(spellLetters(path), strings.ToUpper(path))
		for _, form := range slices.Concat(loose, unseen, []string{".json", ".HTML", ".%6Ason", "%2Ejson", ".json%20", "%EF%BC%8Ejson"}) {
			targets = append(targets, path+form, path+form+"/", strings.Replace(path, "/a", "/A", 1)+form, strings.Replace(path, "i", "%C4%B1", 1)+form)
		}
		for _, form := range slices.Concat(loose, unseen) {
			targets = append(targets, strings.Replace(path, "/v1", "/v1"+form, 1)+"/x", strings.Replace(path, "/api", "/api"+form, 1))
		}
		for _, form := range unseen {
			targets = append(targets, path[:len(path)-2]+form+path[len(path)-2:], path[:5]+form+path[5:])
		}
		for _, target := range targets {
			requests = append(requests, request{target: target, header: []string{session}})
		}
	}
	s.sendAll(requests, func(_ int, o sent) {
		if o.arrived || o.status < 400 {
			s.t.Errorf("%s is opened by a session: %d", o.target, o.status)
		}
	})
	for i := 0; i < len(requests); i += 25 { // Envoy parses HTTP/2 with another codec
		if a := s.over("HTTP/2", requests[i]); a.status < 400 {
			s.t.Errorf("%s is opened by a session over HTTP/2: %d", requests[i].target, a.status)
		}
	}
	s.t.Logf("%d spellings of metered paths with a session", len(requests))
}

// outside explains why a target that reached the upstream is not clearly a path of the API.
func outside(target string) string {
	path, _, _ := strings.Cut(target, "?")
	if path != "/api/v1/brands" && !strings.HasPrefix(path, "/api/v1/brands/") {
		return "not a path that a key opens here"
	}
	for _, segment := range strings.Split(path[1:], "/") {
		if segment == "." || segment == ".." {
			return "a dot segment is left"
		}
	}
	lower := strings.ToLower(path)
	for _, form := range []string{"//", "\\", ";", "#", "%2f", "%5c", "%2e", "%00", "%3b", "%23", "%25", "%3f", "%c0", "%c1"} {
		if strings.Contains(lower, form) {
			return "holds " + form
		}
	}
	return ""
}

package e2e_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/keyporter/keyporter/internal/contract"
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

// No hostile path is allowed outside the rule that it is sent for. At every segment, through Envoy,
// a request is either rejected or arrives at a path of the API with nothing left to resolve.
func TestHostilePathsOpenNothing(t *testing.T) {
	partstest.Slow(t)
	t.Parallel()
	s := start(t, stackConfig{})
	key := s.user("ann", "pro")
	var requests []request
	for _, target := range contract.HostilePaths("/api/v1/brands") {
		requests = append(requests, request{target: target, header: []string{"X-API-Key: " + key}})
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
		if problem := contract.Outside("/api/v1/brands", o.seen.target); problem != "" {
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
		if problem := contract.Outside("/api/v1/brands", r.target); problem != "" {
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
		for _, form := range slices.Concat(contract.Loose, contract.Unseen, []string{".json", ".HTML", ".%6Ason", "%2Ejson", ".json%20", "%EF%BC%8Ejson"}) {
			targets = append(targets, path+form, path+form+"/", strings.Replace(path, "/a", "/A", 1)+form, strings.Replace(path, "i", "%C4%B1", 1)+form)
		}
		for _, form := range slices.Concat(contract.Loose, contract.Unseen) {
			targets = append(targets, strings.Replace(path, "/v1", "/v1"+form, 1)+"/x", strings.Replace(path, "/api", "/api"+form, 1))
		}
		for _, form := range contract.Unseen {
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

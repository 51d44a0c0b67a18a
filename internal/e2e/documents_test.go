package e2e_test

import (
	"os"
	"regexp"
	"testing"
)

// example returns the first block of YAML of a document, as a reader would copy it.
func example(t testing.TB, document string) string {
	t.Helper()
	text, err := os.ReadFile("../../docs/" + document)
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindSubmatch(text)
	if block == nil {
		t.Fatalf("%s has no example in YAML", document)
	}
	return string(block[1])
}

// The example of the document on browsers does what the document says.
func TestTheExampleForBrowsers(t *testing.T) {
	s := start(t, stackConfig{config: example(t, "browsers.md")})
	key := s.user("ann", "pro", "--rate-limit", "60")
	if a := s.send(preflight("/v1/brands", app, "GET")); a.status != 204 || a.header.Get(allowOrigin) != app || a.header.Get("Access-Control-Max-Age") != "600" {
		t.Errorf("a preflight: %d %v", a.status, a.header)
	}
	a := s.send(request{target: "/v1/brands", header: []string{"Origin: " + app, "X-API-Key: " + key}})
	if a.status != 200 || a.header.Get(allowOrigin) != app || a.header.Get(exposeHeaders) != shownHeaders || a.header.Get("X-Ratelimit-Remaining") != "59" {
		t.Errorf("an answer: %d %v", a.status, a.header)
	}
	if a := s.send(request{target: "/v1/internal", header: []string{"Origin: " + app, "X-API-Key: " + key}}); a.status != 200 || a.header.Get(allowOrigin) != "" {
		t.Errorf("a rule that has it off: %d %v", a.status, a.header)
	}
	if a := s.send(request{target: "/api/-/login", header: []string{"Origin: " + app}}); a.status != 200 || a.header.Get(allowOrigin) != "" {
		t.Errorf("the login: %d %v", a.status, a.header)
	}
}

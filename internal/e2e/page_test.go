package e2e_test

import (
	"encoding/json"
	"strings"
	"testing"
)

// A user regenerates the key on the page behind Envoy, only from the page's own origin; the old key
// is revoked when the answer arrives. A client that reaches the page's port directly needs a
// session as well.
func TestRegeneratingOnThePage(t *testing.T) {
	t.Parallel()
	s := start(t, stackConfig{})
	key, cookie := s.user("ann", "pro"), s.session("ann")
	post := func(headers ...string) answer {
		return s.send(request{method: "POST", target: "/api/regenerate", header: append(headers, "Content-Length: 0")})
	}
	own := "http://api.example.com"
	for name, headers := range map[string][]string{
		"another site":        {"Cookie: " + cookie, "Origin: http://evil.example.com"},
		"another port":        {"Cookie: " + cookie, "Origin: " + own + ":81"},
		"no session":          {"Origin: " + own},
		"a key":               {"X-API-Key: " + key, "Origin: " + own},
		"a forged identity":   {"x-keyporter-user: ann", "Origin: " + own},
		"another site's page": {"Cookie: " + cookie, "Sec-Fetch-Site: cross-site"},
	} {
		if a := post(headers...); a.status != 401 && a.status != 403 {
			t.Errorf("%s: %d %s, want a refusal", name, a.status, a.body)
		}
	}
	direct := &connection{address: s.replicas[0].page}
	defer direct.close()
	if a, err := direct.send(request{target: "/api", header: []string{"x-keyporter-user: ann"}}); err != nil || a.status != 401 {
		t.Errorf("directly, with a forged header: %d, %v, want 401", a.status, err)
	}

	a := post("Cookie: "+cookie, "Origin: "+own)
	var got struct {
		Key       string
		Confirmed bool
	}
	if err := json.Unmarshal([]byte(a.body), &got); err != nil || a.status != 200 || !got.Confirmed || got.Key == "" {
		t.Fatalf("%d, %v: want the new key, confirmed", a.status, err)
	}
	for value, status := range map[string]int{key: 401, got.Key: 200} {
		if a := s.send(request{target: "/api/v1/brands", header: []string{"X-API-Key: " + value}}); a.status != status {
			t.Errorf("%d %s, want %d", a.status, strings.ReplaceAll(a.body, value, "KEY"), status)
		}
	}
	mustNotContain(t, "what Envoy and Keyporter wrote", s.written(), key, got.Key)
}

package envoy_test

import (
	"strings"
	"testing"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/bearer"
	"github.com/keyporter/keyporter/envoy"
	"github.com/keyporter/keyporter/envoy/codec"
)

// Behind a real Envoy with the generated configuration, gRPC token included: requests go where the
// table sends them, refusals are ours, and neither the access log nor the upstream sees the key.
func TestBehindARealEnvoy(t *testing.T) {
	token, err := bearer.Parse("a-token-of-some-length")
	if err != nil {
		t.Fatal(err)
	}
	p := startProxy(t, envoy.Config{Token: token}, token)
	key := p.key.Reveal()
	for _, row := range []struct {
		request string
		header  string
		status  int
		body    string
		saw     *witness
	}{
		{"GET /api/v1/brands?a=1", "x-api-key: " + key, 200, "seen", p.upstream},
		{"GET /api/v1/brands?api_key=" + key + "&a=1", "x-other: 1", 200, "seen", p.upstream},
		{"GET /api/-/login", "x-other: 1", 200, "seen", p.page},
		{"GET /api/v1/brands", "x-other: 1", 401, `"code":"unauthorized"`, nil},
		{"GET /nowhere?api_key=" + key, "x-api-key: " + key, 404, `"code":"not_found"`, nil},
		{"GET /api/v1/brands/%2f", "x-api-key: " + key, 400, `"code":"bad_request"`, nil},
		{"GET /api/v1/brands", "x_api_key: " + key, 401, `"code":"unauthorized"`, nil},
	} {
		answer, body := p.send(t, row.request, row.header)
		if answer.StatusCode != row.status || !strings.Contains(body, row.body) {
			t.Errorf("%s: %d %s, want %d %s", row.request, answer.StatusCode, body, row.status, row.body)
		}
		for name, w := range map[string]*witness{"upstream": p.upstream, "page": p.page} {
			switch seen := w.take(); {
			case (seen != nil) != (w == row.saw):
				t.Errorf("%s: arrived at the %s: %v", row.request, name, seen != nil)
			case seen != nil && (strings.Contains(seen.RequestURI, key) || seen.Header.Get("x-api-key") != ""):
				t.Errorf("%s: the %s saw the key", row.request, name)
			}
		}
	}
	p.Stop() // writes the rest of the access log
	if log := p.Output(); !strings.Contains(log, "/api/v1/brands") || strings.Contains(log, key) || strings.Contains(log, "a=1") {
		t.Errorf("the access log is empty, or holds a key or a query:\n%s", strings.ReplaceAll(log, key, "KEY"))
	}
}

// An Envoy without the token gets no decision, so it lets nothing pass.
func TestWithoutTheTokenNothingPasses(t *testing.T) {
	token, err := bearer.Parse("a-token-of-some-length")
	if err != nil {
		t.Fatal(err)
	}
	p := startProxy(t, envoy.Config{Token: token}, bearer.Token{})
	if answer, body := p.send(t, "GET /api/v1/brands", "x-api-key: "+p.key.Reveal()); answer.StatusCode != 503 || !strings.Contains(body, `"code":"unavailable"`) {
		t.Errorf("%d %s, want 503", answer.StatusCode, body)
	}
}

// A client's claims about itself do not reach the upstream: our headers, whether named as
// hop-by-hop or not, and Envoy's own, although the client has a private address.
func TestClientsCannotPoseAsOthers(t *testing.T) {
	p := startProxy(t, envoy.Config{}, bearer.Token{})
	answer, body := p.send(t, "GET /api/v1/brands", "x-api-key: "+p.key.Reveal(),
		"connection: x-keyporter-user", "te: trailers",
		"x-keyporter-user: eve", "X-Keyporter-User: eve", "x.keyporter.user: eve", "x-keyporter-charge: eve", "x-keyporter-new: eve",
		"x-envoy-internal: eve", "x-envoy-original-path: eve", "x-envoy-upstream-rq-timeout-ms: 1")
	if answer.StatusCode != 200 {
		t.Fatalf("%d %s", answer.StatusCode, body)
	}
	seen := p.upstream.take()
	if got := seen.Header.Values(codec.HeaderUser); len(got) != 1 || got[0] != "ada" {
		t.Errorf("the upstream saw the user %q, want ada once", got)
	}
	for name, values := range seen.Header {
		if strings.Contains(strings.Join(values, " "), "eve") || strings.HasPrefix(name, "X-Envoy-Upstream") || name == "X-Envoy-Internal" {
			t.Errorf("the upstream saw %s: %q", name, values)
		}
	}
}

// Without Keyporter nothing passes, and a client reads the same body as from Keyporter itself.
func TestWithoutKeyporterNothingPasses(t *testing.T) {
	p := startProxy(t, envoy.Config{}, bearer.Token{})
	if err := p.server.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	answer, body := p.send(t, "GET /api/v1/brands", "x-api-key: "+p.key.Reveal())
	if answer.StatusCode != 503 || body != authz.Undecided.Outcome().Body() || answer.Header.Get("retry-after") != "1" {
		t.Errorf("%d %s %v", answer.StatusCode, body, answer.Header)
	}
}

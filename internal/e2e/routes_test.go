package e2e_test

import (
	"strings"
	"testing"
)

// The example in the document on routes works as described.
func TestTheExampleForRoutes(t *testing.T) {
	t.Parallel()
	config := strings.NewReplacer("api:3000", "UPSTREAM", "search:50051", "UPSTREAM").Replace(example(t, "routes.md"))
	s := start(t, stackConfig{noEnvoy: true, flags: patient, config: config})
	if out, problems, status := s.try("config", "check"); status != 0 || problems != "" {
		t.Errorf("config check: status %d, %s%s", status, out, problems)
	}
	key := s.user("ann", "metered", "--credits", "1000")
	s.startEnvoyWith(t, nil)
	const api, below, other = "api.example.com", "eu.example.com", "other.example"
	used := int64(0)
	for _, row := range []struct {
		method, host, path string
		status             int
		seen               string // path that the upstream receives; "": none
		cost               int64
	}{
		{"GET", api, "/v1/a", 200, "/v1/a", 1},
		{"POST", api, "/v1/a/", 200, "/v1/a/", 1},
		{"GET", api, "/v1/search/x", 200, "/v1/search/x", 1},
		{"GET", api, "/v1/export/x", 200, "/v1/export/x", 25},
		{"POST", api, "/v1/export/x", 405, "", 0},
		{"GET", api, "/v1/Export/x", 404, "", 0},
		{"GET", api, "/v1/ex_port/x", 200, "/v1/ex_port/x", 1},
		{"GET", api, "/v1/tags/C%23", 200, "/v1/tags/C%23", 1},
		{"GET", api, "/v1/other/C%23", 400, "", 0},
		{"GET", api, "/v1/old", 200, "/v1/new", 1},
		{"GET", api, "/v1/credits", 200, "", 1},
		{"GET", api, "/internal/x", 404, "", 0},
		{"GET", below, "/v1/search/x", 200, "/v1/search/x", 1},
		{"GET", below, "/v1/a", 404, "", 0},
		{"GET", other, "/v1/a", 404, "", 0},
		{"GET", other, "/v1/old", 200, "/v1/new", 1},
		{"GET", other, "/status", 200, "/status", 0},
		{"GET", "api.example.com:x", "/v1/a", 400, "", 0},
	} {
		a := s.send(request{method: row.method, host: row.host, target: row.path, header: []string{"X-API-Key: " + key, "Content-Length: 0", "x-test-id: it"}})
		seen, _ := s.upstream.take("it")
		if a.status != row.status || seen.target != row.seen {
			t.Errorf("%s %s%s: %d %s, the upstream saw %q; want %d, %q", row.method, row.host, row.path, a.status, a.body, seen.target, row.status, row.seen)
		}
		used += row.cost
	}
	s.balanceBecomes("ann", used, 0)
	if out, _, status := s.try("check", "--rule", "report", "GET", "/any", "-H", "X-API-Key: "+key); status != 0 || !strings.Contains(out, "report") {
		t.Errorf("the rule by name: status %d, %s", status, out)
	}
}

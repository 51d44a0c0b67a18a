package e2e_test

import (
	"fmt"
	"strings"
	"testing"
)

// Two hosts have equal paths but different rules and upstreams, behind one Envoy. The rule of a
// request's host decides it and selects its upstream. Requests that Envoy and Keyporter could read
// differently are rejected.
func TestHostsAndUpstreams(t *testing.T) {
	t.Parallel()
	billing := startUpstream(t)
	s := start(t, stackConfig{noEnvoy: true, flags: patient, config: fmt.Sprintf(`
upstreams:
  default: http://127.0.0.1:1
  api: http://UPSTREAM
  billing: http://%s
routes:
  - {paths: ["/v1/*"], kind: api_key, hosts: [api.example.com], to: api}
  - {paths: ["/v1/*"], kind: api_key, cost: 5, hosts: ["*.billing.example.com"], to: billing}
  - {paths: ["/v1/open"], kind: public, to: billing}
  - {paths: /gone, kind: public}
`, billing.address)})
	key := s.user("ann", "metered", "--credits", "1000")
	s.startEnvoyWith(t, nil)
	used := int64(0)
	for _, row := range []struct {
		host, path string
		status     int
		at         *upstream
		cost       int64
	}{
		{"api.example.com", "/v1/x", 200, s.upstream, 1},
		{"API.example.com:8080", "/v1/x", 200, s.upstream, 1},
		{"api.example.com.", "/v1/x", 200, s.upstream, 1},
		{"eu.billing.example.com", "/v1/x", 200, billing, 5},
		{"a.eu.billing.example.com", "/v1/x", 200, billing, 5},
		{"billing.example.com", "/v1/x", 404, nil, 0},
		{"other.example", "/v1/x", 404, nil, 0},
		{"other.example", "/v1/open", 200, billing, 0},
		{"api.example.com", "/v1/open", 200, billing, 0},
		{"other.example", "/gone", 503, nil, 0},
		{"evil,api.example.com", "/v1/x", 400, nil, 0},
		{"api.example.com:x", "/v1/x", 400, nil, 0},
		{"api.example.com:", "/v1/x", 400, nil, 0},
	} {
		a := s.send(request{host: row.host, target: row.path, header: []string{"X-API-Key: " + key, "x-test-id: it"}})
		_, first := s.upstream.take("it")
		_, second := billing.take("it")
		if a.status != row.status || first != (row.at == s.upstream) || second != (row.at == billing) {
			t.Errorf("%s%s: %d %s, at the first upstream: %v, at billing: %v; want %d", row.host, row.path, a.status, a.body, first, second, row.status)
		}
		used += row.cost
	}
	s.balanceBecomes("ann", used, 0)
}

// A route of an operator's own Envoy selects a rule by its name, which then decides in place of the
// path. It cannot open the users' page or paths that are answered with 404, and an unknown name
// gets a 503.
func TestARouteAsksForARuleByName(t *testing.T) {
	t.Parallel()
	s := start(t, stackConfig{noEnvoy: true, flags: patient, config: `
routes:
  - {name: search, kind: api_key, cost: 5, methods: [GET]}
  - {paths: "/gone/*", kind: none}
  - {paths: "/*", kind: public}
`})
	key := s.user("ann", "metered", "--credits", "1000")
	// The operator's routes: /s/ selects the rule, /u/ an unknown one, /e/ none.
	var own strings.Builder
	for prefix, rule := range map[string]string{"/s/": "search", "/u/": "nothing", "/e/": "", "/gone/": "search", "/api": "search"} {
		fmt.Fprintf(&own, `              - match: { prefix: %q }
                route: { cluster: upstream }
                typed_per_filter_config:
                  envoy.filters.http.ext_authz:
                    "@type": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute
                    check_settings: { context_extensions: { keyporter-rule: %q, other: x } }
`, prefix, rule)
	}
	const first = "              # HTTP/1.0 with chunks."
	s.startEnvoyTo(t, s.upstream.address, first, own.String()+first)
	for _, version := range versions {
		for _, row := range []struct {
			request
			status int
		}{
			{request{target: "/s/x"}, 401},
			{request{target: "/s/x", header: []string{"X-API-Key: " + key}}, 200},
			{request{target: "/s/x", method: "POST", header: []string{"X-API-Key: " + key}}, 405},
			{request{target: "/s/x;y", header: []string{"X-API-Key: " + key}}, 400},
			{request{target: "/u/x", header: []string{"X-API-Key: " + key}}, 503},
			{request{target: "/e/x"}, 200},
			{request{target: "/gone/x", header: []string{"X-API-Key: " + key}}, 404},
			{request{target: "/api", header: []string{"X-API-Key: " + key}}, 401},
		} {
			if a := s.over(version, row.request); a.status != row.status {
				t.Errorf("%s %s %s: %d %s, want %d", version, row.verb(), row.target, a.status, a.body, row.status)
			}
		}
	}
	if n := s.replicas[0].metric(t, `keyporter_decisions_total{reason="unknown_rule"}`); n != "2" {
		t.Errorf("%s decisions by a rule that does not exist, want 2", n)
	}
	s.balanceBecomes("ann", 10, 0)
}

package kubernetes_test

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/keyporter/keyporter/internal/parts"
	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// The configuration that Keyporter prints does what every front has to do: the measure for the
// others.
func TestThePrintedConfiguration(t *testing.T) {
	s := startStack(t, 1)
	keys := s.keys()
	runMatrix(t, s, s.envoy(t, func(*envoyConfig) {}), matrix(keys), keys)
	s.usedCredits("ann", credited)
}

// What other fronts make of their objects differs from the printed configuration: joined headers,
// all of them, other names and time-outs, the route picked anew, an access log of all requests, or
// none. The decisions are the same. Without an access log, the credit of a failed request stays
// used.
func TestVariationsOfOtherFronts(t *testing.T) {
	for name, v := range map[string]struct {
		change func(e *envoyConfig)
		used   int
	}{
		"Contour": {func(e *envoyConfig) {
			e.authz["clear_route_cache"], e.authz["include_peer_certificate"] = true, true
			e.authz["status_on_error"] = map[string]any{"code": "Forbidden"}
			e.withoutReports()
		}, credited + 1},
		"Emissary": {func(e *envoyConfig) {
			e.authz["clear_route_cache"] = true
			e.authz["grpc_service"].(map[string]any)["timeout"] = "5s"
			e.withoutReports()
		}, credited + 1},
		"kgateway": {func(e *envoyConfig) {
			e.filter["name"] = "ext_auth/keyporter/keyporter"
			e.unfiltered()
		}, credited},
	} {
		t.Run(name, func(t *testing.T) {
			s := startStack(t, 1)
			keys := s.keys()
			front := s.envoy(t, func(e *envoyConfig) {
				e.plain()
				v.change(e)
			})
			runMatrix(t, s, front, matrix(keys), keys)
			s.usedCredits("ann", v.used)
		})
	}
}

// An Envoy that lets requests pass while Keyporter is away, which Istio and others call failOpen,
// passes nothing that Keyporter answers: without its database, that is 503.
func TestFailOpenPassesNoAnswer(t *testing.T) {
	s := startStack(t, 1)
	key := s.user("ann")
	front := s.envoy(t, func(e *envoyConfig) { e.authz["failure_mode_allow"] = true })
	file := strings.TrimPrefix(s.database, "sqlite://")
	if err := os.Truncate(file, 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file+"-wal", 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	if response, body := call(t, front, "GET", "/v1/a", "X-API-Key: "+key, "X-Test-Id: open"); response.StatusCode != 503 || !strings.Contains(body, `"code":"unavailable"`) || s.api.take("open") != nil {
		t.Errorf("%d %s", response.StatusCode, body)
	}
	s.processes[s.replicas[0]].Kill()
	if response, body := call(t, front, "GET", "/v1/a", "X-Test-Id: away"); response.StatusCode != 200 || s.api.take("away") == nil {
		t.Errorf("while Keyporter is away: %d %s", response.StatusCode, body)
	}
}

// A second ext_authz filter finds no key, and refuses the request: two policies must not both ask.
func TestASecondCheckFindsNoKey(t *testing.T) {
	s := startStack(t, 1)
	key := s.user("ann")
	front := s.envoy(t, func(e *envoyConfig) { e.twice() })
	if response, body := call(t, front, "GET", "/v1/a", "X-API-Key: "+key, "X-Test-Id: twice"); response.StatusCode != 401 || s.api.take("twice") != nil {
		t.Errorf("%d %s", response.StatusCode, body)
	}
	if response, body := call(t, front, "GET", "/status"); response.StatusCode != 200 {
		t.Errorf("a public path: %d %s", response.StatusCode, body)
	}
}

// envoyConfig is the printed configuration, to be changed.
type envoyConfig struct {
	t       *testing.T
	manager map[string]any // the connection manager
	filter  map[string]any // the filter ext_authz
	authz   map[string]any // its settings
}

// plain takes away what the fronts have no field for: raw headers, a choice of headers, headers
// removed early.
func (e *envoyConfig) plain() {
	e.remove(e.authz, "encode_raw_headers", "allowed_headers", "validate_mutations", "charge_cluster_response_stats", "stat_prefix")
	e.remove(e.manager, "early_header_mutation_extensions", "local_reply_config")
}

// remove removes fields. A missing one fails the test.
func (e *envoyConfig) remove(from map[string]any, fields ...string) {
	e.t.Helper()
	for _, field := range fields {
		if from[field] == nil {
			e.t.Fatalf("the printed configuration has no %s", field)
		}
		delete(from, field)
	}
}

// unfiltered sends an entry of the access log for every request.
func (e *envoyConfig) unfiltered() {
	logs, i := e.reports()
	e.remove(logs[i].(map[string]any), "filter")
}

// withoutReports sends no access log to Keyporter.
func (e *envoyConfig) withoutReports() {
	logs, i := e.reports()
	e.manager["access_log"] = slices.Delete(logs, i, i+1)
}

// reports returns the access logs, and which of them is for Keyporter.
func (e *envoyConfig) reports() (logs []any, i int) {
	e.t.Helper()
	logs = e.manager["access_log"].([]any)
	i = slices.IndexFunc(logs, func(log any) bool { return log.(map[string]any)["name"] == "envoy.access_loggers.http_grpc" })
	if i < 0 {
		e.t.Fatal("the printed configuration has no access log for Keyporter")
	}
	return logs, i
}

// twice adds the filter a second time, by another name.
func (e *envoyConfig) twice() {
	var filters []any
	for _, filter := range e.manager["http_filters"].([]any) {
		if filters = append(filters, filter); filter.(map[string]any)["name"] == "envoy.filters.http.ext_authz" {
			filters = append(filters, map[string]any{"name": "second", "typed_config": e.authz})
		}
	}
	e.manager["http_filters"] = filters
}

// envoy starts an Envoy with the printed configuration, changed, and returns its address.
func (s *stack) envoy(t *testing.T, change func(*envoyConfig)) string {
	t.Helper()
	address := freeAddress(t)
	text := run(t, nil, keyporter(t), "envoy", "--config", s.config, "--listen", address, "--admin", "127.0.0.1:0",
		"--authz", s.replicas[0]+":9001", "--page", s.replicas[0]+":"+pagePort, "--upstream", s.api.address)
	bootstrap, err := parse([]byte(strings.Replace(text, "timeout: 0.250s # Keyporter's", "timeout: 6s # Keyporter's", 1)))
	if err != nil {
		t.Fatal(err)
	}
	change(find(t, bootstrap))
	changed, err := yaml.Marshal(bootstrap)
	if err != nil {
		t.Fatal(err)
	}
	partstest.StartEnvoy(t, parts.EnvoyConfig{Bootstrap: changed})
	return address
}

// find finds what is to be changed in a bootstrap.
func find(t *testing.T, bootstrap map[string]any) *envoyConfig {
	t.Helper()
	e := &envoyConfig{t: t}
	var walk func(value any)
	walk = func(value any) {
		switch v := value.(type) {
		case map[string]any:
			if typed, ok := v["typed_config"].(map[string]any); ok {
				switch v["name"] {
				case "envoy.filters.network.http_connection_manager":
					e.manager = typed
				case "envoy.filters.http.ext_authz":
					e.filter, e.authz = v, typed
				}
			}
			for _, inner := range v {
				walk(inner)
			}
		case []any:
			for _, inner := range v {
				walk(inner)
			}
		}
	}
	walk(bootstrap)
	if e.manager == nil || e.authz == nil {
		t.Fatal("the printed configuration has another form")
	}
	return e
}

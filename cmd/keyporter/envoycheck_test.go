package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"

	"github.com/keyporter/keyporter/internal/parts"
	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// checkEnvoy runs envoy check and returns its exit status and its output.
func checkEnvoy(t *testing.T, args ...string) (status int, out, problems string) {
	t.Helper()
	var stdout, stderr strings.Builder
	status = run(t.Context(), append([]string{"envoy", "check"}, args...), &stdout, &stderr)
	return status, stdout.String(), stderr.String()
}

// printEnvoy returns the printed configuration.
func printEnvoy(t *testing.T, args ...string) string {
	t.Helper()
	var stdout, stderr strings.Builder
	if status := run(t.Context(), append([]string{"envoy"}, args...), &stdout, &stderr); status != exitDone {
		t.Fatal(stderr.String())
	}
	return stdout.String()
}

// foundIn checks the admin interface of an Envoy with the command, and returns the IDs and paths of
// the findings.
func foundIn(t *testing.T, e *parts.Envoy) []string {
	t.Helper()
	_, out, problems := checkEnvoy(t, "http://"+e.Admin(), "--output", "json")
	var report struct {
		Findings []struct{ ID, Path, What string }
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil {
		t.Fatalf("%v: %s", err, problems)
	}
	var found []string
	for _, f := range report.Findings {
		if f.ID == "envoy-old" && strings.Contains(f.What, "1.40.0") && f.Path == "server_info.version" {
			continue // expected: no newer version can be installed
		}
		found = append(found, f.ID+" "+f.Path)
	}
	return found
}

// With a configuration file, the command knows the names of rules: no route of the printed Envoy
// names one. Without a file it says nothing about them.
func TestNamesComeFromTheConfigurationFile(t *testing.T) {
	file, table := filepath.Join(t.TempDir(), "envoy.yaml"), filepath.Join(t.TempDir(), "keyporter.yaml")
	for name, text := range map[string]string{file: printEnvoy(t), table: "routes: [{name: report, kind: api_key}, {paths: /a, kind: api_key}]\n"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if status, out, problems := checkEnvoy(t, file, "--config", table); status != exitDone || !strings.Contains(out, "warning rule-name-unused") || !strings.Contains(out, `no route names "report"`) {
		t.Errorf("with the table: %d %s%s", status, out, problems)
	}
	if _, out, problems := checkEnvoy(t, file); strings.Contains(out, "rule-name") || problems != "" {
		t.Errorf("without: %s%s", out, problems)
	}
}

// A real Envoy with our printed configuration has no findings. In an Envoy that gets everything
// from a control plane, with a filter of another name, the command finds mistakes in the output of
// the admin interface.
func TestARunningEnvoyIsChecked(t *testing.T) {
	printed := printEnvoy(t, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0")
	if found := foundIn(t, partstest.StartEnvoy(t, parts.EnvoyConfig{Bootstrap: []byte(printed)})); len(found) > 0 {
		t.Errorf("found in our own: %q", found)
	}

	mistaken := strings.NewReplacer(
		"- name: envoy.filters.http.ext_authz", "- name: authz/own",
		"envoy.filters.http.ext_authz:\n", "authz/own:\n",
		"merge_slashes: true", "merge_slashes: false",
		`{ match: { path: "/api/v1/brands" },`, `{ match: { path: "/api/v1/brands" }, typed_per_filter_config: { authz/own: { "@type": type.googleapis.com/envoy.config.route.v3.FilterConfig, disabled: true } }, request_headers_to_remove: [x-keyporter-user, x-keyporter-account, x-keyporter-plan, x-keyporter-key-id, x-keyporter-charge],`,
		"max_requests: 8192, max_retries", "max_requests: 100, max_retries",
	).Replace(printed)
	found := foundIn(t, partstest.StartEnvoy(t, parts.EnvoyConfig{Bootstrap: controlled(t, mistaken), Args: []string{"--service-node", "a", "--service-cluster", "b"}}))
	for _, want := range []string{
		`ext-authz-off configs\[\d\]\.dynamic_route_configs\[0\]\.route_config\.virtual_hosts\[0\]\.routes\[\d+\]\.typed_per_filter_config\["authz/own"\]`,
		`authz-circuit-breaker configs\[\d\]\.dynamic_active_clusters\[\d\]\.cluster\.circuit_breakers`,
		`merge-slashes configs\[\d\]\.dynamic_listeners\[0\]\.active_state\.listener\.filter_chains\[0\]\.filters\[0\]\.typed_config\.merge_slashes`,
	} {
		i := slices.IndexFunc(found, regexp.MustCompile("^"+want+"$").MatchString)
		if i < 0 {
			t.Errorf("not found: %s, in %q", want, found)
			continue
		}
		found = slices.Delete(found, i, i+1)
	}
	if len(found) > 0 {
		t.Errorf("found too: %q", found)
	}
}

// controlled converts a bootstrap to one with listeners, routes and clusters from LDS, RDS and CDS.
func controlled(t *testing.T, bootstrap string) []byte {
	t.Helper()
	type object = map[string]any
	var b object
	if err := yaml.Unmarshal([]byte(bootstrap), &b); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	source := func(name, kind string, resources []any) object {
		for _, r := range resources {
			r.(object)["@type"] = "type.googleapis.com/envoy.config." + kind
		}
		encoded, err := json.Marshal(object{"resources": resources})
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, encoded, 0o600); err != nil {
			t.Fatal(err)
		}
		return object{"resource_api_version": "V3", "path_config_source": object{"path": file}}
	}
	static := b["static_resources"].(object)
	listeners := static["listeners"].([]any)
	http := listeners[0].(object)["filter_chains"].([]any)[0].(object)["filters"].([]any)[0].(object)["typed_config"].(object)
	table := http["route_config"].(object)
	delete(http, "route_config")
	http["rds"] = object{"route_config_name": table["name"], "config_source": source("routes.json", "route.v3.RouteConfiguration", []any{table})}
	delete(b, "static_resources")
	b["dynamic_resources"] = object{
		"lds_config": source("listeners.json", "listener.v3.Listener", listeners),
		"cds_config": source("clusters.json", "cluster.v3.Cluster", static["clusters"].([]any)),
	}
	encoded, err := json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	return encoded
}

// An address that is not an admin interface, or does not answer, is reported as such within the
// given time.
func TestWhatIsNoAdminInterface(t *testing.T) {
	const mistaken = `{"configs": [{"@type": "type.googleapis.com/envoy.admin.v3.BootstrapConfigDump", "bootstrap": {"admin": {"address": {"socket_address": {"address": "0.0.0.0", "port_value": 1}}}}}]}`
	for name, row := range map[string]struct {
		answer http.HandlerFunc
		status int
		says   string
	}{
		"it hangs":         {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, exitFailed, "config_dump?include_eds: no answer in time: see --timeout"},
		"it is another":    {http.NotFound, exitFailed, "404 Not Found: is this the admin interface of an Envoy?"},
		"it redirects":     {http.RedirectHandler("http://127.0.0.1:1/", http.StatusFound).ServeHTTP, exitFailed, "302 Found: is this"},
		"it is a page":     {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") }, exitFailed, "the answer is no JSON: is this"},
		"it is other JSON": {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"status": "ok"}`) }, exitFailed, "neither a bootstrap of Envoy"},
		"it stops in the middle": {func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, `{"configs": [`)
			http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}, exitFailed, "no answer in time"},
		"it keeps its version to itself": {func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/proxy/config_dump" {
				http.NotFound(w, r)
				return
			}
			fmt.Fprint(w, mistaken)
		}, exitFailed, "admin-open"},
	} {
		server := httptest.NewServer(row.answer)
		status, out, problems := checkEnvoy(t, server.URL+"/proxy/", "--timeout", "200ms")
		if status != row.status || !strings.Contains(out+problems, row.says) {
			t.Errorf("%s: exit status %d: %s%s", name, status, out, problems)
		}
		server.CloseClientConnections()
		server.Close()
	}
	if _, _, problems := checkEnvoy(t, "http://user:hunter2@127.0.0.1:1"); strings.Contains(problems, "hunter2") || problems == "" {
		t.Errorf("the password is told: %s", problems)
	}
}

// SARIF output has the parts that its consumers require: rules, and results that refer to them,
// with file and line.
func TestSARIF(t *testing.T) {
	t.Chdir(t.TempDir())
	config := strings.NewReplacer("failure_mode_allow: false", "failure_mode_allow: true", "merge_slashes: true", "").Replace(printEnvoy(t))
	if err := os.MkdirAll("my conf", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("my conf/envoy.yaml", []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	status, out, problems := checkEnvoy(t, "my conf/envoy.yaml", "--output", "sarif")
	if status != exitFailed {
		t.Fatalf("exit status %d: %s", status, problems)
	}
	var log struct {
		Schema  string `json:"$schema"`
		Version string
		Runs    []struct {
			Tool struct {
				Driver struct {
					Name  string
					Rules []struct {
						ID                                      string
						ShortDescription, FullDescription, Help struct{ Text string }
						DefaultConfiguration                    struct{ Level string }
					}
				}
			}
			Results []struct {
				RuleID    string
				RuleIndex int
				Level     string
				Message   struct{ Text string }
				Locations []struct {
					PhysicalLocation struct {
						ArtifactLocation struct{ URI string }
						Region           struct{ StartLine int }
					}
					LogicalLocations []struct{ FullyQualifiedName string }
				}
			}
		}
	}
	if err := json.Unmarshal([]byte(out), &log); err != nil {
		t.Fatal(err)
	}
	if log.Version != "2.1.0" || !strings.Contains(log.Schema, "sarif") || len(log.Runs) != 1 || log.Runs[0].Tool.Driver.Name != "keyporter" {
		t.Fatalf("no SARIF: %.300s", out)
	}
	rules := log.Runs[0].Tool.Driver.Rules
	for _, r := range rules {
		if r.ID == "" || r.ShortDescription.Text == "" || r.FullDescription.Text == "" || r.Help.Text == "" || !slices.Contains([]string{"error", "warning", "note"}, r.DefaultConfiguration.Level) {
			t.Errorf("a rule that says too little: %+v", r)
		}
	}
	var lines []string
	for _, result := range log.Runs[0].Results {
		if result.RuleIndex >= len(rules) || rules[result.RuleIndex].ID != result.RuleID || rules[result.RuleIndex].DefaultConfiguration.Level != result.Level || result.Message.Text == "" || len(result.Locations) != 1 {
			t.Fatalf("a result that says too little: %+v", result)
		}
		place := result.Locations[0]
		if place.PhysicalLocation.ArtifactLocation.URI != "my%20conf/envoy.yaml" || len(place.LogicalLocations) != 1 {
			t.Errorf("at %+v", place)
		}
		line := strings.Split(config, "\n")[place.PhysicalLocation.Region.StartLine-1]
		lines = append(lines, result.Level+" "+result.RuleID+": "+strings.TrimSpace(line))
	}
	// A finding about a missing field is shown at its parent.
	want := []string{"error failure-mode-allow: failure_mode_allow: true", "warning merge-slashes: typed_config:"}
	if !slices.Equal(lines, want) {
		t.Errorf("results %q, want %q", lines, want)
	}
	if status, out, _ := checkEnvoy(t, "my conf/envoy.yaml", "--output", "sarif", "--ignore", "failure-mode-allow", "--ignore", "merge-slashes"); status != exitDone || !strings.Contains(out, `"results": []`) {
		t.Errorf("without findings: exit status %d", status)
	}
}

package kubernetes_test

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/keyporter/keyporter/internal/parts"
	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// The examples for Envoy Gateway, translated by Envoy Gateway itself into a real Envoy, decide as
// the contract says: what every front has to do, rules by name, refunds, and 503 when nobody
// decides.
func TestEnvoyGateway(t *testing.T) {
	g := startEnvoyGateway(t, 1)
	keys := g.keys()
	runMatrix(t, g.stack, g.front, matrix(keys), keys)
	g.usedCredits("ann", credited)
	g.checkLimits(t)

	t.Run("a rule by its name", func(t *testing.T) {
		if response, body := call(t, g.front, "GET", "/reports/1"); response.StatusCode != 401 {
			t.Errorf("%d %s", response.StatusCode, body)
		}
		if response, body := call(t, g.front, "GET", "/reports/1", "X-API-Key: "+keys["ann"]); response.StatusCode != 200 || body != "/reports/1\n" {
			t.Errorf("%d %s", response.StatusCode, body)
		}
		g.usedCredits("ann", credited+5)
	})
	t.Run("what Envoy answers by itself", func(t *testing.T) {
		if response, body := call(t, g.front, "GET", "/v1/a%2fb", "X-API-Key: "+keys["ann"]); response.StatusCode != 400 {
			t.Errorf("an escaped slash: %d %s", response.StatusCode, body)
		}
		if response, body := call(t, g.front, "GET", "/v1/a", "x_api_key: "+keys["ann"]); response.StatusCode != 401 {
			t.Errorf("a header with underscores: %d %s", response.StatusCode, body)
		}
	})
	t.Run("a key in the query is in no log", func(t *testing.T) { g.checkLogs(t, keys["poor"], g.process) })
	t.Run("nobody decides", func(t *testing.T) { g.checkNobodyDecides(t, keys["ann"]) })
	t.Run("a policy whose authorizer does not exist lets nothing pass", func(t *testing.T) { g.checkNoAuthorizer(t) })
}

// Replicas that are replaced one by one, as an update of the Deployment does, fail no request: the
// health check of the example leads Envoy away from one that stops. All requests are charged, once;
// no replaced key opens anything, and no credit is sold twice.
func TestEnvoyGatewayLeavesReplicasThatStop(t *testing.T) {
	g := startEnvoyGateway(t, 3)
	checked := regexp.MustCompile(`/api/keyporter/extauth/0\.health_check\.attempt: (\d+)`)
	eventually(t, "the health check has begun its second round, a minute after Envoy's start", func() error {
		_, stats, err := send(g.admin(t), "GET", "/stats")
		if attempts := checked.FindStringSubmatch(stats); err == nil && (attempts == nil || len(attempts[1]) < 2) {
			err = fmt.Errorf("%q", attempts)
		}
		return err
	})
	l := startLoad(g.stack, g.front)
	for _, address := range g.replicas {
		l.sell(t)
		if err := g.processes[address].Stop(); err != nil {
			t.Errorf("%s: %v", address, err)
		}
		g.start(address)
		l.goesOn(t)
	}
	l.end(t)
	if failed := l.failed.Load(); failed > 0 {
		t.Errorf("%d requests failed", failed)
	}
	g.usedCredits("steady", int(l.passed.Load()))
	g.usedCredits("thrifty", l.credits)
	if sold := int(l.sold.Load()); sold != l.credits {
		t.Errorf("%d credits were sold of %d, though none was lost", sold, l.credits)
	}
}

// A replica that is killed under load, and comes back later, takes some requests with it. No
// replaced key opens anything meanwhile, and no credit is sold twice.
func TestEnvoyGatewaySurvivesAKilledReplica(t *testing.T) {
	g := startEnvoyGateway(t, 3)
	l := startLoad(g.stack, g.front)
	for _, address := range g.replicas {
		l.sell(t)
		asked, failed := l.asked.Load(), l.failed.Load()
		g.processes[address].Kill()
		l.goesOn(t)
		l.sell(t)
		asked, failed = l.asked.Load()-asked, l.failed.Load()-failed
		t.Logf("%d of %d requests failed while a replica was gone", failed, asked)
		if failed*10 > asked {
			t.Errorf("%d of %d requests failed while one of three replicas was gone: Envoy does not ask another one", failed, asked)
		}
		g.start(address)
		l.goesOn(t)
	}
	l.end(t)
	if b := g.balance("thrifty"); b.Used > l.credits || b.Used < int(l.sold.Load()) {
		t.Errorf("%d credits were sold of %d, the ledger says %+v", l.sold.Load(), l.credits, b)
	}
}

// `keyporter envoy check` reads what Envoy Gateway has made of the example, from the admin
// interface and from a config_dump: three warnings, for which there is no field. Each mistake in
// the example is one finding more.
func TestEnvoyCheckReadsWhatEnvoyGatewayHasMade(t *testing.T) {
	g := startEnvoyGateway(t, 1)
	accepted := []string{"raw-headers", "validate-mutations", "access-log-filter"}
	g.mustFind(t, "http://"+g.admin(t), accepted...)
	_, dump, err := send(g.admin(t), "GET", "/config_dump?include_eds")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(g.dir, "config_dump.json")
	if err := os.WriteFile(file, []byte(dump), 0o600); err != nil {
		t.Fatal(err)
	}
	g.mustFind(t, file, accepted...)
	for i, row := range []struct {
		name, file, words, other string
		found                    []string
	}{
		{"no access log by gRPC", "gateway.yaml", `(?s)        - sinks:\n            - type: ALS.*?        - format:`, "        - format:", []string{"raw-headers", "validate-mutations", "access-log-missing"}},
		{"requests pass while Keyporter is away", "policy.yaml", "failOpen: false", "failOpen: true", append([]string{"failure-mode-allow"}, accepted...)},
		{"403 while Keyporter is away", "policy.yaml", `    statusOnError: 503.*\n`, "", append([]string{"status-on-error"}, accepted...)},
		{"the route does not name its rule", "policy.yaml", `    contextExtensions:\n.*\n`, "", append([]string{"rule-name-unused"}, accepted...)},
	} {
		t.Run(row.name, func(t *testing.T) {
			right := read(t, "examples/envoy-gateway/"+row.file)
			wrong := regexp.MustCompile(row.words).ReplaceAllString(right, row.other)
			if wrong == right {
				t.Fatal("the example has no such words")
			}
			// Envoy Gateway merges files into objects that it knows, so that what is gone from a
			// file would stay. A policy of another name is new.
			g.write(t, row.file, g.standalone(t, policyName.ReplaceAllString(wrong, fmt.Sprint("${1}name: wrong", i))))
			defer g.write(t, row.file, g.standalone(t, right))
			g.mustFind(t, "http://"+g.admin(t), row.found...)
		})
	}
}

var policyName = regexp.MustCompile(`(kind: SecurityPolicy\nmetadata:\n  )name: keyporter`)

// mustFind waits until `keyporter envoy check` finds exactly this. The tests' Envoy is not the
// newest one.
func (g *envoyGateway) mustFind(t *testing.T, source string, want ...string) {
	t.Helper()
	slices.Sort(want)
	eventually(t, "envoy check finds what it should", func() error {
		out, err := exec.Command(keyporter(t), "envoy", "check", source, "--config", g.config, "--ignore", "envoy-old").Output()
		if exit := (*exec.ExitError)(nil); err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 1) {
			return err
		}
		found := findings(string(out))
		if slices.Sort(found); !slices.Equal(found, want) {
			return fmt.Errorf("%q, want %q:\n%s", found, want, out)
		}
		return nil
	})
}

// envoyGateway is a running Envoy Gateway, without a cluster, with its Envoy.
type envoyGateway struct {
	*stack
	process   *parts.Process
	version   string // of Envoy
	resources string // folder
	dir       string // of everything else that Envoy Gateway writes
}

func startEnvoyGateway(t *testing.T, replicas int) *envoyGateway {
	t.Helper()
	path := program(t, "envoy-gateway")
	dir := t.TempDir()
	g := &envoyGateway{stack: startStack(t, replicas), resources: filepath.Join(dir, "resources"), dir: dir}
	g.front = freeAddress(t)
	g.version = linkEnvoy(t, filepath.Join(dir, "data"))
	g.write(t, "backends.yaml", backends(g.stack))
	g.write(t, "authorizer.yaml", backend("keyporter", "api", "gateway.envoyproxy.io/h2c", "9001", g.replicas...))
	for _, name := range []string{"gateway.yaml", "routes.yaml", "policy.yaml", "grants.yaml"} {
		g.write(t, name, g.standalone(t, read(t, "examples/envoy-gateway/"+name)))
	}
	config := filepath.Join(dir, "envoy-gateway.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, standaloneConfig, g.resources, dir), 0o600); err != nil {
		t.Fatal(err)
	}
	environment := append(os.Environ(), "HOME="+dir)
	certificates := exec.Command(path, "certgen", "--local", "--config-home", filepath.Join(dir, "config"))
	certificates.Env = environment
	if out, err := certificates.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	g.process = startProgram(t, parts.Command{Path: path, Args: []string{"server", "--config-path", config}, Env: environment})
	unlessItEnds(t, g.process, "Envoy asks Keyporter", func() error { return g.answers("", 401, "unauthorized") })
	return g
}

// linkEnvoy puts the Envoy of the tools where Envoy Gateway looks for one, and returns its version.
func linkEnvoy(t *testing.T, data string) string {
	t.Helper()
	envoy := partstest.Envoy(t)
	out, err := exec.Command(envoy, "--version").Output()
	if err != nil {
		t.Fatal(err)
	}
	version := regexp.MustCompile(`/(\d+\.\d+\.\d+)/`).FindSubmatch(out)
	if version == nil {
		t.Fatalf("%s", out)
	}
	dir := filepath.Join(data, "envoy-versions", string(version[1]), "bin")
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.Symlink(envoy, filepath.Join(dir, "envoy"))); err != nil {
		t.Fatal(err)
	}
	return string(version[1])
}

// standaloneConfig runs Envoy Gateway with resources from files and an Envoy on this machine.
const standaloneConfig = `apiVersion: gateway.envoyproxy.io/v1alpha1
kind: EnvoyGateway
gateway: {controllerName: gateway.envoyproxy.io/gatewayclass-controller}
provider:
  type: Custom
  custom:
    resource: {type: File, file: {paths: [%[1]s]}}
    infrastructure: {type: Host, host: {configHome: %[2]s/config, dataHome: %[2]s/data, stateHome: %[2]s/state, runtimeDir: %[2]s/run}}
logging: {level: {default: info}}
extensionApis: {enableBackend: true}
`

// backends are what stands for the Services of a cluster: addresses of programs on this machine.
func backends(s *stack) string {
	api, port, _ := strings.Cut(s.api.address, ":")
	return backend("api", "api", "", port, api) + backend("keyporter", "keyporter", "gateway.envoyproxy.io/h2c", "9001", s.replicas...) +
		backend("keyporter-page", "keyporter", "", pagePort, s.replicas...)
}

// backend is a Backend with addresses.
func backend(name, namespace, protocol, port string, addresses ...string) string {
	text := fmt.Sprintf("---\napiVersion: gateway.envoyproxy.io/v1alpha1\nkind: Backend\nmetadata: {name: %s, namespace: %s}\nspec:\n  appProtocols: [%s]\n  endpoints:\n", name, namespace, protocol)
	for _, address := range addresses {
		text += fmt.Sprintf("  - ip: {address: %s, port: %s}\n", address, port)
	}
	return text
}

// standalone returns a file of the examples for a machine without a cluster. Five things differ:
// where Envoy runs; Backends stand for Services; that of a SecurityPolicy is in its own namespace,
// since Envoy Gateway 1.9.1 finds no grants of policies that it reads from files; the port of the
// Gateway; and how long Envoy waits for a decision, since a busy machine needs longer.
func (g *envoyGateway) standalone(t *testing.T, text string) string {
	t.Helper()
	_, port, _ := strings.Cut(g.front, ":")
	var all []string
	for _, document := range documents(t, []byte(text)) {
		object, err := parse(document)
		if err != nil {
			t.Fatal(err)
		}
		if object["kind"] == "EnvoyProxy" {
			object["spec"].(map[string]any)["provider"] = map[string]any{"type": "Host", "host": map[string]any{"envoyVersion": g.version}}
		}
		withBackends(object, object["kind"] == "SecurityPolicy")
		written, err := yaml.Marshal(object)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, strings.NewReplacer("port: 80\n", "port: "+port+"\n", "timeout: 250ms", "timeout: 6s").Replace(string(written)))
	}
	return strings.Join(all, "---\n")
}

// withBackends turns references to Services, and grants of them, into those to Backends, of the own
// namespace if local is true.
func withBackends(value any, local bool) {
	switch v := value.(type) {
	case map[string]any:
		for name, inner := range v {
			if references, ok := inner.([]any); ok && (name == "backendRefs" || name == "to") {
				for _, reference := range references {
					r := reference.(map[string]any)
					r["group"], r["kind"] = "gateway.envoyproxy.io", "Backend"
					delete(r, "port")
					if local {
						delete(r, "namespace")
					}
				}
			}
			withBackends(inner, local)
		}
	case []any:
		for _, inner := range v {
			withBackends(inner, local)
		}
	}
}

func (g *envoyGateway) write(t *testing.T, name, text string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(g.resources, 0o700), os.WriteFile(filepath.Join(g.resources, name), []byte(text), 0o600)); err != nil {
		t.Fatal(err)
	}
}

// admin returns the address of Envoy's admin interface, which Envoy has written to a file.
func (g *envoyGateway) admin(t *testing.T) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(g.dir, "run", "*", "admin-address.txt"))
	if err != nil || len(files) != 1 {
		t.Fatalf("the address is in %d files: %v", len(files), err)
	}
	address, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(address))
}

// checkNoAuthorizer removes the authorizer of the policy: the answer becomes 500. Envoy learns of
// the listener before it learns of the routes. A request that passes in between has no owner: the
// API gets the key, but neither an identity nor a charge.
func (g *envoyGateway) checkNoAuthorizer(t *testing.T) {
	t.Helper()
	key := g.user("late", "--rate-limit", "unlimited")
	decided, undecided := 0, 0
	ask := func() (status int, reached *http.Request) {
		response, _ := call(t, g.front, "GET", "/v1/a", "X-API-Key: "+key, "X-Keyporter-User: admin", "X-Test-Id: late")
		reached = g.api.take("late")
		switch {
		case reached == nil:
		case reached.Header.Get("X-Api-Key") == "" && reached.Header.Get("X-Keyporter-User") == "late" && reached.Header.Get("X-Keyporter-Charge") != "":
			decided++
		case reached.Header.Get("X-Api-Key") == key && reached.Header.Get("X-Keyporter-User")+reached.Header.Get("X-Keyporter-Charge") == "":
			undecided++
		default:
			t.Errorf("the API got %v", reached.Header)
		}
		return response.StatusCode, reached
	}
	g.without(t, "authorizer.yaml")
	eventually(t, "the policy is refused", func() error {
		for range 500 { // without a pause, since the moment is short
			if status, _ := ask(); status == 500 {
				return nil
			}
		}
		return errors.New("it is not")
	})
	for range 20 {
		if status, reached := ask(); status != 500 || reached != nil {
			t.Errorf("%d, the API was asked: %v", status, reached != nil)
		}
	}
	t.Logf("%d requests were decided, then %d passed undecided", decided, undecided)
}

// without takes a file away while Envoy Gateway runs.
func (g *envoyGateway) without(t *testing.T, name string) {
	t.Helper()
	if err := os.Remove(filepath.Join(g.resources, name)); err != nil {
		t.Fatal(err)
	}
}

// The whole matrix of the main job gives the same through Envoy Gateway's Envoy as through the
// printed configuration.
func TestEnvoyGatewayDoesWhatThePrintedConfigurationDoes(t *testing.T) {
	g := startEnvoyGateway(t, 1)
	compare(t, g.stack, g.front, ownAnswers, noRoom, lostBytes, deadlines, noHTTP10, earlyContinue)
}

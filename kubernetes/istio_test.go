package kubernetes_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/keyporter/keyporter/internal/parts"
	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// The examples for a gateway of Istio, translated by Istio itself into a real Envoy, decide as the
// contract says: what every front has to do, refunds, and 503 when nobody decides.
func TestIstioGateway(t *testing.T) {
	i := startIstioGateway(t)
	keys := i.keys()
	runMatrix(t, i.stack, i.front, matrix(keys), keys)
	i.usedCredits("ann", credited)
	i.checkLimits(t)
	t.Run("what Istio repeats is one request", func(t *testing.T) { i.checkRepeats(t, i.user("patient")) })
	t.Run("what Istio leaves as it is", func(t *testing.T) {
		if response, body := call(t, i.front, "GET", "/v1/a%2fb", "X-API-Key: "+keys["ann"]); response.StatusCode != 400 || !strings.Contains(body, `"code":"bad_request"`) {
			t.Errorf("an escaped slash: %d %s", response.StatusCode, body)
		}
		if response, body := call(t, i.front, "GET", "/v1//a", "X-API-Key: "+keys["ann"]); response.StatusCode != 200 || body != "/v1/a\n" {
			t.Errorf("a doubled slash: %d %s", response.StatusCode, body)
		}
		if response, body := call(t, i.front, "GET", "/v1/a", "x_api_key: "+keys["ann"]); response.StatusCode != 401 {
			t.Errorf("a key in a header with underscores: %d %s", response.StatusCode, body)
		}
		call(t, i.front, "GET", "/v1/a", "X-API-Key: "+keys["ann"], "x_keyporter_user: admin", "X-Test-Id: underscores")
		if r := i.api.take("underscores"); r == nil || r.Header["X_keyporter_user"] != nil {
			t.Errorf("the API got a user's name of the client: %v", r)
		}
		// Over HTTP/1.1, Envoy itself refuses it.
		if response, body, err := sendHTTP2(i.front, "GET", "/v1/a?b=\xff&api_key="+keys["ann"]); err != nil || response.StatusCode != 400 || !strings.Contains(body, "exclamation mark") {
			t.Errorf("a byte that is not UTF-8 beside a key: %v %s %v", response, body, err)
		}
	})
	t.Run("a key in the query is in no log", func(t *testing.T) { i.checkLogs(t, keys["poor"], i.envoy) })
	t.Run("envoy check finds what Istio has no field for", func(t *testing.T) {
		i.checkFindings(t, nil, "raw-headers", "validate-mutations", "authz-health-check", "access-log-filter", "upstream-retries", "upgrade-unbounded", "escaped-slashes", "header-underscores")
	})
	t.Run("nobody decides", func(t *testing.T) { i.checkNobodyDecides(t, keys["ann"]) })
	t.Run("a provider that does not exist lets nothing pass", func(t *testing.T) {
		i.apply(t, strings.Replace(read(t, "examples/istio/gateway.yaml"), "provider: {name: keyporter}", "provider: {name: elsewhere}", 1))
		eventually(t, "the policy is refused", func() error { return i.answers("", 403, "RBAC: access denied") })
		if response, body := call(t, i.front, "GET", "/v1/a", "X-API-Key: "+keys["ann"], "X-Test-Id: open"); response.StatusCode != 403 || i.api.take("open") != nil {
			t.Errorf("%d %s", response.StatusCode, body)
		}
		i.apply(t, read(t, "examples/istio/gateway.yaml"))
		eventually(t, "the policy is back", func() error { return i.answers("", 401, "unauthorized") })
	})
	t.Run("what the mesh configuration prevents", func(t *testing.T) { i.checkFailOpen(t, keys["ann"]) })
}

// The whole matrix of the main job gives the same through the Envoy that Istio configures as
// through the printed configuration.
func TestIstioDoesWhatThePrintedConfigurationDoes(t *testing.T) {
	i := startIstioGateway(t)
	compare(t, i.stack, i.front, ownAnswers, noRoom, lostBytes, deadlines, noHTTP10, keptSlashes)
}

// A sidecar with the examples, which Istio configures, decides as a gateway does.
func TestIstioSidecar(t *testing.T) {
	i := startIstio(t, "sidecar.yaml")
	port := freePort(t)
	upstream := partstest.StartProxy(t, partstest.ProxyConfig{To: i.api.address})
	i.apply(t, fmt.Sprintf(withoutRedirection, port, upstream.Addr()))
	i.startProxy(t, port, "sidecar", "app.kubernetes.io/name: api")
	keys := i.keys()
	runMatrix(t, i.stack, i.front, withoutPage(matrix(keys)), keys)
	i.usedCredits("ann", credited)
	i.checkLimits(t)
	i.checkFindings(t, []string{"ext-authz-missing", "tcp-beside-http"},
		"raw-headers", "validate-mutations", "authz-health-check", "access-log-filter", "upgrade-unbounded", "escaped-slashes", "header-underscores", "client-address")
	i.checkNobodyDecides(t, keys["ann"])
}

// Istio translates the examples for a waypoint: in front of the API's Service, it asks Keyporter
// and sends it the access log. An Envoy gets no further here, since it waits for certificates from
// Istio's agent; without clusters, it asks for its listeners at once.
func TestIstioTranslatesTheWaypoint(t *testing.T) {
	i := startIstio(t, "waypoint.yaml", "PILOT_ENABLE_AMBIENT=true")
	i.cluster.do(t, "", "label", "namespace", "api", "istio.io/dataplane-mode=ambient", "istio.io/use-waypoint=waypoint")
	i.apply(t, fmt.Sprintf(gatewayService, "waypoint", "waypoint", 15008, 15008))
	i.apply(t, strings.NewReplacer("{name: api,", "{name: waypoint,", "app.kubernetes.io/name: api", "gateway.networking.k8s.io/gateway-name: waypoint").
		Replace(workload("api", proxyAddress, "http: 15008")))
	bootstrap := i.bootstrap("waypoint", "gateway.networking.k8s.io/gateway-name: waypoint")
	listeners := strings.Replace(bootstrap, "cds_config: {ads: {}, resource_api_version: V3, initial_fetch_timeout: 0s}", "", 1)
	envoy, err := parts.Start(parts.Command{Path: partstest.Envoy(t), Args: []string{"--disable-hot-restart", "--config-yaml", listeners}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { envoy.Stop() })
	eventually(t, "the waypoint asks Keyporter", func() error {
		_, config, err := send(i.http, "GET", "/debug/config_dump?proxyID=proxy.api")
		for _, want := range []string{
			`"inbound-vip|8000|http|api.api.svc.cluster.local"`, `"statusOnError":{"code":"ServiceUnavailable"}`, `"timeout":"6s"`,
			`"clusterName":"outbound|9001||keyporter-mesh.keyporter.svc.cluster.local"`, `"logName":"keyporter"`,
		} {
			if err == nil && !strings.Contains(config, want) {
				err = fmt.Errorf("%s is not in %s", want, config)
			}
		}
		return err
	})
}

// istio is a running control plane of Istio beside an API server, and an Envoy that takes its
// configuration from it.
type istio struct {
	*stack
	cluster *kube
	process *parts.Process
	mesh    string // the file with the mesh configuration
	xds     string // host:port
	http    string // host:port
	envoy   *parts.Envoy
}

func startIstioGateway(t *testing.T) *istio {
	t.Helper()
	i := startIstio(t, "gateway.yaml")
	port := freePort(t)
	i.apply(t, fmt.Sprintf(gatewayService, "public-istio", "public", 80, port))
	i.startProxy(t, port, "router", "gateway.networking.k8s.io/gateway-name: public")
	return i
}

// startIstio starts the control plane with files of examples/istio/, as they are. It reads them
// from an API server.
func startIstio(t *testing.T, file string, settings ...string) *istio {
	t.Helper()
	i := &istio{stack: startStack(t, 1), cluster: startAPIServer(t), mesh: filepath.Join(t.TempDir(), "mesh.yaml"), xds: freeAddress(t), http: freeAddress(t)}
	i.cluster.define(t, "istio.io/api")
	i.cluster.define(t, "sigs.k8s.io/gateway-api")
	i.cluster.do(t, "", "create", "namespace", "istio-system")
	i.cluster.do(t, "", "create", "namespace", "keyporter")
	i.cluster.do(t, "", "apply", "--namespace=keyporter", "--filename", manifests+"/base/services.yaml")
	for _, name := range []string{"api.yaml", "istio/service.yaml", "istio/" + file} {
		i.apply(t, read(t, "examples/"+name))
	}
	i.apply(t, i.workloads())
	i.configure(t, func(map[string]any) {})
	i.process = startProgram(t, parts.Command{
		Path: program(t, "pilot-discovery"),
		Dir:  t.TempDir(),
		Env:  slices.Concat(i.cluster.environment(), plainEnvoy, settings),
		Args: []string{
			"discovery", "--kubeconfig", i.cluster.path("kubeconfig"), "--meshConfig", i.mesh, "--grpcAddr", i.xds, "--httpAddr", i.http,
			"--monitoringAddr", freeAddress(t), "--httpsAddr", "", "--secureGRPCAddr", "", "--ctrlz_port", "0",
		},
	})
	unlessItEnds(t, i.process, "Istio is ready", func() error {
		response, _, err := send(i.http, "GET", "/ready")
		if err == nil && response.StatusCode != 200 {
			err = errors.New(response.Status)
		}
		return err
	})
	return i
}

// plainEnvoy leaves out filters of Istio's own that an Envoy of the Envoy project does not have.
// They report requests, and decide nothing.
var plainEnvoy = []string{"PILOT_ENABLE_METADATA_EXCHANGE=false", "PILOT_ENABLE_ALPN_FILTER=false"}

// configure writes the mesh configuration of the examples. Three things differ: there are no
// certificates; a sidecar takes free ports; and Envoy waits longer for a decision, since a busy
// machine needs longer.
func (i *istio) configure(t *testing.T, change func(authorizer map[string]any)) {
	t.Helper()
	values, err := parse([]byte(read(t, "examples/istio/values-istiod.yaml")))
	if err != nil {
		t.Fatal(err)
	}
	mesh := values["meshConfig"].(map[string]any)
	mesh["enableAutoMtls"] = false
	mesh["proxyListenPort"], mesh["proxyInboundListenPort"] = freePort(t), freePort(t)
	authorizer := mesh["extensionProviders"].([]any)[0].(map[string]any)["envoyExtAuthzGrpc"].(map[string]any)
	authorizer["timeout"] = "6s"
	change(authorizer)
	written, err := yaml.Marshal(mesh)
	if err == nil {
		err = os.WriteFile(i.mesh, written, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// workloads are what stands for pods: addresses of programs on this machine. No controller makes
// endpoints of pods here, and an API server refuses endpoints on loopback.
func (i *istio) workloads() string {
	api, port, _ := strings.Cut(i.api.address, ":")
	text := workload("api", api, "http: "+port)
	for _, address := range i.replicas {
		text += workload("keyporter", address, "grpc: 9001, page: "+pagePort)
	}
	return text
}

// workload is one for the Service of an app, in the namespace of the same name.
func workload(app, address, ports string) string {
	return fmt.Sprintf("---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: %s, namespace: %[1]s}\n"+
		"spec: {address: %s, ports: {%s}, labels: {app.kubernetes.io/name: %[1]s}}\n", app, address, ports)
}

// gatewayService is the Service that Istio makes for a Gateway, by a template of its installation.
// Its target is the port of the Envoy.
const gatewayService = `
apiVersion: v1
kind: Service
metadata: {name: %s, namespace: api, labels: {gateway.networking.k8s.io/gateway-name: %[2]s}}
spec:
  selector: {gateway.networking.k8s.io/gateway-name: %[2]s}
  ports: [{name: http, port: %[3]d, targetPort: %[4]d, appProtocol: http}]
`

// withoutRedirection lets a sidecar listen on a port of its own, in plain text: here nothing
// redirects connections to it.
const withoutRedirection = `
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: api, namespace: api}
spec:
  workloadSelector: {labels: {app.kubernetes.io/name: api}}
  ingress: [{port: {number: %d, name: http, protocol: HTTP}, bind: 127.0.0.1, captureMode: NONE, defaultEndpoint: %q}]
  egress: [{hosts: [keyporter/*]}]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: plain, namespace: api}
spec: {mtls: {mode: DISABLE}}
`

// startProxy starts an Envoy that takes its configuration from the control plane as a proxy of some
// kind in the namespace api, and waits until it asks Keyporter.
func (i *istio) startProxy(t *testing.T, port int, kind, labels string) {
	t.Helper()
	i.front = fmt.Sprintf("127.0.0.1:%d", port)
	i.envoy = partstest.StartEnvoy(t, parts.EnvoyConfig{Bootstrap: []byte(i.bootstrap(kind, labels))})
	eventually(t, "Envoy asks Keyporter", func() error { return i.answers("", 401, "unauthorized") })
}

func (i *istio) bootstrap(kind, labels string) string {
	host, port, _ := strings.Cut(i.xds, ":")
	return fmt.Sprintf(proxyConfig, kind, labels, host, port, proxyAddress)
}

// proxyAddress is none of those of the programs.
const proxyAddress = "127.254.254.254"

// proxyConfig is what Istio's agent would write for an Envoy.
const proxyConfig = `
node:
  id: %[1]s~%[5]s~proxy.api~api.svc.cluster.local
  cluster: proxy.api
  metadata: {NAMESPACE: api, CLUSTER_ID: Kubernetes, ISTIO_VERSION: 1.31.0, INSTANCE_IPS: %[5]s, LABELS: {%[2]s}}
dynamic_resources:
  lds_config: {ads: {}, resource_api_version: V3, initial_fetch_timeout: 0s}
  cds_config: {ads: {}, resource_api_version: V3, initial_fetch_timeout: 0s}
  ads_config:
    api_type: GRPC
    transport_api_version: V3
    set_node_on_first_message_only: true
    grpc_services: [{envoy_grpc: {cluster_name: xds}}]
static_resources:
  clusters:
  - name: xds
    type: STATIC
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
    load_assignment:
      cluster_name: xds
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: %[3]s, port_value: %[4]s}}}}]}]
`

// withoutPage leaves out the cells of the users' page, to which only a gateway has a route.
func withoutPage(cells []cell) []cell {
	return slices.DeleteFunc(cells, func(c cell) bool { return strings.HasPrefix(c.target, "/api") })
}

// checkRepeats checks requests that fail at first, or to the end: Istio repeats them up to twice,
// and Keyporter decides and charges each of them once.
func (i *istio) checkRepeats(t *testing.T, key string) {
	t.Helper()
	for _, row := range []struct {
		answer                  string
		requests, charged, used int
	}{
		{"grpc 14 once", 2, 1, 1},
		{"grpc 14", 3, 1, 1}, // refunded
	} {
		before := i.decisions(t)
		call(t, i.front, "GET", "/v1/a", "X-API-Key: "+key, "X-Test-Id: "+row.answer, "X-Test-Answer: "+row.answer)
		if requests, decisions := i.api.count(row.answer), i.decisions(t)-before; requests != row.requests || decisions != 1 {
			t.Errorf("%s: %d decisions, and the API got %d requests, want %d", row.answer, decisions, requests, row.requests)
		}
		i.usedCredits("patient", row.used)
	}
}

// checkFindings checks what `keyporter envoy check` says about the configuration that Istio made,
// beside what docs/istio.md says to ignore.
func (i *istio) checkFindings(t *testing.T, ignored []string, want ...string) {
	t.Helper()
	args := []string{"envoy", "check", "http://" + i.envoy.Admin()}
	for _, finding := range append(ignored, "envoy-old") {
		args = append(args, "--ignore", finding)
	}
	out := run(t, nil, keyporter(t), args...)
	if found := findings(out); !slices.Equal(found, want) {
		t.Errorf("%q, want %q:\n%s", found, want, out)
	}
}

// checkFailOpen checks the answers without the fields of the mesh configuration: 403 and a wait
// of ten minutes when nobody decides; with failOpen, everything passes.
func (i *istio) checkFailOpen(t *testing.T, key string) {
	if err := i.processes[i.replicas[0]].Stop(); err != nil {
		t.Fatal(err)
	}
	i.configure(t, func(authorizer map[string]any) { delete(authorizer, "statusOnError"); delete(authorizer, "timeout") })
	eventually(t, "the status is Istio's own", func() error { return i.answers(key, 403, "") })
	if _, config, err := send(i.envoy.Admin(), "GET", "/config_dump"); err != nil || !strings.Contains(config, `"timeout": "600s"`) {
		t.Errorf("Envoy does not wait for ten minutes: %v %s", err, config)
	}
	i.configure(t, func(authorizer map[string]any) { authorizer["failOpen"] = true })
	eventually(t, "requests pass", func() error { return i.answers("", 200, "/v1/a") })
	i.start(i.replicas[0])
	eventually(t, "Keyporter decides", func() error { return i.answers("", 401, "unauthorized") })
}

// apply applies objects.
func (i *istio) apply(t *testing.T, text string) {
	t.Helper()
	i.cluster.do(t, text, "apply", "--filename", "-")
}

package kubernetes_test

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyporter/keyporter/internal/parts"
)

// kube is a Kubernetes cluster on loopback: etcd, the API server, the controllers, the scheduler,
// and kwok, which plays the kubelets: it runs no container, but reports each pod as running and
// ready, and each Job's pod as completed.
type kube struct {
	dir     string // of everything that the cluster writes
	kubectl string
}

// nodes are those of the cluster: name → zone.
var nodes = map[string]string{"node-1": "zone-a", "node-2": "zone-b", "node-3": "zone-c", "node-4": "zone-a"}

// startAPIServer starts an API server alone: objects are checked and kept, and nothing happens to
// them.
func startAPIServer(t *testing.T) *kube {
	t.Helper()
	k := &kube{dir: t.TempDir(), kubectl: program(t, "kubectl")}
	client, peer, server := freeAddress(t), freeAddress(t), freeAddress(t)
	k.start(t, "etcd", "--data-dir", filepath.Join(k.dir, "etcd"), "--name", "etcd", "--unsafe-no-fsync",
		"--listen-client-urls", "http://"+client, "--advertise-client-urls", "http://"+client,
		"--listen-peer-urls", "http://"+peer, "--initial-advertise-peer-urls", "http://"+peer, "--initial-cluster", "etcd=http://"+peer)
	k.write(t, "accounts.key", accountKey(t))
	k.write(t, "tokens.csv", "secret,admin,admin,system:masters\n")
	host, port, _ := strings.Cut(server, ":")
	process := k.start(t, "kube-apiserver", "--etcd-servers", "http://"+client, "--bind-address", host, "--secure-port", port, "--cert-dir", k.dir,
		"--service-account-issuer", "https://kubernetes.default.svc", "--service-account-key-file", k.path("accounts.key"),
		"--service-account-signing-key-file", k.path("accounts.key"), "--service-cluster-ip-range", "10.96.0.0/16",
		"--token-auth-file", k.path("tokens.csv"), "--authorization-mode", "RBAC", "--endpoint-reconciler-type", "none")
	k.write(t, "kubeconfig", fmt.Sprintf(kubeconfig, k.path("apiserver.crt"), server))
	unlessItEnds(t, process, "the API server is ready", func() error {
		_, err := k.try("", "get", "--raw", "/readyz")
		return err
	})
	return k
}

// startCluster starts a cluster with [nodes].
func startCluster(t *testing.T) *kube {
	t.Helper()
	k := startAPIServer(t)
	// Nobody renews the state of nodes, so it has to last for the whole test.
	k.start(t, "kube-controller-manager", "--kubeconfig", k.path("kubeconfig"), "--leader-elect=false", "--secure-port", "0",
		"--service-account-private-key-file", k.path("accounts.key"), "--node-monitor-grace-period", "1h")
	k.start(t, "kube-scheduler", "--kubeconfig", k.path("kubeconfig"), "--leader-elect=false", "--secure-port", "0")
	k.start(t, "kwok", "--kubeconfig", k.path("kubeconfig"), "--config", "stages.yaml", "--manage-all-nodes")
	for name, zone := range nodes {
		k.do(t, fmt.Sprintf(`{apiVersion: v1, kind: Node, metadata: {name: %s, labels: {kubernetes.io/hostname: %[1]s, topology.kubernetes.io/zone: %s}}}`, name, zone),
			"create", "--filename", "-")
	}
	k.do(t, "", "wait", "node", "--all", "--for", "condition=Ready", "--timeout", "2m")
	return k
}

const kubeconfig = `
apiVersion: v1
kind: Config
clusters: [{name: test, cluster: {certificate-authority: %s, server: "https://%s"}}]
users: [{name: admin, user: {token: secret}}]
contexts: [{name: test, context: {cluster: test, user: admin}}]
current-context: test
`

// start starts a program of the cluster.
func (k *kube) start(t *testing.T, name string, args ...string) *parts.Process {
	t.Helper()
	return startProgram(t, parts.Command{Path: program(t, name), Args: args, Env: k.environment()})
}

// environment keeps programs away from the caches and the configuration of whoever runs the test.
func (k *kube) environment() []string {
	return []string{"PATH=" + os.Getenv("PATH"), "HOME=" + k.dir, "TMPDIR=" + os.TempDir(), "KUBECONFIG=" + k.path("kubeconfig")}
}

// do runs kubectl, which must succeed without a warning, and returns its output.
func (k *kube) do(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	out, err := k.try(stdin, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// try runs kubectl from the root of the repository. A warning of the API server is an error.
func (k *kube) try(stdin string, args ...string) (string, error) {
	cmd := exec.Command(k.kubectl, append(args, "--warnings-as-errors")...)
	cmd.Dir, cmd.Env, cmd.Stdin = "..", k.environment(), strings.NewReader(stdin)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("kubectl %s: %w\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return string(out), err
}

func (k *kube) path(name string) string { return filepath.Join(k.dir, name) }

func (k *kube) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(k.path(name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// accountKey returns a key that signs tokens of service accounts.
func accountKey(t *testing.T) string {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}))
}

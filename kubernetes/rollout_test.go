package kubernetes_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	policyv1 "k8s.io/api/policy/v1"
)

// The commands of docs/kubernetes.md do what they promise, with the API server, the scheduler and
// the controllers of Kubernetes: first a trial, then production with all components.
func TestManifestsInACluster(t *testing.T) {
	k := startCluster(t)
	// Elsewhere a storage class makes it.
	k.do(t, `{apiVersion: v1, kind: PersistentVolume, metadata: {name: data}, spec: {capacity: {storage: 1Gi}, accessModes: [ReadWriteOnce], hostPath: {path: /data}}}`,
		"create", "--filename", "-")
	k.do(t, "", "apply", "--kustomize", manifests+"/overlays/trial")
	k.isUp(t, map[string]int{"keyporter": 3, "keyporter-page": 3, "postgres": 1, "valkey": 1})
	t.Run("the namespace refuses a pod that may become root", k.refusesRoot)
	k.remove(t, manifests+"/overlays/trial")

	mine := production(t)
	k.do(t, "", "apply", "--filename", manifests+"/base/namespace.yaml")
	for _, secret := range []string{"database", "database-owner", "redis", "seal", "settle", "grpc"} {
		k.inNamespace(t, "create", "secret", "generic", "keyporter-"+secret, "--from-literal=a=b")
	}
	k.do(t, "", "apply", "--kustomize", mine)
	k.isUp(t, map[string]int{"keyporter": 3, "keyporter-page": 3, "keyporter-settle": 3})
	t.Run("a drain takes one replica at a time", k.drainsOneByOne)
	t.Run("a new route table restarts no replica", func(t *testing.T) { k.reloads(t, mine) })
	t.Run("a restart leaves three replicas at any time", func(t *testing.T) {
		k.replaces(t, "keyporter:v1.0.0", func() { k.inNamespace(t, "rollout", "restart", "deployment/keyporter") })
	})
	t.Run("a new image leaves three replicas at any time", func(t *testing.T) {
		edit(t, filepath.Join(mine, "kustomization.yaml"), "newTag: v1.0.0", "newTag: v1.0.1")
		if _, err := k.try("", "apply", "--kustomize", mine, "--dry-run=server"); err == nil || !strings.Contains(err.Error(), "immutable") {
			t.Errorf("the last Job does not have to be deleted: %v", err)
		}
		k.inNamespace(t, "delete", "job", "keyporter-migrate", "--ignore-not-found")
		k.replaces(t, "keyporter:v1.0.1", func() { k.do(t, "", "apply", "--kustomize", mine) })
	})
	k.isUp(t, map[string]int{"keyporter": 3, "keyporter-page": 3, "keyporter-settle": 3})
	k.remove(t, mine)
	t.Run("an Envoy of your own starts in a restricted namespace", k.runsEnvoys)
}

// production returns a copy of the overlay, with all components, beside a copy of the others.
func production(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	if err := os.CopyFS(root, os.DirFS(filepath.Join("..", manifests))); err != nil {
		t.Fatal(err)
	}
	overlay := filepath.Join(root, "overlays", "production")
	edit(t, filepath.Join(overlay, "kustomization.yaml"), "\n# components:", "\ncomponents:", "\n#  - ", "\n  - ")
	return overlay
}

// edit replaces texts of a file, given as pairs; each must be there.
func edit(t *testing.T, path string, pairs ...string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	edited := string(text)
	for pair := range slices.Chunk(pairs, 2) {
		if !strings.Contains(edited, pair[0]) {
			t.Fatalf("%s has no %q", path, pair[0])
		}
		edited = strings.ReplaceAll(edited, pair[0], pair[1])
	}
	if err := os.WriteFile(path, []byte(edited), 0o600); err != nil {
		t.Fatal(err)
	}
}

// inNamespace runs kubectl in the namespace of Keyporter.
func (k *kube) inNamespace(t *testing.T, args ...string) string {
	t.Helper()
	return k.do(t, "", append(args, "--namespace", "keyporter")...)
}

// get reads objects of the namespace of Keyporter.
func get[T any](t *testing.T, k *kube, args ...string) (object T) {
	t.Helper()
	out := k.inNamespace(t, append([]string{"get", "--output", "json"}, args...)...)
	if err := json.Unmarshal([]byte(out), &object); err != nil {
		t.Fatal(err)
	}
	return object
}

// isUp waits until everything of a build is in service, and checks that replicas are spread over
// nodes and zones, that a drain may take one, and where Services lead: name → ready pods.
func (k *kube) isUp(t *testing.T, services map[string]int) {
	t.Helper()
	k.inNamespace(t, "wait", "--for=condition=complete", "job/keyporter-migrate", "--timeout=5m")
	k.inNamespace(t, "rollout", "status", "deployment/keyporter", "--timeout=5m")
	if status := get[appsv1.Deployment](t, k, "deployment", "keyporter").Status; status.ReadyReplicas != 3 || status.UpdatedReplicas != 3 || status.Replicas != 3 {
		t.Errorf("the Deployment is %+v", status)
	}
	eventually(t, "Services lead to all pods", func() error {
		ready := map[string]int{}
		for _, slice := range get[discoveryv1.EndpointSliceList](t, k, "endpointslices").Items {
			if len(slice.Ports) == 0 {
				continue // no pod has a port of that name
			}
			for _, endpoint := range slice.Endpoints {
				if *endpoint.Conditions.Ready {
					ready[slice.Labels[discoveryv1.LabelServiceName]]++
				}
			}
		}
		if !maps.Equal(ready, services) {
			return fmt.Errorf("%v, want %v", ready, services)
		}
		return nil
	})
	used, zones := map[string]bool{}, map[string]bool{}
	for _, pod := range k.replicas(t) {
		used[pod.Spec.NodeName], zones[nodes[pod.Spec.NodeName]] = true, true
	}
	if len(used) != 3 || len(zones) != 3 {
		t.Errorf("three replicas are on the nodes %v in the zones %v", used, zones)
	}
	k.allows(t, 1)
}

// replicas returns the pods of Keyporter that are not ending.
func (k *kube) replicas(t *testing.T) []corev1.Pod {
	t.Helper()
	pods := get[corev1.PodList](t, k, "pods", "--selector", "app.kubernetes.io/name=keyporter").Items
	return slices.DeleteFunc(pods, func(pod corev1.Pod) bool { return pod.DeletionTimestamp != nil })
}

// allows waits until a drain may take so many replicas.
func (k *kube) allows(t *testing.T, disruptions int32) {
	t.Helper()
	eventually(t, "the budget counts replicas", func() error {
		if status := get[policyv1.PodDisruptionBudget](t, k, "poddisruptionbudget", "keyporter").Status; status.DisruptionsAllowed != disruptions || status.ExpectedPods != 3 {
			return fmt.Errorf("%+v, want %d", status, disruptions)
		}
		return nil
	})
}

// refusesRoot shows that the label of the namespace counts, so that the replicas pass it.
func (k *kube) refusesRoot(t *testing.T) {
	out, err := k.try("", "run", "root", "--image=keyporter:local", "--namespace", "keyporter")
	if err == nil || !strings.Contains(err.Error(), `violates PodSecurity "restricted`) {
		t.Errorf("%s %v", out, err)
	}
}

// drainsOneByOne evicts two replicas at once. No node takes another one meanwhile, so that the
// second never may.
func (k *kube) drainsOneByOne(t *testing.T) {
	all := slices.Collect(maps.Keys(nodes))
	k.do(t, "", append([]string{"cordon"}, all...)...)
	evict := func(pod corev1.Pod) error {
		_, err := k.try(`{"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "`+pod.Name+`", "namespace": "keyporter"}}`,
			"create", "--raw", "/api/v1/namespaces/keyporter/pods/"+pod.Name+"/eviction", "--filename", "-")
		return err
	}
	pods := k.replicas(t)
	if err := evict(pods[0]); err != nil {
		t.Error(err)
	}
	if err := evict(pods[1]); err == nil || !strings.Contains(err.Error(), "disruption budget") {
		t.Errorf("a second replica goes: %v", err)
	}
	k.do(t, "", append([]string{"uncordon"}, all...)...)
	k.allows(t, 1)
}

// reloads changes the route table: the ConfigMap has it, under the name that pods mount, and the
// Deployment stays as it is.
func (k *kube) reloads(t *testing.T, overlay string) {
	before := get[appsv1.Deployment](t, k, "deployment", "keyporter")
	edit(t, filepath.Join(overlay, "keyporter.yaml"), "paths: /status", "paths: /health")
	k.do(t, "", "apply", "--kustomize", overlay)
	if table := get[corev1.ConfigMap](t, k, "configmap", "keyporter").Data["keyporter.yaml"]; !strings.Contains(table, "paths: /health") {
		t.Errorf("the route table is still\n%s", table)
	}
	if after := get[appsv1.Deployment](t, k, "deployment", "keyporter"); after.Generation != before.Generation {
		t.Errorf("the Deployment has changed from\n%v\nto\n%v", before.Spec, after.Spec)
	}
}

// replaces runs a command after which replicas of an image take the place of all others, while
// three are ready at any time, and a fourth at times.
func (k *kube) replaces(t *testing.T, image string, command func()) {
	old := k.replicas(t)
	w := k.watch(t)
	eventually(t, "the watch knows all replicas", w.counts(func() bool { return len(w.pods) == len(old) }))
	command()
	k.inNamespace(t, "rollout", "status", "deployment/keyporter", "--timeout=5m")
	eventually(t, "the watch knows the new replicas", w.counts(func() bool {
		return len(w.pods) == 3 && !slices.ContainsFunc(old, func(pod corev1.Pod) bool { _, there := w.pods[pod.Name]; return there })
	}))
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fewest != 3 || w.most != 4 {
		t.Errorf("between %d and %d replicas were ready", w.fewest, w.most)
	}
	for name, pod := range w.pods {
		if !strings.HasSuffix(pod.Spec.Containers[0].Image, image) {
			t.Errorf("%s runs %s", name, pod.Spec.Containers[0].Image)
		}
	}
}

// watch follows the pods of Keyporter, and counts those that are ready and not ending.
type watch struct {
	mu       sync.Mutex
	pods     map[string]corev1.Pod
	most     int
	complete bool // it has seen three
	fewest   int  // since then
}

// watch starts a watch that ends with the test.
func (k *kube) watch(t *testing.T) *watch {
	t.Helper()
	w := &watch{pods: map[string]corev1.Pod{}, fewest: 3}
	cmd := exec.Command(k.kubectl, "get", "pods", "--namespace", "keyporter", "--selector", "app.kubernetes.io/name=keyporter", "--watch", "--output-watch-events", "--output", "json")
	cmd.Env = k.environment()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		w.read(out)
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-read
		cmd.Wait()
	})
	return w
}

// read takes events until there are no more.
func (w *watch) read(events io.Reader) {
	for decoder := json.NewDecoder(events); ; {
		var event struct {
			Type   string
			Object corev1.Pod
		}
		if decoder.Decode(&event) != nil {
			return
		}
		w.mu.Lock()
		w.pods[event.Object.Name] = event.Object
		if event.Type == "DELETED" {
			delete(w.pods, event.Object.Name)
		}
		w.count()
		w.mu.Unlock()
	}
}

func (w *watch) count() {
	ready := 0
	for _, pod := range w.pods {
		for _, condition := range pod.Status.Conditions {
			if condition.Type == corev1.PodReady && condition.Status == corev1.ConditionTrue && pod.DeletionTimestamp == nil {
				ready++
			}
		}
	}
	w.most = max(w.most, ready)
	if w.complete = w.complete || ready == 3; w.complete {
		w.fewest = min(w.fewest, ready)
	}
}

// counts returns a check for [eventually].
func (w *watch) counts(ok func() bool) func() error {
	return func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if !ok() {
			return errors.New(fmt.Sprint(slices.Collect(maps.Keys(w.pods))))
		}
		return nil
	}
}

// runsEnvoys applies the examples with an Envoy in pods of its own, then with one beside the API.
func (k *kube) runsEnvoys(t *testing.T) {
	k.do(t, "", "apply", "--filename", "examples/api.yaml")
	k.do(t, "", "label", "namespace", "api", "keyporter-access=envoy", "pod-security.kubernetes.io/enforce=restricted")
	k.do(t, "", "create", "secret", "generic", "envoy", "--from-literal=envoy.yaml=", "--namespace", "api")
	k.do(t, "", "apply", "--filename", "examples/envoy/deployment.yaml")
	k.do(t, "", "rollout", "status", "deployment/envoy", "--namespace", "api", "--timeout=5m")
	k.do(t, "", "apply", "--filename", "examples/envoy/sidecar.yaml")
	k.do(t, "", "rollout", "status", "deployment/api", "--namespace", "api", "--timeout=5m")
}

// remove deletes an overlay, after which nothing is left in the namespace, not even itself.
func (k *kube) remove(t *testing.T, overlay string) {
	t.Helper()
	kinds := strings.Fields(k.do(t, "", "api-resources", "--namespaced", "--verbs=list", "--output=name"))
	kinds = slices.DeleteFunc(kinds, func(kind string) bool { return kind == "endpoints" }) // reading them is a warning
	k.do(t, "", "delete", "--kustomize", overlay)
	if left := k.inNamespace(t, "get", strings.Join(kinds, ","), "--output=name", "--ignore-not-found"); left != "" {
		t.Errorf("what is left:\n%s", left)
	}
	if left := k.do(t, "", "get", "namespace", "keyporter", "--ignore-not-found"); left != "" {
		t.Errorf("what is left:\n%s", left)
	}
}

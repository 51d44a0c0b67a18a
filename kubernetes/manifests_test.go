package kubernetes_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

// manifests is the folder of the manifests, relative to the root of the repository.
const manifests = "envoy/kubernetes"

// builds are the ways in which the manifests are meant to be applied: an overlay, with components.
var builds = map[string][]string{
	"the base":                           {"base"},
	"a trial":                            {"overlays/trial"},
	"production":                         {"overlays/production"},
	"production with all components":     {"overlays/production", "components/seal", "components/settle", "components/grpc-token"},
	"a trial that shows keys once more":  {"overlays/trial", "components/seal"},
	"a trial whose upstream settles":     {"overlays/trial", "components/settle"},
	"a trial whose Envoys send a token ": {"overlays/trial", "components/grpc-token"},
}

// cluster is what one build of the manifests consists of.
type cluster struct {
	objects    []runtime.Object
	pods       map[string]*corev1.PodTemplateSpec // by kind and name, such as Deployment/keyporter
	deployment *appsv1.Deployment                 // that of Keyporter
}

// eachBuild runs a test on every build of the manifests.
func eachBuild(t *testing.T, test func(t *testing.T, c *cluster)) {
	for name, folders := range builds {
		t.Run(name, func(t *testing.T) { test(t, newCluster(t, folders)) })
	}
}

// newCluster builds the manifests of an overlay, or the base, with components.
func newCluster(t *testing.T, folders []string) *cluster {
	t.Helper()
	c := &cluster{objects: decode(t, kustomize(t, folders))}
	c.pods = podsOf(c.objects)
	for _, object := range c.objects {
		if o, ok := object.(*appsv1.Deployment); ok && o.Name == "keyporter" {
			c.deployment = o
		}
	}
	if c.deployment == nil {
		t.Fatal("there is no Deployment of Keyporter")
	}
	return c
}

// podsOf returns the pods that objects make: kind and name → pod.
func podsOf(objects []runtime.Object) map[string]*corev1.PodTemplateSpec {
	pods := map[string]*corev1.PodTemplateSpec{}
	for _, object := range objects {
		switch o := object.(type) {
		case *appsv1.Deployment:
			pods["Deployment/"+o.Name] = &o.Spec.Template
		case *appsv1.StatefulSet:
			pods["StatefulSet/"+o.Name] = &o.Spec.Template
		case *batchv1.Job:
			pods["Job/"+o.Name] = &o.Spec.Template
		}
	}
	return pods
}

// kustomize returns the objects of an overlay, or the base, with components, as kubectl would apply
// them.
func kustomize(t *testing.T, folders []string) []byte {
	t.Helper()
	root, err := filepath.Abs(filepath.Join("..", manifests))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	overlay := "resources: [" + relative(t, dir, filepath.Join(root, folders[0])) + "]\ncomponents:\n"
	for _, folder := range folders[1:] {
		overlay += "- " + relative(t, dir, filepath.Join(root, folder)) + "\n"
	}
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(overlay), 0o600); err != nil {
		t.Fatal(err)
	}
	built, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), dir)
	if err != nil {
		t.Fatal(err)
	}
	text, err := built.AsYaml()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func relative(t *testing.T, from, to string) string {
	t.Helper()
	name, err := filepath.Rel(from, to)
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// strict reads objects of Kubernetes. It refuses unknown and repeated fields.
var strict = func() runtime.Decoder {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		appsv1.AddToScheme, batchv1.AddToScheme, corev1.AddToScheme, networkingv1.AddToScheme, policyv1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			panic(err) // two packages of Kubernetes declare one kind
		}
	}
	return serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
}()

// decode reads a file with objects of Kubernetes.
func decode(t *testing.T, text []byte) (objects []runtime.Object) {
	t.Helper()
	for _, document := range documents(t, text) {
		object, _, err := strict.Decode(document, nil, nil)
		if err != nil {
			t.Errorf("%v\n%s", err, document)
			continue
		}
		objects = append(objects, object)
	}
	return objects
}

// documents returns the documents of a YAML file that are not empty.
func documents(t *testing.T, text []byte) (all [][]byte) {
	t.Helper()
	reader := yaml.NewDocumentDecoder(io.NopCloser(bytes.NewReader(text)))
	for {
		document := make([]byte, 1<<20)
		n, err := reader.Read(document)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		if comment := regexp.MustCompile(`(?m)^\s*(#.*)?$\n?`); len(comment.ReplaceAll(document[:n], nil)) > 0 {
			all = append(all, document[:n])
		}
	}
}

// Kubernetes knows every object, and every field of it.
func TestEveryFieldIsKnown(t *testing.T) {
	eachBuild(t, func(t *testing.T, c *cluster) {
		if len(c.objects) < 10 {
			t.Errorf("only %d objects", len(c.objects))
		}
	})
	if _, _, err := strict.Decode([]byte(`{"apiVersion": "v1", "kind": "Service", "spec": {"clusterIPP": "None"}}`), nil, nil); err == nil {
		t.Error("an unknown field is accepted")
	}
}

// Every pod of the manifests and the examples meets the pod security standard "restricted", has a
// read-only image and no token of the API server, and gets no variables of services, which
// Keyporter would take for unknown settings.
func TestPodsAreRestricted(t *testing.T) {
	eachBuild(t, func(t *testing.T, c *cluster) { checkRestricted(t, c.pods) })
	examples := 0
	for _, name := range exampleFiles(t) {
		t.Run(name, func(t *testing.T) {
			var own []runtime.Object // of Kubernetes itself
			for _, document := range documents(t, []byte(read(t, name))) {
				if object, _, err := strict.Decode(document, nil, nil); !runtime.IsNotRegisteredError(err) {
					own = append(own, object)
				}
			}
			examples += len(podsOf(own))
			checkRestricted(t, podsOf(own))
		})
	}
	if examples < 3 {
		t.Errorf("only %d pods of examples", examples)
	}
}

func checkRestricted(t *testing.T, pods map[string]*corev1.PodTemplateSpec) {
	t.Helper()
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	level := api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}
	for name, pod := range pods {
		for _, result := range evaluator.EvaluatePod(level, &pod.ObjectMeta, &pod.Spec) {
			if !result.Allowed {
				t.Errorf("%s: %s: %s", name, result.ForbiddenReason, result.ForbiddenDetail)
			}
		}
		if on := pod.Spec.AutomountServiceAccountToken; on == nil || *on {
			t.Errorf("%s gets a token of the API server", name)
		}
		if on := pod.Spec.EnableServiceLinks; on == nil || *on {
			t.Errorf("%s gets variables of services", name)
		}
		for _, container := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
			if own := container.SecurityContext; own == nil || own.ReadOnlyRootFilesystem == nil || !*own.ReadOnlyRootFilesystem {
				t.Errorf("%s can write to its image", name)
			}
			if container.Resources.Limits.Memory().IsZero() || container.Resources.Requests.Memory().IsZero() {
				t.Errorf("%s has no request or no limit of memory", name)
			}
		}
	}
}

// Probes ask the ports and paths on which Keyporter answers them. Only readiness depends on the
// database, so that no outage restarts a replica.
func TestProbesAskTheOpsListener(t *testing.T) {
	eachBuild(t, func(t *testing.T, c *cluster) {
		container := c.container(t)
		for path, probe := range map[string]*corev1.Probe{
			"/healthz": container.LivenessProbe, "/healthz ": container.StartupProbe, "/readyz": container.ReadinessProbe,
		} {
			if probe == nil || probe.HTTPGet == nil || probe.HTTPGet.Path != strings.TrimSpace(path) || probe.HTTPGet.Port.StrVal != "ops" {
				t.Errorf("a probe is %v, want %s at the port ops", probe, path)
			}
		}
		for port, variable := range map[string]string{
			"grpc": "KEYPORTER_LISTEN_GRPC", "page": "KEYPORTER_LISTEN_HTTP", "ops": "KEYPORTER_LISTEN_OPS", "settle": "KEYPORTER_LISTEN_SETTLE",
		} {
			listens := env(container, variable)
			if port == "settle" && listens == "" {
				continue // off
			}
			if number := portNumber(container, port); listens != fmt.Sprintf(":%d", number) {
				t.Errorf("%s is %q, but the port %s is %d", variable, listens, port, number)
			}
		}
	})
}

// stopTime is how long after the drain delay `serve` cuts off requests in flight, as in
// docs/operations.md. It has as much again to report credits and rate logs.
const stopTime = 10 * time.Second

// Kubernetes does not kill a replica that stops in good order.
func TestTheGracePeriodCoversTheDrain(t *testing.T) {
	eachBuild(t, func(t *testing.T, c *cluster) {
		container := c.container(t)
		drain, err := time.ParseDuration(env(container, "KEYPORTER_DRAIN_DELAY"))
		if err != nil {
			t.Fatal(err)
		}
		if container.Lifecycle == nil || container.Lifecycle.PreStop == nil || container.Lifecycle.PreStop.Sleep == nil {
			t.Fatal("nothing happens before TERM")
		}
		preStop := time.Duration(container.Lifecycle.PreStop.Sleep.Seconds) * time.Second
		grace := time.Duration(*c.deployment.Spec.Template.Spec.TerminationGracePeriodSeconds) * time.Second
		if need := preStop + drain + 2*stopTime; grace < need {
			t.Errorf("the pod has %v to end, and needs %v", grace, need)
		}
	})
}

// An update and a drain of nodes leave at least two replicas, on different nodes where possible.
func TestReplicasOutliveUpdatesAndDrains(t *testing.T) {
	eachBuild(t, func(t *testing.T, c *cluster) {
		spec := c.deployment.Spec
		if *spec.Replicas < 3 || spec.Strategy.RollingUpdate == nil || spec.Strategy.RollingUpdate.MaxUnavailable.IntValue() != 0 {
			t.Errorf("an update of %d replicas takes some away: %v", *spec.Replicas, spec.Strategy)
		}
		var keys []string
		for _, spread := range spec.Template.Spec.TopologySpreadConstraints {
			if keys = append(keys, spread.TopologyKey); !selects(t, spread.LabelSelector, spec.Template.Labels) {
				t.Errorf("the spread over %s counts other pods", spread.TopologyKey)
			}
		}
		if !slices.Equal(keys, []string{"kubernetes.io/hostname", "topology.kubernetes.io/zone"}) {
			t.Errorf("replicas are spread over %q", keys)
		}
		for _, object := range c.objects {
			if budget, ok := object.(*policyv1.PodDisruptionBudget); ok && selects(t, budget.Spec.Selector, spec.Template.Labels) {
				if budget.Spec.MaxUnavailable.IntValue() != 1 {
					t.Errorf("a drain takes %v replicas", budget.Spec.MaxUnavailable)
				}
				return
			}
		}
		t.Error("no budget limits how many replicas a drain takes")
	})
}

// Go's memory limit is nine tenths of that of the container, so that garbage is collected before
// the kernel ends the process.
func TestTheMemoryLimitIsThatOfTheContainer(t *testing.T) {
	eachBuild(t, func(t *testing.T, c *cluster) {
		container := c.container(t)
		for _, variable := range container.Env {
			if variable.Name != "GOMEMLIMIT" {
				continue
			}
			if from := variable.ValueFrom; from == nil || from.ResourceFieldRef == nil || from.ResourceFieldRef.Resource != "requests.memory" {
				t.Errorf("GOMEMLIMIT comes from %v", variable.ValueFrom)
			}
			request, limit := container.Resources.Requests.Memory().Value(), container.Resources.Limits.Memory().Value()
			if share := float64(request) / float64(limit); share < 0.88 || share > 0.9 {
				t.Errorf("the request is %.3f of the limit, want nine tenths", share)
			}
			return
		}
		t.Error("GOMEMLIMIT is not set")
	})
}

// Services, budgets and network policies select pods that exist, and ports by names that these
// have. The Service for Checks has no address of its own, so that Envoy sees each replica.
func TestSelectorsAndPortsExist(t *testing.T) {
	eachBuild(t, func(t *testing.T, c *cluster) {
		for _, object := range c.objects {
			switch o := object.(type) {
			case *corev1.Service:
				ports := c.portsOf(labels.SelectorFromSet(o.Spec.Selector))
				for _, port := range o.Spec.Ports {
					if !slices.Contains(ports, port.TargetPort.StrVal) {
						t.Errorf("Service %s leads to the port %v, and its pods have %q", o.Name, port.TargetPort, ports)
					}
				}
				if o.Name == "keyporter" && (o.Spec.ClusterIP != "None" || *o.Spec.Ports[0].AppProtocol != "kubernetes.io/h2c") {
					t.Errorf("Envoy sees %s of replicas, by %v", o.Spec.ClusterIP, o.Spec.Ports[0].AppProtocol)
				}
			case *networkingv1.NetworkPolicy:
				selector, err := metav1.LabelSelectorAsSelector(&o.Spec.PodSelector)
				if err != nil {
					t.Fatal(err)
				}
				ports := c.portsOf(selector)
				for _, rule := range o.Spec.Ingress {
					for _, port := range rule.Ports {
						if port.Port.Type != intstr.String || !slices.Contains(ports, port.Port.StrVal) {
							t.Errorf("NetworkPolicy %s opens the port %v, and its pods have %q", o.Name, port.Port, ports)
						}
					}
				}
			}
		}
	})
}

// Nobody reaches a port of Keyporter but those for whom it is: Checks come from pods that carry a
// label, in namespaces that carry it too.
func TestOnlyChosenPodsReachKeyporter(t *testing.T) {
	want := map[string]string{"grpc": "envoy", "page": "envoy", "ops": "monitoring", "settle": "upstream"}
	eachBuild(t, func(t *testing.T, c *cluster) {
		denied := false
		for _, object := range c.objects {
			policy, ok := object.(*networkingv1.NetworkPolicy)
			if !ok {
				continue
			}
			denied = denied || len(policy.Spec.PodSelector.MatchLabels) == 0 && len(policy.Spec.Ingress) == 0
			if !selects(t, &policy.Spec.PodSelector, c.deployment.Spec.Template.Labels) || policy.Name == "keyporter-drill" {
				continue // the drill: replicas ask one another
			}
			for _, rule := range policy.Spec.Ingress {
				for _, port := range rule.Ports {
					for _, peer := range rule.From {
						chosen := peer.NamespaceSelector != nil && peer.NamespaceSelector.MatchLabels["keyporter-access"] == want[port.Port.StrVal] &&
							(port.Port.StrVal == "ops" || peer.PodSelector != nil && peer.PodSelector.MatchLabels["keyporter-access"] == want[port.Port.StrVal])
						if !chosen {
							t.Errorf("NetworkPolicy %s opens %v to %v", policy.Name, port.Port, peer)
						}
					}
					if len(rule.From) == 0 {
						t.Errorf("NetworkPolicy %s opens %v to everybody", policy.Name, port.Port)
					}
				}
			}
		}
		if !denied {
			t.Error("the namespace has no policy that denies by default")
		}
	})
}

// Nobody reaches the API of the examples but pods that Keyporter lets in too: the API believes
// x-keyporter-user. The page of every front applies the policy.
func TestOnlyEnvoysReachTheAPI(t *testing.T) {
	const file = "examples/network.yaml"
	policy, ok := decode(t, []byte(read(t, file)))[0].(*networkingv1.NetworkPolicy)
	if !ok {
		t.Fatalf("%s has another object", file)
	}
	api := podsOf(decode(t, []byte(read(t, "examples/api.yaml"))))["Deployment/api"]
	if !selects(t, &policy.Spec.PodSelector, api.Labels) || !slices.Equal(policy.Spec.PolicyTypes, []networkingv1.PolicyType{"Ingress"}) {
		t.Errorf("the policy does not guard the pods of the API: %v", policy.Spec)
	}
	for _, rule := range policy.Spec.Ingress {
		if len(rule.From) == 0 {
			t.Errorf("the policy opens %v to everybody", rule.Ports)
		}
		for _, peer := range rule.From {
			if !isEnvoy(peer) {
				t.Errorf("the policy lets %v in", peer)
			}
		}
		if open := rule.Ports[0].Port.String(); open != api.Spec.Containers[0].Ports[0].Name {
			t.Errorf("the policy opens the port %s, where the API does not listen", open)
		}
	}
	pages, err := filepath.Glob("../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	folders, err := os.ReadDir("../examples")
	if err != nil {
		t.Fatal(err)
	}
	for _, folder := range folders {
		manifests, err := filepath.Glob(filepath.Join("../examples", folder.Name(), "*.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		if len(manifests) == 0 {
			continue
		}
		applied := false
		for _, page := range pages {
			text := read(t, strings.TrimPrefix(page, "../"))
			if !strings.Contains(text, "--filename examples/"+folder.Name()+"/") {
				continue
			}
			if applied = true; !strings.Contains(text, "--filename "+file) {
				t.Errorf("%s applies examples/%s/ without %s", page, folder.Name(), file)
			}
		}
		if !applied {
			t.Errorf("no page applies examples/%s/", folder.Name())
		}
	}
}

// isEnvoy reports whether a policy means pods that carry the label of Envoys, in namespaces that
// carry it too.
func isEnvoy(peer networkingv1.NetworkPolicyPeer) bool {
	return peer.NamespaceSelector != nil && peer.NamespaceSelector.MatchLabels["keyporter-access"] == "envoy" &&
		peer.PodSelector != nil && peer.PodSelector.MatchLabels["keyporter-access"] == "envoy"
}

// documented matches how a comment or a page makes a Secret: its name, and its key.
var documented = regexp.MustCompile(`create secret generic ([\w-]+) --from-file=([\w.-]+)=`)

// Each file of a secret that a setting names comes from a Secret of the build, or from one that a
// comment says how to make.
func TestSecretsExistOrAreDocumented(t *testing.T) {
	known := map[string][]string{} // secret → keys
	for _, file := range []string{"overlays/production", "components/seal", "components/settle", "components/grpc-token"} {
		for _, found := range documented.FindAllStringSubmatch(read(t, path.Join(manifests, file, "kustomization.yaml")), -1) {
			known[found[1]] = append(known[found[1]], found[2])
		}
	}
	eachBuild(t, func(t *testing.T, c *cluster) {
		for name, pod := range c.pods {
			for _, container := range pod.Spec.Containers {
				for _, variable := range container.Env {
					if !strings.HasPrefix(variable.Value, "/run/secrets/") {
						continue
					}
					secret := secretAt(pod, container, path.Dir(variable.Value))
					keys := append(c.secret(secret), known[secret]...)
					if !slices.Contains(keys, path.Base(variable.Value)) {
						t.Errorf("%s: %s=%s is in the Secret %q, which has %q", name, variable.Name, variable.Value, secret, keys)
					}
				}
			}
		}
	})
}

// `keyporter config check` accepts what a replica and the migration get: variables, arguments, the
// configuration file. The ConfigMap keeps its name, and is mounted as a folder, so that replicas
// reload the route table.
func TestTheConfigurationIsValid(t *testing.T) {
	secrets := exampleSecrets(t)
	eachBuild(t, func(t *testing.T, c *cluster) {
		for name, pod := range c.pods {
			container := pod.Spec.Containers[0]
			if name != "Deployment/keyporter" && name != "Job/keyporter-migrate" {
				continue
			}
			dir := t.TempDir()
			var settings []string
			for _, variable := range container.Env {
				value := strings.ReplaceAll(variable.Value, "$(POD_IP)", "10.0.0.7")
				if strings.HasPrefix(variable.Name, "KEYPORTER_") {
					settings = append(settings, variable.Name+"="+strings.NewReplacer("/run/secrets", secrets, "/etc/keyporter", dir).Replace(value))
				}
			}
			if name == "Job/keyporter-migrate" {
				run(t, settings, keyporter(t), append(container.Args, "--help")...)
				run(t, settings, keyporter(t), "config", "check")
				continue
			}
			table, ok := c.configMap("keyporter").Data["keyporter.yaml"]
			if !ok || !slices.ContainsFunc(container.VolumeMounts, func(m corev1.VolumeMount) bool { return m.MountPath == "/etc/keyporter" && m.SubPath == "" }) {
				t.Fatal("the configuration file is not mounted as a folder")
			}
			if err := os.WriteFile(filepath.Join(dir, "keyporter.yaml"), []byte(table), 0o600); err != nil {
				t.Fatal(err)
			}
			run(t, settings, keyporter(t), append(container.Args, "--help")...)
			run(t, settings, keyporter(t), "config", "check")
		}
	})
}

// exampleSecrets returns a folder with a file for each secret, as it is mounted.
func exampleSecrets(t *testing.T) string {
	dir := t.TempDir()
	database := []string{"KEYPORTER_DATABASE=sqlite://" + filepath.Join(dir, "keyporter.db")}
	run(t, database, keyporter(t), "migrate")
	for name, text := range map[string]string{
		"database/url":  "postgres://keyporter:secret@db.example.com:5432/keyporter?sslmode=verify-full",
		"redis/url":     "rediss://keyporter:secret@valkey.example.com:6379",
		"settle/token":  strings.Repeat("5", 64),
		"grpc/token":    strings.Repeat("6", 64),
		"seal/seal.key": run(t, database, keyporter(t), "seal", "init", "-"),
	} {
		file := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// container returns that of Keyporter.
func (c *cluster) container(t *testing.T) corev1.Container {
	t.Helper()
	if n := len(c.deployment.Spec.Template.Spec.Containers); n != 1 {
		t.Fatalf("%d containers", n)
	}
	return c.deployment.Spec.Template.Spec.Containers[0]
}

// portsOf returns the names of the ports of all pods that a selector matches.
func (c *cluster) portsOf(selector labels.Selector) (names []string) {
	for _, pod := range c.pods {
		if !selector.Matches(labels.Set(pod.Labels)) {
			continue
		}
		for _, port := range pod.Spec.Containers[0].Ports {
			names = append(names, port.Name)
		}
	}
	return names
}

// secret returns the keys of a Secret of the build.
func (c *cluster) secret(name string) (keys []string) {
	for _, object := range c.objects {
		if secret, ok := object.(*corev1.Secret); ok && secret.Name == name {
			for key := range secret.Data {
				keys = append(keys, key)
			}
		}
	}
	return keys
}

func (c *cluster) configMap(name string) *corev1.ConfigMap {
	for _, object := range c.objects {
		if m, ok := object.(*corev1.ConfigMap); ok && m.Name == name {
			return m
		}
	}
	return &corev1.ConfigMap{}
}

// secretAt returns the name of the Secret that a container sees in a folder.
func secretAt(pod *corev1.PodTemplateSpec, container corev1.Container, folder string) string {
	for _, mount := range container.VolumeMounts {
		for _, volume := range pod.Spec.Volumes {
			if mount.MountPath == folder && mount.Name == volume.Name && volume.Secret != nil {
				return volume.Secret.SecretName
			}
		}
	}
	return ""
}

func env(container corev1.Container, name string) string {
	for _, variable := range container.Env {
		if variable.Name == name {
			return variable.Value
		}
	}
	return ""
}

func portNumber(container corev1.Container, name string) int32 {
	for _, port := range container.Ports {
		if port.Name == name {
			return port.ContainerPort
		}
	}
	return 0
}

func selects(t *testing.T, selector *metav1.LabelSelector, of map[string]string) bool {
	t.Helper()
	s, err := metav1.LabelSelectorAsSelector(selector)
	if err != nil {
		t.Fatal(err)
	}
	return s.Matches(labels.Set(of))
}

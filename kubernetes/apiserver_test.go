package kubernetes_test

import (
	"slices"
	"strings"
	"testing"
)

// The API server of Kubernetes accepts every object of the manifests and the examples, without a
// warning: it checks unknown fields, values, the definitions of custom resources, and pod security
// "restricted", which all namespaces here demand.
func TestTheAPIServerAcceptsEveryObject(t *testing.T) {
	k := startAPIServer(t)
	for _, name := range []string{"api", "emissary", "envoy-gateway-system", "keyporter"} {
		k.do(t, strings.Replace(read(t, manifests+"/base/namespace.yaml"), "name: keyporter", "name: "+name, 1), "create", "--filename", "-")
	}
	for name, folders := range builds {
		t.Run(name, func(t *testing.T) { k.accepts(t, kustomize(t, folders)) })
	}
	// Gateway API allows its standard channel in place of the experimental one, not the reverse.
	k.define(t, "sigs.k8s.io/gateway-api experiment")
	t.Run("examples/gateway-api/routes.yaml", func(t *testing.T) {
		k.accepts(t, []byte(read(t, "examples/gateway-api/routes.yaml")))
	})
	for module := range crdFiles {
		if module != "sigs.k8s.io/gateway-api experiment" {
			k.define(t, module)
		}
	}
	for _, name := range exampleFiles(t) {
		if !strings.Contains(name, "gateway-api/") {
			t.Run(name, func(t *testing.T) { k.accepts(t, []byte(read(t, name))) })
		}
	}
	for _, wrong := range []struct{ mistake, object, refusal string }{
		{"an unknown field", `{apiVersion: v1, kind: Service, metadata: {name: x, namespace: api}, spec: {clusterIPP: None, ports: [{port: 1}]}}`, "clusterIPP"},
		{"a wrong value", `{apiVersion: v1, kind: Service, metadata: {name: x, namespace: api}, spec: {ports: [{port: 70000}]}}`, "between 1 and 65535"},
		{"an unknown field of a custom object", `{apiVersion: projectcontour.io/v1alpha1, kind: ExtensionService, metadata: {name: x, namespace: api}, spec: {service: [], services: [{name: x, port: 1}]}}`, "spec.service:"},
		{"a broken rule of a custom object", `{apiVersion: gateway.envoyproxy.io/v1alpha1, kind: SecurityPolicy, metadata: {name: x, namespace: api}, spec: {targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: x}], extAuth: {timeout: 1s}}}`, "one of grpc or http"},
		{"a pod that may become root", `{apiVersion: apps/v1, kind: Deployment, metadata: {name: x, namespace: api}, spec: {selector: {matchLabels: {x: x}}, template: {metadata: {labels: {x: x}}, spec: {containers: [{name: x, image: x}]}}}}`, "would violate PodSecurity"},
	} {
		if out, err := k.dryRun(wrong.object); err == nil || !strings.Contains(err.Error(), wrong.refusal) {
			t.Errorf("%s: %s%v", wrong.mistake, out, err)
		}
	}
}

// accepts checks all objects of a file but those that nobody can check.
func (k *kube) accepts(t *testing.T, text []byte) {
	t.Helper()
	var checked []string
	for _, document := range documents(t, text) {
		object, err := parse(document)
		if err != nil {
			t.Fatal(err)
		}
		if slices.ContainsFunc(withoutDefinitions, func(group string) bool { return strings.HasPrefix(object["apiVersion"].(string), group) }) {
			continue
		}
		checked = append(checked, string(document))
	}
	if len(checked) == 0 {
		t.Skip("no module has the definitions")
	}
	if _, err := k.dryRun(strings.Join(checked, "\n---\n")); err != nil {
		t.Error(err)
	}
}

// dryRun asks the API server whether it would accept objects.
func (k *kube) dryRun(objects string) (string, error) {
	return k.try(objects, "apply", "--server-side", "--dry-run=server", "--validate=strict", "--filename", "-")
}

// define makes the custom resource definitions of a module of [crdFiles] known.
func (k *kube) define(t *testing.T, module string) {
	t.Helper()
	pattern, err := crdPattern(module)
	if err != nil {
		t.Fatal(err)
	}
	k.do(t, "", "apply", "--server-side", "--filename", pattern)
	k.do(t, "", "wait", "crd", "--all", "--for", "condition=Established", "--timeout", "2m")
}

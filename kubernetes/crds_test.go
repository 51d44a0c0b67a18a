package kubernetes_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/util/validation/field"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"sigs.k8s.io/yaml"
)

// definitions are the custom resource definitions of one channel: apiVersion and kind →
// validator.
type definitions map[string]*definition

// definition is one version of a custom resource definition.
type definition struct {
	structural *schema.Structural
	schema     validation.SchemaValidator
	rules      *cel.Validator // nil: it has no rules in CEL
}

// crdFiles are the definitions that fronts are checked against: modules of go.mod, and patterns of
// files in them.
var crdFiles = map[string]string{
	"github.com/envoyproxy/gateway":      "charts/gateway-helm/charts/crds/crds/generated/*.yaml",
	"github.com/projectcontour/contour":  "examples/contour/01-crds.yaml",
	"istio.io/api":                       "kubernetes/customresourcedefinitions.gen.yaml",
	"sigs.k8s.io/gateway-api":            "config/crd/standard/*.yaml",
	"sigs.k8s.io/gateway-api experiment": "config/crd/experimental/gateway*.yaml",
}

// standard has the definitions that a cluster is likely to have; experimental those of Gateway
// API's experimental channel in place of its standard one.
var (
	standard     = sync.OnceValues(func() (definitions, error) { return readDefinitions("sigs.k8s.io/gateway-api experiment") })
	experimental = sync.OnceValues(func() (definitions, error) { return readDefinitions("sigs.k8s.io/gateway-api") })
)

// readDefinitions reads all definitions but those of one module.
func readDefinitions(except string) (definitions, error) {
	all := definitions{}
	for module := range crdFiles {
		if module == except {
			continue
		}
		pattern, err := crdPattern(module)
		if err != nil {
			return nil, err
		}
		if err := all.readAll(pattern); err != nil {
			return nil, fmt.Errorf("%s: %w", module, err)
		}
	}
	return all, nil
}

// crdPattern returns the pattern of the files that hold the definitions of a module; it downloads
// the module if need be.
func crdPattern(module string) (string, error) {
	name, _, _ := strings.Cut(module, " ")
	out, err := exec.Command("go", "mod", "download", "-json", name).Output()
	if err != nil {
		return "", fmt.Errorf("downloading %s: %w\n%s", name, err, out)
	}
	var found struct{ Dir string }
	err = json.Unmarshal(out, &found)
	return filepath.Join(found.Dir, crdFiles[module]), err
}

// readAll reads all files that match a pattern.
func (d definitions) readAll(pattern string) error {
	paths, err := filepath.Glob(pattern)
	if err == nil && len(paths) == 0 {
		err = errors.New("no file matches " + pattern)
	}
	if err != nil {
		return err
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, document := range bytes.Split(text, []byte("\n---")) {
			if err := d.read(document); err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
		}
	}
	return nil
}

// read adds a custom resource definition; it ignores other objects.
func (d definitions) read(document []byte) error {
	var crd apiextensionsv1.CustomResourceDefinition
	if err := yaml.Unmarshal(document, &crd); err != nil || crd.Kind != "CustomResourceDefinition" {
		return err
	}
	for _, version := range crd.Spec.Versions {
		var internal apiextensions.JSONSchemaProps
		if err := apiextensionsv1.Convert_v1_JSONSchemaProps_To_apiextensions_JSONSchemaProps(version.Schema.OpenAPIV3Schema, &internal, nil); err != nil {
			return err
		}
		structural, err := schema.NewStructural(&internal)
		if err != nil {
			return err
		}
		validator, _, err := validation.NewSchemaValidator(&internal)
		if err != nil {
			return err
		}
		d[crd.Spec.Group+"/"+version.Name+" "+crd.Spec.Names.Kind] = &definition{
			structural: structural, schema: validator, rules: cel.NewValidator(structural, true, celconfig.PerCallLimit),
		}
	}
	return nil
}

// check returns what the API server would refuse in an object: unknown fields, wrong values, broken
// rules in CEL.
func (d *definition) check(object map[string]any) (problems []string) {
	defaulting.Default(object, d.structural)
	for _, unknown := range pruning.PruneWithOptions(object, d.structural, true, schema.UnknownFieldPathOptions{TrackUnknownFieldPaths: true}) {
		problems = append(problems, "unknown field "+unknown)
	}
	for _, wrong := range validation.ValidateCustomResource(nil, object, d.schema) {
		problems = append(problems, wrong.Error())
	}
	if d.rules != nil {
		broken, _ := d.rules.Validate(context.Background(), field.NewPath(""), d.structural, object, nil, celconfig.RuntimeCELCostBudget)
		for _, wrong := range broken {
			problems = append(problems, wrong.Error())
		}
	}
	return problems
}

// withoutDefinitions are the groups whose definitions are in no Go module that can be had.
var withoutDefinitions = []string{"getambassador.io/", "gateway.kgateway.dev/"}

// Every object of the examples is one that its cluster accepts: Kubernetes' own kinds decoded
// strictly, all others by their custom resource definitions.
func TestExamplesAreAccepted(t *testing.T) {
	checked := 0
	for _, name := range exampleFiles(t) {
		t.Run(name, func(t *testing.T) {
			known, err := standard()
			if strings.Contains(name, "gateway-api/") {
				known, err = experimental()
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, document := range documents(t, []byte(read(t, name))) {
				checked += checkObject(t, known, document)
			}
		})
	}
	if checked < 10 {
		t.Errorf("only %d objects were checked", checked)
	}
	known, err := standard()
	if err != nil {
		t.Fatal(err)
	}
	policy := func(timeout, more string) map[string]any {
		object, err := parse([]byte(`{apiVersion: gateway.envoyproxy.io/v1alpha1, kind: SecurityPolicy, metadata: {name: x}, spec: {targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: x}], extAuth: {timeout: ` + timeout + more + `}}}`))
		if err != nil {
			t.Fatal(err)
		}
		return object
	}
	const grpc = ", grpc: {backendRefs: [{name: k, port: 1}]}"
	security := known["gateway.envoyproxy.io/v1alpha1 SecurityPolicy"]
	if problems := security.check(policy("1s", grpc)); len(problems) != 0 {
		t.Errorf("a good policy is refused: %q", problems)
	}
	for _, wrong := range []map[string]any{policy("soon", grpc), policy("1s", grpc+", failClosed: true"), policy("1s", "")} {
		if len(security.check(wrong)) == 0 {
			t.Errorf("%v is accepted", wrong)
		}
	}
}

// parse reads an object as the API server does: whole numbers stay whole.
func parse(document []byte) (object map[string]any, err error) {
	text, err := yaml.YAMLToJSONStrict(document)
	if err != nil {
		return nil, err
	}
	return object, utiljson.Unmarshal(text, &object)
}

// exampleFiles returns the YAML files of the examples that hold objects of Kubernetes.
func exampleFiles(t *testing.T) (names []string) {
	t.Helper()
	err := filepath.WalkDir("../examples", func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() && filepath.Ext(path) == ".yaml" && !strings.HasPrefix(entry.Name(), "values") {
			names = append(names, strings.TrimPrefix(path, "../"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// checkObject checks one object, and returns 1 if there was a definition to check it against.
func checkObject(t *testing.T, known definitions, document []byte) int {
	t.Helper()
	object, err := parse(document)
	if err != nil {
		t.Errorf("%v\n%s", err, document)
		return 0
	}
	kind := fmt.Sprint(object["apiVersion"], " ", object["kind"])
	if definition := known[kind]; definition != nil {
		for _, problem := range definition.check(object) {
			t.Errorf("%s: %s", kind, problem)
		}
		return 1
	}
	for _, group := range withoutDefinitions {
		if strings.HasPrefix(kind, group) {
			t.Logf("%s is not checked: no module has its definition", kind)
			return 0
		}
	}
	if _, _, err := strict.Decode(document, nil, nil); err != nil {
		t.Errorf("%s: %v", kind, err)
	}
	return 1
}

// Istio knows every field of the mesh configuration, and the providers that policies name are in
// it.
func TestTheMeshConfigurationIsKnown(t *testing.T) {
	var values struct {
		MeshConfig json.RawMessage `json:"meshConfig"`
	}
	if err := yaml.UnmarshalStrict([]byte(read(t, "examples/istio/values-istiod.yaml")), &values); err != nil {
		t.Fatal(err)
	}
	var mesh meshv1alpha1.MeshConfig
	if err := protojson.Unmarshal(values.MeshConfig, &mesh); err != nil {
		t.Fatal(err)
	}
	providers := map[string]bool{}
	for _, provider := range mesh.ExtensionProviders {
		providers[provider.Name] = true
		if grpc := provider.GetEnvoyExtAuthzGrpc(); grpc != nil && (grpc.FailOpen || grpc.StatusOnError != "503" || grpc.Timeout.AsDuration() != 250*time.Millisecond) {
			t.Errorf("%s does not fail closed with 503 after 250ms: %v", provider.Name, grpc)
		}
	}
	named := regexp.MustCompile(`\{name: ([a-z-]+)\}`)
	for _, file := range []string{"gateway", "sidecar", "waypoint"} {
		text := read(t, "examples/istio/"+file+".yaml")
		for line := range strings.Lines(text) {
			if !strings.Contains(line, "provider") {
				continue
			}
			for _, found := range named.FindAllStringSubmatch(line, -1) {
				if !providers[found[1]] {
					t.Errorf("%s.yaml names the provider %s, which the mesh does not have", file, found[1])
				}
			}
		}
	}
}

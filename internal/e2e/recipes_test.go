package e2e_test

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"

	"github.com/keyporter/keyporter/internal/parts/partstest"
)

const bareConfig = `
key_formats:
  - {pattern: "[0-9a-f]{32}"}
routes:
  - {paths: "/v1/*", kind: api_key}
`

// The recipes of docs/import.md turn what other systems dump into a file that is imported, after
// which their keys pass, and those that are switched off do not.
func TestTheRecipesOfImport(t *testing.T) {
	if _, err := exec.LookPath("jq"); err != nil {
		t.Skip("jq is not installed")
	}
	type recipe struct {
		name string
		file func(t *testing.T) string // what is imported
		keys map[string]int            // key → status
	}
	jq := func(program string, input []byte) func(t *testing.T) string {
		return func(t *testing.T) string {
			command := exec.Command("jq", "-c", "--arg", "plan", "pro", "-f", filepath.Join("../../examples/import", program))
			command.Stdin = strings.NewReader(string(input))
			return written(t, command, program+".jsonl")
		}
	}
	for _, r := range []recipe{
		{"Kong", jq("kong.jq", asJSON(t, "testdata/import/kong.yaml")), map[string]int{
			"0123456789abcdef0123456789abcdef": 200, "fedcba9876543210fedcba9876543210": 200, "00112233445566778899aabbccddeeff": 200, "00000000000000000000000000000000": 401,
		}},
		{"Tyk", jq("tyk.jq", textOf(t, "testdata/import/tyk.jsonl")), map[string]int{
			"0123456789abcdef0123456789abcdef": 200, "00000000000000000000000000000009": 403,
		}},
		{"Unkey", jq("unkey.jq", textOf(t, "testdata/import/unkey.jsonl")), map[string]int{
			"00000000000000000000000000000001": 200, "00000000000000000000000000000002": 401, "00000000000000000000000000000003": 401,
		}},
		{"a table", table, map[string]int{"0123456789abcdef0123456789abcdef": 200, `0\123456789abcdef\\x41`: 401, "fedcba9876543210fedcba9876543210": 401}},
	} {
		t.Run(r.name, func(t *testing.T) {
			s := start(t, stackConfig{noEnvoy: true, config: bareConfig, flags: patient})
			s.run("plan", "set", "pro")
			s.run("import", r.file(t), "--several-keys", "service-users")
			c := newChecker(t, s.replicas[0])
			for key, want := range r.keys {
				if got := keyIs(t, c, key); got != want {
					t.Errorf("%s: %d, want %d", key, got, want)
				}
			}
		})
	}
}

// table runs the recipe for a table in PostgreSQL.
func table(t *testing.T) string {
	t.Helper()
	url := partstest.Database(t, 18)
	psql := partstest.Postgres(t, 18).Program("psql")
	out, err := exec.Command(psql, "--no-psqlrc", "--dbname", url, "--command", `CREATE TABLE api_keys (key TEXT, owner TEXT, revoked BOOLEAN, created_at TIMESTAMPTZ);
		INSERT INTO api_keys VALUES ('0123456789abcdef0123456789abcdef', 'ada', FALSE, now()), ('0\123456789abcdef\\x41', 'bob', FALSE, now()),
			('fedcba9876543210fedcba9876543210', 'ada', TRUE, now())`).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return written(t, exec.Command(psql, "--no-psqlrc", "--quiet", "--dbname", url, "--file", "../../examples/import/table.sql"), "table.csv")
}

// written returns a file with the output of a command.
func written(t *testing.T, command *exec.Cmd, name string) string {
	t.Helper()
	out, err := command.Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		t.Fatalf("%v: %s", err, exit.Stderr)
	}
	file := filepath.Join(t.TempDir(), name)
	if err := errors.Join(err, os.WriteFile(file, out, 0o600)); err != nil {
		t.Fatal(err)
	}
	return file
}

func textOf(t *testing.T, file string) []byte {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// asJSON converts a file, as yq does.
func asJSON(t *testing.T, file string) []byte {
	t.Helper()
	var document any
	if err := yaml.Unmarshal(textOf(t, file), &document); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(document)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

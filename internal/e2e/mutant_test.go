package e2e_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// mutation replaces a text that occurs once in one of the program's files.
type mutation struct{ name, file, old, new string }

// mutant builds the program with a mutation, and returns its path.
func mutant(t testing.TB, m mutation) (path string) {
	t.Helper()
	root, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		t.Fatal(err)
	}
	original := filepath.Join(strings.TrimSpace(string(root)), m.file)
	text, err := os.ReadFile(original)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), m.old); n != 1 {
		t.Fatalf("%s has %q %d times, want once", m.file, m.old, n)
	}
	dir := t.TempDir()
	changed, overlay, path := filepath.Join(dir, "changed.go"), filepath.Join(dir, "overlay.json"), filepath.Join(dir, "keyporter")
	table, err := json.Marshal(map[string]map[string]string{"Replace": {original: changed}})
	if err != nil {
		t.Fatal(err)
	}
	write(t, changed, strings.Replace(string(text), m.old, m.new, 1))
	write(t, overlay, string(table))
	out, err := exec.Command("go", "build", "-ldflags=-s -w", "-overlay", overlay, "-o", path, module+"cmd/keyporter").CombinedOutput()
	if err != nil {
		t.Fatalf("building the mutant: %v\n%s", err, out)
	}
	return path
}

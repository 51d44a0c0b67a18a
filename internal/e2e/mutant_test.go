package e2e_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// mutation replaces a text that occurs once in one of the program's files.
type mutation struct{ name, file, old, new string }

// Each mutation finds its text. Those of the long runs are not built otherwise.
func TestMutationsFindTheirText(t *testing.T) {
	t.Parallel()
	for _, m := range slices.Concat(mutants, bugs, []mutation{impatience}) {
		m.original(t)
	}
}

// original returns the file that m changes, and its text. The text to replace must be there once.
func (m mutation) original(t testing.TB) (path, text string) {
	t.Helper()
	path, err := filepath.Abs(filepath.Join(root, m.file))
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(b), m.old); n != 1 {
		t.Fatalf("%s: %s has %q %d times, want once", m.name, m.file, m.old, n)
	}
	return path, string(b)
}

// mutant builds the program with a mutation, and returns its path.
func mutant(t testing.TB, m mutation) (path string) {
	t.Helper()
	original, text := m.original(t)
	dir := t.TempDir()
	changed, overlay, path := filepath.Join(dir, "changed.go"), filepath.Join(dir, "overlay.json"), filepath.Join(dir, "keyporter")
	table, err := json.Marshal(map[string]map[string]string{"Replace": {original: changed}})
	if err != nil {
		t.Fatal(err)
	}
	write(t, changed, strings.Replace(text, m.old, m.new, 1))
	write(t, overlay, string(table))
	out, err := exec.Command("go", "build", "-ldflags=-s -w", "-overlay", overlay, "-o", path, module+"cmd/keyporter").CombinedOutput()
	if err != nil {
		t.Fatalf("building the mutant: %v\n%s", err, out)
	}
	return path
}

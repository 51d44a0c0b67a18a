package e2e_test

import (
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"testing"

	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// Each mutation finds its marker, and compiles. Those of the long runs are not built otherwise.
func TestMutationsFindTheirMarkers(t *testing.T) {
	t.Parallel()
	for _, m := range slices.Concat(mutants, bugs, []partstest.Mutation{impatience}) {
		t.Run(m.Name, func(t *testing.T) {
			t.Parallel()
			m.Apply(t, root)
			partstest.Slow(t)
			if out, err := exec.Command("go", "build", "-overlay", m.Overlay(t, root), module+path.Dir(m.File)).CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// mutant builds the program with a mutation, and returns its path.
func mutant(t testing.TB, m partstest.Mutation) (program string) {
	t.Helper()
	program = filepath.Join(t.TempDir(), "keyporter")
	out, err := exec.Command("go", "build", "-ldflags=-s -w", "-overlay", m.Overlay(t, root), "-o", program, module+"cmd/keyporter").CombinedOutput()
	if err != nil {
		t.Fatalf("building the mutant: %v\n%s", err, out)
	}
	return program
}

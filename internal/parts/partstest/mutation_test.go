package partstest_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// A mutation replaces exactly the marked line.
func TestAMutationReplacesTheMarkedLine(t *testing.T) {
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "a.go"), []byte("one()\n\ttwo() // rule 2: two\n// rule 2: two or three\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for code, want := range map[string]string{
		"":             "one()\n\n// rule 2: two or three\n",
		"LINE\nfour()": "one()\n\ttwo() \nfour()\n// rule 2: two or three\n",
	} {
		m := partstest.Mutation{Name: "m", File: "a.go", Marker: "rule 2: two", New: code}
		if got := m.Apply(t, root); got != want {
			t.Errorf("%q: %q, want %q", code, got, want)
		}
	}
}

// A marker that is missing, or there twice, ends the test.
func TestAMutationNeedsItsMarkerOnce(t *testing.T) {
	root := t.TempDir()
	for _, text := range []string{"one()\n", "one() // rule 2: two\ntwo() // rule 2: two\n"} {
		if err := os.WriteFile(filepath.Join(root, "a.go"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		f, done := &fatal{}, make(chan struct{})
		go func() {
			defer close(done)
			partstest.Mutation{Name: "m", File: "a.go", Marker: "rule 2: two"}.Apply(f, root)
		}()
		<-done
		if f.text == "" {
			t.Errorf("%q is taken", text)
		}
	}
}

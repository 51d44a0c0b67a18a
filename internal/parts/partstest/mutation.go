package partstest

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Mutation breaks a program at a line that ends with a marker, a comment such as
// `// rule 3: own epoch`. No source file is changed.
type Mutation struct {
	Name   string
	File   string // from the root of the module
	Marker string // without the slashes
	// New is the code in place of the line; LINE stands for the line itself.
	New string
}

// Overlay returns the path of a file for the option -overlay of the go command. The root is that of
// the module.
func (m Mutation) Overlay(t testing.TB, root string) string {
	t.Helper()
	original, err := filepath.Abs(filepath.Join(root, m.File))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	changed, overlay := filepath.Join(dir, "changed.go"), filepath.Join(dir, "overlay.json")
	table, err := json.Marshal(map[string]map[string]string{"Replace": {original: changed}})
	if err != nil {
		t.Fatal(err)
	}
	for path, content := range map[string]string{changed: m.Apply(t, root), overlay: string(table)} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return overlay
}

// Apply returns the changed text of the file. It ends the test unless the marker is there once.
func (m Mutation) Apply(t testing.TB, root string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, m.File))
	if err != nil {
		t.Fatal(err)
	}
	changed, err := m.apply(string(text))
	if err != nil {
		t.Fatalf("%s: %s: %v", m.Name, m.File, err)
	}
	return changed
}

func (m Mutation) apply(text string) (string, error) {
	lines, found := strings.Split(text, "\n"), 0
	for i, line := range lines {
		code, marked := strings.CutSuffix(line, "// "+m.Marker)
		if marked {
			found++
			lines[i] = strings.ReplaceAll(m.New, "LINE", code)
		}
	}
	if found != 1 {
		return "", fmt.Errorf("%d lines end with the marker %q, want one", found, "// "+m.Marker)
	}
	return strings.Join(lines, "\n"), nil
}

package e2e_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Every test that a document names as the guard of a promise exists, and no document has a gap left to
// be filled.
func TestDocumentsNameTestsThatExist(t *testing.T) {
	out, err := exec.Command("grep", "-rhoE", `^func Test[A-Za-z0-9]+`, "--include=*_test.go", "../..").Output()
	if err != nil {
		t.Fatal(err)
	}
	tests := string(out) + "\n"
	for _, document := range documents(t) {
		text, err := os.ReadFile(document)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range regexp.MustCompile(`\bTest[A-Z]\w+`).FindAllString(string(text), -1) {
			if !strings.Contains(tests, "func "+name+"\n") {
				t.Errorf("%s names %s, which does not exist", document, name)
			}
		}
		if strings.Contains(string(text), "@@") {
			t.Errorf("%s has a gap", document)
		}
	}
}

// documents are all that a reader may open.
func documents(t *testing.T) []string {
	t.Helper()
	all := []string{"../../README.md", "../../ARCHITECTURE.md", "../../CONTRIBUTING.md", "../../bench/README.md"}
	more, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(more) == 0 {
		t.Fatalf("no documents in docs: %v", err)
	}
	return append(all, more...)
}

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
	t.Parallel()
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

// Every link from one document to another leads to a file that exists, and to a heading in it.
func TestDocumentsLinkToWhatExists(t *testing.T) {
	t.Parallel()
	for _, document := range documents(t) {
		text, err := os.ReadFile(document)
		if err != nil {
			t.Fatal(err)
		}
		prose := regexp.MustCompile("(?s)```.*?```").ReplaceAllString(string(text), "")
		for _, link := range regexp.MustCompile(`\]\(([^)\s]+)\)`).FindAllStringSubmatch(prose, -1) {
			if strings.HasPrefix(link[1], "https://") {
				continue
			}
			name, heading, _ := strings.Cut(link[1], "#")
			target := document
			if name != "" {
				target = filepath.Join(filepath.Dir(document), name)
			}
			there, err := os.ReadFile(target)
			if err != nil {
				if _, err = os.Stat(target); err != nil {
					t.Errorf("%s links to %s: %v", document, link[1], err)
				}
				continue
			}
			if heading != "" && !anchors(string(there))[heading] {
				t.Errorf("%s links to %s, where no heading is called so", document, link[1])
			}
		}
	}
}

// anchors are the names by which the headings of a document can be linked to, as GitHub makes them.
func anchors(document string) map[string]bool {
	found := map[string]bool{}
	for _, heading := range regexp.MustCompile(`(?m)^#+ (.+)$`).FindAllStringSubmatch(document, -1) {
		name := regexp.MustCompile(`[^a-z0-9 _-]`).ReplaceAllString(strings.ToLower(heading[1]), "")
		found[strings.ReplaceAll(name, " ", "-")] = true
	}
	return found
}

// The front door stays short: what it has no room for is one link away.
func TestTheReadmeIsShort(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	if lines := strings.Count(string(text), "\n"); lines > 150 {
		t.Errorf("README.md has %d lines, and 150 at most: move what is not for newcomers to docs", lines)
	}
}

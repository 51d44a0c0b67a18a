package e2e_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const runbooks = "../../docs/runbooks.md"

// The runbook_url of each recommended alert leads to its section of docs/runbooks.md, and no
// section is about an unknown alert.
func TestRunbooksCoverAllAlerts(t *testing.T) {
	const page = "https://github.com/keyporter/keyporter/blob/main/docs/runbooks.md#"
	rules, book := file(t, "../../alerts/rules.yaml"), readDocument(t, "docs/runbooks.md").prose
	var alerts, sections []string
	for _, rule := range strings.Split(rules, "- alert: ")[1:] {
		alert, _, _ := strings.Cut(rule, "\n")
		alerts = append(alerts, alert)
		heading := strings.ToLower(alert)
		if !strings.Contains(rule, "runbook_url: "+page+heading+"\n") || !anchors(book)[heading] {
			t.Errorf("alerts/rules.yaml: the runbook_url of %s does not lead to its section of docs/runbooks.md", alert)
		}
	}
	for _, section := range regexp.MustCompile(`(?m)^### (Keyporter\w+)$`).FindAllStringSubmatch(book, -1) {
		sections = append(sections, section[1])
	}
	if !slices.Equal(alerts, sections) || len(alerts) < 10 {
		t.Errorf("docs/runbooks.md has sections for %q, want the alerts of the file, %q", sections, alerts)
	}
}

// errorLines matches, in the code, the beginning of log lines at level ERROR.
var errorLines = regexp.MustCompile(`(?:[lL]og\.Error|panicked|slog\.LevelError,) ?\(?"([^"\n]+)"`)

// docs/runbooks.md has a row for each log line of the service at level ERROR.
func TestRunbooksCoverAllErrors(t *testing.T) {
	var known []string // beginnings of lines
	for _, code := range regexp.MustCompile("`([^`\n]+)`").FindAllStringSubmatch(file(t, runbooks), -1) {
		known = append(known, strings.TrimRight(code[1], "… "))
	}
	found := 0
	err := filepath.WalkDir("../..", func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && (strings.HasPrefix(entry.Name(), ".t") || entry.Name() == ".git" || entry.Name() == "bench") {
			return fs.SkipDir
		}
		if entry.IsDir() || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		source, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, line := range errorLines.FindAllStringSubmatch(string(source), -1) {
			found++
			if !slices.ContainsFunc(known, func(begin string) bool { return len(begin) > 8 && strings.HasPrefix(line[1], begin) }) {
				t.Errorf("docs/runbooks.md does not say what to do about %q of %s", line[1], path)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if found < 15 {
		t.Errorf("only %d lines at level ERROR were found", found)
	}
}

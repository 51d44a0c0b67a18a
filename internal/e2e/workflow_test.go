package e2e_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The workflows only run targets of the Makefile, may only read the repository, and pin actions to
// commits, because a tag can be moved to other code.
func TestWorkflowsArePinnedAndMayOnlyRead(t *testing.T) {
	makefile, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	workflows, err := filepath.Glob(filepath.Join(root, ".github", "workflows", "*"))
	if err != nil || len(workflows) == 0 {
		t.Fatalf("there is no workflow: %v", err)
	}
	for _, name := range workflows {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		permissions := regexp.MustCompile(`(?m)^ *permissions:.*\n(?: +[a-z-]+: .*\n)*`).FindAllString(string(text), -1)
		if len(permissions) != 1 || permissions[0] != "permissions:\n  contents: read\n" {
			t.Errorf("%s asks for %q, want to read contents and no more", name, permissions)
		}
		used := regexp.MustCompile(`(?m)\buses: *(.*)$`).FindAllStringSubmatch(string(text), -1)
		for _, action := range used {
			if !regexp.MustCompile(`^[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$`).MatchString(action[1]) {
				t.Errorf("%s uses %s: name the commit, and the release in a comment", name, action[1])
			}
		}
		runs := regexp.MustCompile(`(?m)\brun: *([^#\n]*)`).FindAllStringSubmatch(string(text), -1)
		for _, run := range runs {
			target, isMake := strings.CutPrefix(strings.TrimSpace(run[1]), "make ")
			if !isMake || !regexp.MustCompile(`(?m)^`+regexp.QuoteMeta(target)+`:`).Match(makefile) {
				t.Errorf("%s runs %s, which is no target of the Makefile", name, run[1])
			}
		}
		if len(used) == 0 || len(runs) == 0 {
			t.Errorf("%s uses %d actions and runs %d commands", name, len(used), len(runs))
		}
	}
}

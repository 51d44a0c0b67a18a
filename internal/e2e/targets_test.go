package e2e_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// testCommand is a command of the Makefile that selects tests, benchmarks or fuzz targets by a
// pattern: the flag, the pattern with or without quotes, and at last the packages.
var testCommand = regexp.MustCompile(`go test .*?-(run|bench|fuzz) (?:'([^']+)'|(\S+))((?: \./\S+)+)$`)

var testName = regexp.MustCompile(`^(Test|Benchmark|Fuzz)`)

// Each alternative of a pattern in the Makefile selects a test, and so does the pattern in each of
// its packages: a test that was renamed or moved would silently no longer run.
func TestTargetsOfTheMakefileSelectTests(t *testing.T) {
	t.Parallel()
	make := exec.Command("make", "--no-print-directory", "-n", "-o", "tools", "GO=go", "race", "smoke", "long", "revocation", "soak", "metering", "usage", "fuzz")
	make.Dir = root
	out, err := make.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	commands := 0
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSpace(strings.ReplaceAll(line, "-run XXX ", ""))
		m := testCommand.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		commands++
		pattern, packages := m[2]+m[3], strings.Fields(m[4])
		var all []string
		for _, p := range packages {
			names := testNames(t, filepath.Join(root, p))
			if !slices.ContainsFunc(names, regexp.MustCompile(firstLevel(pattern)).MatchString) {
				t.Errorf("%s: nothing in %s matches", line, p)
			}
			all = append(all, names...)
		}
		for one := range strings.SplitSeq(pattern, "|") {
			if !slices.ContainsFunc(all, regexp.MustCompile(firstLevel(one)).MatchString) {
				t.Errorf("%s: nothing matches %s", line, one)
			}
		}
	}
	guide, err := os.ReadFile(filepath.Join(root, "tools/fuzzguide"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`-toolexec .* -fuzz \S+ \./(\S+)`).FindAllStringSubmatch(string(out), -1) {
		if !strings.Contains(string(guide), "*/keyporter/"+m[1]+" ") {
			t.Errorf("tools/fuzzguide does not guide the fuzzer through %s", m[1])
		}
		commands++
	}
	if commands < 14 {
		t.Errorf("%d commands that select tests, want at least 14:\n%s", commands, out)
	}
}

// firstLevel returns a pattern without the parts for subtests.
func firstLevel(pattern string) string {
	return regexp.MustCompile(`/[^|]*`).ReplaceAllString(pattern, "")
}

// testNames returns the names of the tests, benchmarks and fuzz targets in a folder.
func testNames(t *testing.T, dir string) (names []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%s: %d files with tests, %v", dir, len(files), err)
	}
	for _, name := range files {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && testName.MatchString(f.Name.Name) {
				names = append(names, f.Name.Name)
			}
		}
	}
	return names
}

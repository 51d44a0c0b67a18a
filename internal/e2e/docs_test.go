package e2e_test

import (
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode"
)

// root is the path of the repository from this package.
const root = "../.."

// repositoryFiles returns the files of the repository with an extension, relative to its root,
// without those that make installs or builds.
func repositoryFiles(t *testing.T, extension string) (files []string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := entry.Name()
		if entry.IsDir() && (slices.Contains([]string{"bin", "node_modules", "testdata"}, name) ||
			strings.HasPrefix(name, ".") && path != root && name != ".github") {
			return filepath.SkipDir
		}
		if !entry.IsDir() && strings.HasSuffix(name, extension) {
			relative, err := filepath.Rel(root, path)
			files = append(files, relative)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// document is a Markdown page.
type document struct {
	name  string // relative to the root of the repository
	text  string
	prose string // without code blocks
}

var (
	fences    = regexp.MustCompile("(?ms)^[ \t]*```.*?^[ \t]*```")
	codeSpans = regexp.MustCompile("`[^`\n]*`")
)

func readDocument(t *testing.T, name string) document {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return document{name, string(text), fences.ReplaceAllString(string(text), "")}
}

// documents returns all documents of the repository.
func documents(t *testing.T) (all []document) {
	t.Helper()
	for _, name := range repositoryFiles(t, ".md") {
		all = append(all, readDocument(t, name))
	}
	if len(all) < 20 {
		t.Fatalf("only %d documents were found", len(all))
	}
	return all
}

// Every test that a document names as the guard of a promise exists, and no document contains a
// placeholder.
func TestDocumentsNameTestsThatExist(t *testing.T) {
	function := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark)[A-Z0-9]\w*)\(`)
	tests := map[string]bool{}
	for _, name := range repositoryFiles(t, "_test.go") {
		text, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		for _, found := range function.FindAllSubmatch(text, -1) {
			tests[string(found[1])] = true
		}
	}
	named := 0
	for _, d := range documents(t) {
		for _, name := range regexp.MustCompile(`\b(?:Test|Fuzz|Benchmark)[A-Z]\w+`).FindAllString(d.text, -1) {
			if named++; !tests[name] {
				t.Errorf("%s names %s, which does not exist", d.name, name)
			}
		}
		if strings.Contains(d.text, "@@") {
			t.Errorf("%s has a gap", d.name)
		}
	}
	if named < 200 {
		t.Errorf("only %d names of tests were found", named)
	}
}

var links = regexp.MustCompile(`\]\(\s*<?([^)\s>]+)>?(?:\s+"[^"]*")?\s*\)`)

// Every link of a document into the repository leads to an existing file or folder, and to an
// existing heading in it.
func TestDocumentsLinkToWhatExists(t *testing.T) {
	all := map[string]document{}
	for _, d := range documents(t) {
		all[d.name] = d
	}
	followed := 0
	for _, d := range all {
		for _, link := range links.FindAllStringSubmatch(codeSpans.ReplaceAllString(d.prose, "code"), -1) {
			if strings.Contains(link[1], "://") || strings.HasPrefix(link[1], "mailto:") {
				continue
			}
			followed++
			path, heading, _ := strings.Cut(link[1], "#")
			path, err := url.PathUnescape(path)
			if err != nil {
				t.Errorf("%s links to %s: %v", d.name, link[1], err)
				continue
			}
			target := d.name
			if path != "" {
				target = filepath.Join(filepath.Dir(d.name), path)
			}
			if !filepath.IsLocal(target) {
				t.Errorf("%s links to %s, outside of the repository", d.name, link[1])
				continue
			}
			if _, err := os.Stat(filepath.Join(root, target)); err != nil {
				t.Errorf("%s links to %s: %v", d.name, link[1], err)
				continue
			}
			if heading != "" && !anchors(all[target].prose)[heading] {
				t.Errorf("%s links to %s, where no heading is called so", d.name, link[1])
			}
		}
	}
	if followed < 50 {
		t.Errorf("only %d links were found", followed)
	}
}

var (
	headings     = regexp.MustCompile(`(?m)^#{1,6} +(.+?) *#*$`)
	linkOfATitle = regexp.MustCompile(`\[([^\]]*)\]\([^)]*\)`)
)

// anchors returns the anchors of a document's headings, in the form of GitHub.
func anchors(prose string) map[string]bool {
	found := map[string]bool{}
	for _, heading := range headings.FindAllStringSubmatch(prose, -1) {
		title := strings.ToLower(linkOfATitle.ReplaceAllString(heading[1], "$1"))
		name := strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r):
				return r
			}
			return -1
		}, title)
		unique := name
		for n := 1; found[unique]; n++ { // a repeated heading
			unique = name + "-" + strconv.Itoa(n)
		}
		found[unique] = true
	}
	return found
}

// The anchors of a document are those that GitHub generates.
func TestAnchorsAreThoseOfGitHub(t *testing.T) {
	d := "# One `key`, two: [a link](x.md)\n\n## Größe & Maß\n\n## Twice\n\n## Twice ##\n"
	want := []string{"größe--maß", "one-key-two-a-link", "twice", "twice-1"}
	if got := sortedKeys(anchors(d)); !slices.Equal(got, want) {
		t.Errorf("anchors are %q, want %q", got, want)
	}
}

// The entry documents stay short: details are one link away.
func TestFrontDoorsAreShort(t *testing.T) {
	const maxLines = 150
	for name, home := range map[string]string{"README.md": "docs", "ARCHITECTURE.md": "docs/design"} {
		if lines := strings.Count(readDocument(t, name).text, "\n"); lines > maxLines {
			t.Errorf("%s has %d lines, and %d at most: move what is not for newcomers to %s", name, lines, maxLines, home)
		}
	}
}

var (
	// fileNames matches the form in which a page names files and folders, relative to the root of
	// the repository: a name with one of our extensions, or with a final slash.
	fileNames = regexp.MustCompile(`^[\w.-]+(/[\w.-]+)*(/|\.(go|md|yaml|lua|sql|tmpl|txt|html|mod|sum|py))$`)
	// folders matches names with a slash in the middle, such as store/lease. They may also be
	// modules.
	folders = regexp.MustCompile(`^[\w.-]+(/[\w.-]+)+$`)
	// packages matches the package arguments of a Go command.
	packages = regexp.MustCompile(`(?:^|\s)\./([\w./-]*\w)`)
)

// Every file and folder that a page for contributors names exists.
func TestDocumentsNameFilesThatExist(t *testing.T) {
	named := 0
	for _, d := range documents(t) {
		if d.name != "ARCHITECTURE.md" && d.name != "CONTRIBUTING.md" && filepath.Dir(d.name) != filepath.Join("docs", "design") {
			continue
		}
		for _, span := range codeSpans.FindAllString(d.prose, -1) {
			for _, name := range namedFiles(strings.Trim(span, "`")) {
				named++
				if _, err := os.Stat(filepath.Join(root, name)); err != nil {
					t.Errorf("%s names %s, which does not exist", d.name, name)
				}
			}
		}
	}
	if named < 150 {
		t.Errorf("only %d names of files were found", named)
	}
}

// namedFiles returns the files and folders that a text in backquotes names. It skips those that
// make installs.
func namedFiles(span string) (names []string) {
	for _, found := range packages.FindAllStringSubmatch(span, -1) {
		names = append(names, strings.TrimSuffix(found[1], "/..."))
	}
	if strings.HasPrefix(span, ".tools/") {
		return names
	}
	top, _, _ := strings.Cut(span, "/")
	_, err := os.Stat(filepath.Join(root, top))
	if fileNames.MatchString(span) || folders.MatchString(span) && err == nil {
		names = append(names, span)
	}
	return names
}

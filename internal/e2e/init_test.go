package e2e_test

import (
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keyporter/keyporter/internal/parts"
	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// A reader who types the commands of docs/getting-started.md gets an API that opens only with a
// key, a page that shows the key, a rule that takes effect without a restart, and a new key that
// revokes the old one. A second init changes nothing.
func TestGuardYourOwnAPI(t *testing.T) {
	partstest.Slow(t)
	t.Parallel()
	s := newShell(t)
	up := startUpstream(t)
	printed := s.types("../../docs/getting-started.md", up.address)
	old := printedKey.FindString(printed)
	if got, _ := up.take(""); got.target != "/health" {
		t.Errorf("the last request that reached the upstream is for %q, want /health", got.target)
	}
	curl := printedLine(t, printed, "curl")
	for name, wrong := range map[string]string{
		"the old key": curl, "a wrong key": strings.ReplaceAll(curl, old, "sk_"+strings.Repeat("0", 48)), "no key": strings.ReplaceAll(curl, "X-API-Key: "+old, "X-None: 1"),
	} {
		if out := s.must(wrong); !strings.HasPrefix(out, "HTTP/1.1 401 ") {
			t.Errorf("%s: %s, want 401", name, out)
		}
	}
	if _, reached := up.take(""); reached {
		t.Error("a request without a good key reached the upstream")
	}
	fresh := strings.TrimSpace(s.must("keyporter key regenerate me"))
	if out := s.must(strings.ReplaceAll(curl, old, fresh)); !strings.HasPrefix(out, "HTTP/1.1 200 ") {
		t.Errorf("a new key: %s, want 200", out)
	}
	if got, ok := up.take(""); !ok || got.header.Get("X-Keyporter-User") != "me" || got.header.Get("X-Api-Key") != "" || printedKey.MatchString(fmt.Sprint(got)) {
		t.Errorf("the upstream sees %s", s.masked(fmt.Sprint(got)))
	}
	s.usesPage(printedLine(t, printed, "keyporter session"), fresh)
	s.changesNothing("unset KEYPORTER_CONFIG; keyporter init --upstream " + up.address + " --dir guard")
	s.running["envoy"].Stop() // Envoy writes its log late
	mustNotContain(t, "what Keyporter and Envoy wrote", s.running["keyporter"].Output()+s.running["envoy"].Output(), old, fresh)
}

// The steps of the README lead to an API that a key opens.
func TestTheReadmeRuns(t *testing.T) {
	t.Parallel()
	partstest.Slow(t)
	s := newShell(t)
	up := startUpstream(t)
	s.types("../../README.md", up.address)
	if got, ok := up.take(""); !ok || got.header.Get("X-Keyporter-User") != "me" {
		t.Errorf("the upstream sees %s", s.masked(fmt.Sprint(got)))
	}
}

// Commands that other documents mark to be run print the output shown there, for the user ada of
// their examples.
func TestCommandsOfTheDocumentsRun(t *testing.T) {
	t.Parallel()
	all, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	ran := 0
	for _, document := range all {
		if !marked.MatchString(file(t, document)) || strings.HasSuffix(document, "/getting-started.md") {
			continue
		}
		ran++
		s := newShell(t)
		s.env = append(s.env, "KEYPORTER_DATABASE=sqlite://keyporter.db")
		for _, line := range []string{"migrate", "plan set pro", "account set acme --plan pro", "user set ada --account acme", "key create ada"} {
			s.must("keyporter " + line)
		}
		s.types(document, "127.0.0.1:1")
	}
	if ran < 3 {
		t.Errorf("only %d documents have blocks to run", ran)
	}
}

// printedLine returns the output line that begins with a word, without its indent.
func printedLine(t *testing.T, output, begin string) string {
	t.Helper()
	line := regexp.MustCompile(`(?m)^  (` + begin + ` .*)$`).FindStringSubmatch(output)
	if line == nil {
		t.Fatalf("no line to type begins with %q", begin)
	}
	return line[1]
}

// shell runs command lines in a folder of its own, with the program under test and a real Envoy.
type shell struct {
	t       *testing.T
	dir     string
	env     []string
	key     string                    // the last key printed
	running map[string]*parts.Process // programs in the background, by name
}

func newShell(t *testing.T) *shell {
	t.Helper()
	programs := t.TempDir()
	// Several Envoys on one machine would share the same memory.
	script := fmt.Sprintf("#!/bin/sh\nexec '%s' \"$@\" --disable-hot-restart --concurrency 1 --log-level warning\n", partstest.Envoy(t))
	if err := os.WriteFile(filepath.Join(programs, "envoy"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(keyporter(t), filepath.Join(programs, "keyporter")); err != nil {
		t.Fatal(err)
	}
	return &shell{t: t, dir: t.TempDir(), running: map[string]*parts.Process{}, env: append(os.Environ(), "PATH="+programs+":"+os.Getenv("PATH"))}
}

// run runs a line to its end.
func (s *shell) run(line string) (out, problems string, err error) {
	s.t.Helper()
	command := exec.Command("/bin/sh", "-c", line)
	var stdout, stderr strings.Builder
	command.Dir, command.Env, command.Stdout, command.Stderr = s.dir, s.env, &stdout, &stderr
	err = command.Run()
	return stdout.String(), stderr.String(), err
}

// must runs a line, which has to succeed.
func (s *shell) must(line string) string {
	s.t.Helper()
	out, problems, err := s.run(line)
	if err != nil {
		s.t.Fatalf("%s: %v: %s", line, err, problems)
	}
	return out
}

// start runs a line whose program continues until the end of the test.
func (s *shell) start(line string) *parts.Process {
	s.t.Helper()
	process, err := parts.Start(parts.Command{Path: "/bin/sh", Args: []string{"-c", "exec " + line}, Dir: s.dir, Env: s.env})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		process.Kill()
		if s.t.Failed() {
			s.t.Logf("%s wrote:\n%s", line, process.Output())
		}
	})
	return process
}

// usesPage logs in with the link that a line prints, and reveals the key.
func (s *shell) usesPage(line, key string) {
	s.t.Helper()
	first, _, _ := strings.Cut(s.must(line), "\n")
	link, err := url.Parse(first)
	if err != nil || link.Path != "/account/api/-/login" {
		s.t.Fatalf("%s prints %q, %v", line, first, err)
	}
	c := &connection{address: link.Host}
	defer c.close()
	send := func(r request) answer {
		s.t.Helper()
		r.host, r.header = link.Host, append(r.header, "Origin: http://"+link.Host)
		a, err := c.send(r)
		if err != nil {
			s.t.Fatal(err)
		}
		return a
	}
	if a := send(request{target: link.RequestURI(), header: []string{"Accept: text/html"}}); a.status != http.StatusOK || !strings.Contains(a.body, `id="login"`) {
		s.t.Errorf("opening the link: %d %s", a.status, a.body)
	}
	a := send(request{
		method: "POST", target: link.Path, form: url.Values{"token": {link.Query().Get("token")}}.Encode(),
		header: []string{"Accept: text/html", "Content-Type: application/x-www-form-urlencoded"},
	})
	cookie, _, _ := strings.Cut(a.header.Get("Set-Cookie"), ";")
	if a.status != http.StatusSeeOther || a.header.Get("Location") != "/account/api" || cookie == "" {
		s.t.Fatalf("pressing the button: %d %v, want 303 to the page with a session", a.status, a.header)
	}
	if a := send(request{target: "/account/api", header: []string{"Cookie: " + cookie, "Accept: application/json"}}); a.status != http.StatusOK || !strings.Contains(a.body, `"user":"me"`) {
		s.t.Errorf("the page: %d %s", a.status, a.body)
	}
	if a := send(request{target: "/account/api", header: []string{"Cookie: " + cookie, "Accept: text/html"}}); a.status != http.StatusOK || !strings.Contains(a.body, "http://"+link.Host+"/") || strings.Contains(a.body, "/api/v1/brands") {
		s.t.Errorf("the page shows calls of another API: %d %s", a.status, a.body)
	}
	if a := send(request{method: "POST", target: "/account/api/-/reveal", header: []string{"Cookie: " + cookie, "Accept: application/json", "Content-Length: 0"}}); a.status != http.StatusOK || !strings.Contains(a.body, key) {
		s.t.Errorf("the page does not show the key: %d %s", a.status, a.body)
	}
}

// changesNothing runs an init again, which must fail and change nothing.
func (s *shell) changesNothing(line string) {
	s.t.Helper()
	before := s.files("guard")
	_, problems, err := s.run(line)
	if err == nil || !strings.Contains(problems, "init overwrites nothing") || !strings.Contains(problems, "keyporter.yaml") {
		s.t.Errorf("a second init: %v, %s", err, problems)
	}
	if diff := cmp.Diff(before, s.files("guard")); diff != "" {
		s.t.Errorf("a second init changed files (-before +after)\n%s", diff)
	}
}

// files returns the contents of the files in a folder, except the database, which the service
// writes all the time.
func (s *shell) files(folder string) map[string]string {
	s.t.Helper()
	texts := map[string]string{}
	entries, err := os.ReadDir(filepath.Join(s.dir, folder))
	if err != nil {
		s.t.Fatal(err)
	}
	for _, entry := range entries {
		text, err := os.ReadFile(filepath.Join(s.dir, folder, entry.Name()))
		if err != nil {
			s.t.Fatal(err)
		}
		if strings.HasPrefix(entry.Name(), "keyporter.db") {
			text = nil
		}
		texts[entry.Name()] = string(text)
	}
	return texts
}

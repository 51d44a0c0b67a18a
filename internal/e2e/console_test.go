package e2e_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// marked matches the blocks of a document that a comment before them marks to be run: the lines of
// a console block are run one by one, and a YAML block is appended to the file that the comment
// names.
var marked = regexp.MustCompile("(?m)^<!-- run(?:: append to (\\S+))? -->\n```(console|yaml)\n((?s:.*?))^```$")

// printedKey matches a key in an output, and writtenKey its placeholder in a document.
var (
	printedKey = regexp.MustCompile(`\b(?:sk|wh)_[0-9a-f]{48}\b`)
	writtenKey = regexp.MustCompile(`\b(?:sk|wh)_…`)
)

// types runs the marked blocks of a document, like a reader with an API at the given address. It
// returns the output, and leaves programs in the background running in the shell.
func (s *shell) types(document, api string) (printed string) {
	s.t.Helper()
	text := file(s.t, document)
	listen := address(s.t)
	init := "keyporter init --listen " + listen
	for _, flag := range []string{"admin", "listen-grpc", "listen-http", "listen-ops"} {
		init += " --" + flag + " " + address(s.t)
	}
	here := strings.NewReplacer("127.0.0.1:3000", api, "127.0.0.1:8080", listen, "bin/keyporter init", init, "keyporter init", init,
		"bin/keyporter", "keyporter", "/home/you", s.dir)
	blocks := marked.FindAllStringSubmatch(text, -1)
	if len(blocks) == 0 || len(blocks) != strings.Count(text, "<!-- run") {
		s.t.Fatalf("%s: %d blocks to run were found, of %d marks", document, len(blocks), strings.Count(text, "<!-- run"))
	}
	for _, block := range blocks {
		if block[2] == "yaml" {
			s.appends(block[1], block[3])
			continue
		}
		for _, step := range strings.Split("\n"+block[3], "\n$ ")[1:] {
			line, want, _ := strings.Cut(step, "\n")
			out := s.typesLine(here.Replace(line), here.Replace(want))
			if key := printedKey.FindString(out); key != "" {
				s.key = key
			}
			printed += out
		}
	}
	return printed
}

// appends appends a text to a file in the shell's folder.
func (s *shell) appends(name, text string) {
	s.t.Helper()
	f, err := os.OpenFile(filepath.Join(s.dir, name), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		s.t.Fatal(err)
	}
}

var (
	setsVariable = regexp.MustCompile(`^(?:export )?([A-Z_]+)=`)
	inBackground = regexp.MustCompile(`^(.*) &(?: +#.*)?$`)
)

// typesLine runs a line and compares its output with that in the document. It repeats a curl until
// they agree, because programs in the background need time to start and to notice a change.
func (s *shell) typesLine(line, want string) (out string) {
	s.t.Helper()
	line = writtenKey.ReplaceAllLiteralString(line, s.key)
	if background := inBackground.FindStringSubmatch(line); background != nil {
		name, _, _ := strings.Cut(background[1], " ")
		s.running[name] = s.start(background[1])
		return ""
	}
	if variable := setsVariable.FindStringSubmatch(line); variable != nil {
		value := s.must(line + "\nprintf %s \"$" + variable[1] + "\"")
		s.env = append(s.env, variable[1]+"="+value)
		return ""
	}
	try := func() error {
		text, err := s.combined(line)
		if err == nil {
			err = shows(text, want)
		}
		out = text
		return err
	}
	if !strings.HasPrefix(line, "curl ") {
		if err := try(); err != nil {
			s.t.Fatalf("%s: %v\nprinted: %s", s.masked(line), err, s.masked(out))
		}
		return out
	}
	partstest.EventuallyNil(s.t, s.masked(line), func() error {
		if err := try(); err != nil {
			return fmt.Errorf("%w, printed: %s", err, s.masked(out))
		}
		return nil
	})
	return out
}

// combined runs a line and returns its combined output.
func (s *shell) combined(line string) (string, error) {
	command := exec.Command("/bin/sh", "-c", line)
	command.Dir, command.Env = s.dir, s.env
	out, err := command.CombinedOutput()
	return string(out), err
}

// shows returns an error unless a text has the lines shown in a document, in their order. An
// ellipsis stands for any text.
func shows(text, want string) error {
	rest := strings.Split(strings.ReplaceAll(text, "\r", ""), "\n")
	for _, line := range strings.Split(strings.TrimSpace(want), "\n") {
		pattern := regexp.MustCompile("^" + strings.ReplaceAll(regexp.QuoteMeta(strings.TrimSpace(line)), "…", ".*") + "$")
		for {
			if len(rest) == 0 {
				return fmt.Errorf("nothing is printed like %q", line)
			}
			found := pattern.MatchString(strings.TrimSpace(rest[0]))
			if line == "" || line == "…" {
				break
			}
			rest = rest[1:]
			if found {
				break
			}
		}
	}
	return nil
}

// masked returns a text with its keys masked.
func (s *shell) masked(text string) string { return printedKey.ReplaceAllLiteralString(text, "KEY") }

package e2e_test

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// example returns the first YAML block of a document, as a reader would copy it.
func example(t testing.TB, document string) string {
	t.Helper()
	return examples(t, document)[0]
}

// examples returns all YAML blocks of a document.
func examples(t testing.TB, document string) (blocks []string) {
	t.Helper()
	text, err := os.ReadFile("../../docs/" + document)
	if err != nil {
		t.Fatal(err)
	}
	for _, block := range regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllSubmatch(text, -1) {
		blocks = append(blocks, string(block[1]))
	}
	if len(blocks) == 0 {
		t.Fatalf("%s has no example in YAML", document)
	}
	return blocks
}

// The example in the document on browsers works as described.
func TestTheExampleForBrowsers(t *testing.T) {
	t.Parallel()
	s := start(t, stackConfig{config: example(t, "cors.md")})
	key := s.user("ann", "pro", "--rate-limit", "60")
	if a := s.send(preflight("/v1/brands", app, "GET")); a.status != 204 || a.header.Get(allowOrigin) != app || a.header.Get("Access-Control-Max-Age") != "600" {
		t.Errorf("a preflight: %d %v", a.status, a.header)
	}
	a := s.send(request{target: "/v1/brands", header: []string{"Origin: " + app, "X-API-Key: " + key}})
	if a.status != 200 || a.header.Get(allowOrigin) != app || a.header.Get(exposeHeaders) != shownHeaders || a.header.Get("X-Ratelimit-Remaining") != "59" {
		t.Errorf("an answer: %d %v", a.status, a.header)
	}
	if a := s.send(request{target: "/v1/internal", header: []string{"Origin: " + app, "X-API-Key: " + key}}); a.status != 200 || a.header.Get(allowOrigin) != "" {
		t.Errorf("a rule that has it off: %d %v", a.status, a.header)
	}
	if a := s.send(request{target: "/api/-/login", header: []string{"Origin: " + app}}); a.status != 200 || a.header.Get(allowOrigin) != "" {
		t.Errorf("the login: %d %v", a.status, a.header)
	}
}

// The example in the document on clients holds line by line, and costs the described credits.
func TestTheExampleForClients(t *testing.T) {
	t.Parallel()
	s := start(t, stackConfig{config: example(t, "clients.md")})
	key := s.user("ann", "metered", "--credits", "1000")
	var passed int64
	lines := curls(t, "clients.md", strings.NewReplacer("$KEY", key, "$API", ""))
	for _, line := range lines {
		for _, version := range versions {
			if version == "HTTP/2" && strings.Contains(fmt.Sprint(line.header), "Upgrade") {
				continue // a header of HTTP/1.1 only
			}
			a := s.over(version, line.request)
			if a.status == 200 {
				passed++
			}
			answered := a.body + strings.Join(a.header["Www-Authenticate"], "") + a.header.Get("Allow")
			if a.status != line.status || !strings.Contains(answered, line.words) {
				t.Errorf("%s by %s: %d %v %s", strings.ReplaceAll(line.text, key, "KEY"), version, a.status, a.header, a.body)
			}
		}
	}
	if len(lines) < 20 {
		t.Errorf("only %d lines were found", len(lines))
	}
	s.balanceBecomes("ann", passed, 0)
}

// curlLine is a line of a document that shows a request with its result.
type curlLine struct {
	request
	text   string
	status int
	words  string // expected in the answer
}

var (
	curlLines  = regexp.MustCompile(`(?m)^\$ curl (.*) # ([0-9]{3}) ?(.*)$`)
	shellWords = regexp.MustCompile(`"([^"]*)"|'([^']*)'|(\S+)`)
)

// curls returns the lines of a document that begin with curl, with its variables replaced.
func curls(t testing.TB, document string, variables *strings.Replacer) (all []curlLine) {
	t.Helper()
	text, err := os.ReadFile("../../docs/" + document)
	if err != nil {
		t.Fatal(err)
	}
	for _, found := range curlLines.FindAllStringSubmatch(string(text), -1) {
		line := curlLine{text: found[0], words: found[3]}
		line.status, _ = strconv.Atoi(found[2])
		option := ""
		for _, word := range shellWords.FindAllStringSubmatch(variables.Replace(found[1]), -1) {
			value := word[1] + word[2] + word[3]
			switch {
			case option == "-H":
				line.header = append(line.header, value)
			case option == "-X":
				line.method = value
			case option == "-d":
				line.method, line.form = "POST", value
			case strings.HasPrefix(value, "-"):
				option = value
				continue
			default:
				line.target = value
			}
			option = ""
		}
		all = append(all, line)
	}
	return all
}

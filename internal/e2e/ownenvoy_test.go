package e2e_test

import (
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/keyporter/keyporter/internal/parts"
	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// paste inserts texts into a configuration, at their names between two @. A text on a line of its
// own is indented like that line.
func paste(config string, texts map[string]string) string {
	for name, text := range texts {
		own := regexp.MustCompile(`(?m)^( *)@` + name + `@$`)
		config = own.ReplaceAllStringFunc(config, func(line string) string {
			indent := line[:strings.IndexByte(line, '@')]
			return indent + strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", "\n"+indent)
		})
		config = strings.ReplaceAll(config, "@"+name+"@", text)
	}
	return config
}

func port(t testing.TB, address string) string {
	t.Helper()
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// startOwnEnvoy starts the Envoy of testdata/own-envoy.yaml with all printed parts, and the given
// routes.
func (s *stack) startOwnEnvoy(t *testing.T, routes, reports string) {
	t.Helper()
	text, err := os.ReadFile("testdata/own-envoy.yaml")
	if err != nil {
		t.Fatal(err)
	}
	_, certificate := selfSigned(t)
	// the certificate is not under test
	s.front, s.tls = address(t), &tls.Config{InsecureSkipVerify: true}
	texts := map[string]string{
		"PORT": port(t, s.front), "CERTIFICATE": certificate, "ROUTES": routes, "API": port(t, s.upstream.address), "REPORTS": port(t, reports),
		"PAGE": port(t, s.replicas[0].page),
	}
	names := []string{"filter", "cluster", "access-log", "local-reply", "edge"}
	printed := strings.Split(s.run("envoy", "--authz", s.replicas[0].grpc, "--part", strings.Join(names, ",")), "---\n")
	if len(printed) != len(names) {
		t.Fatalf("%d parts are printed, want %d", len(printed), len(names))
	}
	for i, name := range names {
		texts[name] = printed[i]
	}
	s.envoy = partstest.StartEnvoy(t, parts.EnvoyConfig{Bootstrap: []byte(waitLonger(t, paste(string(text), texts)))})
}

// ownRequest is a request to an operator's own Envoy, and its expected result.
type ownRequest struct {
	name string
	request
	status int
	seen   string // path that the upstream receives; "": not reached
	body   string // part of the answer's body, if the upstream is not reached
}

// The printed parts do the whole job in an operator's own Envoy: the decisions, the refunds, the
// headers for the upstream, and the answers while Keyporter is unreachable. The route table and the
// routes are those of the document.
func TestAnEnvoyOfOnesOwn(t *testing.T) {
	t.Parallel()
	partstest.Slow(t)
	reports := startUpstream(t)
	blocks := examples(t, "envoy.md")
	s := start(t, stackConfig{noEnvoy: true, flags: append([]string{"--insecure-cookies=false"}, patient...), config: blocks[0]})
	s.startOwnEnvoy(t, blocks[1], reports.address)
	ann, bob := s.user("ann", "metered", "--credits", "1000"), s.user("bob", "free", "--api-access=false")
	eve, mia := s.user("eve", "small", "--credits", "1"), s.user("mia", "slow", "--rate-limit", "1")
	by := func(key string) []string { return []string{"X-API-Key: " + key} }
	const reporting, www = "reports.example.com", "www.example.com"
	for _, row := range []ownRequest{
		{"a key in the header", request{target: "/v1/a?b=%20&&c=1&a", header: by(ann)}, 200, "/v1/a?b=%20&&c=1&a", ""},
		{"a bearer", request{target: "/v1/a", header: []string{"Authorization: Bearer " + ann}}, 200, "/v1/a", ""},
		{"a key in the query", request{target: "/v1/a?z=%2C&api_key=" + ann + "&&c"}, 200, "/v1/a?z=%2C&&c", ""},
		{"the upstream fails", request{target: "/v1/a", header: append(by(ann), "x-test-answer: 503")}, 503, "/v1/a", ""},
		{"by name", request{host: reporting, target: "/any", header: by(ann)}, 200, "/any", ""},
		{"by name, another method", request{host: reporting, target: "/any", method: "POST", header: by(ann)}, 405, "", bodies["method_not_allowed"]},
		{"by name, without a key", request{host: reporting, target: "/any"}, 401, "", bodies["unauthorized"]},
		{"a bad key", request{target: "/v1/a", header: by("wh_" + strings.Repeat("0", 48))}, 401, "", bodies["unauthorized"]},
		{"no key", request{target: "/v1/a"}, 401, "", bodies["unauthorized"]},
		{"a plan without access", request{target: "/v1/a", header: by(bob)}, 403, "", bodies["api_access_required"]},
		{"the last credit", request{target: "/v1/a", header: by(eve)}, 200, "/v1/a", ""},
		{"no credit", request{target: "/v1/a", header: by(eve)}, 429, "", `"code":"credits_exhausted"`},
		{"the first in a minute", request{target: "/v1/a", header: by(mia)}, 200, "/v1/a", ""},
		{"the second in a minute", request{target: "/v1/a", header: by(mia)}, 429, "", `"code":"rate_limited"`},
		{"no rule", request{target: "/v2/a", header: by(ann)}, 404, "", bodies["not_found"]},
		{"a path that is not canonical", request{target: "/v1/a;b", header: by(ann)}, 400, "", bodies["bad_request"]},
		{"a path that Envoy refuses", request{target: "/v1/a%2fb", header: by(ann)}, 400, "", bodies["bad_request"]},
		{"nobody is asked", request{target: "/health"}, 200, "/health", ""},
		{"public", request{host: www, target: "/a"}, 200, "/a", ""},
		{"the page", request{host: www, target: "/api", header: []string{"Accept: application/json"}}, 401, "", bodies["unauthorized"]},
	} {
		at := s.upstream
		if row.host == reporting {
			at = reports
		}
		identified := row.target != "/health" && row.host != www
		s.ownRequest(t, row, at, identified, ann, eve, mia)
	}
	if a := s.send(request{host: www, target: "/api/-/login"}); a.status != 200 || a.header.Get("Strict-Transport-Security") == "" {
		t.Errorf("the login page over HTTPS: %d %v, want that browsers come by HTTPS from now on", a.status, a.header)
	}
	s.balanceBecomes("ann", 3+5, 1)

	s.replicas[0].process.Stop()
	if a := s.send(request{target: "/v1/a", header: by(ann)}); a.status != 503 || !strings.Contains(a.body, bodies["unavailable"]) || a.header.Get("Retry-After") == "" {
		t.Errorf("without Keyporter: %d %q %v", a.status, a.body, a.header)
	}
	if a := s.send(request{target: "/health"}); a.status != 200 {
		t.Errorf("without Keyporter, where nobody is asked: %d %q", a.status, a.body)
	}
	mustNotContain(t, "what Envoy and Keyporter wrote", s.written(), ann, eve, mia)
}

// ownRequest sends a request with forged identity headers, and checks its result. The upstream
// receives neither these nor a key.
func (s *stack) ownRequest(t *testing.T, want ownRequest, at *upstream, identified bool, keys ...string) {
	t.Helper()
	r := want.request
	r.header = append(r.header[:len(r.header):len(r.header)], "x-test-id: it")
	for _, imitation := range []string{"x-keyporter-user", "X-Keyporter-Plan", "x.keyporter.account", "x!keyporter~admin", "x_keyporter_user"} {
		r.header = append(r.header, imitation+": mallory")
	}
	a := s.send(r)
	seen, arrived := at.take("it")
	if a.status != want.status || seen.target != want.seen || !strings.Contains(a.body, want.body) {
		t.Errorf("%s: %d %s, the upstream saw %q; want %d %s, %q", want.name, a.status, a.body, seen.target, want.status, want.body, want.seen)
	}
	if !arrived {
		return
	}
	if user := seen.header.Get("x-keyporter-user"); (user != "") != identified {
		t.Errorf("%s: the upstream saw the user %q", want.name, user)
	}
	for _, secret := range append(keys, "mallory") {
		if text := fmt.Sprint(seen.header); strings.Contains(text, secret) {
			t.Errorf("%s: the upstream saw %s", want.name, text)
		}
	}
}

// Keyporter warns if Envoy does not report completions, or reports them without Keyporter's
// metadata, and stops warning once Envoy does. The program under test waits two seconds in place of
// a minute.
func TestAnEnvoyThatDoesNotTell(t *testing.T) {
	t.Parallel()
	partstest.Slow(t)
	impatient := mutant(t, impatience)
	s := start(t, stackConfig{noEnvoy: true, program: impatient, flags: patient})
	key := s.user("ann", "metered", "--credits", "1000")
	r := s.replicas[0]
	_, accessLog, _ := strings.Cut(s.run("envoy", "--authz", r.grpc, "--part", "access-log"), "\n\n")
	const indent = "\n          "
	accessLog = strings.ReplaceAll("\n"+strings.TrimSpace(accessLog), "\n", indent)
	for _, row := range []struct {
		name    string
		changes []string // of the printed configuration
		says    string   // the warning; "": none
	}{
		{"no access log", []string{accessLog, ""}, "--part access-log"},
		{"it tells", nil, ""},
		{"it tells of all requests but those with a key", []string{"match_if_key_not_found: false", "match_if_key_not_found: true", "present_match: true }\n                match", "present_match: false }\n                match"},
			"of other requests"},
	} {
		proxy := s.startEnvoyTo(t, s.upstream.address, row.changes...)
		if a := s.send(request{target: "/api/v1/brands", header: []string{"X-API-Key: " + key, "x-test-answer: 503"}}); a.status != 503 {
			t.Fatalf("%s: %d %s", row.name, a.status, a.body)
		}
		s.send(request{target: "/api/v1/brands"}) // free of charge
		want := "0"
		if row.says != "" {
			want = "1"
		}
		partstest.EventuallyNil(t, row.name, func() error {
			if got := r.metric(t, "keyporter_accesslog_missing"); got != want {
				return fmt.Errorf("the metric is %s, want %s", got, want)
			}
			return nil
		})
		if row.says == "" {
			justReady(t, r)
		} else if text := readyz(t, r); !strings.Contains(text, row.says) {
			t.Errorf("%s: /readyz says %q", row.name, text)
		}
		proxy.Stop()
	}
	log := r.process.Output()
	for text, n := range map[string]int{"no access log of Envoy's reports": 1, "the entries of Envoy's access log name no charge": 1, "credits come back from now on": 1} {
		if got := strings.Count(log, text); got != n {
			t.Errorf("%q was logged %d times, want %d", text, got, n)
		}
	}
}

// impatience is a program that misses the access log after two seconds.
var impatience = partstest.Mutation{
	Name: "impatience", File: "internal/service/logwatch.go", Marker: "mutation: impatience", New: "missingAfter = 2 * time.Second",
}

package authz_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/keyporter/keyporter/authz"
)

// The host selects a table: its exact name, else the longest suffix, else the rules without hosts.
// Every table includes the rules without hosts. A host's own rules override them, and within a
// table the longest path wins.
func TestTheHostSelectsATable(t *testing.T) {
	w := newWorld(t,
		authz.Rule{Path: "/all", Kind: authz.KindPublic},
		authz.Rule{Path: "/both", Kind: authz.KindPublic},
		authz.Rule{Path: "/deep/x/*", Kind: authz.KindPublic},
		authz.Rule{Path: "/both", Kind: authz.KindAPIKey, Hosts: []string{"api.example.com"}},
		authz.Rule{Path: "/deep/*", Kind: authz.KindAPIKey, Hosts: []string{"api.example.com"}},
		authz.Rule{Path: "/own", Kind: authz.KindPublic, Hosts: []string{"api.example.com", "*.example.com"}},
		authz.Rule{Path: "/long", Kind: authz.KindPublic, Hosts: []string{"*.b.example.com"}},
		authz.Rule{Path: "/short", Kind: authz.KindPublic, Hosts: []string{"*.example.com"}},
	)
	for _, row := range []struct {
		host, path string
		want       authz.Reason
	}{
		{"", "/all", authz.Allowed},
		{"other.example", "/all", authz.Allowed},
		{"api.example.com", "/all", authz.Allowed},
		{"x.example.com", "/all", authz.Allowed},
		{"", "/own", authz.NoRoute},
		{"other.example", "/own", authz.NoRoute},
		{"api.example.com", "/own", authz.Allowed},
		{"API.Example.COM", "/own", authz.Allowed},
		{"api.example.com.", "/own", authz.Allowed},
		{"api.example.com:8080", "/own", authz.Allowed},
		{"api.example.com.:8080", "/own", authz.Allowed},
		{"x.example.com", "/own", authz.Allowed},
		{"a.b.c.example.com", "/own", authz.Allowed},
		{"example.com", "/own", authz.NoRoute},
		{"xexample.com", "/own", authz.NoRoute},
		{"x.b.example.com", "/long", authz.Allowed},
		{"x.b.example.com", "/short", authz.NoRoute}, // the longest suffix alone
		{"b.example.com", "/short", authz.Allowed},
		{"b.example.com", "/long", authz.NoRoute},
		{"api.example.com", "/short", authz.NoRoute}, // the exact name alone
		{"api.example.com", "/both", authz.MissingKey},
		{"x.example.com", "/both", authz.Allowed},
		{"api.example.com", "/deep/y", authz.MissingKey},
		{"api.example.com", "/deep/x/y", authz.Allowed}, // the longest path wins
		{"x.example.com", "/deep/y", authz.NoRoute},
		{"127.0.0.1:80", "/all", authz.Allowed},
		{"[::1]:80", "/all", authz.Allowed},
	} {
		w.expect(t, row.host+row.path, authz.Request{Method: "GET", Host: row.host, Path: row.path}, row.want)
	}
}

// A table with no exact host selects by suffixes.
func TestSuffixesAlone(t *testing.T) {
	w := newWorld(t, authz.Rule{Path: "/a", Kind: authz.KindPublic, Hosts: []string{"*.example"}})
	w.expect(t, "below", authz.Request{Method: "GET", Host: "x.example", Path: "/a"}, authz.Allowed)
	w.expect(t, "another", authz.Request{Method: "GET", Host: "x.test", Path: "/a"}, authz.NoRoute)
}

// A rule with a name has no path, so its hosts select no table: the rules with paths still apply.
func TestTheHostsOfARuleWithANameSelectNoTable(t *testing.T) {
	w := newWorld(t,
		authz.Rule{Path: "/*", Kind: authz.KindPublic},
		authz.Rule{Path: "/*", Kind: authz.KindAPIKey, Hosts: []string{"*.example.com"}},
		authz.Rule{Name: "here", Kind: authz.KindPublic, Hosts: []string{"api.example.com"}},
	)
	w.expect(t, "by path", authz.Request{Method: "GET", Host: "api.example.com", Path: "/x"}, authz.MissingKey)
	w.expect(t, "by name", authz.Request{Method: "GET", Host: "api.example.com", Path: "/x", Rule: "here"}, authz.Allowed)
}

// A host that programs read differently is refused before any rule is matched.
func TestOddHostsAreRefused(t *testing.T) {
	w := newWorld(t, everything)
	for _, host := range []string{
		"evil,api.example.com", "api.example.com,", "api.example.com:", "api.example.com:x", "api.example.com:80:80", "api.example.com:-1", "api.example.com:123456",
		":80", ".", "..", ".example.com", "a..b", "a.b..", "a b", "a\tb", "a/b", "a@b", "user@host", "a?b", "a#b", "a\\b", "a%2e", "é.example", "\x00", "a\n", "*", "*.example.com",
		"[::1", "[::1]x", "[::1]:", "[::1]:x", "[::g]", "[]", "[fe80::1%25eth0]", "::1", "[127.0.0.1", strings.Repeat("a", 254), "a;b", "a'b", `"a"`,
	} {
		d := w.expect(t, fmt.Sprintf("%q", host), authz.Request{Method: "GET", Host: host, Path: "/x"}, authz.BadHeader)
		if d.Problem != authz.HostMalformed {
			t.Errorf("%q: %v", host, d.Problem)
		}
	}
	for _, host := range []string{"", "a", "a.b", "a.b.", "A.B:1", "1.2.3.4", "my_service:8080", "xn--bcher-kva.example", "-a.b", "[::1]", "[FD00::1]:65535", strings.Repeat("a", 253)} {
		w.expect(t, fmt.Sprintf("%q", host), authz.Request{Method: "GET", Host: host, Path: "/x"}, authz.Allowed)
	}
}

// A rule's hosts are names in one spelling, and no two rules of one host share a path.
func TestHostsOfRules(t *testing.T) {
	rule := func(path string, hosts ...string) authz.Rule {
		return authz.Rule{Path: path, Kind: authz.KindPublic, Hosts: hosts}
	}
	for _, bad := range []string{"", "*", "*.", "a.*", "*a.b", "a:80", "A.b", "a_b", "a..b", ".a", "a.", "http://a", "a/b", "[::1]", "é.b"} {
		if _, err := authz.NewRouteTable([]authz.Rule{rule("/x", bad)}); err == nil {
			t.Errorf("%q is taken for a host", bad)
		}
	}
	for name, rules := range map[string][]authz.Rule{
		"a host twice":                      {rule("/x", "a.b", "a.b")},
		"a path twice":                      {rule("/x", "a.b"), rule("/x", "c.d", "a.b")},
		"a path twice without hosts":        {rule("/x"), rule("/x")},
		"two normal forms on one host":      {rule("/x", "a.b"), {Path: "/X", Kind: authz.KindAPIKey, Hosts: []string{"a.b"}}},
		"two normal forms, one of all":      {rule("/x"), {Path: "/X", Kind: authz.KindAPIKey, Hosts: []string{"a.b"}}},
		"something below an encoded rule":   {{Path: "/x/*", Kind: authz.KindAPIKey, Encoded: true, Hosts: []string{"a.b"}}, rule("/x/y", "a.b")},
		"something of all below an encoded": {{Path: "/x/*", Kind: authz.KindAPIKey, Encoded: true, Hosts: []string{"a.b"}}, rule("/x/y")},
	} {
		if _, err := authz.NewRouteTable(rules); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for name, rules := range map[string][]authz.Rule{
		"a path on two hosts":       {rule("/x", "a.b"), rule("/x", "c.d"), rule("/x", "*.b"), rule("/x")},
		"normal forms on two hosts": {rule("/x", "a.b"), {Path: "/X", Kind: authz.KindAPIKey, Hosts: []string{"c.d"}}},
	} {
		if _, err := authz.NewRouteTable(rules); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A route of Envoy may ask for a rule by name. The name applies to paths with and without a rule of
// their own, but not to the page or to paths that are answered with 404. An unknown name is
// undecided.
func TestRulesByName(t *testing.T) {
	w := newWorld(t,
		authz.Rule{Name: "search", Kind: authz.KindAPIKey, Cost: 5, Methods: []string{"GET"}},
		authz.Rule{Name: "open", Kind: authz.KindPublic},
		authz.Rule{Name: "here", Kind: authz.KindPublic, Hosts: []string{"api.example.com", "*.example.net"}},
		authz.Rule{Name: "names", Kind: authz.KindAPIKey, Encoded: true},
		authz.Rule{Name: "closed", Kind: authz.KindNone},
		authz.Rule{Path: "/key", Kind: authz.KindAPIKey},
		authz.Rule{Path: "/gone/*", Kind: authz.KindNone},
		authz.Rule{Path: "/page", Kind: authz.KindSession, To: authz.ToPage},
	)
	for _, row := range []struct {
		name, host, path string
		key              bool
		want             authz.Reason
	}{
		{"search", "", "/anything/at/all", true, authz.Allowed},
		{"search", "", "/anything/at/all", false, authz.MissingKey},
		{"search", "", "/a//b", true, authz.BadPath},
		{"", "", "/anything", true, authz.NoRoute},
		{"", "", "/key", true, authz.Allowed},
		{"open", "", "/key", false, authz.Allowed}, // the route's rule applies
		{"open", "", "/gone/x", false, authz.NoRoute},
		{"open", "", "/Gone/x", false, authz.OtherSpelling},
		{"open", "", "/page", false, authz.MissingSession},
		{"open", "", "/Page", false, authz.OtherSpelling},
		{"open", "", "/KEY", false, authz.Allowed},
		{"nothing", "", "/anything", true, authz.UnknownRule},
		{"nothing", "", "/page", true, authz.MissingSession},
		{"nothing", "", "/gone/x", true, authz.NoRoute},
		{"here", "api.example.com:443", "/x", false, authz.Allowed},
		{"here", "a.b.example.net", "/x", false, authz.Allowed},
		{"here", "example.net", "/x", false, authz.NoRoute},
		{"here", "", "/x", false, authz.NoRoute},
		{"names", "", "/x/C%23", true, authz.Allowed},
		{"names", "", "/x/%2523", true, authz.BadPath},
		{"search", "", "/x/C%23", true, authz.BadPath},
		{"closed", "", "/x", true, authz.NoRoute},
	} {
		r := authz.Request{Method: "GET", Host: row.host, Path: row.path, Rule: row.name}
		if row.key {
			r.APIKey = []string{w.ada}
		}
		w.expect(t, row.name+" for "+row.host+row.path, r, row.want)
	}
	w.expect(t, "a method that the rule lacks", authz.Request{Method: "POST", Path: "/x", Rule: "search"}, authz.MethodNotAllowed)
	for name, bad := range map[string]authz.Rule{
		"a path too": {Name: "a", Path: "/a", Kind: authz.KindPublic}, "a rewrite": {Name: "a", Kind: authz.KindPublic, Rewrite: "/b"},
		"an answer": {Name: "a", Kind: authz.KindAPIKey, Methods: []string{"GET"}, Answer: authz.AnswerCredits}, "the page": {Name: "a", Kind: authz.KindPublic, To: authz.ToPage},
		"a bad name": {Name: "a b", Kind: authz.KindPublic}, "a timeout": {Name: "a", Kind: authz.KindPublic, Timeout: authz.Endless}, "a public encoded": {Name: "a", Kind: authz.KindPublic, Encoded: true},
	} {
		if _, err := authz.NewRouteTable([]authz.Rule{bad}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := authz.NewRouteTable([]authz.Rule{{Name: "a", Kind: authz.KindPublic}, {Name: "a", Kind: authz.KindAPIKey}}); err == nil {
		t.Error("a name twice: accepted")
	}
}

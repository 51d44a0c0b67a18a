package routes_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v4"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/internal/routes"
	"github.com/keyporter/keyporter/usage"
)

// The shipped table is valid, and stays the same when written and read again.
func TestTheShippedTable(t *testing.T) {
	rules, places, err := routes.Shipped()
	if err != nil || len(rules) < 20 || len(places) != len(rules) {
		t.Fatalf("%d rules, %d places, %v", len(rules), len(places), err)
	}
	if _, err := authz.NewRouteTable(authz.WithPage(rules, authz.DefaultPagePath)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(rules, reread(t, rules)); diff != "" {
		t.Errorf("(-shipped +written and read)\n%s", diff)
	}
}

// A rule stays the same, in all its settings, when written and read again.
func TestRulesAreWrittenAsTheyAreRead(t *testing.T) {
	rules := []authz.Rule{
		{Path: "/a/*", Kind: authz.KindAPIKey, Hosts: []string{"a.example", "*.b.example"}, Methods: []string{"GET", "POST"}, Cost: 25, To: "billing", Encoded: true,
			Refund: usage.RefundRule{Codes: []int{500, 503}}, CORS: authz.CORSOff, Timeout: authz.Span(90e9), IdleTimeout: authz.Endless, MaxDuration: authz.Span(7200e9)},
		{Path: "/b", Kind: authz.KindAPIKey, Methods: []string{"GET"}, Answer: authz.AnswerCredits},
		{Path: "/c", Kind: authz.KindAPIKey, Rewrite: "/d", Refund: usage.RefundRule{Never: true}, CORS: authz.CORSUpstream},
		{Path: "/page", Kind: authz.KindSession, To: authz.ToPage},
		{Path: "/gone/*", Kind: authz.KindNone},
		{Name: "search", Kind: authz.KindAPIKey, Hosts: []string{"a.example"}, Cost: 5},
	}
	if diff := cmp.Diff(rules, reread(t, rules)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func reread(t *testing.T, rules []authz.Rule) (again []authz.Rule) {
	t.Helper()
	d, node := routes.Read("test.yaml", []byte("routes:\n"+routes.Format(rules)))
	d.Mapping(node, []string{"routes"}, func(_ string, _, value *yaml.Node) { again, _ = d.Rules(value) })
	if len(d.Problems) > 0 {
		t.Fatalf("%v\n%s", d.Problems, routes.Format(rules))
	}
	return again
}

// Every mistake is reported with file, line and column, and with a suggestion.
func TestMistakes(t *testing.T) {
	for text, want := range map[string]string{
		"- {path: /a, kind: public}":                  `f.yaml:1:4: "path": there is no such setting; did you mean paths?`,
		"- {paths: /a, kind: publik}":                 `f.yaml:1:21: kind: unknown kind "publik"`,
		"- {paths: /a, name: b, kind: public}":        "f.yaml:1:3: a rule has `paths` or a `name`, not both",
		"- {paths: [], kind: public}":                 "f.yaml:1:11: paths: the list is empty",
		"- {paths: /a, paths: /b, kind: public}":      "f.yaml:1:15: paths: set already in line 1",
		"{paths: /a}":                                 "f.yaml:1:1: routes: want a list of rules",
		"- {paths: /a, kind: public, encoded: maybe}": `f.yaml:1:38: encoded: "maybe" is neither true nor false`,
	} {
		d, node := routes.Read("f.yaml", []byte(text))
		d.Rules(node)
		if len(d.Problems) == 0 || !strings.HasPrefix(d.Problems[0].Error(), want) {
			t.Errorf("%s: %v, want %s", text, d.Problems, want)
		}
	}
}

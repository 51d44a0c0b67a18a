package authz_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/keyporter/keyporter/authz"
)

// The page can have any path with a single spelling, except the root, because everything lies below
// that.
func TestWhereThePageCanBe(t *testing.T) {
	for _, base := range []string{"/api", "/account/api", "/a", "/-", "/~ada/keys.v2_x-1", "/.page", "/API/Keys"} {
		if err := authz.CheckPagePath(base); err != nil {
			t.Errorf("%s: %v", base, err)
		}
	}
	for _, base := range []string{
		"", "/", "api", "/api/", "//api", "/a//b", "/a/../b", "/a/.", "/api/*", "/*", "/a*b", "/a b", "/a%20b", "/a;b", "/a?b", "/a#b", "/a:b", "/ü",
		"https://host/api", `/a\b`, "/a\n", "/" + strings.Repeat("a", 9000),
	} {
		if err := authz.CheckPagePath(base); err == nil || !strings.Contains(err.Error(), "such as /account/api") || len(err.Error()) > 400 {
			t.Errorf("%.40q: %v, want a refusal that says what is wanted", base, err)
		}
	}
}

// At any path and among any other rules, the page is open to users with a session, its login and
// static files are open to everybody, and nothing else of it is.
func TestThePageIsReachedWhereverItIs(t *testing.T) {
	around := []authz.Rule{
		{Path: "/*", Kind: authz.KindAPIKey}, {Path: "/api/*", Kind: authz.KindSession}, {Path: "/account/*", Kind: authz.KindPublic},
		{Path: "/api/v1/*", Kind: authz.KindAPIKey}, {Path: "/Account/api/other", Kind: authz.KindNone},
	}
	for _, base := range []string{"/api", "/account/api", "/Account/Api", "/account/api.v1", "/.page"} {
		w := newWorld(t, authz.WithPage(around, base)...)
		if err := w.Routes.PageProblem(base); err != nil {
			t.Errorf("%s: %v", base, err)
		}
		if all := w.Routes.PageWarnings(base); len(all) > 0 {
			t.Errorf("%s: %v", base, all)
		}
		for _, address := range []string{"GET ", "GET /", "POST /regenerate", "GET /-/regenerate", "POST /-/reveal", "GET /-/openapi.yaml"} {
			method, below, _ := strings.Cut(address, " ")
			r := authz.Request{Method: method, Path: base + below}
			w.expect(t, base+": "+address+" without a session", r, authz.MissingSession)
			r.Cookie = []string{authz.SessionCookie + "=" + w.session}
			if d := w.expect(t, base+": "+address, r, authz.Allowed); d.Rule.To != authz.ToPage {
				t.Errorf("%s: %s does not lead to the page", base, address)
			}
		}
		for _, address := range []string{"GET /-/login", "POST /-/login", "POST /-/logout", "GET /-/static/page.css", "GET /-/static/logo"} {
			method, below, _ := strings.Cut(address, " ")
			if d := w.expect(t, base+": "+address, authz.Request{Method: method, Path: base + below}, authz.Allowed); d.Rule.To != authz.ToPage {
				t.Errorf("%s: %s does not lead to the page", base, address)
			}
		}
	}
}

// WithPage keeps a table's own rules for paths of the page.
func TestATableMayNameThePathsOfThePage(t *testing.T) {
	own := []authz.Rule{{Path: "/api", Kind: authz.KindAPIKey}, {Path: "/api/-/*", Kind: authz.KindPublic, To: authz.ToPage}}
	rules := authz.WithPage(own, "/api")
	if len(rules) != 7 || rules[0].Kind != authz.KindAPIKey || rules[1].Kind != authz.KindPublic {
		t.Errorf("%+v, want both rules, and five of the page behind them", rules)
	}
	if len(own) != 2 {
		t.Error("the rules themselves were changed")
	}
}

// PageProblem names the rules that block the page, its login or its static files.
func TestATableThatKeepsPeopleFromThePage(t *testing.T) {
	page := func(path string) authz.Rule {
		return authz.Rule{Path: path, Kind: authz.KindSession, To: authz.ToPage}
	}
	open := func(path string) authz.Rule {
		return authz.Rule{Path: path, Kind: authz.KindPublic, To: authz.ToPage}
	}
	for _, row := range []struct {
		name  string
		rules []authz.Rule
		want  []string
	}{
		{"everything is open and the page's own business", []authz.Rule{open("/k"), open("/k/*")}, nil},
		{"a table that has no rule of the page", []authz.Rule{{Path: "/v1/*", Kind: authz.KindAPIKey}}, []string{
			`"/k" leads nowhere: the users' page needs it with kind session and to: page`, `"/k/regenerate" leads`, `"/k/-/regenerate" leads`, `"/k/-/reveal" leads`,
			`"/k/-/openapi.yaml" leads`, `"/k/-/login" leads nowhere: the users' page needs it with kind public`, `"/k/-/logout" leads`, `"/k/-/static/page.css" leads`,
		}},
		{"the login goes to the upstream with the rest", []authz.Rule{page("/k"), page("/k/regenerate"), {Path: "/k/*", Kind: authz.KindSession}}, []string{
			`rule 2: "/k/-/regenerate" leads to the upstream`, `rule 2: "/k/-/reveal" leads`, `rule 2: "/k/-/openapi.yaml" leads`,
			`rule 2: "/k/-/login" leads to the upstream`, `rule 2: "/k/-/logout" leads`, `rule 2: "/k/-/static/page.css" leads`,
		}},
		{"the login needs the session that it is to give", authz.WithPage([]authz.Rule{page("/k/-/login")}, "/k"), []string{
			`rule 0: "/k/-/login" is of kind session: the users' page needs it with kind public`,
		}},
		{"the login is refused", authz.WithPage([]authz.Rule{{Path: "/k/-/login", Kind: authz.KindNone}}, "/k"), []string{`rule 0: "/k/-/login" leads nowhere`}},
		{"nobody can log in, as nothing may be sent", authz.WithPage([]authz.Rule{{Path: "/k/-/login", Kind: authz.KindPublic, To: authz.ToPage, Methods: []string{"GET"}}}, "/k"), []string{
			`rule 0: "/k/-/login" does not permit POST`,
		}},
		{"the style needs a key", authz.WithPage([]authz.Rule{{Path: "/k/-/static/page.css", Kind: authz.KindAPIKey}}, "/k"), []string{
			`rule 0: "/k/-/static/page.css" leads to the upstream`,
		}},
		{"the page is asked for what is another's", authz.WithPage([]authz.Rule{{Path: "/k", Kind: authz.KindSession, To: authz.ToPage, Rewrite: "/api"}}, "/k"), []string{
			`rule 0: "/k" is rewritten`,
		}},
		{"the page is an API", authz.WithPage([]authz.Rule{{Path: "/k", Kind: authz.KindAPIKey}, {Path: "/k/*", Kind: authz.KindAPIKey}}, "/k"), []string{
			`rule 0: "/k" leads to the upstream`,
		}},
		{"some upstreams take a path of the page for one of theirs", authz.WithPage([]authz.Rule{{Path: "/k/-/static/page", Kind: authz.KindAPIKey}}, "/k"), []string{
			`rule 7: "/k/-/static/page.css" is a spelling of a path whose rule asks for something else`,
		}},
	} {
		var got []string
		if err := newTable(t, row.rules...).PageProblem("/k"); err != nil {
			got = strings.Split(err.Error(), "\n")
		}
		if len(got) != len(row.want) {
			t.Errorf("%s: %q, want %d problems", row.name, got, len(row.want))
			continue
		}
		for i, want := range row.want {
			if !strings.Contains(got[i], want) {
				t.Errorf("%s: %q, want %q", row.name, got[i], want)
			}
		}
	}
	err := newTable(t, authz.WithPage([]authz.Rule{{Path: "/k", Kind: authz.KindAPIKey}}, "/k")...).PageProblem("/k")
	if wrong := (*authz.RuleError)(nil); !errors.As(err, &wrong) || wrong.Index != 0 {
		t.Errorf("%v, want an error of the first rule", err)
	}
}

// PageWarnings reports a rule that leads to the page from a path outside it: it would answer 404.
func TestRulesThatMissThePage(t *testing.T) {
	for _, row := range []struct {
		name string
		rule authz.Rule
		told bool
	}{
		{"the page's own path", authz.Rule{Path: "/k", To: authz.ToPage}, false},
		{"a path below it", authz.Rule{Path: "/k/-/x", To: authz.ToPage}, false},
		{"everything around it", authz.Rule{Path: "/*", To: authz.ToPage}, false},
		{"another path that is rewritten to it", authz.Rule{Path: "/keys", To: authz.ToPage, Rewrite: "/k"}, false},
		{"a path of the upstream", authz.Rule{Path: "/keys"}, false},
		{"another path", authz.Rule{Path: "/account/keys", To: authz.ToPage}, true},
		{"what only begins alike", authz.Rule{Path: "/kk", To: authz.ToPage}, true},
		{"what lies around it, without what is below", authz.Rule{Path: "/", To: authz.ToPage}, true},
		{"everything below another path", authz.Rule{Path: "/account/*", To: authz.ToPage}, true},
		{"the page itself, rewritten to another path", authz.Rule{Path: "/k/x", To: authz.ToPage, Rewrite: "/api"}, true},
	} {
		row.rule.Kind = authz.KindSession
		all := newTable(t, row.rule).PageWarnings("/k")
		if told := len(all) == 1 && strings.Contains(all[0].Text, "which is at /k and answers 404 elsewhere"); told != row.told {
			t.Errorf("%s: %v", row.name, all)
		}
	}
}

// The page's own rules cause no warnings about the rules around them: the upstream serves nothing
// there.
func TestThePageIsNoReasonForAWarning(t *testing.T) {
	table := newTable(t, authz.WithPage([]authz.Rule{{Path: "/*", Kind: authz.KindPublic}, {Path: "/k/*", Kind: authz.KindAPIKey}}, "/k")...)
	for _, w := range table.Warnings() {
		if strings.Contains(w.Text, "/k/regenerate") || w.Index > 1 {
			t.Errorf("rule %d: %s", w.Index, w.Text)
		}
	}
}

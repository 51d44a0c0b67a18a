package portal_test

import (
	"html"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/portal"
)

// addressIn finds the addresses in a page: links, forms and files.
var addressIn = regexp.MustCompile(`(href|src|action)="([^"]*)"`)

// At any path, all addresses in the page lie below it, are answered, and match the route table's
// rules for the page: open to everybody, or to a session only.
func TestThePageWorksAtAnyPath(t *testing.T) {
	for _, base := range []string{"/api", "/account/api", "/~ada/keys.v2"} {
		f := newFixture(t)
		f.busy()
		f.path, f.login = base, ""
		table, err := authz.NewRouteTable(authz.PageRules(base))
		if err != nil {
			t.Fatal(err)
		}
		led := map[string]bool{}
		for name, page := range f.everyPage(base) {
			for _, found := range addressIn.FindAllStringSubmatch(page.Body.String(), -1) {
				method, address := "GET", html.UnescapeString(found[2])
				if strings.HasPrefix(address, "#") {
					continue
				}
				if found[1] == "action" {
					method = "POST"
				}
				target, err := url.Parse(address)
				if err != nil || target.Path != base && !strings.HasPrefix(target.Path, base+"/") {
					t.Errorf("%s, %s: leads to %q, %v", base, name, address, err)
					continue
				}
				led[method+" "+strings.TrimPrefix(target.Path, base)] = true
				status := f.ask(method, address).Code // without a session
				rule := table.Match(target.Path)
				if public := status != 401; rule == nil || rule.To != authz.ToPage || public != (rule.Kind == authz.KindPublic) {
					t.Errorf("%s: %s %s is answered %d without a session, and has the rule %+v", base, method, address, status, rule)
				}
			}
		}
		for _, want := range []string{
			"GET ", "GET /-/regenerate", "POST /regenerate", "POST /-/reveal", "POST /-/login", "POST /-/logout",
			"GET /-/static/page.css", "GET /-/static/page.js", "GET /-/static/brand.css", "GET /-/static/icon.svg",
		} {
			if !led[want] {
				t.Errorf("%s: nothing leads to %s", base, want)
			}
		}
		if script := f.ask("GET", base+"/-/static/page.js").Body.String(); strings.Contains(script, "/-/") {
			t.Errorf("%s: the script knows an address by itself", base)
		}
	}
}

// everyPage returns every kind of page by name.
func (f *fixture) everyPage(base string) map[string]*httptest.ResponseRecorder {
	once := url.Values{"idempotency_key": {"x"}}
	pages := map[string]*httptest.ResponseRecorder{
		"the overview":         f.browser("GET", base),
		"older requests":       f.browser("GET", base+"?before=x"),
		"the key":              f.browser("POST", base+"/-/reveal"),
		"the confirmation":     f.browser("GET", base+"/-/regenerate"),
		"the new key":          f.form(base+"/regenerate", once, "Cookie", f.cookie),
		"the login":            f.ask("GET", base+"/-/login"),
		"a login link":         f.ask("GET", base+"/-/login?token="+f.link.Reveal()),
		"what is not there":    f.browser("GET", base+"/-/nowhere"),
		"another path of ours": f.browser("GET", "/elsewhere"),
	}
	f.confirmed = false
	pages["the new key, not confirmed"] = f.form(base+"/regenerate", once, "Cookie", f.cookie)
	return pages
}

// Every redirect leads to the path of the page, and all other paths answer 404.
func TestRedirectsLeadToWhereThePageIs(t *testing.T) {
	const base = "/account/api"
	f := newFixture(t)
	f.path, f.login = base, ""
	for _, row := range []struct {
		name string
		w    *httptest.ResponseRecorder
		want string
	}{
		{"a browser without a session", f.ask("GET", base, "Accept", "text/html"), base + "/-/login"},
		{"the same with a slash", f.ask("GET", base+"/", "Accept", "text/html"), base + "/-/login"},
		{"a login", f.form(base+"/-/login", url.Values{"token": {f.link.Reveal()}}), base},
		{"a logout", f.form(base+"/-/logout", nil, "Cookie", f.cookie), base + "/-/login?out=1"},
	} {
		if row.w.Code != 303 || row.w.Header().Get("Location") != row.want {
			t.Errorf("%s: %d to %q, want 303 to %q", row.name, row.w.Code, row.w.Header().Get("Location"), row.want)
		}
		for _, cookie := range row.w.Result().Cookies() {
			if cookie.Path != "/" {
				t.Errorf("%s: a cookie for %q, which browsers do not take under a name with __Host-", row.name, cookie.Path)
			}
		}
	}
	for _, elsewhere := range []string{"/api", "/api/-/login", "/account", "/account/ap", "/account/apix", "/-/login", "/"} {
		if w := f.ask("GET", elsewhere, "Cookie", f.cookie); w.Code != 404 {
			t.Errorf("%s: %d, want 404", elsewhere, w.Code)
		}
	}
	for _, bad := range []string{"/", "account", "/account/", "/a b", "/a/../b"} {
		c := f.config()
		c.Metrics, c.Path = nil, bad
		if _, err := portal.New(c); err == nil || !strings.Contains(err.Error(), "is no path for the page") {
			t.Errorf("a page at %q: %v, want a refusal", bad, err)
		}
	}
	if got := portal.LoginPath(base); got != base+"/-/login" {
		t.Errorf("login links lead to %s", got)
	}
}

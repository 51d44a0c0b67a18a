package e2e_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"

	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// The example of the document on configuration passes the check and works as described, with the
// page at a path of its own. A user logs in there with a login link in a real browser, sees the
// configured colours, reveals the key, replaces it and logs out; programs get their JSON there; and
// nothing of the page remains at /api.
func TestTheExampleOfConfiguration(t *testing.T) {
	partstest.Slow(t)
	t.Parallel()
	const page = "/account/api"
	b := openTab(t)
	database := databases["SQLite"](t)
	flags, _ := sealed(t, database)
	s := start(t, stackConfig{database: database, flags: flags, config: example(t, "configuration.md")})
	if out, problems, status := s.try("config", "check"); status != 0 || out != "ok\n" || problems != "" {
		t.Errorf("config check: status %d, %s%s", status, out, problems)
	}
	key, cookie := s.user("ann", "pro"), "Cookie: "+s.session("ann")

	b.do(chromedp.Navigate("http://" + s.front + s.link("ann").RequestURI()))
	b.looksAsMeant()
	b.click("login")
	b.until("the page is open", fmt.Sprintf(`location.pathname == %q && document.getElementById("key") != null`, page))
	b.looksAsMeant()
	b.click("reveal")
	b.until("the key is shown", fmt.Sprintf(`document.getElementById("key").textContent == %q`, key))
	b.click("regenerate")
	b.until("it is asked whether that is meant", `document.getElementById("confirm") != null`)
	b.click("confirm")
	b.until("there is a new key", `document.getElementById("new-key") != null`)
	fresh := b.text("new-key")
	b.click("logout")
	b.until("nobody is logged in", fmt.Sprintf(`location.pathname == %q && document.readyState == "complete"`, page+"/-/login"))

	for _, row := range []struct {
		name string
		request
		status         int
		location, body string
	}{
		{"the old key", request{target: "/api/v1/brands", header: []string{"X-API-Key: " + key}}, 401, "", "unauthorized"},
		{"the new key", request{target: "/api/v1/brands", header: []string{"X-API-Key: " + fresh}}, 200, "", "upstream"},
		{"a path that is rewritten", request{target: "/api/v1/markalar", header: []string{"X-API-Key: " + fresh}}, 200, "", "upstream"},
		{"a method that is not permitted", request{method: "POST", target: "/api/v1/export", header: []string{"X-API-Key: " + fresh, "Content-Length: 0"}}, 405, "", "method_not_allowed"},
		{"another session route", request{target: "/account/settings", header: []string{cookie}}, 200, "", "upstream"},
		{"a program with a session", request{target: page, header: []string{cookie, "Accept: application/json"}}, 200, "", `"user":"ann"`},
		{"the same with a slash", request{target: page + "/", header: []string{cookie, "Accept: application/json"}}, 200, "", `"user":"ann"`},
		{"a program without a session", request{target: page, header: []string{"Accept: application/json"}}, 401, "", "unauthorized"},
		{"a program with a key", request{target: page, header: []string{"X-API-Key: " + fresh}}, 401, "", "unauthorized"},
		{"a browser without a session", request{target: page, header: []string{"Accept: text/html"}}, 303, page + "/-/login", ""},
		{"a program that wants a new key", request{method: "POST", target: page + "/regenerate", header: []string{cookie, "Origin: " + own, "Content-Length: 0"}}, 200, "", `"confirmed":true`},
		{"what programs are told", request{target: page + "/-/openapi.yaml", header: []string{cookie}}, 200, "", "\n  " + page + "/regenerate:\n"},
		{"where the page is not", request{target: "/api", header: []string{cookie}}, 404, "", "not_found"},
		{"where its login is not", request{target: "/api/-/login"}, 404, "", "not_found"},
	} {
		a := s.send(row.request)
		if a.status != row.status || a.header.Get("Location") != row.location || !strings.Contains(a.body, row.body) {
			t.Errorf("%s: %d to %q, %s; want %d", row.name, a.status, a.header.Get("Location"), strings.NewReplacer(key, "KEY", fresh, "KEY").Replace(a.body), row.status)
		}
	}
}

// looksAsMeant fails unless all style sheets of the page are loaded.
func (b *tab) looksAsMeant() {
	b.t.Helper()
	const sheets = `[...document.querySelectorAll("link[rel=stylesheet]")]`
	if n := eval[int](b, sheets+`.filter(link => link.sheet?.cssRules.length > 0).length`); n == 0 || n != eval[int](b, sheets+`.length`) {
		b.t.Errorf("%d style sheets have arrived at %s, not all", n, eval[string](b, "location.pathname"))
	}
}

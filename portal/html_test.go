package portal_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/portal"
	"github.com/keyporter/keyporter/usage"
)

// browser requests a page like a logged-in browser, with additional headers.
func (f *fixture) browser(method, path string, headers ...string) *httptest.ResponseRecorder {
	return f.ask(method, path, append([]string{"Cookie", f.cookie, "Accept", "text/html,*/*;q=0.8", "Sec-Fetch-Site", "same-origin"}, headers...)...)
}

// form submits a form of a page.
func (f *fixture) form(path string, values url.Values, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(values.Encode()))
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Accept", "text/html")
	w := httptest.NewRecorder()
	f.handler().ServeHTTP(w, r)
	return w
}

// busy sets every value that the page shows.
func (f *fixture) busy() {
	now := time.Date(2026, 11, 24, 8, 0, 0, 0, time.UTC)
	f.keyUsage = usage.KeyUsage{LastHour: 12, LastDay: 3456, Addresses: 2, Agents: 3, All: 99, Last: now, Address: "10.0.0.1", Agent: "curl/8"}
	f.oldKeys = usage.KeyUsage{All: 41, Last: now, Address: "10.9.9.9", Agent: "old-job/1"}
	f.credits = usage.Credits{Counted: true, Used: 16500, Limit: 20000, Reset: 7 * 24 * time.Hour}
	f.rate = usage.Rate{Limit: 60, Window: time.Minute, Remaining: 18, Used: 42, Reset: 3 * time.Second}
	for i := range 30 {
		f.days = append(f.days, usage.Day{Date: now.AddDate(0, 0, i-29), Used: int64(i * 7), Refunded: int64(i)})
	}
	f.requests = []usage.Record{{At: now, Method: "GET", Path: "/api/v1/brands", Status: 200, Credits: 1}, {At: now, Method: "POST", Path: "/x", Status: 0, Credits: 1, Refunded: true}}
	f.next = "abc.0123"
}

var verbs = regexp.MustCompile(`%(\[\d\])?[a-z]`)

// Every text exists in both languages, with the same verbs.
func TestTheLanguagesAreComplete(t *testing.T) {
	english, turkish := portal.Texts("en"), portal.Texts("tr")
	check := func(name, en, tr string) {
		if en == "" || tr == "" {
			t.Errorf("%s: %q and %q, want both", name, en, tr)
		}
		if a, b := len(verbs.FindAllString(en, -1)), len(verbs.FindAllString(tr, -1)); a != b {
			t.Errorf("%s: %d things to fill in, and %d: %q, %q", name, a, b, en, tr)
		}
	}
	for i := range english.NumField() {
		field := english.Type().Field(i)
		switch field.Type.Kind() {
		case reflect.String:
			check(field.Name, english.Field(i).String(), turkish.Field(i).String())
		case reflect.Array:
			for j := range english.Field(i).Len() {
				check(field.Name, english.Field(i).Index(j).String(), turkish.Field(i).Index(j).String())
			}
		}
	}
	if english.Type().NumField() < 60 {
		t.Errorf("only %d fields were looked at", english.Type().NumField())
	}
}

// The page uses and declares the language that the browser asks for, or English if it has none of
// them.
func TestTheLanguageOfTheBrowser(t *testing.T) {
	f := newFixture(t)
	for accept, want := range map[string]string{
		"": "en", "tr": "tr", "tr-TR,tr;q=0.9,en;q=0.8": "tr", "en-US,en;q=0.9,tr;q=0.8": "en", "de,fr;q=0.5": "en", "de, tr;q=0.1": "tr",
		"*": "en", "tr;q=0": "en", ";;;=": "en", strings.Repeat("tr,", 1000): "en",
	} {
		w := f.browser("GET", "/api", "Accept-Language", accept)
		if !strings.Contains(w.Body.String(), `<html lang="`+want+`">`) || w.Header().Get("Content-Language") != want || !strings.Contains(w.Header().Get("Vary"), "Accept-Language") {
			t.Errorf("%.40q: not %s, with %q", accept, want, w.Header().Get("Content-Language"))
		}
	}
	if w := f.ask("GET", "/api", "Cookie", f.cookie, "Accept-Language", "tr", "Accept", "application/json"); !strings.Contains(w.Body.String(), `"success":true`) {
		t.Errorf("a program gets %s", w.Body)
	}
}

// Values chosen by a user or a client show as plain text, from any source.
func TestMarkupShowsAsText(t *testing.T) {
	f := newFixture(t)
	f.busy()
	const evil = `"><script>alert(1)</script><img src=x onerror=alert(1)>' {{.}} javascript:alert(1)`
	f.keyUsage.Agent, f.keyUsage.Address, f.oldKeys.Agent, f.oldKeys.Address, f.next = evil, evil, evil, evil, evil
	f.requests[0].Path, f.requests[0].Method = "/"+evil, evil
	f.principal.User, f.principal.Account, f.principal.Plan = "ada", evil, evil
	pages := []*httptest.ResponseRecorder{
		f.browser("GET", "/api"), f.browser("GET", "/api/-/regenerate"), f.browser("GET", "/api?before="+url.QueryEscape(evil)),
		f.browser("GET", "/api/-/login?token="+url.QueryEscape(evil)), f.browser("GET", "/api/-/login?out="+url.QueryEscape(evil)),
		f.browser("GET", "/api/-/none/"+url.PathEscape(evil)), f.browser("GET", "/api", "X-Forwarded-Proto", evil),
		f.form("/api/-/login", url.Values{"token": {evil}}),
		f.form("/api/regenerate", url.Values{"idempotency_key": {evil}}, "Cookie", f.cookie),
	}
	for i, w := range pages {
		body := w.Body.String()
		if strings.Contains(body, "<script>alert") || strings.Contains(body, "<img src=x") || strings.Contains(body, `href="javascript`) || !strings.Contains(body, "<!doctype html>") {
			t.Errorf("page %d holds markup of others:\n%s", i, body)
		}
	}
	r := httptest.NewRequest("GET", "/api", nil)
	r.Host = `evil.example.com/$(rm -rf)"; #`
	r.Header.Set("Cookie", f.cookie)
	r.Header.Set("Accept", "text/html")
	w := httptest.NewRecorder()
	f.handler().ServeHTTP(w, r)
	if body := w.Body.String(); strings.Contains(body, "rm -rf") || !strings.Contains(body, "https://api.example.com/api/v1/brands") {
		t.Error("a call to paste holds a host that is none")
	}
}

// A key is in no page until the user requests it with a POST from the page, and the audit records
// that first. If the key cannot be shown, the page says so and everything else works.
func TestAKeyIsShownWhenItIsAskedFor(t *testing.T) {
	f := newFixture(t)
	f.busy()
	key := f.current.Reveal()
	for _, path := range []string{"/api", "/api/-/regenerate", "/api/-/login", "/api/-/openapi.yaml", "/api?reveal=1"} {
		for _, accept := range []string{"text/html", "application/json"} {
			if w := f.ask("GET", path, "Cookie", f.cookie, "Accept", accept); strings.Contains(w.Body.String(), key) || w.Header().Get("Cache-Control") != "no-store" {
				t.Errorf("GET %s as %s holds the key, or may be kept", path, accept)
			}
		}
	}
	if w := f.browser("GET", "/api/-/reveal"); w.Code != 405 || len(f.revealed) > 0 {
		t.Errorf("a GET: %d, %v", w.Code, f.revealed)
	}
	if w := f.ask("POST", "/api/-/reveal", "Cookie", f.cookie, "Sec-Fetch-Site", "cross-site"); w.Code != 403 || len(f.revealed) > 0 {
		t.Errorf("from another site: %d, %v", w.Code, f.revealed)
	}
	if w := f.ask("POST", "/api/-/reveal"); w.Code != 401 || len(f.revealed) > 0 {
		t.Errorf("without a session: %d, %v", w.Code, f.revealed)
	}
	if w := f.ask("POST", "/api/-/reveal", "Cookie", f.cookie); w.Code != 200 || w.Body.String() != `{"success":true,"key":"`+key+`"}` || w.Header().Get("Cache-Control") != "no-store" {
		t.Errorf("asked for: %d %s", w.Code, w.Body)
	}
	if w := f.browser("POST", "/api/-/reveal"); w.Code != 200 || !strings.Contains(w.Body.String(), key) || len(f.revealed) != 2 || f.revealed[0] != "ada key_1" {
		t.Errorf("asked for without JavaScript: %d, noted %v", w.Code, f.revealed)
	}
	for _, row := range []struct {
		name, code string
		status     int
		change     func(*fixture)
	}{
		{"the audit cannot be written", "unavailable", 503, func(f *fixture) { f.auditErr = errors.New("away") }},
		{"no copy is kept", "key_not_kept", 409, func(f *fixture) { f.sealed = nil }},
		{"the seal key is a wrong one", "key_unreadable", 503, func(f *fixture) { f.sealed = []byte("other") }},
		{"it was shown very often", "too_often", 429, func(f *fixture) { f.auditErr = portal.TooOftenError{Until: time.Now()} }},
		{"there is no key", "no_key", 409, func(f *fixture) { f.principal.User = "bob" }},
	} {
		f := newFixture(t)
		row.change(f)
		w := f.ask("POST", "/api/-/reveal", "Cookie", f.cookie)
		if w.Code != row.status || !strings.Contains(w.Body.String(), `"code":"`+row.code+`"`) || strings.Contains(w.Body.String(), f.current.Reveal()) {
			t.Errorf("%s: %d %s", row.name, w.Code, w.Body)
		}
		if w := f.browser("POST", "/api/-/reveal"); w.Code != row.status || !strings.Contains(w.Body.String(), "<!doctype html>") {
			t.Errorf("%s, for a person: %d", row.name, w.Code)
		}
		if w := f.browser("GET", "/api"); w.Code != 200 {
			t.Errorf("%s: the page: %d", row.name, w.Code)
		}
		if strings.Contains(f.log.String(), f.current.Reveal()) {
			t.Errorf("%s: the log holds the key", row.name)
		}
	}
}

// Optional parts may fail: the page says so and shows the rest.
func TestAPartThatFailsIsLeftOut(t *testing.T) {
	f := newFixture(t)
	f.busy()
	f.partErr = errors.New("dial tcp: secret")
	w := f.browser("GET", "/api")
	if body := w.Body.String(); w.Code != 200 || strings.Count(body, "Not available right now.") < 4 || strings.Contains(body, "secret") || !strings.Contains(body, `id="regenerate"`) {
		t.Errorf("%d %s", w.Code, body)
	}
	if w := f.browser("GET", "/api/-/regenerate"); w.Code != 200 || !strings.Contains(w.Body.String(), "not known right now") || !strings.Contains(w.Body.String(), `id="confirm"`) {
		t.Errorf("the confirmation: %d", w.Code)
	}
	if w := f.ask("GET", "/api", "Cookie", f.cookie); w.Code != 200 || !strings.Contains(w.Body.String(), `"requests":null`) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// The button of a login link creates a new session, in a cookie that scripts and other hosts cannot
// read. An invalid link creates none, and the answer does not say why.
func TestLoggingInAndOut(t *testing.T) {
	f := newFixture(t)
	link := f.link.Reveal()
	if w := f.ask("GET", "/api/-/login?token="+link); w.Code != 200 || !strings.Contains(w.Body.String(), "ada") || f.spent || len(w.Result().Cookies()) > 0 {
		t.Errorf("opening a link: %d, spent: %v", w.Code, f.spent)
	}
	if w := f.form("/api/-/login", url.Values{"token": {link}}, "Origin", "https://evil.example.com"); w.Code != 403 || f.spent {
		t.Errorf("from another site: %d, spent: %v", w.Code, f.spent)
	}
	if w := f.form("/api/-/login?token="+link, url.Values{}); f.spent || w.Code == 303 {
		t.Errorf("a token in the URL of a form: %d, spent: %v", w.Code, f.spent)
	}
	fixed := f.session.Generate().Reveal()
	w := f.form("/api/-/login", url.Values{"token": {link}}, "Cookie", authz.SessionCookie+"="+fixed)
	cookies := w.Result().Cookies()
	if w.Code != 303 || w.Header().Get("Location") != "/api" || len(cookies) != 1 {
		t.Fatalf("a login: %d %v", w.Code, w.Header())
	}
	c := cookies[0]
	if c.Name != "__Host-keyporter_session" || !c.Secure || !c.HttpOnly || c.SameSite != http.SameSiteLaxMode || c.Path != "/" || c.Domain != "" ||
		c.MaxAge < 3500 || c.MaxAge > 3600 || c.Value == fixed || c.Value == "" {
		t.Errorf("the cookie: %v", c)
	}
	for name, token := range map[string]string{"used": link, "unknown": f.links.Generate().Reveal(), "malformed": "x", "a session": f.session.Generate().Reveal(), "none": ""} {
		w := f.form("/api/-/login", url.Values{"token": {token}})
		if w.Code != 404 || len(w.Result().Cookies()) > 0 || !strings.Contains(w.Body.String(), "not valid") {
			t.Errorf("a link that is %s: %d", name, w.Code)
		}
	}
	f.insecure = true
	f.spent = false
	if w := f.form("/api/-/login", url.Values{"token": {link}}); w.Code != 303 || w.Result().Cookies()[0].Name != "keyporter_session" || w.Result().Cookies()[0].Secure {
		t.Errorf("without TLS: %v", w.Header())
	}
	f.insecure = false

	if w := f.browser("GET", "/api/-/logout"); w.Code != 405 || len(f.ended) > 0 {
		t.Errorf("a GET logs out: %d", w.Code)
	}
	if w := f.ask("POST", "/api/-/logout", "Cookie", f.cookie, "Sec-Fetch-Site", "cross-site"); w.Code != 403 || len(f.ended) > 0 {
		t.Errorf("another site logs out: %d", w.Code)
	}
	w = f.form("/api/-/logout", nil, "Cookie", f.cookie)
	if c := w.Result().Cookies(); w.Code != 303 || len(f.ended) != 1 || f.ended[0] != f.digest || len(c) != 1 || c[0].MaxAge >= 0 || c[0].Value != "" {
		t.Errorf("logging out: %d %v, ended %v", w.Code, w.Header(), f.ended)
	}
	if w := f.form("/api/-/logout", nil); w.Code != 303 || len(f.ended) != 1 {
		t.Errorf("logging out again: %d", w.Code)
	}
}

// After too many new keys the page shows the time of the next possible one.
func TestTooManyKeys(t *testing.T) {
	f := newFixture(t)
	f.regenErr = fmt.Errorf("regenerating: %w", portal.TooOftenError{Until: time.Now().Add(90 * time.Second)})
	w := f.ask("POST", "/api/regenerate", "Cookie", f.cookie)
	if retry := w.Header().Get("Retry-After"); w.Code != 429 || !strings.Contains(w.Body.String(), `"code":"too_often"`) || retry != "90" && retry != "91" {
		t.Errorf("%d %s, again after %s s", w.Code, w.Body, retry)
	}
	if w := f.form("/api/regenerate", url.Values{"idempotency_key": {"x"}}, "Cookie", f.cookie); w.Code != 429 || !strings.Contains(w.Body.String(), "too often") {
		t.Errorf("for a person: %d", w.Code)
	}
}

// The form of the confirmation makes one key, however often it is sent. If the revocation was not
// confirmed, the form can be sent again. A key that was shown before is shown again if possible.
func TestTheFormOfTheConfirmation(t *testing.T) {
	f := newFixture(t)
	f.busy()
	once := regexp.MustCompile(`name="idempotency_key" value="([^"]+)"`)
	first, second := once.FindStringSubmatch(f.browser("GET", "/api/-/regenerate").Body.String()), once.FindStringSubmatch(f.browser("GET", "/api/-/regenerate").Body.String())
	if first == nil || second == nil || first[1] == second[1] || len(first[1]) < 20 {
		t.Fatalf("idempotency keys %q and %q", first, second)
	}
	w := f.form("/api/regenerate", url.Values{"idempotency_key": {first[1]}}, "Cookie", f.cookie, "Idempotency-Key", "header")
	if w.Code != 200 || len(f.made) != 1 || !strings.Contains(w.Body.String(), f.made[0]) || f.once[0] != first[1] {
		t.Errorf("%d, made %d under %q", w.Code, len(f.made), f.once)
	}
	f.repeated = true
	if w := f.form("/api/regenerate", url.Values{"idempotency_key": {first[1]}}, "Cookie", f.cookie); !strings.Contains(w.Body.String(), f.current.Reveal()) || !strings.Contains(w.Body.String(), "3 of 3") {
		t.Errorf("sent again: %s", w.Body)
	}
	f.sealed = nil
	if w := f.form("/api/regenerate", url.Values{"idempotency_key": {first[1]}}, "Cookie", f.cookie); !strings.Contains(w.Body.String(), "was shown before") {
		t.Errorf("sent again, without a copy: %s", w.Body)
	}
	f.repeated, f.confirmed = false, false
	if w := f.form("/api/regenerate", url.Values{"idempotency_key": {"abc"}}, "Cookie", f.cookie); !strings.Contains(w.Body.String(), `id="notice"`) || !strings.Contains(w.Body.String(), `value="abc"`) {
		t.Errorf("not confirmed: %s", w.Body)
	}
}

// Static files may be cached forever under their version, and nothing else may be cached. The brand
// is the operator's, and text on its colour is readable.
func TestStaticFilesAndTheBrand(t *testing.T) {
	f := newFixture(t)
	page := f.browser("GET", "/api").Body.String()
	for _, address := range regexp.MustCompile(`(?:href|src)="(/api/-/static/[^"]+)"`).FindAllStringSubmatch(page, -1) {
		w := f.ask("GET", address[1])
		if w.Code != 200 || !strings.Contains(w.Header().Get("Cache-Control"), "immutable") || w.Header().Get("Content-Type") == "" {
			t.Errorf("%s: %d %v", address[1], w.Code, w.Header())
		}
		if w := f.ask("GET", address[1]+"0"); w.Code != 200 || w.Header().Get("Cache-Control") != "no-store" {
			t.Errorf("%s under another version: %d %q", address[1], w.Code, w.Header().Get("Cache-Control"))
		}
	}
	if w := f.ask("GET", "/api/-/static/../portal.go"); w.Code != 404 {
		t.Errorf("a file that is not static: %d", w.Code)
	}
	if strings.Contains(page, "style=") || strings.Contains(page, "onclick") || regexp.MustCompile(`<script[^>]*>[^<]`).MatchString(page) || strings.Contains(page, "//") && regexp.MustCompile(`(?:src|href)="(https?:)?//`).MatchString(page) {
		t.Error("the page has inline scripts or styles, or loads from elsewhere")
	}
	for color, on := range map[string]string{"#000000": "#fff", "#ffffff": "#000", "#2f5bea": "#fff", "#ffd000": "#000"} {
		c := f.config()
		c.Metrics, c.Brand = nil, portal.Brand{Name: "Acme <API>", Color: color, Logo: []byte("<svg/>"), LogoType: "image/svg+xml", Links: []portal.Link{{Text: "Docs", URL: "https://docs.example.com/"}}}
		handler, err := portal.New(c)
		if err != nil {
			t.Fatal(err)
		}
		get := func(path string) string {
			r := httptest.NewRequest("GET", path, nil)
			r.Header.Set("Cookie", f.cookie)
			r.Header.Set("Accept", "text/html")
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, r)
			return w.Body.String()
		}
		if css := get("/api/-/static/brand.css"); !strings.Contains(css, "--brand: "+color) || !strings.Contains(css, "--on-brand: "+on+";") {
			t.Errorf("%s: %s", color, css)
		}
		if page := get("/api"); !strings.Contains(page, "Acme &lt;API&gt;") || !strings.Contains(page, `href="https://docs.example.com/"`) || !strings.Contains(page, "/static/logo?") {
			t.Errorf("the brand is not on the page")
		}
	}
	for _, bad := range []portal.Brand{{Color: "red"}, {Color: "#12345g"}, {Logo: []byte("x"), LogoType: "text/html"}} {
		c := f.config()
		c.Metrics, c.Brand = nil, bad
		if _, err := portal.New(c); err == nil {
			t.Errorf("%+v was accepted", bad)
		}
	}
}

// The page reports account states that make the key fail, or soon will.
func TestWhatKeepsTheKeyFromWorkingIsSaid(t *testing.T) {
	unlimited := usage.Credits{Counted: true, Used: 7, Limit: usage.Unlimited}
	for _, row := range []struct {
		name, want string
		change     func(*fixture)
	}{
		{"no API access", "does not include API access", func(f *fixture) { f.principal.APIAccess = false }},
		{"a suspended account", "account is not active", func(f *fixture) { f.principal.AccountActive = false }},
		{"80 % of the credits", "You have used 82% of", func(f *fixture) {}},
		{"no credits left", "credits are used up", func(f *fixture) { f.credits.Used = 20000 }},
		{"a limit of none", "credits are used up", func(f *fixture) { f.credits.Used, f.credits.Limit = 0, 0 }},
		{"no limit of credits", "7 used, no limit", func(f *fixture) { f.credits = unlimited }},
		{"no rate limit", "No limit on requests", func(f *fixture) { f.rate.Limit = usage.Unlimited }},
		{"a full window", "room again in 3 s", func(f *fixture) { f.rate.Remaining = 0 }},
		{"a team", "whose members share these credits", func(f *fixture) { f.principal.Pool = usage.PoolAccount }},
		{"a team, each with their own", "Plan <bdi>pro</bdi>, by the account <bdi>acme</bdi>.", func(f *fixture) {}},
		{"a person", "Plan <bdi>pro</bdi>.", func(f *fixture) { f.principal.Account = "ada" }},
		{"no key", "no API key yet", func(f *fixture) { f.principal.User = "bob" }},
		{"no requests", "no requests to show yet", func(f *fixture) { f.requests = nil }},
		{"nothing used", "No credits were used", func(f *fixture) { f.days = []usage.Day{{}} }},
		{"an old key that is tried", "Attempts since you replaced it: 41", func(f *fixture) {}},
		{"a key that was never used", "Not used yet", func(f *fixture) { f.keyUsage = usage.KeyUsage{} }},
		{"large numbers", "16,500 of 20,000 used", func(f *fixture) {}},
	} {
		f := newFixture(t)
		f.busy()
		row.change(f)
		if w := f.browser("GET", "/api"); w.Code != 200 || !strings.Contains(w.Body.String(), row.want) {
			t.Errorf("%s: %d, without %q", row.name, w.Code, row.want)
		}
	}
}

// If replicas divide a limit, the free requests are fewer than the unused ones. The page shows both
// figures unchanged.
func TestADividedLimitIsNotUsed(t *testing.T) {
	f := newFixture(t)
	f.busy()
	f.rate = usage.Rate{Limit: 1000, Window: time.Minute, Remaining: 500}
	if page := f.browser("GET", "/api").Body.String(); !strings.Contains(page, "0 of 1,000 in the last minute") {
		t.Errorf("the page tells of requests that nobody has made:\n%s", page)
	}
}

package portal_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/portal"
)

// Texts chosen by clients, or by a writer of the access log, are shown to people and programs
// without invisible characters and cannot affect the text around them: ESC, C1, marks for the
// direction of text, line breaks.
func TestTextsThatCannotBeSeen(t *testing.T) {
	f := newFixture(t)
	f.busy()
	const evil = "a\u202eb\u2066c\u200fd\x1b[2Je\u009bf\u0085g\u2028h\u2029i\ufeffj\x00k\xffl"
	f.keyUsage.Agent, f.keyUsage.Address, f.oldKeys.Agent, f.oldKeys.Address = "1"+evil, "2"+evil, "3"+evil, "4"+evil
	f.requests[0].Path, f.requests[0].Method = "/5"+evil, "6"+evil
	f.requests[1].Path = "/Ürün İzleyici ığüşöç עברית"
	for _, path := range []string{"/api", "/api/-/regenerate"} {
		for _, accept := range []string{"text/html", "application/json"} {
			w := f.ask("GET", path, "Cookie", f.cookie, "Accept", accept)
			for _, r := range w.Body.String() {
				if r != '\n' && r != '\t' && unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp) {
					t.Errorf("%s as %s holds %U", path, accept, r)
				}
			}
			if strings.Contains(w.Body.String(), `\u`) {
				t.Errorf("%s as %s holds an escape: %s", path, accept, w.Body)
			}
		}
	}
	const left = "abcd[2Jefghijk\uFFFDl"
	overview, confirm := f.browser("GET", "/api").Body.String(), f.browser("GET", "/api/-/regenerate").Body.String()
	for want, page := range map[string]string{
		"<bdi>1" + left + "</bdi>": confirm, "<bdi>2" + left + "</bdi>": confirm,
		"<bdi>3" + left + "</bdi>": overview, "<bdi>4" + left + "</bdi>": overview,
		"<bdi>/5" + left + "</bdi>": overview, "<bdi>6" + left + "</bdi>": overview,
		"<bdi>/Ürün İzleyici ığüşöç עברית</bdi>": overview, "Logged in as <bdi>ada</bdi>": overview,
	} {
		if !strings.Contains(page, want) {
			t.Errorf("%s is not on the page", want)
		}
	}
}

// pageOf returns one page for several requests.
func pageOf(t *testing.T, c portal.Config) http.Handler {
	t.Helper()
	c.Metrics = nil
	handler, err := portal.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return handler
}

// A time that JSON cannot represent, from plain SQL or a forged access log, breaks no answer.
func TestTimesThatCannotBeWritten(t *testing.T) {
	for _, at := range []time.Time{time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(-1, 12, 31, 0, 0, 0, 0, time.UTC), time.Unix(1<<60, 0), {}, time.Unix(-1<<60, 0)} {
		f := newFixture(t)
		f.busy()
		f.requests[0].At, f.keyUsage.Last, f.oldKeys.Last = at, at, at
		for _, path := range []string{"/api", "/api/-/regenerate"} {
			var body map[string]any
			w := f.ask("GET", path, "Cookie", f.cookie)
			if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil || w.Code != 200 || body["success"] != true {
				t.Errorf("%s, %v: %d %s", path, at, w.Code, w.Body)
			}
			if w := f.browser("GET", path); w.Code != 200 {
				t.Errorf("%s, %v, for a person: %d", path, at, w.Code)
			}
		}
	}
}

// An unknown cursor is the caller's mistake: it gives 400 and writes nothing to the operator's log.
func TestAPlaceInTheListThatIsNone(t *testing.T) {
	f := newFixture(t)
	f.listErr = fmt.Errorf("reading requests: %w", portal.ErrCursor)
	handler := f.handler()
	for accept, want := range map[string]string{"application/json": `"code":"bad_request"`, "text/html": "list of requests has no such page"} {
		r := httptest.NewRequest("GET", "/api?before=%21", nil)
		r.Header.Set("Cookie", f.cookie)
		r.Header.Set("Accept", accept)
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		if w.Code != 400 || !strings.Contains(w.Body.String(), want) {
			t.Errorf("%s: %d %s, want 400", accept, w.Code, w.Body)
		}
	}
	if f.log.Len() > 0 {
		t.Errorf("the log: %s", f.log.String())
	}
}

// Repeated calls of a regeneration write no more log lines.
func TestARepeatedRegenerationIsLoggedOnce(t *testing.T) {
	f := newFixture(t)
	f.ask("POST", "/api/regenerate", "Cookie", f.cookie, "Idempotency-Key", "abc")
	f.repeated = true
	for range 20 {
		f.ask("POST", "/api/regenerate", "Cookie", f.cookie, "Idempotency-Key", "abc")
	}
	if n := strings.Count(f.log.String(), "\n"); n != 1 {
		t.Errorf("%d lines, want one: %s", n, f.log.String())
	}
}

// slowDirectory lets ada's look-ups of her key wait until release.
type slowDirectory struct {
	portal.Directory
	began, release chan struct{}
}

func (d slowDirectory) LiveKey(ctx context.Context, user string) (portal.Key, bool, error) {
	if user == "ada" {
		d.began <- struct{}{}
		<-d.release
	}
	return d.Directory.LiveKey(ctx, user)
}

// A user gets 429 beyond their quota, without a look-up. Other users are answered meanwhile, and
// the same user once the earlier requests end.
func TestEachUserHasAQuota(t *testing.T) {
	f := newFixture(t)
	c := f.config()
	other, lookups := f.session.Generate(), make(chan struct{}, 100)
	c.Sessions.Find = func(_ context.Context, d apikey.Digest) (authz.Principal, error) {
		if d == other.Digest() {
			return authz.Principal{User: "bob", UserActive: true, AccountActive: true}, nil
		}
		lookups <- struct{}{}
		return f.principal, nil
	}
	began, release := make(chan struct{}, 100), make(chan struct{})
	c.Directory = slowDirectory{f.fakeDirectory, began, release}
	handler := pageOf(t, c)
	ask := func(cookie string) *httptest.ResponseRecorder {
		r := httptest.NewRequest("GET", "/api", nil)
		r.Header.Set("Cookie", cookie)
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		return w
	}
	done := make(chan int)
	for range 8 {
		go func() { done <- ask(f.cookie).Code }()
		<-began
	}
	for range 20 {
		if w := ask(f.cookie); w.Code != 429 || w.Header().Get("Retry-After") != "1" || !strings.Contains(w.Body.String(), `"code":"too_many_at_once"`) {
			t.Errorf("beyond the quota: %d %s", w.Code, w.Body)
		}
	}
	if w := ask(authz.SessionCookie + "=" + other.Reveal()); w.Code != 200 {
		t.Errorf("another user meanwhile: %d %s", w.Code, w.Body)
	}
	close(release)
	for range 8 {
		if code := <-done; code != 200 {
			t.Errorf("within the quota: %d", code)
		}
	}
	if w := ask(f.cookie); w.Code != 200 {
		t.Errorf("afterwards: %d", w.Code)
	}
	if f.log.Len() > 0 {
		t.Errorf("the log: %s", f.log.String())
	}
}

// A quota limits the concurrent look-ups of one session, because its user is still unknown.
func TestEachSessionHasAShareOfLookUps(t *testing.T) {
	f := newFixture(t)
	c := f.config()
	began, release := make(chan struct{}, 100), make(chan struct{})
	c.Sessions.Find = func(context.Context, apikey.Digest) (authz.Principal, error) {
		began <- struct{}{}
		<-release
		return f.principal, nil
	}
	handler := pageOf(t, c)
	ask := func() int {
		r := httptest.NewRequest("GET", "/api", nil)
		r.Header.Set("Cookie", f.cookie)
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		return w.Code
	}
	done := make(chan int)
	for range 8 {
		go func() { done <- ask() }()
		<-began
	}
	if code := ask(); code != 429 || len(began) > 0 {
		t.Errorf("beyond the quota: %d, looked up: %v", code, len(began) > 0)
	}
	close(release)
	for range 8 {
		<-done
	}
}

// The confirmation replaces only the key that it was shown for. If another window replaced that
// key, it says so and does nothing. Programs may name the key to replace.
func TestTheConfirmationNamesItsKey(t *testing.T) {
	f := newFixture(t)
	if form := f.browser("GET", "/api/-/regenerate").Body.String(); !strings.Contains(form, `name="replaces" value="key_1"`) {
		t.Errorf("the form does not name its key: %s", form)
	}
	values := url.Values{"idempotency_key": {"abc"}, "replaces": {"key_1"}}
	f.confirmed = false
	if w := f.form("/api/regenerate", values, "Cookie", f.cookie); w.Code != 200 || f.replaces[0] != "key_1" ||
		!strings.Contains(w.Body.String(), `name="replaces" value="key_1"`) {
		t.Errorf("%d, for %q; the form that asks again: %s", w.Code, f.replaces, w.Body)
	}
	if f.ask("POST", "/api/regenerate", "Cookie", f.cookie); f.replaces[1] != "" {
		t.Errorf("a program that names none: %q", f.replaces)
	}
	f.regenErr = fmt.Errorf("regenerating: %w", portal.ReplacedError{At: time.Date(2026, 11, 30, 4, 12, 11, 0, time.UTC)})
	if w := f.form("/api/regenerate", values, "Cookie", f.cookie); w.Code != 409 || !strings.Contains(w.Body.String(), "replaced on 30 Nov 2026 04:12:11 UTC, perhaps") {
		t.Errorf("another key is live: %d %s", w.Code, w.Body)
	}
	if w := f.ask("POST", "/api/regenerate", "Cookie", f.cookie); w.Code != 409 || !strings.Contains(w.Body.String(), `"code":"replaced"`) || !strings.Contains(w.Body.String(), "2026-11-30T04:12:11Z") {
		t.Errorf("another key is live, to a program: %d %s", w.Code, w.Body)
	}
}

// A form or JSON object that names the key to replace but cannot be read replaces nothing.
func TestAFormThatCannotBeReadReplacesNothing(t *testing.T) {
	const form, parts, object = "application/x-www-form-urlencoded", "multipart/form-data; boundary=b", "application/json"
	const part = "--b\r\nContent-Disposition: form-data; name=\"replaces\"\r\n\r\nkey_1\r\n"
	for _, row := range []struct {
		kind, body string
		replaces   string // "": must be rejected
	}{
		{form, "replaces=key_1", "key_1"}, {parts, part + "--b--\r\n", "key_1"},
		{object, `{"replaces": "key_1"}`, "key_1"}, {object + "; charset=utf-8", `{"replaces":"key_1","other":"x"}`, "key_1"},
		{object, `{"replaces": "key_1"`, ""}, {object, `{"replaces": null}`, ""}, {object, `{"replaces": 1}`, ""}, {object, `["key_1"]`, ""}, {object, "null", ""},
		{object, `{"replaces": "key_1"} x`, ""}, {object, `{"x": "` + strings.Repeat("x", 5000) + `"}`, ""}, {"text/plain", "replaces=key_1", ""}, {"", "replaces=key_1", ""},
		{form, "replaces=key_1;x", ""}, {form, "replaces=key_%31%", ""}, {form + ";", "replaces=key_1&x=%zz", ""}, {form + "; charset", "replaces=key_1", ""},
		{form, "replaces=", ""}, {object, `{"replaces": ""}`, ""},
		{parts, part, ""}, {"multipart/form-data", part + "--b--\r\n", ""}, {form, "x=" + strings.Repeat("x", 5000) + "&replaces=key_1", ""},
	} {
		f := newFixture(t)
		r := httptest.NewRequest(http.MethodPost, "/api/regenerate", strings.NewReader(row.body))
		r.Header.Set("Cookie", f.cookie)
		r.Header["Content-Type"] = []string{row.kind}
		w := httptest.NewRecorder()
		f.handler().ServeHTTP(w, r)
		switch {
		case row.replaces == "" && (w.Code != 400 || len(f.replaces) > 0 || !strings.Contains(w.Body.String(), `"code":"bad_request"`)):
			t.Errorf("%s, %.40q: %d %s, a key was replaced: %v", row.kind, row.body, w.Code, w.Body, len(f.replaces) > 0)
		case row.replaces != "" && (w.Code != 200 || !slices.Equal(f.replaces, []string{row.replaces})):
			t.Errorf("%s, %.40q: %d %s, for %q", row.kind, row.body, w.Code, w.Body, f.replaces)
		}
	}
}

// A static file is also served with a trailing slash, like all of the page.
func TestAStaticFileWithASlash(t *testing.T) {
	f := newFixture(t)
	want, got := f.ask("GET", "/api/-/static/page.css"), f.ask("GET", "/api/-/static/page.css/")
	if got.Code != 200 || got.Body.String() != want.Body.String() || got.Header().Get("Content-Type") != want.Header().Get("Content-Type") {
		t.Errorf("%d, %q, %d bytes of %d", got.Code, got.Header().Get("Content-Type"), got.Body.Len(), want.Body.Len())
	}
}

// Over HTTPS, a browser gets Strict-Transport-Security. It does not get it over HTTP, or with
// insecure cookies.
func TestStrictTransportSecurity(t *testing.T) {
	for _, row := range []struct {
		proto    string
		insecure bool
		sent     bool
	}{{"https", false, true}, {"http", false, false}, {"", false, false}, {"https", true, false}} {
		f := newFixture(t)
		f.insecure = row.insecure
		for _, path := range []string{"/api", "/api/-/login", "/api/-/static/page.css", "/api/-/none"} {
			got := f.ask("GET", path, "Cookie", f.cookie, "X-Forwarded-Proto", row.proto).Header().Get("Strict-Transport-Security")
			if (got == "max-age=31536000") != row.sent || !row.sent && got != "" {
				t.Errorf("%s by %q, insecure cookies %v: %q", path, row.proto, row.insecure, got)
			}
		}
	}
}

// If the browser would drop the session cookie, a login says so, to the user and in the log, and
// the link stays valid. The browser's own connection counts, regardless of proxies in between.
func TestALoginWhereCookiesAreLost(t *testing.T) {
	for _, row := range []struct {
		origin   string
		insecure bool
		refused  bool
	}{
		{"http://keyporter.test:8080", false, true},
		{"http://192.0.2.2", false, true},
		{"http://[2001:db8::1]:8080", false, true},
		{"http://keyporter.test:8080", true, false},
		{"https://keyporter.test", false, false},
		{"http://localhost:8080", false, false},
		{"http://app.localhost:8080", false, false},
		{"http://127.0.0.2:8080", false, false},
		{"http://[::1]:8080", false, false},
	} {
		f := newFixture(t)
		f.insecure = row.insecure
		r := httptest.NewRequest("POST", "/api/-/login", strings.NewReader(url.Values{"token": {f.link.Reveal()}}.Encode()))
		r.Host = strings.TrimPrefix(strings.TrimPrefix(row.origin, "http://"), "https://")
		r.Header.Set("Origin", row.origin)
		r.Header.Set("X-Forwarded-Proto", "http") // set by Envoy, behind a TLS proxy
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		w := httptest.NewRecorder()
		f.handler().ServeHTTP(w, r)
		told := strings.Contains(w.Body.String(), "--insecure-cookies") && strings.Contains(f.log.String(), "--insecure-cookies")
		if row.refused != (w.Code == http.StatusForbidden) || row.refused != told || row.refused == f.spent || row.refused == (len(w.Result().Cookies()) > 0) {
			t.Errorf("%s, insecure cookies %v: %d, spent: %v, log %s", row.origin, row.insecure, w.Code, f.spent, f.log.String())
		}
	}
}

// A login ends the browser's previous session. An invalid link, or one used a moment earlier, ends
// nothing.
func TestALoginEndsTheSessionBefore(t *testing.T) {
	f := newFixture(t)
	if f.form("/api/-/login", url.Values{"token": {f.links.Generate().Reveal()}}, "Cookie", f.cookie); len(f.ended) > 0 {
		t.Error("an invalid link has ended a session")
	}
	f.endErr = errors.New("away")
	if w := f.form("/api/-/login", url.Values{"token": {f.link.Reveal()}}, "Cookie", f.cookie); w.Code != 503 || f.spent {
		t.Errorf("the session before could not be ended: %d, spent: %v", w.Code, f.spent)
	}
	f.endErr, f.ended = nil, nil
	w := f.form("/api/-/login", url.Values{"token": {f.link.Reveal()}}, "Cookie", f.cookie)
	if w.Code != 303 || len(f.ended) != 1 || f.ended[0] != f.digest {
		t.Errorf("%d, ended %d sessions, want the one before", w.Code, len(f.ended))
	}
	if w := f.form("/api/-/login", url.Values{"token": {f.link.Reveal()}}, "Cookie", f.cookie); w.Code != 404 || len(f.ended) != 1 {
		t.Errorf("the same link again: %d, ended %d sessions, want no other", w.Code, len(f.ended))
	}
}

// Turkish letters, numbers and percentages follow Turkish conventions.
func TestTurkish(t *testing.T) {
	f := newFixture(t)
	f.busy()
	f.requests[0].Path = "/api/v1/brands/ığdır-İzmir-şöğüç"
	page := f.browser("GET", "/api", "Accept-Language", "tr-TR,tr;q=0.9,en;q=0.8").Body.String()
	for _, want := range []string{`<html lang="tr">`, "16.500 / 20.000 kullanıldı", "%82", "3.500 kaldı", "Son 1 dakika içinde 42 / 60", "<bdi>/api/v1/brands/ığdır-İzmir-şöğüç</bdi>",
		"Tablo olarak", "<bdi>pro</bdi> planı, <bdi>acme</bdi> hesabı üzerinden"} {
		if !strings.Contains(page, want) {
			t.Errorf("%q is not on the page", want)
		}
	}
	if page := f.browser("GET", "/api/-/regenerate", "Accept-Language", "tr").Body.String(); !strings.Contains(page, "son bir günde 3.456 istek") {
		t.Error("the confirmation does not write numbers as Turkish does")
	}
}

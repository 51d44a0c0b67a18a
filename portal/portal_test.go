package portal_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/portal"
)

// fixture is a page for one user, ada, with one session and what the fakes hold.
type fixture struct {
	*fakeDirectory
	*fakeMeter
	session   *apikey.Format
	cookie    string // ada's session, as a header value
	digest    apikey.Digest
	principal authz.Principal
	findErr   error
	insecure  bool
	login     string
	path      string // of the page
	metrics   *prometheus.Registry
	log       bytes.Buffer
	current   apikey.Token // the live key
	links     *apikey.Format
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	format := func(prefix string) *apikey.Format {
		f, err := apikey.NewFormat(apikey.FormatConfig{Prefix: prefix, Secrets: [][]byte{bytes.Repeat([]byte{7}, apikey.MinSecret)}})
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	session, key, links := format(apikey.SessionPrefix), format(""), format(apikey.LinkPrefix)
	token := session.Generate()
	return &fixture{
		fakeDirectory: &fakeDirectory{t: t, session: session, key: key, link: links.Generate(), sealed: []byte("sealed"), confirmed: true},
		fakeMeter:     &fakeMeter{t: t},
		links:         links, current: key.Generate(), session: session, digest: token.Digest(), login: "https://login.example.com/",
		cookie:    authz.SessionCookie + "=" + token.Reveal(),
		principal: authz.Principal{User: "ada", Account: "acme", Plan: "pro", UserActive: true, AccountActive: true, APIAccess: true},
	}
}

func (f *fixture) handler() http.Handler {
	f.metrics = prometheus.NewRegistry()
	handler, err := portal.New(f.config())
	if err != nil {
		panic(err)
	}
	return handler
}

func (f *fixture) config() portal.Config {
	return portal.Config{
		Path: f.path,
		Sessions: &authz.Sessions{Format: f.session, InsecureCookies: f.insecure, Find: func(_ context.Context, d apikey.Digest) (authz.Principal, error) {
			if f.findErr != nil {
				return authz.Principal{}, f.findErr
			}
			if d != f.digest {
				return authz.Principal{}, authz.ErrUnknown
			}
			return f.principal, nil
		}},
		Links: f.links, Directory: f.fakeDirectory, Meter: f.fakeMeter, Unseal: f.unseal,
		LoginURL: f.login, Log: slog.New(slog.NewTextHandler(&f.log, nil)), Metrics: f.metrics,
	}
}

// unseal opens the sealed copy "sealed", which stands for the live key.
func (f *fixture) unseal(sealed []byte, _ string) (apikey.Token, error) {
	if string(sealed) != "sealed" {
		return apikey.Token{}, apikey.ErrSealed
	}
	return f.current, nil
}

// ask sends a request with the headers, given as pairs of name and value.
func (f *fixture) ask(method, path string, headers ...string) *httptest.ResponseRecorder {
	return f.askIn(context.Background(), method, path, headers...)
}

func (f *fixture) askIn(ctx context.Context, method, path string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequestWithContext(ctx, method, path, nil)
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	f.handler().ServeHTTP(w, r)
	return w
}

// Nothing works without a live session, and no header replaces one, not even Envoy's own.
func TestNothingWorksWithoutASession(t *testing.T) {
	f := newFixture(t)
	forged := []string{"X-Keyporter-User", "ada", "X-Forwarded-User", "ada", "Authorization", "Bearer x", "X-Envoy-Internal", "true"}
	other := f.session.Generate().Reveal()
	for name, headers := range map[string][]string{
		"no header":                      nil,
		"forged identity headers":        forged,
		"an unknown session":             {"Cookie", authz.SessionCookie + "=" + other},
		"a session with a wrong tag":     {"Cookie", authz.SessionCookie + "=ks_" + strings.Repeat("0", 48)},
		"two sessions":                   {"Cookie", f.cookie + "; " + f.cookie},
		"a session under another name":   {"Cookie", strings.Replace(f.cookie, "__Host-", "", 1)},
		"an API key in place of session": {"Cookie", authz.SessionCookie + "=" + f.key.Generate().Reveal()},
	} {
		for path, method := range map[string]string{"/api": http.MethodGet, "/api/regenerate": http.MethodPost} {
			w := f.ask(method, path, headers...)
			if w.Code != 401 || w.Body.String() != `{"success":false,"error":"Unauthorized","code":"unauthorized"}` ||
				w.Header().Get("WWW-Authenticate") != `Bearer realm="keyporter"` {
				t.Errorf("%s %s with %s: %d %s, want 401", method, path, name, w.Code, w.Body)
			}
		}
	}
	f.findErr = fmt.Errorf("a session: %w", authz.ErrRevoked)
	if w := f.ask(http.MethodGet, "/api", "Cookie", f.cookie); w.Code != 401 {
		t.Errorf("a revoked session: %d, want 401", w.Code)
	}
	f.findErr, f.principal.UserActive = nil, false
	if w := f.ask(http.MethodGet, "/api", "Cookie", f.cookie); w.Code != 401 {
		t.Errorf("a disabled user: %d, want 401", w.Code)
	}
	if len(f.made) > 0 {
		t.Errorf("%d keys were made", len(f.made))
	}
}

// Without HTTPS the cookie has another name, and only that one counts.
func TestInsecureCookies(t *testing.T) {
	f := newFixture(t)
	f.insecure = true
	insecure := strings.Replace(f.cookie, authz.SessionCookie, authz.InsecureSessionCookie, 1)
	for cookie, want := range map[string]int{insecure: 200, f.cookie: 401} {
		if w := f.ask(http.MethodGet, "/api", "Cookie", cookie); w.Code != want {
			t.Errorf("%.20s…: %d, want %d", cookie, w.Code, want)
		}
	}
}

// A browser without a session is redirected to the login page; a program is not.
func TestABrowserWithoutASessionIsSentToTheLogin(t *testing.T) {
	f := newFixture(t)
	w := f.ask(http.MethodGet, "/api", "Accept", "text/html,application/xhtml+xml")
	if w.Code != http.StatusSeeOther || w.Header().Get("Location") != "https://login.example.com/" {
		t.Errorf("a browser: %d to %q, want 303 to the login page", w.Code, w.Header().Get("Location"))
	}
	if w := f.ask(http.MethodPost, "/api/regenerate", "Accept", "text/html"); w.Code != 401 {
		t.Errorf("a POST: %d, want 401", w.Code)
	}
	f.login = ""
	if w := f.ask(http.MethodGet, "/api", "Accept", "text/html"); w.Code != http.StatusSeeOther || w.Header().Get("Location") != "/api/-/login" {
		t.Errorf("a browser where there is no login page: %d to %q, want our own", w.Code, w.Header().Get("Location"))
	}
}

// The overview shows everything but the key.
func TestTheOverviewTellsWhoseKeyItIs(t *testing.T) {
	f := newFixture(t)
	w := f.ask(http.MethodGet, "/api", "Cookie", f.cookie)
	want := `{"success":true,"user":"ada","account":"acme","plan":"pro","pool":"user","api_access":true,` +
		`"key":{"id":"key_1","created_at":"1970-01-01T00:00:00Z","last_used_at":null,"can_be_shown":true,"requests_last_hour":0,"requests_last_day":0},` +
		`"old_keys":{"count":0,"last_at":null,"address":"","user_agent":""},"credits":null,"rate_limit":null,"days":null,"requests":[]}`
	if w.Code != 200 || w.Body.String() != want {
		t.Errorf("%d %s, want 200 %s", w.Code, w.Body, want)
	}
	f.principal.AccountActive = false
	if w := f.ask(http.MethodGet, "/api", "Cookie", f.cookie); !strings.Contains(w.Body.String(), `"api_access":false`) {
		t.Errorf("a suspended account: %s, want no API access", w.Body)
	}
	f.principal.User = "bob" // bob has no key
	if w := f.ask(http.MethodGet, "/api", "Cookie", f.cookie); !strings.Contains(w.Body.String(), `"key":null`) {
		t.Errorf("without a key: %s, want null", w.Body)
	}
	if w := f.ask(http.MethodHead, "/api", "Cookie", f.cookie); w.Code != 200 || w.Body.Len() > 0 {
		t.Errorf("HEAD: %d with %d bytes", w.Code, w.Body.Len())
	}
}

// A regeneration returns the new key once, even if unconfirmed, and logs no key.
func TestRegenerateHandsOutTheNewKey(t *testing.T) {
	for _, confirmed := range []bool{true, false} {
		f := newFixture(t)
		f.confirmed = confirmed
		w := f.ask(http.MethodPost, "/api/regenerate", "Cookie", f.cookie, "Sec-Fetch-Site", "same-origin")
		var got struct {
			Success, Confirmed bool
			Key                string
			TookMS             *int64 `json:"took_ms"`
		}
		if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
			t.Fatalf("%v in %s", err, w.Body)
		}
		if w.Code != 200 || !got.Success || got.Confirmed != confirmed || got.TookMS == nil || len(f.made) != 1 || got.Key != f.made[0] {
			t.Errorf("%d %+v, want the new key, confirmed: %v", w.Code, got, confirmed)
		}
		if f.log.Len() == 0 || strings.Contains(f.log.String(), f.made[0]) {
			t.Errorf("the log is empty or holds the key: %s", f.log.String())
		}
	}
}

// An interrupted call can be repeated with its idempotency key. The answer counts the replicas on
// which the old key is revoked, and says that the new one was shown before.
func TestARepeatedRegenerationConfirmsAgain(t *testing.T) {
	f := newFixture(t)
	f.repeated = true
	w := f.ask(http.MethodPost, "/api/regenerate", "Cookie", f.cookie, "Idempotency-Key", "abc")
	var got map[string]any
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
		t.Fatalf("%v in %s", err, w.Body)
	}
	delete(got, "took_ms")
	want := map[string]any{"success": true, "key": nil, "code": "key_shown_once", "confirmed": true,
		"replicas": map[string]any{"total": 3.0, "acknowledged": 2.0, "expired": 1.0}}
	if diff := cmp.Diff(want, got); w.Code != 200 || diff != "" || !slices.Equal(f.once, []string{"abc"}) {
		t.Errorf("%d, keys %q, %s", w.Code, f.once, diff)
	}
	f.regenErr = portal.ErrIdempotencyKey
	if w := f.ask(http.MethodPost, "/api/regenerate", "Cookie", f.cookie, "Idempotency-Key", "a b"); w.Code != 400 {
		t.Errorf("an idempotency key that cannot be used: %d, want 400", w.Code)
	}
}

// A regeneration continues after the browser leaves, but not forever.
func TestARegenerationOutlivesTheBrowser(t *testing.T) {
	f := newFixture(t)
	left, leave := context.WithCancel(t.Context())
	leave()
	if w := f.askIn(left, http.MethodPost, "/api/regenerate", "Cookie", f.cookie); w.Code != 200 {
		t.Errorf("%d %s, want 200", w.Code, w.Body)
	}
	if _, bounded := f.during.Deadline(); !bounded {
		t.Error("a regeneration has no deadline")
	}
}

// Another site cannot make a user's browser regenerate the key.
func TestAnotherSiteCannotRegenerate(t *testing.T) {
	f := newFixture(t)
	for name, headers := range map[string][]string{
		"Sec-Fetch-Site":        {"Sec-Fetch-Site", "cross-site"},
		"a sibling's":           {"Sec-Fetch-Site", "same-site"},
		"Origin":                {"Origin", "https://evil.example.com"},
		"an opaque Origin":      {"Origin", "null"},
		"Origin and Fetch-Site": {"Origin", "https://evil.example.com", "Sec-Fetch-Site", "cross-site"},
	} {
		w := f.ask(http.MethodPost, "/api/regenerate", append(headers, "Cookie", f.cookie)...)
		if w.Code != 403 || len(f.made) > 0 {
			t.Errorf("%s: %d, %d keys made, want 403 and none", name, w.Code, len(f.made))
		}
	}
}

// A failure is a 503 in JSON without its cause. Unknown addresses are 404, other methods 405. No
// answer may be cached, framed or interpreted as anything but JSON.
func TestOtherAnswers(t *testing.T) {
	const unavailable = `"code":"unavailable"`
	for _, row := range []struct {
		name, method, path string
		prepare            func(*fixture)
		status             int
		body               string
	}{
		{"the store is away", "GET", "/api", func(f *fixture) { f.findErr = errors.New("dial tcp: secret") }, 503, unavailable},
		{"the key cannot be read", "GET", "/api", func(f *fixture) { f.keyErr = errors.New("secret") }, 503, unavailable},
		{"regenerating fails", "POST", "/api/regenerate", func(f *fixture) { f.regenErr = errors.New("secret") }, 503, unavailable},
		{"there is no key", "POST", "/api/regenerate", func(f *fixture) { f.regenErr = portal.ErrNoKey }, 409, `"code":"no_key"`},
		{"a GET regenerates nothing", "GET", "/api/regenerate", func(*fixture) {}, 405, `"code":"method_not_allowed"`},
		{"a POST to the page", "POST", "/api", func(*fixture) {}, 405, `"code":"method_not_allowed"`},
		{"another path", "GET", "/api/-/other", func(*fixture) {}, 404, `"code":"not_found"`},
		{"the root", "GET", "/", func(*fixture) {}, 404, `"code":"not_found"`},
		{"a path that is not clean", "GET", "//api", func(*fixture) {}, 404, `"code":"not_found"`},
		{"a path that climbs", "GET", "/x/../api", func(*fixture) {}, 404, `"code":"not_found"`},
		{"all went well", "GET", "/api", func(*fixture) {}, 200, `"success":true`},
		{"a new key", "POST", "/api/regenerate", func(*fixture) {}, 200, `"success":true`},
	} {
		f := newFixture(t)
		row.prepare(f)
		w := f.ask(row.method, row.path, "Cookie", f.cookie)
		if w.Code != row.status || !strings.Contains(w.Body.String(), row.body) || strings.Contains(w.Body.String(), "secret") {
			t.Errorf("%s: %d %s, want %d with %s", row.name, w.Code, w.Body, row.status, row.body)
		}
		for name, value := range map[string]string{
			"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Content-Type": "application/json",
			"Referrer-Policy": "strict-origin", "X-Frame-Options": "DENY",
			"Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
		} {
			if got := w.Header().Get(name); got != value {
				t.Errorf("%s: %s is %q, want %q", row.name, name, got, value)
			}
		}
		if retry := w.Header().Get("Retry-After"); (retry != "") != (row.status == 503) {
			t.Errorf("%s: %d with Retry-After %q", row.name, row.status, retry)
		}
	}
	f := newFixture(t)
	if w := f.ask("POST", "/api", "Cookie", f.cookie); w.Header().Get("Allow") != "GET, HEAD" {
		t.Errorf("Allow is %q", w.Header().Get("Allow"))
	}
}

// Requests are counted by page and status, with no label that a client can choose.
func TestRequestsAreCounted(t *testing.T) {
	f := newFixture(t)
	f.ask(http.MethodGet, "/api/made-up")
	families, err := f.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	if len(families) != 1 || families[0].GetName() != "keyporter_page_requests_total" {
		t.Fatalf("%v, want keyporter_page_requests_total", families)
	}
	counted := families[0].GetMetric()
	if len(counted) != 1 || counted[0].GetCounter().GetValue() != 1 ||
		counted[0].GetLabel()[0].GetValue() != "other" || counted[0].GetLabel()[1].GetValue() != "404" {
		t.Errorf("%v, want one request to another page, answered 404", counted)
	}
}

// A panic is one 503, and its value is not logged.
func TestAPanicIsOne503(t *testing.T) {
	f := newFixture(t)
	handler, err := portal.New(portal.Config{
		Log: slog.New(slog.NewTextHandler(&f.log, nil)),
		Sessions: &authz.Sessions{Format: f.session, Find: func(context.Context, apikey.Digest) (authz.Principal, error) {
			panic("wh_secret")
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequest(http.MethodGet, "/api", nil)
	r.Header.Set("Cookie", f.cookie)
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, r)
	if w.Code != 503 || strings.Contains(f.log.String(), "wh_secret") || !strings.Contains(f.log.String(), "panicked") {
		t.Errorf("%d, log %s", w.Code, f.log.String())
	}
}

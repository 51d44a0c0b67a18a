package e2e_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/chromedp/chromedp"

	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// fetched is an answer as a page reads it. An answer that the browser blocks is an error.
type fetched struct {
	Error  string
	Status int
	Body   string
	Header map[string]string
}

// visit opens a page of an origin.
func (b *tab) visit(origin string) {
	b.t.Helper()
	b.do(chromedp.Navigate(origin + "/"))
}

// fetch makes the open page send a GET and read the answer. The options are those of the browser's
// fetch, as JSON.
func (b *tab) fetch(target, options string) (f fetched) {
	b.t.Helper()
	text := eval[string](b, fmt.Sprintf(`fetch(%q, %s).then(
		async a => JSON.stringify({status: a.status, body: await a.text(), header: Object.fromEntries(a.headers)}),
		e => JSON.stringify({error: String(e)}))`, target, options))
	if err := json.Unmarshal([]byte(text), &f); err != nil {
		b.t.Fatal(err)
	}
	return f
}

// withKey returns the options of a fetch with a key; "": without one.
func withKey(key string) string {
	if key == "" {
		return "{}"
	}
	return fmt.Sprintf(`{"headers": {"x-api-key": %q}}`, key)
}

// pageServer serves an empty page on two origins: by the address and by the name of this machine.
func pageServer(t *testing.T) (byNumber, byName string) {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
	}))
	t.Cleanup(server.Close)
	return server.URL, strings.Replace(server.URL, "127.0.0.1", "localhost", 1)
}

// sharedBy returns corsTable for the given origins.
func sharedBy(origins ...string) string {
	listed, _ := json.Marshal(origins) // strings never fail
	return strings.Replace(corsTable, `["https://app.example.com", "http://localhost:3000"]`, string(listed), 1)
}

// A page of another origin calls the API in a real browser. It reads answers and denials with the
// headers about limits and credits, and sends one preflight. A page of an unlisted origin reads
// nothing, and the browser does not even send its request with a key.
func TestAPageOfAnotherOrigin(t *testing.T) {
	t.Parallel()
	partstest.Slow(t)
	b := openTab(t)
	app, _ := pageServer(t)
	stranger, _ := pageServer(t)
	s := start(t, stackConfig{config: sharedBy(app)})
	key := s.user("ann", "metered", "--credits", "100", "--rate-limit", "3")
	brands := "http://" + s.front + "/v1/brands"
	preflights := func() float64 { return s.replicas[0].number(t, `keyporter_decisions_total{reason="preflight"}`) }

	b.visit(app)
	for i, row := range []struct {
		name   string
		key    string
		status int
		body   string
		told   map[string]string // headers that the page must be able to read; "": any value
	}{
		{"a good key", key, 200, "upstream\n",
			map[string]string{"x-ratelimit-limit": "3", "x-ratelimit-remaining": "2", "x-ratelimit-reset": "", "x-credits-remaining": "99"}},
		{"once more", key, 200, "upstream\n", map[string]string{"x-credits-remaining": "98"}},
		{"a bad key", "wh_bad", 401, bodies["unauthorized"], map[string]string{"www-authenticate": ""}},
		{"the last of a minute", key, 200, "upstream\n", map[string]string{"x-ratelimit-remaining": "0"}},
		{"one too many", key, 429, `"code":"rate_limited"`, map[string]string{"retry-after": "", "x-ratelimit-remaining": "0"}},
		{"no key at all", "", 401, bodies["unauthorized"], map[string]string{"www-authenticate": ""}},
	} {
		f := b.fetch(brands, withKey(row.key))
		if f.Error != "" || f.Status != row.status || !strings.Contains(f.Body, row.body) {
			t.Errorf("%s: %+v, want %d %s", row.name, f, row.status, row.body)
		}
		for name, want := range row.told {
			if got, ok := f.Header[name]; !ok || want != "" && got != want {
				t.Errorf("%s: the page reads %s as %q, want %q", row.name, name, got, want)
			}
		}
		if asked := preflights(); asked != 1 {
			t.Errorf("%s: after %d requests the browser has asked %v times whether it may send them, want once", row.name, i+1, asked)
		}
	}
	s.balanceBecomes("ann", 3, 0)

	b.visit(stranger)
	decided := func() string { return s.replicas[0].metric(t, `keyporter_decisions_total{reason="rate_limited"}`) }
	before := decided()
	if f := b.fetch(brands, withKey(key)); f.Error == "" {
		t.Errorf("a page of an origin that is not listed has read %+v", f)
	}
	if after := decided(); preflights() != 2 || after != before {
		t.Errorf("its request was sent though the answer to the preflight did not permit it")
	}
	// sent without a preflight, and hidden from the page
	if f := b.fetch(brands, withKey("")); f.Error == "" {
		t.Errorf("a page of an origin that is not listed has read %+v", f)
	}
}

// A shared cache keeps the answers to two origins apart: each page reads its own, and a page of an
// unlisted origin reads none.
func TestACacheBetweenOriginsAndAnswers(t *testing.T) {
	t.Parallel()
	b := openTab(t)
	app, other := pageServer(t)
	stranger, _ := pageServer(t)
	s := start(t, stackConfig{config: sharedBy(app, other)})
	cache := &sharedCache{to: &url.URL{Scheme: "http", Host: s.front}, kept: map[string][]kept{}}
	server := httptest.NewServer(cache)
	t.Cleanup(server.Close)
	for range 2 {
		for _, origin := range []string{stranger, app, other} {
			b.visit(origin)
			// bypasses the browser's own cache
			f := b.fetch(server.URL+"/open", `{"cache": "no-store"}`)
			if listed := origin != stranger; listed != (f.Error == "" && f.Status == 200) {
				t.Errorf("a page of %s, listed: %v, has read %+v", origin, listed, f)
			}
		}
	}
	if hits := cache.hit(); hits != 3 {
		t.Errorf("%d of 6 answers came from the cache, want the second one of each origin", hits)
	}
	for origin, may := range map[string]string{app: app, other: other, stranger: ""} {
		request, err := http.NewRequestWithContext(t.Context(), "GET", server.URL+"/v1/brands", nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Origin", origin)
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if got := response.Header.Get(allowOrigin); response.StatusCode != 401 || got != may {
			t.Errorf("without a key, from %s: %d, may be read by %q, want 401 and %q", origin, response.StatusCode, got, may)
		}
	}
}

// sharedCache is a cache like that of a CDN. It stores answers to GET with an explicit lifetime,
// keyed by the request headers in Vary (RFC 9111, 4.1), and does not let clients bypass it. Stored
// answers stay fresh.
type sharedCache struct {
	to *url.URL

	mu   sync.Mutex
	kept map[string][]kept // guarded by mu; target → answers
	hits int               // guarded by mu
}

// kept is an answer with the request headers that it varies by.
type kept struct {
	varies http.Header // name → values
	answer *httptest.ResponseRecorder
}

func (c *sharedCache) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range c.kept[r.RequestURI] {
		if r.Method == http.MethodGet && k.fits(r) {
			c.hits++
			replay(w, k.answer)
			return
		}
	}
	proxy := httputil.NewSingleHostReverseProxy(c.to)
	answer := httptest.NewRecorder()
	r.Header.Set("x-test-answer", "cacheable")
	proxy.ServeHTTP(answer, r)
	if control := answer.Header().Get("Cache-Control"); r.Method == http.MethodGet && strings.Contains(control, "max-age") && !strings.Contains(control, "no-store") {
		c.kept[r.RequestURI] = append(c.kept[r.RequestURI], newKept(r, answer))
	}
	replay(w, answer)
}

// hit returns how many answers came from the cache.
func (c *sharedCache) hit() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.hits
}

func newKept(r *http.Request, answer *httptest.ResponseRecorder) kept {
	k := kept{http.Header{}, answer}
	for _, value := range answer.Header().Values("Vary") {
		for name := range strings.SplitSeq(value, ",") {
			name = http.CanonicalHeaderKey(strings.TrimSpace(name))
			k.varies[name] = r.Header.Values(name)
		}
	}
	return k
}

func (k *kept) fits(r *http.Request) bool {
	for name, values := range k.varies {
		if strings.Join(values, ",") != strings.Join(r.Header.Values(name), ",") {
			return false
		}
	}
	return true
}

func replay(w http.ResponseWriter, answer *httptest.ResponseRecorder) {
	maps.Copy(w.Header(), answer.Header())
	w.WriteHeader(answer.Code)
	w.Write(answer.Body.Bytes())
}

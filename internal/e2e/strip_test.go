package e2e_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// After an allow the upstream sees no byte of a credential, and the query is otherwise equal byte
// for byte: 20,000 generated requests (2,000 with -short). Neither Envoy's access log nor any
// output of Keyporter contains a key, including for denials.
func TestNoCredentialReachesTheUpstream(t *testing.T) {
	partstest.Slow(t)
	t.Parallel()
	s := start(t, stackConfig{})
	key, other := s.user("ann", "pro"), s.user("bob", "pro")
	cookie := s.session("ann")
	_, session, _ := strings.Cut(cookie, "=")

	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	g := &generator{rand: rand.New(rand.NewPCG(seed, 0)), key: key, other: other, cookie: cookie}
	n := either(6_000, 20_000) // with a new seed each time
	if testing.Short() {
		n = 2_000
	}
	requests, want := make([]request, n), make([]expectation, n)
	for i := range n {
		requests[i], want[i] = g.request()
	}
	allowed := make(chan bool, n)
	s.sendAll(requests, func(i int, o sent) {
		shown := strings.NewReplacer(key, "KEY", other, "OTHER", session, "SESSION").Replace(fmt.Sprint(o.request))
		allowed <- o.arrived
		if o.arrived != want[i].allowed || o.arrived != (o.status == 200) {
			t.Errorf("%s: %d %s, arrived: %v, want allowed: %v", shown, o.status, o.body, o.arrived, want[i].allowed)
			return
		}
		if !o.arrived {
			return
		}
		if o.seen.target != want[i].target {
			t.Errorf("%s: the upstream saw %s, want %s", shown, o.seen.target, want[i].target)
		}
		got := fmt.Sprint(o.seen)
		for _, secret := range []string{key[3:], other[3:], session[3:]} {
			if strings.Contains(strings.ToLower(got), secret) {
				t.Errorf("%s: a credential reached the upstream", shown)
			}
		}
		if got := o.seen.header.Get("cookie"); got != want[i].cookie {
			t.Errorf("%s: the upstream saw the cookies %q, want %q", shown, got, want[i].cookie)
		}
	})
	close(allowed)
	passed := 0
	for ok := range allowed {
		if ok {
			passed++
		}
	}
	t.Logf("%d requests, %d of them allowed", n, passed)
	if passed < n/4 || passed > n*9/10 {
		t.Errorf("%d of %d allowed: the generator is lopsided and proves little", passed, n)
	}
	mustNotContain(t, "what Envoy and Keyporter wrote", s.written(), key, other, session)
}

// generator generates requests with keys in random places.
type generator struct {
	rand               *rand.Rand
	key, other, cookie string
}

// expectation is the expected result of a request, derived while the request is assembled.
type expectation struct {
	allowed bool
	target  string // that the upstream must receive
	cookie  string
}

func (g *generator) one(of ...string) string { return of[g.rand.IntN(len(of))] }

// request returns a random request to an API route. The expectation is assembled part by part, so
// that it does not depend on how the product parses a query.
func (g *generator) request() (request, expectation) {
	var r request
	var places [3][]string // values that are not empty, by place
	if g.rand.IntN(2) == 0 {
		for range 1 + g.rand.IntN(2) {
			value := g.one(g.key, g.key, g.other, "", "wh_bad", g.key[:40])
			r.header = append(r.header, "X-API-Key: "+value)
			places[0] = appendValue(places[0], value)
		}
	}
	if g.rand.IntN(3) == 0 {
		value := g.one(g.key, g.key, g.other, "", "wh_bad")
		r.header = append(r.header, "Authorization: Bearer "+value)
		places[1] = appendValue(places[1], value)
	}
	var kept, all []string
	for range g.rand.IntN(7) {
		if g.rand.IntN(3) > 0 {
			parameter := g.one("a=1", "", "b", "c=", "=", "=x", "d=%20+%2B", "e=%zz", "f=a;b=c", "g=api_key", "API_KEY=1",
				"api_keys=1", "xapi_key=2", "h=%61pi_key", "a=2", "i=[]{}|^", "j='\"<>", "k=a=b==", "l=%C3%A9", "m=wh_", "n=?/:@")
			kept, all = append(kept, parameter), append(all, parameter)
			continue
		}
		value := g.one(g.key, g.key, g.other, "", "%20", "wh_bad", g.key+";x=1", "%77h_"+g.key[3:], g.key+"%zz")
		all = append(all, "api_key"+g.one("=", "=", "=")+value)
		places[2] = appendValue(places[2], strings.TrimSpace(strings.ReplaceAll(strings.ReplaceAll(value, "%20", " "), "%77", "w")))
	}
	path := g.one("/api/v1/brands", "/api/v1/brands/7", "/api/adlibrary", "/api/v1/magic-ai/x%20y")
	r.target = path
	e := expectation{target: path, allowed: g.allowed(places)}
	if len(all) > 0 {
		r.target += "?" + strings.Join(all, "&")
	}
	if len(kept) > 0 {
		e.target += "?" + strings.Join(kept, "&")
	}
	if g.rand.IntN(2) == 0 {
		var cookies, rest []string
		for range 1 + g.rand.IntN(4) {
			pair := g.one("a=1", "b=\"x y\"", g.cookie, "c=;", "keyporter_sessions=1", "theme=dark==")
			pair = strings.TrimSuffix(pair, ";")
			cookies = append(cookies, pair)
			if pair != g.cookie {
				rest = append(rest, pair)
			}
		}
		r.header = append(r.header, "Cookie: "+strings.Join(cookies, "; "))
		e.cookie = strings.Join(rest, "; ")
	}
	return r, e
}

func appendValue(values []string, value string) []string {
	if value == "" {
		return values
	}
	return append(values, value)
}

// allowed applies the precedence rule to the values that are not empty.
func (g *generator) allowed(places [3][]string) bool {
	for _, values := range places {
		if len(values) > 0 {
			return len(values) == 1 && (values[0] == g.key || values[0] == g.other)
		}
	}
	return false
}

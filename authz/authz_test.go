package authz_test

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/internal/routes"
)

// ada and bob may use the API.
var (
	ada = authz.Principal{KeyID: "key_ada", User: "ada", Account: "acme", Plan: "pro", UserActive: true, AccountActive: true, APIAccess: true}
	bob = authz.Principal{KeyID: "key_bob", User: "bob", Account: "acme", Plan: "pro", UserActive: true, AccountActive: true, APIAccess: true}
)

// world is an Authorizer with its keys and sessions.
type world struct {
	authz.Config
	known    map[apikey.Digest]authz.Principal
	err      error // returned by all look-ups
	finds    int   // the number of look-ups of keys
	sessions int   // the number of look-ups of sessions

	ada, bob string // live keys
	unknown  string // well formed, but not in use
	forged   string // shaped like a key, with a wrong tag
	session  string // a live session of ada
}

// newWorld returns a world with these rules, or with the default ones if there are none.
func newWorld(tb testing.TB, rules ...authz.Rule) *world {
	tb.Helper()
	if rules == nil {
		rules = defaultRules(tb)
	}
	w := &world{known: map[apikey.Digest]authz.Principal{}}
	w.Routes = newTable(tb, rules...)
	w.Keys = newFormat(tb, apikey.DefaultPrefix)
	w.Sessions = &authz.Sessions{Format: newFormat(tb, apikey.SessionPrefix), Find: w.find(&w.sessions)}
	w.Meter, w.FindKey = authz.Unmetered{}, w.find(&w.finds)
	w.ada, w.bob = w.add(w.Keys, ada), w.add(w.Keys, bob)
	owner := ada
	owner.KeyID = ""
	w.session = w.add(w.Sessions.Format, owner)
	w.unknown = w.Keys.Generate().Reveal()
	w.forged = "wh_" + strings.Repeat("0f", 24)
	return w
}

// defaultRules returns the rules that Keyporter ships with.
func defaultRules(tb testing.TB) []authz.Rule {
	tb.Helper()
	rules, err := routes.Default()
	if err != nil {
		tb.Fatal(err)
	}
	return rules
}

func newTable(tb testing.TB, rules ...authz.Rule) *authz.RouteTable {
	tb.Helper()
	routes, err := authz.NewRouteTable(rules)
	if err != nil {
		tb.Fatal(err)
	}
	return routes
}

func newFormat(tb testing.TB, prefix string) *apikey.Format {
	tb.Helper()
	f, err := apikey.NewFormat(apikey.FormatConfig{Prefix: prefix, Secrets: [][]byte{bytes.Repeat([]byte{1}, apikey.MinSecret)}})
	if err != nil {
		tb.Fatal(err)
	}
	return f
}

// add adds a key or session of p and returns its secret.
func (w *world) add(f *apikey.Format, p authz.Principal) string {
	token := f.Generate()
	w.known[token.Digest()] = p
	return token.Reveal()
}

func (w *world) find(calls *int) authz.FindFunc {
	return func(_ context.Context, d apikey.Digest) (authz.Principal, error) {
		*calls++
		if w.err != nil {
			return w.known[d], w.err
		}
		p, ok := w.known[d]
		if !ok {
			return p, fmt.Errorf("finding it: %w", authz.ErrUnknown)
		}
		return p, nil
	}
}

// decide decides r and checks the invariants of every decision: a denied request is not rewritten
// and never has status 200, an error means undecided, and the explanation quotes no credential.
func (w *world) decide(tb rapid.TB, r authz.Request) (authz.Decision, error) {
	tb.Helper()
	d, err := authz.New(w.Config).Authorize(context.Background(), &r)
	if d.Allowed() != (d.Reason.Outcome().Status == 200) {
		tb.Errorf("allowed: %v, with %v", d.Allowed(), d.Reason.Outcome())
	}
	if !d.Allowed() && d.Rewrite != (authz.Rewrite{}) {
		tb.Errorf("a refusal with the rewrite %+v", d.Rewrite)
	}
	if w.err != nil && d.Principal != (authz.Principal{}) {
		tb.Errorf("nobody was found, yet it is %+v", d.Principal)
	}
	if err != nil && d.Reason != authz.Undecided {
		tb.Errorf("the reason %v beside the error %v", d.Reason, err)
	}
	explained := fmt.Sprint(authz.Explain(d, err))
	for _, secret := range []string{"canary", w.ada[3:], w.bob[3:], w.unknown[3:], w.forged[3:], w.session[3:]} {
		if strings.Contains(explained, secret) || err != nil && strings.Contains(err.Error(), secret) {
			tb.Errorf("%q is told: %s, %v", secret, explained, err)
		}
	}
	return d, err
}

// expect decides r and requires the reason want. The text row names the case.
func (w *world) expect(tb rapid.TB, row string, r authz.Request, want authz.Reason) authz.Decision {
	tb.Helper()
	d, err := w.decide(tb, r)
	if d.Reason != want || err != nil {
		tb.Errorf("%s: %v, %v; want %v", row, d.Reason, err, want)
	}
	return d
}

// The zero Decision denies.
func TestTheZeroDecisionDenies(t *testing.T) {
	var d authz.Decision
	if d.Allowed() || d.Reason.Outcome().Status != 503 {
		t.Errorf("allowed: %v, %+v", d.Allowed(), d.Reason.Outcome())
	}
}

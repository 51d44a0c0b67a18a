package authz_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/usage"
)

// The first check that fails determines the answer. The test starts with a request that fails every
// check and repairs it step by step; each step uncovers the next reason.
func TestTheOrderOfTheChecks(t *testing.T) {
	t.Run("key", func(t *testing.T) {
		w := newWorld(t, authz.Rule{Path: "/a", Kind: authz.KindAPIKey, Methods: []string{"GET"}})
		revoked := w.Keys.Generate().Reveal()
		meter := &meter{reason: authz.RateLimited}
		w.Meter = meter
		find := w.FindKey
		w.FindKey = func(ctx context.Context, d apikey.Digest) (authz.Principal, error) {
			if p, err := find(ctx, d); err == nil && p.User == "" {
				return p, fmt.Errorf("key_1: %w", authz.ErrRevoked)
			}
			return find(ctx, d)
		}
		revoke := func() {
			f := newFormat(t, apikey.DefaultPrefix)
			token, err := f.Parse(revoked)
			if err != nil {
				t.Fatal(err)
			}
			w.known[token.Digest()] = authz.Principal{}
		}
		revoke()
		none := w.add(w.Keys, authz.Principal{User: "eve"})
		user := w.add(w.Keys, authz.Principal{User: "eve", UserActive: true})
		account := w.add(w.Keys, authz.Principal{User: "eve", UserActive: true, AccountActive: true})

		r := authz.Request{Method: "POST", Path: "/../b?api%5fkey=1", APIKey: []string{"canary", "canary"}, Authorization: []string{"Bearer " + w.ada}}
		for _, step := range []struct {
			mend func()
			want authz.Reason
		}{
			{func() {}, authz.BadPath},
			{func() { r.Path = "/b?api%5fkey=1" }, authz.DisguisedKey},
			{func() { r.Path = "/b" }, authz.NoRoute},
			{func() { r.Path = "/a" }, authz.MethodNotAllowed},
			{func() { r.Method = "GET" }, authz.AmbiguousKey},
			{func() { r.APIKey = []string{"canary"} }, authz.MalformedKey},
			{func() { r.APIKey = []string{w.forged} }, authz.ForgedKey},
			{func() { r.APIKey = []string{w.unknown} }, authz.UnknownKey},
			{func() { r.APIKey = []string{revoked} }, authz.RevokedKey},
			{func() { r.APIKey = []string{none} }, authz.UserDisabled},
			{func() { r.APIKey = []string{user} }, authz.AccountInactive},
			{func() { r.APIKey = []string{account} }, authz.NoAPIAccess},
			{func() { r.APIKey = []string{w.bob} }, authz.RateLimited},
			{func() { meter.reason = authz.Allowed }, authz.Allowed},
		} {
			step.mend()
			if d := w.expect(t, step.want.String(), r, step.want); step.want != authz.Allowed && d.Charge.User != "" {
				t.Errorf("%v: charged %+v", step.want, d.Charge)
			}
		}
		if want := 2; meter.takes != want {
			t.Errorf("metered %d times, want %d: only what nothing else refuses", meter.takes, want)
		}
	})
	t.Run("session", func(t *testing.T) {
		w := newWorld(t, authz.Rule{Path: "/a", Kind: authz.KindSession, Methods: []string{"GET"}})
		ended := w.Sessions.Format.Generate().Reveal()
		disabled := w.add(w.Sessions.Format, authz.Principal{User: "eve", AccountActive: true, APIAccess: true})
		// needs no plan
		member := w.add(w.Sessions.Format, authz.Principal{User: "eve", UserActive: true})
		r := authz.Request{Method: "POST", Path: "/..", APIKey: []string{w.ada}}
		cookie := func(value string) []string { return []string{authz.SessionCookie + "=" + value} }
		for _, step := range []struct {
			mend func()
			want authz.Reason
		}{
			{func() {}, authz.BadPath},
			{func() { r.Path = "/b/" }, authz.NoRoute},
			{func() { r.Path = "/a" }, authz.MethodNotAllowed},
			{func() { r.Method = "HEAD" }, authz.MissingSession},
			{func() { r.Cookie = cookie("canary") }, authz.BadSession},
			{func() { r.Cookie = cookie(ended) }, authz.UnknownSession},
			{func() { r.Cookie = cookie(disabled) }, authz.RevokedSession},
			{func() { r.Cookie = cookie(member) }, authz.Allowed},
		} {
			step.mend()
			w.expect(t, step.want.String(), r, step.want)
		}
		if w.finds != 0 {
			t.Error("a session route looked up a key")
		}
	})
}

// meter returns the same result for every request.
type meter struct {
	reason authz.Reason
	err    error
	takes  int
	last   authz.Use
}

func (m *meter) Take(_ context.Context, u authz.Use) (usage.Charge, authz.Reason, error) {
	m.takes++
	m.last = u
	c := usage.Charge{Rate: usage.Rate{Limit: 60, Window: time.Minute}}
	if m.reason == authz.Allowed && m.err == nil {
		c.User, c.Request = u.Principal.User, u.Request
	}
	return c, m.reason, m.err
}

func (m *meter) Void(usage.Charge) {}

// A request that the meter cannot decide does not pass.
func TestAMeterThatCannotTellDenies(t *testing.T) {
	w := newWorld(t)
	for _, reason := range authz.Reasons() {
		w.Meter = &meter{reason: reason, err: errors.New("down")}
		if d, err := w.decide(t, header(w.ada)); d.Reason != authz.Undecided || err == nil {
			t.Errorf("%v beside an error: decided %v, %v", reason, d.Reason, err)
		}
	}
}

// The meter learns for how long the Check may be repeated.
func TestTheMeterLearnsHowLongTheCallerWaits(t *testing.T) {
	w := newWorld(t)
	m := &meter{reason: authz.Allowed}
	w.Meter = m
	r := header(w.ada)
	r.ID, r.CallerTimeout = "1", 10*time.Second
	if w.expect(t, "a request", r, authz.Allowed); m.last.Request != r.ID || m.last.CallerTimeout != r.CallerTimeout {
		t.Errorf("the meter got request %q and time-out %v", m.last.Request, m.last.CallerTimeout)
	}
}

// Only requests with a key are metered.
func TestASessionIsNotMetered(t *testing.T) {
	w := newWorld(t)
	m := &meter{reason: authz.RateLimited}
	w.Meter = m
	w.expect(t, "a session", cookies(authz.SessionCookie+"="+w.session), authz.Allowed)
	w.expect(t, "nobody on a public route", get("/api/-/login"), authz.Allowed)
	if m.takes > 0 {
		t.Errorf("metered %d times", m.takes)
	}
}

// The text of a 429 names the limit of the client's plan.
func TestTheTextOfARateLimit(t *testing.T) {
	for want, r := range map[string]usage.Rate{
		"Rate limit exceeded. Max 60 requests per minute.":      {Limit: 60, Window: time.Minute},
		"Rate limit exceeded. Max 1 request per second.":        {Limit: 1, Window: time.Second},
		"Rate limit exceeded. Max 5 requests per 90 seconds.":   {Limit: 5, Window: 90 * time.Second},
		"Rate limit exceeded. Max 5 requests per 2 hours.":      {Limit: 5, Window: 2 * time.Hour},
		"Rate limit exceeded. Max 5 requests per day.":          {Limit: 5, Window: 24 * time.Hour},
		"Rate limit exceeded. Max 0 requests per 1.25 seconds.": {Limit: 0, Window: 1250 * time.Millisecond},
	} {
		d := authz.Decision{Reason: authz.RateLimited, Charge: usage.Charge{Rate: r}}
		if got := d.Outcome().Text; got != want {
			t.Errorf("%+v: %q, want %q", r, got, want)
		}
	}
}

// The text of a 429 names the client's credits for the month.
func TestTheAnswerOfExhaustedCredits(t *testing.T) {
	d := authz.Decision{Reason: authz.CreditsExhausted, Charge: usage.Charge{Credits: usage.Credits{Counted: true, Used: 20_001, Limit: 20_000}}}
	const want = `{"success":false,"error":"Monthly credit limit reached (20000). Resets next month.","code":"credits_exhausted",` +
		`"credits":{"used":20001,"limit":20000,"remaining":0}}`
	if got := d.Outcome().Body(); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// A key opens no session route and a session opens no API route. Neither is even looked up there.
func TestACredentialOpensItsOwnKindOnly(t *testing.T) {
	w := newWorld(t)
	r := authz.Request{
		Method: "GET", Path: "/api/brands?api_key=" + w.ada, APIKey: []string{w.ada}, Authorization: []string{"Bearer " + w.ada},
		Cookie: []string{authz.SessionCookie + "=" + w.ada},
	}
	w.expect(t, "a key on a session route", r, authz.BadSession)
	r = authz.Request{
		Method: "GET", Path: "/api/v1/brands?api_key=" + w.session, APIKey: []string{""}, Authorization: []string{"Bearer"},
		Cookie: []string{authz.SessionCookie + "=" + w.session},
	}
	w.expect(t, "a session on an API route", r, authz.MalformedKey)
	if w.finds+w.sessions != 0 {
		t.Errorf("%d look-ups", w.finds+w.sessions)
	}
}

// A rule of kind none denies with any credential, and so does an unknown kind.
func TestNoKindIsNoRoute(t *testing.T) {
	for _, kind := range []authz.Kind{authz.KindNone, authz.KindPublic + 1, 255} {
		w := newWorld(t, authz.Rule{Path: "/*", Kind: kind})
		r := authz.Request{Method: "GET", Path: "/x", APIKey: []string{w.ada}, Cookie: []string{authz.SessionCookie + "=" + w.session}}
		w.expect(t, fmt.Sprint(uint8(kind)), r, authz.NoRoute)
	}
	w := newWorld(t, authz.Rule{Path: "/*", Kind: authz.KindNone})
	w.expect(t, "a method that no rule permits", authz.Request{Method: "CONNECT", Path: "/x"}, authz.NoRoute)
}

// A key needs each flag of its principal; a session needs only the user's.
func TestEveryFlagIsNeeded(t *testing.T) {
	for n := range 8 {
		p := authz.Principal{KeyID: "key_1", User: "eve", UserActive: n&1 > 0, AccountActive: n&2 > 0, APIAccess: n&4 > 0}
		w := newWorld(t)
		want := authz.Allowed
		switch {
		case !p.UserActive:
			want = authz.UserDisabled
		case !p.AccountActive:
			want = authz.AccountInactive
		case !p.APIAccess:
			want = authz.NoAPIAccess
		}
		if d := w.expect(t, fmt.Sprintf("key of %+v", p), header(w.add(w.Keys, p)), want); d.Principal != p {
			t.Errorf("resolved to %+v", d.Principal)
		}
		want = authz.RevokedSession
		if p.UserActive {
			want = authz.Allowed
		}
		w.expect(t, fmt.Sprintf("session of %+v", p), cookies(authz.SessionCookie+"="+w.add(w.Sessions.Format, p)), want)
	}
}

// A failed look-up never allows, and gives neither 401 nor 403, even if it returns a fully
// authorized principal with its error.
func TestALookupThatFailsNeverAllows(t *testing.T) {
	for name, failure := range map[string]error{
		"a store that is down": errors.New("connection refused"),
		"a deadline":           context.DeadlineExceeded,
		"a caller who is gone": fmt.Errorf("waiting: %w", context.Canceled),
		"joined":               errors.Join(errors.New("a"), errors.New("b")),
	} {
		w := newWorld(t)
		w.err = failure
		for kind, r := range map[string]authz.Request{"key": header(w.ada), "session": cookies(authz.SessionCookie + "=" + w.session)} {
			d, err := w.decide(t, r)
			if d.Allowed() || d.Reason != authz.Undecided || !errors.Is(err, failure) || d.Reason.Outcome().Status != 503 {
				t.Errorf("%s of a %s: %v, %v", name, kind, d.Reason, err)
			}
		}
		w.expect(t, "what needs no look-up", header(w.forged), authz.ForgedKey)
		w.expect(t, "a public route", get("/api/-/login"), authz.Allowed)
	}
	for no, want := range map[error][2]authz.Reason{
		authz.ErrUnknown: {authz.UnknownKey, authz.UnknownSession},
		authz.ErrRevoked: {authz.RevokedKey, authz.RevokedSession},
		fmt.Errorf("key key_1: %w", authz.ErrRevoked): {authz.RevokedKey, authz.RevokedSession},
		fmt.Errorf("finding: %w", authz.ErrUnknown):   {authz.UnknownKey, authz.UnknownSession},
	} {
		w := newWorld(t)
		w.err = no
		w.expect(t, no.Error(), header(w.ada), want[0])
		w.expect(t, no.Error(), cookies(authz.SessionCookie+"="+w.session), want[1])
	}
}

// Without a session format, no session is valid and everything else works.
func TestWithoutSessionsNoneIsLive(t *testing.T) {
	w := newWorld(t)
	w.Sessions = &authz.Sessions{}
	if d, err := w.decide(t, cookies(authz.SessionCookie+"="+w.session)); err != nil || d.Reason.Outcome().Status != 401 {
		t.Errorf("%v, %v", d.Reason, err)
	}
	w.expect(t, "no cookie", cookies(), authz.MissingSession)
	w.expect(t, "a key", header(w.ada), authz.Allowed)
}

// Every place that may hold a key is emptied before the upstream sees the request, whichever place
// won and on every kind of route. Places without a key stay unchanged.
func TestEveryPlaceIsEmptied(t *testing.T) {
	w := newWorld(t, append(defaultRules(t), authz.Rule{Path: "/open", Kind: authz.KindPublic})...)
	for _, path := range []string{"/open", "/api/v1/brands", "/api/brands"} {
		for _, row := range []struct {
			key, authorization []string
			query              string
			want               authz.Rewrite
		}{
			{[]string{w.ada}, nil, "", authz.Rewrite{RemoveAPIKey: true}},
			{[]string{w.ada}, []string{"Basic dXNlcjpwYXNz"}, "?a=1", authz.Rewrite{RemoveAPIKey: true}},
			{[]string{w.ada}, []string{"Bearer " + w.bob}, "", authz.Rewrite{RemoveAPIKey: true, RemoveAuthorization: true}},
			{[]string{w.ada}, []string{"Bearer x" + w.forged}, "", authz.Rewrite{RemoveAPIKey: true, RemoveAuthorization: true}},
			{[]string{w.ada}, []string{"Basic x", "Token " + w.bob}, "", authz.Rewrite{RemoveAPIKey: true, RemoveAuthorization: true}},
			{[]string{w.ada}, []string{w.bob}, "?api_key=" + w.forged, authz.Rewrite{Path: path, RemoveAPIKey: true, RemoveAuthorization: true}},
			{[]string{w.ada, ""}, []string{"Bearer canary"}, "?b&api_key=canary&a", authz.Rewrite{Path: path + "?b&a", RemoveAPIKey: true}},
			{nil, []string{"Bearer " + w.ada}, "?api_key", authz.Rewrite{Path: path, RemoveAuthorization: true}},
			{[]string{""}, []string{"Bearer " + w.ada}, "", authz.Rewrite{RemoveAPIKey: true, RemoveAuthorization: true}},
			{nil, []string{"Basic x"}, "?api_key=" + w.ada, authz.Rewrite{Path: path}},
		} {
			r := authz.Request{
				Method: "GET", Path: path + row.query, APIKey: row.key, Authorization: row.authorization,
				Cookie: []string{"a=1; " + authz.SessionCookie + "=" + w.session},
			}
			row.want.Cookie = "a=1"
			if d := w.expect(t, r.Path, r, authz.Allowed); d.Rewrite != row.want {
				t.Errorf("%q %q %s: %+v, want %+v", row.key, row.authorization, r.Path, d.Rewrite, row.want)
			}
		}
	}
}

// Explain lists the steps in order, up to the one that decided, and ends with the decision.
func TestExplain(t *testing.T) {
	w := newWorld(t)
	for _, row := range []struct {
		request authz.Request
		err     error
		steps   string
		end     string
	}{
		{get("/.."), nil, "path, decision", "400 bad_request"},
		{get("/nowhere"), nil, "path, route, decision", "404 not_found"},
		{get("/api/v1/nowhere"), nil, "path, route, decision", "404 not_found"},
		{authz.Request{Method: "POST", Path: "/api/v1/tiktok-shop/credits"}, nil, "path, route, method, decision", "405 method_not_allowed"},
		{header(), nil, "path, route, method, key, decision", "401 unauthorized"},
		{header("canary"), nil, "path, route, method, key, key format, decision", "401 unauthorized"},
		{header(w.unknown), nil, "path, route, method, key, key format, key look-up, decision", "401 unauthorized"},
		{header(w.ada), nil, "path, route, method, key, key format, key look-up, user, account, plan, rate limit, credits, decision", "allowed"},
		{header(w.ada), errors.New("down"), "path, route, method, key, key format, key look-up, store, decision", "503 unavailable"},
		{cookies(), nil, "path, route, method, session, decision", "401 unauthorized"},
		{cookies(authz.SessionCookie + "=" + w.session), nil, "path, route, method, session, session look-up, decision", "allowed"},
		{get("/api/-/login"), nil, "path, route, method, credential, decision", "allowed"},
	} {
		w.err = row.err
		steps := authz.Explain(w.decide(t, row.request))
		var names []string
		for _, s := range steps {
			names = append(names, s.Step)
			if s.Result == "" {
				t.Errorf("%s: the step %s has no result", row.request.Path, s.Step)
			}
		}
		if got := strings.Join(names, ", "); got != row.steps || steps[len(steps)-1].Result != row.end {
			t.Errorf("%s: %s: %s; want %s: %s", row.request.Path, got, steps[len(steps)-1].Result, row.steps, row.end)
		}
	}
}

// Random keys of the right shape cost no look-up: 100,000 keys, or 10 million with
// KEYPORTER_LONG=1. The seed is fixed, because one key in 2³² would have the right tag.
func TestAFloodOfRandomKeysCostsNoLookup(t *testing.T) {
	n := 100_000
	if os.Getenv("KEYPORTER_LONG") == "1" {
		n = 10_000_000
	}
	w := newWorld(t)
	authorizer := authz.New(w.Config)
	random := rand.NewChaCha8([32]byte{1})
	const digits = "0123456789abcdef"
	key := []byte("wh_" + strings.Repeat("0", 48))
	var b [24]byte
	for range n {
		random.Read(b[:])
		for i, c := range b {
			key[3+2*i], key[4+2*i] = digits[c>>4], digits[c&15]
		}
		r := header(string(key))
		if d, err := authorizer.Authorize(t.Context(), &r); d.Reason != authz.ForgedKey || err != nil {
			t.Fatalf("%s: %v, %v", key, d.Reason, err)
		}
	}
	if w.finds != 0 {
		t.Errorf("%d look-ups for %d keys", w.finds, n)
	}
	t.Logf("%d keys, %d look-ups", n, w.finds)
}

func BenchmarkAuthorize(b *testing.B) {
	w := newWorld(b)
	w.FindKey = func(context.Context, apikey.Digest) (authz.Principal, error) { return ada, nil }
	authorizer := authz.New(w.Config)
	for name, r := range map[string]authz.Request{"key": header(w.ada), "forged": header(w.forged), "query": query("a=1&api_key=" + w.ada)} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := authorizer.Authorize(b.Context(), &r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// A denied revoked key names its owner and key, and nothing else, so that its owner can see its
// use. Keys of unknown owners name nobody.
func TestAnEndedKeyNamesItsOwner(t *testing.T) {
	w := newWorld(t, authz.Rule{Path: "/a", Kind: authz.KindAPIKey})
	for _, row := range []struct {
		name  string
		finds error
		want  authz.Principal
	}{
		{"ended", fmt.Errorf("finding a key: %w", authz.RevokedError{User: "ada", KeyID: "key_1"}), authz.Principal{User: "ada", KeyID: "key_1"}},
		{"ended, of nobody", fmt.Errorf("finding a key: %w", authz.ErrRevoked), authz.Principal{}},
	} {
		w.FindKey = func(context.Context, apikey.Digest) (authz.Principal, error) {
			return authz.Principal{User: "eve", Plan: "pro", APIAccess: true}, row.finds
		}
		d := w.expect(t, row.name, authz.Request{Method: "GET", Path: "/a", APIKey: []string{w.ada}}, authz.RevokedKey)
		if d.Principal != row.want || d.Charge != (usage.Charge{}) {
			t.Errorf("%s: %+v, want %+v and no charge", row.name, d.Principal, row.want)
		}
	}
	w.FindKey = func(context.Context, apikey.Digest) (authz.Principal, error) {
		return authz.Principal{User: "eve"}, authz.ErrUnknown
	}
	if d := w.expect(t, "unknown", authz.Request{Method: "GET", Path: "/a", APIKey: []string{w.ada}}, authz.UnknownKey); d.Principal != (authz.Principal{}) {
		t.Errorf("unknown: %+v", d.Principal)
	}
}

package authz_test

import (
	"context"
	"errors"
	"testing"

	"github.com/keyporter/keyporter/authz"
)

// A question about a key has the answer of a request with it, to the same rule: the same reason,
// owner and charge. It counts nothing, unless it is asked to.
func TestAQuestionAboutAKeyIsAnsweredLikeARequest(t *testing.T) {
	rule := authz.Rule{Name: "search", Kind: authz.KindAPIKey, Cost: 3}
	for name, change := range map[string]func(w *world, p *authz.Principal){
		"a live key":             func(*world, *authz.Principal) {},
		"a disabled user":        func(_ *world, p *authz.Principal) { p.UserActive = false },
		"an account on hold":     func(_ *world, p *authz.Principal) { p.AccountActive = false },
		"a plan without the API": func(_ *world, p *authz.Principal) { p.APIAccess = false },
		"a key that was revoked": func(w *world, _ *authz.Principal) { w.err = authz.RevokedError{User: "ada", KeyID: "key_ada"} },
		"a store that is away":   func(w *world, _ *authz.Principal) { w.err = errors.New("away") },
	} {
		w := newWorld(t, rule, authz.Rule{Path: "/open", Kind: authz.KindPublic})
		owner := ada
		change(w, &owner)
		key := w.add(w.Keys, owner)
		for _, charge := range []bool{false, true} {
			asked, requested := &meter{reason: authz.Allowed}, &meter{reason: authz.Allowed}
			w.Meter = requested
			want, err1 := authz.New(w.Config).Authorize(context.Background(), &authz.Request{Method: "GET", Path: "/any", Rule: "search", APIKey: []string{key}})
			w.Meter = asked
			got, err2 := authz.New(w.Config).AuthorizeKey(context.Background(), authz.KeyQuestion{Key: key, Rule: "search", Charge: charge, Request: "r"})
			if got.Reason != want.Reason || got.Principal != want.Principal || (err1 == nil) != (err2 == nil) || got.Allowed() && err2 != nil {
				t.Errorf("%s: %v %+v %v, and of a request %v %+v %v", name, got.Reason, got.Principal, err2, want.Reason, want.Principal, err1)
			}
			if charge && (asked.takes != requested.takes || got.Allowed() && got.Charge.Request != "r") || !charge && asked.takes != 0 {
				t.Errorf("%s, charge %t: %d charges, and of a request %d", name, charge, asked.takes, requested.takes)
			}
		}
	}
}

// A question that names no rule of kind api_key is refused, and none looks a malformed or forged
// key up.
func TestAQuestionAboutAKeyNamesARule(t *testing.T) {
	w := newWorld(t, authz.Rule{Name: "search", Kind: authz.KindAPIKey}, authz.Rule{Name: "open", Kind: authz.KindPublic})
	a := authz.New(w.Config)
	for _, row := range []struct {
		key, rule string
		want      authz.Reason
	}{
		{w.ada, "", authz.Allowed},
		{w.ada, "search", authz.Allowed},
		{w.ada, "open", authz.UnknownRule},
		{w.ada, "none", authz.UnknownRule},
		{w.unknown, "", authz.UnknownKey},
		{w.forged, "", authz.ForgedKey},
		{w.session, "", authz.MalformedKey},
		{"", "", authz.MalformedKey},
	} {
		before := w.finds
		d, err := a.AuthorizeKey(context.Background(), authz.KeyQuestion{Key: row.key, Rule: row.rule})
		if d.Reason != row.want || err != nil {
			t.Errorf("rule %q: %v, want %v: %v", row.rule, d.Reason, row.want, err)
		}
		if looked := w.finds > before; looked != (row.want == authz.Allowed || row.want == authz.UnknownKey) {
			t.Errorf("rule %q, %v: looked up: %t", row.rule, row.want, looked)
		}
	}
}

package authz_test

import (
	"context"
	"crypto/sha256"
	"strings"
	"testing"
	"time"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/authz"
)

const (
	liveKey = "sk_live_canary0canary0canary0"   // of the format with a prefix
	bareKey = "canary1canary1canary1canary1xx-" // of the one without
)

// newForeignWorld returns a world that accepts keys of two other systems. Ada has one of each.
func newForeignWorld(tb testing.TB, rules ...authz.Rule) *world {
	tb.Helper()
	w := newWorld(tb, rules...)
	routes, err := w.Routes.WithKeyFormats([]apikey.KeyFormat{{Prefix: "sk_live_", Pattern: "[0-9a-z]{21}"}, {Pattern: "[0-9a-z]{30}-"}})
	if err != nil {
		tb.Fatal(err)
	}
	w.Routes = routes
	known := map[apikey.Digest]authz.Principal{sha256.Sum256([]byte(liveKey)): ada, sha256.Sum256([]byte(bareKey)): ada}
	w.FindImported = func(_ context.Context, d apikey.Digest) (authz.Principal, error) {
		if p, ok := known[d]; ok {
			return p, nil
		}
		return authz.Principal{}, authz.ErrUnknown
	}
	return w
}

// A key of another system counts in every place, if its format has a prefix; else in X-API-Key
// alone. It is looked up apart from our own, and a value of no format is not looked up at all.
func TestKeysOfOtherSystems(t *testing.T) {
	w := newForeignWorld(t)
	const path = "/api/v1/brands"
	for _, row := range []struct {
		name string
		r    authz.Request
		want authz.Reason
	}{
		{"in the header", authz.Request{APIKey: []string{liveKey}}, authz.Allowed},
		{"as a bearer token", authz.Request{Authorization: []string{"Bearer " + liveKey}}, authz.Allowed},
		{"in the query", authz.Request{Path: path + "?api_key=" + liveKey}, authz.Allowed},
		{"a guess", authz.Request{APIKey: []string{"sk_live_" + strings.Repeat("z", 21)}}, authz.UnknownKey},
		{"a value of no format", authz.Request{APIKey: []string{liveKey + "0"}}, authz.MalformedKey},
		{"without a prefix, in the header", authz.Request{APIKey: []string{bareKey}}, authz.Allowed},
		{"without a prefix, as a bearer token", authz.Request{Authorization: []string{"Bearer " + bareKey}}, authz.MalformedKey},
		{"without a prefix, in the query", authz.Request{Path: path + "?api_key=" + bareKey}, authz.MalformedKey},
		{"our own key", authz.Request{APIKey: []string{w.ada}}, authz.Allowed},
		{"our own format with a wrong tag", authz.Request{APIKey: []string{w.forged}}, authz.ForgedKey},
	} {
		row.r.Method = "GET"
		if row.r.Path == "" {
			row.r.Path = path
		}
		w.finds = 0
		d := w.expect(t, row.name, row.r, row.want)
		if own := row.name == "our own key"; own != (w.finds == 1) || d.Imported != (row.want == authz.Allowed && !own || row.want == authz.UnknownKey) {
			t.Errorf("%s: %d look-ups of our own keys, imported is %v", row.name, w.finds, d.Imported)
		}
	}
	if d, err := authz.New(w.Config).AuthorizeKey(t.Context(), authz.KeyQuestion{Key: bareKey}); err != nil || !d.Allowed() {
		t.Errorf("a question about a key: %v, %v", d.Reason, err)
	}
}

// The upstream sees no key of another system, wherever it was: on every kind of route, used or not,
// and beside one of our own.
func TestKeysOfOtherSystemsAreStripped(t *testing.T) {
	w := newForeignWorld(t, authz.Rule{Path: "/api", Kind: authz.KindAPIKey}, authz.Rule{Path: "/open", Kind: authz.KindPublic})
	for _, row := range []struct {
		name string
		r    authz.Request
		want authz.Rewrite
	}{
		{"a header", authz.Request{Path: "/api", APIKey: []string{liveKey}}, authz.Rewrite{RemoveAPIKey: true}},
		{"a bearer token", authz.Request{Path: "/api", Authorization: []string{"Bearer " + liveKey}}, authz.Rewrite{RemoveAuthorization: true}},
		{"another scheme", authz.Request{Path: "/open", Authorization: []string{"Token " + liveKey}}, authz.Rewrite{RemoveAuthorization: true}},
		{"a longer word", authz.Request{Path: "/open", Authorization: []string{"Token x" + liveKey}}, authz.Rewrite{}},
		{"a query", authz.Request{Path: "/api?a=1&api_key=" + liveKey + "&b=2"}, authz.Rewrite{Path: "/api?a=1&b=2"}},
		{"a protocol", authz.Request{Path: "/api", APIKey: []string{w.ada}, Protocols: []string{"chat, key." + liveKey + ", v2"}},
			authz.Rewrite{RemoveAPIKey: true, Protocols: "chat, v2"}},
		{"protocols of both kinds", authz.Request{Path: "/open", Protocols: []string{liveKey + ",a,x." + w.ada, " " + liveKey, "b"}},
			authz.Rewrite{Protocols: "a, b"}},
		{"without a prefix", authz.Request{Path: "/open", Authorization: []string{"Token " + bareKey}}, authz.Rewrite{}},
	} {
		row.r.Method = "GET"
		if d := w.expect(t, row.name, row.r, authz.Allowed); d.Rewrite != row.want {
			t.Errorf("%s: %+v, want %+v", row.name, d.Rewrite, row.want)
		}
	}
	d := w.expect(t, "nothing else", authz.Request{Method: "GET", Path: "/open", Protocols: []string{liveKey}}, authz.BadHeader)
	if d.Problem != authz.ProtocolsEmpty {
		t.Error(d.Problem)
	}
}

// Headers full of keys, or of their beginnings, take time that is linear in their length.
func TestManyKeysOfOtherSystems(t *testing.T) {
	w := newForeignWorld(t, authz.Rule{Path: "/open", Kind: authz.KindPublic})
	for _, part := range []string{"sk_live_", "sk_live_,", liveKey + ",", "a," + liveKey + " " + w.ada + ","} {
		text := "sk_live_ " + strings.Repeat(part, 64<<10/len(part)) + ",a"
		began := time.Now()
		w.expect(t, part, authz.Request{Method: "GET", Path: "/open", Authorization: []string{text}, Protocols: []string{text}}, authz.Allowed)
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("%q repeated takes %v", part, took)
		}
	}
}

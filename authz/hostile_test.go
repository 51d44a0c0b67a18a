package authz_test

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/keyporter/keyporter/authz"
)

// A path that is far longer in its normal form is answered with 404, whatever its rule. It would
// cost a hundred times as much as others, and such a request needs no key. Long names in any script
// pass.
func TestPathsThatSwell(t *testing.T) {
	w := newWorld(t,
		authz.Rule{Path: "/*", Kind: authz.KindPublic},
		authz.Rule{Path: "/paid/*", Kind: authz.KindAPIKey},
		authz.Rule{Name: "named", Kind: authz.KindPublic},
	)
	for letter, want := range map[string]authz.Reason{
		"%EF%B7%BA": authz.OtherSpelling, // ﷺ expands to 18 characters
		"%EF%B7%BB": authz.OtherSpelling, // ﷻ expands to 8
		"%E3%8C%96": authz.OtherSpelling, // ㌖ expands to 6
		"%E0%BD%B7": authz.OtherSpelling, // a Tibetan character that expands to 3
		"%E6%BC%A2": authz.Allowed, "%EA%B0%81": authz.Allowed, "%D0%B9": authz.Allowed, "%C3%A9": authz.Allowed, "%F0%9F%98%80": authz.Allowed,
		"e%CC%81": authz.Allowed, "%C2%BD": authz.OtherSpelling, // ½, a thousand times
	} {
		long := strings.Repeat(letter, 8000/len(letter))
		for _, r := range []authz.Request{
			{Method: "GET", Path: "/" + long}, {Method: "GET", Path: "/paid/" + long, APIKey: []string{w.ada}}, {Method: "GET", Path: "/x/" + long, Rule: "named"},
		} {
			w.expect(t, r.Path[:20]+"…", r, want)
		}
		w.expect(t, letter, authz.Request{Method: "GET", Path: "/" + strings.Repeat(letter, 20)}, authz.Allowed)
	}
}

// An Accept header longer than any browser's counts as a program's, and costs no parsing.
func TestAcceptThatIsLongerThanABrowsers(t *testing.T) {
	browser := "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8,application/signed-exchange;v=b3;q=0.7"
	for accept, want := range map[string]bool{
		browser: true, browser + "," + browser + "," + browser: true, "text/html" + strings.Repeat(";a=b", 20_000): false,
		strings.Repeat("text/html,", 6000): false,
	} {
		if got := authz.WantsHTML(accept); got != want {
			t.Errorf("%d bytes: %v, want %v", len(accept), got, want)
		}
		if want {
			continue
		}
		if n := testing.AllocsPerRun(1, func() { authz.WantsHTML(accept) }); n > 0 {
			t.Errorf("%d bytes: %v allocations, want none", len(accept), n)
		}
	}
}

// The search for items in long headers finds the same ones as parsing the whole header.
func TestItemsOfLongHeaders(t *testing.T) {
	w := newWorld(t, authz.Rule{Path: "/*", Kind: authz.KindAPIKey})
	rapid.Check(t, func(t *rapid.T) {
		piece := rapid.SampledFrom([]string{
			authz.SessionCookie, authz.SessionCookie + "=" + w.session, "=", ";", ",", " ", "\t", "a=1", "x", "Bearer", "bearer " + w.ada, "Basic", w.ada, "wh_", "",
		})
		values := rapid.SliceOfN(rapid.Map(rapid.SliceOfN(piece, 0, 9), func(all []string) string { return strings.Join(all, "") }), 0, 3).Draw(t, "values")
		wantValue, n := "", 0
		for _, header := range values {
			for pair := range strings.SplitSeq(header, ";") {
				if name, value, is := strings.Cut(pair, "="); is && strings.Trim(name, " \t") == authz.SessionCookie {
					wantValue, n = strings.Trim(value, " \t"), n+1
				}
			}
		}
		want := map[int]authz.Reason{0: authz.MissingSession, 1: authz.Allowed}[n]
		if n > 1 {
			wantValue, want = "", authz.BadSession
		}
		if value, reason := authz.SessionValue(values, false); value != wantValue || reason != want {
			t.Errorf("%q: cookie %q, %v; want %q, %v", values, value, reason, wantValue, want)
		}
		var items []string
		isBearer := false
		for item := range strings.SplitSeq(strings.Join(values, ","), ",") {
			if item = strings.Trim(item, " \t"); item != "" {
				items = append(items, item)
				scheme, _, _ := strings.Cut(strings.NewReplacer("=", " ", ";", " ", "\t", " ").Replace(item), " ")
				isBearer = isBearer || strings.EqualFold(scheme, "Bearer")
			}
		}
		d, err := w.decide(t, authz.Request{Method: "GET", Path: "/x", Authorization: values, APIKey: nil})
		if ambiguous := isBearer && len(items) > 1; err != nil || (d.Reason == authz.AmbiguousKey) != ambiguous {
			t.Errorf("%q: authorization %v, %v; ambiguous: %v", values, d.Reason, err, ambiguous)
		}
		d, err = w.decide(t, authz.Request{Method: "GET", Path: "/x", APIKey: values})
		if ambiguous := len(items) > 1; err != nil || (d.Reason == authz.AmbiguousKey) != ambiguous {
			t.Errorf("%q: x-api-key %v, %v; ambiguous: %v", values, d.Reason, err, ambiguous)
		}
	})
}

// No scheme has hundreds of items: a header with so many is refused without a full search.
func TestAuthorizationOfManyItems(t *testing.T) {
	w := newWorld(t, authz.Rule{Path: "/*", Kind: authz.KindAPIKey})
	for many, want := range map[int]authz.Reason{1: authz.MissingKey, 250: authz.MissingKey, 300: authz.AmbiguousKey, 30_000: authz.AmbiguousKey} {
		digest := "Digest a=1" + strings.Repeat(", b=2", many)
		w.expect(t, "Digest", authz.Request{Method: "GET", Path: "/x", Authorization: []string{digest}}, want)
		w.expect(t, "beside a bearer", authz.Request{Method: "GET", Path: "/x", Authorization: []string{digest, "Bearer " + w.ada}}, authz.AmbiguousKey)
	}
}

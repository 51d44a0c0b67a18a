package authz_test

import (
	"strings"
	"testing"

	"github.com/keyporter/keyporter/authz"
)

// A path that takes far more room in its normal form than it has is 404, whatever its rule, instead
// of a hundred times the work of another one: nobody has to show a key for that. Long names in any
// script pass.
func TestPathsThatSwell(t *testing.T) {
	w := newWorld(t,
		authz.Rule{Path: "/*", Kind: authz.KindPublic},
		authz.Rule{Path: "/paid/*", Kind: authz.KindAPIKey},
		authz.Rule{Name: "named", Kind: authz.KindPublic},
	)
	for letter, want := range map[string]authz.Reason{
		"%EF%B7%BA": authz.OtherSpelling, // ﷺ stands for 18 characters
		"%EF%B7%BB": authz.OtherSpelling, // ﷻ for 8
		"%E3%8C%96": authz.OtherSpelling, // ㌖ for 6
		"%E0%BD%B7": authz.OtherSpelling, // one of Tibetan for 3
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

// A header Accept that is longer than any browser's is a program's, and costs nothing to read.
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

package portal_test

import (
	"net/http"
	"strings"
	"testing"
)

// An imported key is shown only if a copy was sealed when it came. Otherwise the page says why not,
// and its placeholder does not have our form in any case.
func TestAnImportedKeyOnThePage(t *testing.T) {
	const reason, placeholder = "only a fingerprint of it is known here", "wh_•"
	for _, row := range []struct {
		name             string
		imported, sealed bool
	}{{"ours, sealed", false, true}, {"ours", false, false}, {"imported, sealed", true, true}, {"imported", true, false}} {
		f := newFixture(t)
		f.imported = row.imported
		if !row.sealed {
			f.sealed = nil
		}
		text := f.browser(http.MethodGet, "/api").Body.String()
		if strings.Contains(text, reason) != (row.imported && !row.sealed) {
			t.Errorf("%s: the page says why it cannot be shown: %v", row.name, strings.Contains(text, reason))
		}
		if strings.Contains(text, placeholder) == row.imported {
			t.Errorf("%s: the placeholder has our prefix: %v", row.name, row.imported)
		}
		if strings.Contains(text, `id="reveal"`) != row.sealed {
			t.Errorf("%s: it can be shown: %v", row.name, !row.sealed)
		}
	}
}

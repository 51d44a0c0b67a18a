package credits_test

import (
	"testing"

	"github.com/keyporter/keyporter/credits"
)

// A burst of announcements blocks nobody, also before the credits run and where nobody listens, and
// leaves one for the credits.
func TestRecallsNeverBlock(t *testing.T) {
	for name, r := range map[string]credits.Recalls{"with a listener": credits.NewRecalls(), "without": nil} {
		for range 100 {
			r.Announce()
		}
		if want := min(1, cap(r)); len(r) != want {
			t.Errorf("%s: %d announcements wait, want %d", name, len(r), want)
		}
	}
}

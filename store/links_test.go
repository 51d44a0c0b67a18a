package store_test

import (
	"errors"
	"testing"
	"time"

	"github.com/keyporter/keyporter/store"
)

// A login link that is late opens nothing, and is forgotten a day later. What is seen of it then tells nobody
// whether it ever was.
func TestALateLinkOpensNothing(t *testing.T) {
	onEach(t, func(t *testing.T, url string) {
		db := open(t, store.Config{URL: url})
		f := feed{t, db.SQL()}
		f.exec(people...)
		_, token, err := db.CreateLoginLink(t.Context(), "ada", format(t))
		if err != nil {
			t.Fatal(err)
		}
		for _, expired := range []string{`1`, `created_at`} {
			f.exec(`UPDATE login_links SET expires_at = ` + expired)
			if _, err := db.FindLoginLink(t.Context(), token.Digest()); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("a late link: %v", err)
			}
			if _, _, err := db.UseLoginLink(t.Context(), token.Digest(), time.Hour, format(t)); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("using a late link: %v", err)
			}
		}
		f.exec(`UPDATE login_links SET expires_at = 1`)
		if err := db.Tidy(t.Context()); err != nil {
			t.Fatal(err)
		}
		var left int
		if err := db.SQL().QueryRow(`SELECT count(*) FROM login_links`).Scan(&left); err != nil || left != 0 {
			t.Errorf("%d links are left, %v", left, err)
		}
	})
}

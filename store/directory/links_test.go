package directory_test

import (
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/internal/storetest"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
)

// A login link opens nothing when it has expired or was used, or when its user is disabled, deleted
// or has all sessions revoked. It can neither be viewed nor used, and the attempt leaves no
// session.
func TestALoginLinkThatIsOver(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		db := storetest.Open(t, store.Config{URL: url})
		f := storetest.SQL{T: t, DB: db.Changes}
		for what, over := range map[string]func() error{
			"late":        func() error { f.Exec(`UPDATE login_links SET expires_at = expires_at - 600001`); return nil },
			"of a moment": func() error { f.Exec(`UPDATE login_links SET expires_at = created_at`); return nil },
			"used":        func() error { f.Exec(`UPDATE login_links SET used_at = created_at`); return nil },
			"disabled": func() error {
				_, _, err := directory.New(db).SetUser(t.Context(), "ada", directory.UserChange{Status: new("disabled")}, "")
				return err
			},
			"revoked": func() error {
				_, _, err := directory.NewSessions(db).RevokeSessions(t.Context(), "ada", "")
				return err
			},
			"deleted": func() error { _, err := directory.New(db).DeleteUser(t.Context(), "ada", ""); return err },
			"made for another who was deleted": func() error {
				_, err := directory.New(db).DeleteUser(t.Context(), "ada", "")
				storetest.WithAda(t, db)
				return err
			},
		} {
			if _, err := directory.New(db).DeleteUser(t.Context(), "ada", ""); err != nil && !errors.Is(err, store.ErrNotFound) {
				t.Fatal(err)
			}
			storetest.WithAda(t, db)
			_, token, err := directory.NewSessions(db).CreateLoginLink(t.Context(), "ada", storetest.Format(t))
			if err != nil {
				t.Fatal(err)
			}
			if err := over(); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			if _, err := directory.NewSessions(db).FindLoginLink(t.Context(), token.Digest()); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("%s: looking at it: %v, want not found", what, err)
			}
			session, secret, err := directory.NewSessions(db).UseLoginLink(t.Context(), token.Digest(), apikey.Digest{}, time.Hour, storetest.Format(t))
			if !errors.Is(err, store.ErrNotFound) || !secret.IsZero() || session != (directory.Session{}) {
				t.Errorf("%s: using it: %v, %+v, want not found", what, err, session)
			}
			if n := f.Number(`SELECT count(*) FROM sessions`); n != 0 {
				t.Errorf("%s: %d sessions", what, n)
			}
		}
	})
}

// If a link creates a session while all sessions are revoked, the session is either among the
// revoked ones or is not created: none is left afterwards.
func TestALinkIsUsedWhileSessionsAreRevoked(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		db := storetest.Open(t, store.Config{URL: url})
		storetest.WithAda(t, db)
		for i := range 10 {
			_, token, err := directory.NewSessions(db).CreateLoginLink(t.Context(), "ada", storetest.Format(t))
			if err != nil {
				t.Fatal(err)
			}
			both := []func() error{
				func() error {
					_, _, err := directory.NewSessions(db).UseLoginLink(t.Context(), token.Digest(), apikey.Digest{}, time.Hour, storetest.Format(t))
					return err
				},
				func() error {
					_, _, err := directory.NewSessions(db).RevokeSessions(t.Context(), "ada", "")
					return err
				},
			}
			var racing sync.WaitGroup
			for n := range both {
				racing.Go(func() {
					if err := both[(i+n)%2](); err != nil && !errors.Is(err, store.ErrNotFound) {
						t.Error(err)
					}
				})
			}
			racing.Wait()
			if n := (storetest.SQL{T: t, DB: db.Changes}).Number(`SELECT count(*) FROM sessions WHERE revoked_at IS NULL`); n != 0 {
				t.Fatalf("%d sessions live", n)
			}
		}
	})
}

// Tidy deletes links that expired long ago, without an audit entry; others stay.
func TestTidyingLinks(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		db := storetest.Open(t, store.Config{URL: url})
		storetest.WithAda(t, db)
		for range 2 {
			if _, _, err := directory.NewSessions(db).CreateLoginLink(t.Context(), "ada", storetest.Format(t)); err != nil {
				t.Fatal(err)
			}
		}
		f := storetest.SQL{T: t, DB: db.Changes}
		f.Exec(`UPDATE login_links SET expires_at = expires_at - 90000000 WHERE digest = (SELECT digest FROM login_links ORDER BY digest LIMIT 1)`)
		before := newestAudit(t, db)
		if err := directory.NewSessions(db).Tidy(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := f.Number(`SELECT count(*) FROM login_links`); n != 1 {
			t.Errorf("%d links, want the one that is good", n)
		}
		if lines := told(t, db, before); len(lines) > 0 {
			t.Errorf("the audit: %q", lines)
		}
	})
}

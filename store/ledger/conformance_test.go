package ledger_test

import (
	"errors"
	"testing"
	"time"

	"github.com/keyporter/keyporter/credits/ledgertest"
	"github.com/keyporter/keyporter/internal/parts/partstest"
	"github.com/keyporter/keyporter/internal/storetest"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/feed"
	"github.com/keyporter/keyporter/store/lease"
	storeledger "github.com/keyporter/keyporter/store/ledger"
	"github.com/keyporter/keyporter/usage"
)

// subject is the ledger of a database, as the suite uses it.
type subject struct {
	*storeledger.Ledger
	db *store.DB
	t  *testing.T
}

// SetPlan implements [ledgertest.Subject] in plain SQL, because nobody acknowledges changes here.
func (s *subject) SetPlan(pool usage.PoolKind, credits usage.Limit) {
	s.t.Helper()
	var limit any = int64(credits)
	if credits == usage.Unlimited {
		limit = nil
	}
	if _, err := s.db.Changes.Exec(`UPDATE plans SET pool = $1, credits = $2 WHERE name = 'pro'`, pool.String(), limit); err != nil {
		s.t.Fatal(err)
	}
}

// Join implements [ledgertest.Subject]. The life is longer than the test, because nobody renews.
func (s *subject) Join() (replica string, leave func()) {
	s.t.Helper()
	registry, err := feed.NewRegistry(s.db, feed.Replica{Name: "test", Life: 10 * time.Minute})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { registry.Close() })
	ctx := s.t.Context()
	id, err1 := registry.Register(ctx)
	updates, err2 := registry.Renew(ctx, id, lease.Position{})
	err3 := registry.Ack(ctx, id, updates.Newest, true)
	if err := errors.Join(err1, err2, err3); err != nil {
		s.t.Fatal(err)
	}
	return id, func() {
		if err := registry.Leave(ctx, id); err != nil {
			s.t.Error(err)
		}
	}
}

func (s *subject) Advance(d time.Duration) { storetest.SetClock(s.db, d) }

func (s *subject) Audit() {
	s.t.Helper()
	mustAddUp(s.t, s.db)
}

// The ledger of each database keeps the promises that tests with a ledger in memory rely on.
func TestConformance(t *testing.T) {
	t.Parallel()
	for name, database := range storetest.Migrated {
		t.Run(name, func(t *testing.T) {
			if name != "SQLite" {
				partstest.Slow(t) // a database for each part of the suite
			}
			t.Parallel()
			ledgertest.Conformance(t, func(t *testing.T) ledgertest.Subject {
				db := storetest.Open(t, store.Config{URL: database(t)})
				storetest.WithAda(t, db)
				storetest.WithUser(t, db, "eve")
				return &subject{storeledger.New(db), db, t}
			})
		})
	}
}

package outbox_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keyporter/keyporter/internal/storetest"
)

// A revoked key that is still used a day after the end of its user's last one makes one event, and
// no more while that is kept. One that was used within the day makes none.
func TestUsesOfRevokedKeys(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		b := newBench(t, url, "one")
		f, now := storetest.SQL{T: t, DB: b.db.Changes}, time.Now()
		f.Exec(storetest.People...)
		f.Exec(`DELETE FROM events`)
		used := func(user string, ended, last time.Duration) {
			t.Helper()
			at := now.Add(-last)
			for statement, args := range map[string][]any{
				`UPDATE keys SET revoked_at = $2 WHERE user_name = $1`: {user, now.Add(-ended).UnixMilli()},
				`INSERT INTO request_counts (user_name, key_id, ended, slot, day, address, agent, requests, last_at) VALUES ($1, '', TRUE, $2, FALSE, '', '', 1, $3)`: {
					user, at.Truncate(10 * time.Minute).UnixMilli(), at.UnixMilli()},
			} {
				if _, err := b.db.Changes.Exec(statement, args...); err != nil {
					t.Fatal(err)
				}
			}
		}
		used("ada", 26*time.Hour, time.Minute)
		used("bob", 23*time.Hour, time.Minute)
		used("eve", 40*time.Hour, 10*time.Hour) // an earlier look has seen it
		f.Exec(`DELETE FROM events`)
		for range 2 {
			if err := b.outbox.AddRevokedUses(t.Context(), b.fence); err != nil {
				t.Fatal(err)
			}
		}
		if diff := cmp.Diff([]string{"one key.revoked_used user:ada {account:acme,user:ada}"}, eventsOf(f)); diff != "" {
			t.Error(diff)
		}
		f.Exec(`DELETE FROM event_subscriptions`)
		if err := b.outbox.AddRevokedUses(t.Context(), b.fence); err != nil || storetest.RowsOf(t, b.db, "events") != 0 {
			t.Errorf("without a subscription: %v", err)
		}
	})
}

package requests_test

import (
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keyporter/keyporter/internal/storetest"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
	"github.com/keyporter/keyporter/store/requests"
	"github.com/keyporter/keyporter/usage"
)

// Replicas add to the same counts at the same time and lose none; unknown users have no counts, and
// old counts are deleted, as are those of a deleted user.
func TestOutcomesOfManyReplicas(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		db := storetest.Open(t, store.Config{URL: url})
		storetest.WithAda(t, db)
		storetest.WithUser(t, db, "eve")
		log, now := requests.New(db), time.Now()
		today, old := usage.DayOf(now), usage.DayOf(now.AddDate(0, 0, -40))
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				for range 5 {
					if err := log.AddOutcomes(t.Context(), []requests.Outcome{
						{User: "eve", Day: today, Reason: "allowed", Requests: 2}, {User: "ada", Day: today, Reason: "rate_limited", Requests: 1},
						{User: "ada", Day: today, Reason: "allowed", Requests: 3}, {User: "nobody", Day: today, Reason: "allowed", Requests: 9},
						{User: "no\x00body", Day: today, Reason: "\x00", Requests: 9}, {User: "ada", Day: old, Reason: "allowed", Requests: 1},
					}); err != nil {
						t.Error(err)
					}
				}
			})
		}
		all.Wait()
		expect := func(day time.Time, user string, want map[string]int64) {
			t.Helper()
			got, err := log.Outcomes(t.Context(), day, user)
			if diff := cmp.Diff(want, got); err != nil || diff != "" {
				t.Errorf("%q: %v\n%s", user, err, diff)
			}
		}
		expect(now, "ada", map[string]int64{"allowed": 60, "rate_limited": 20})
		expect(now, "", map[string]int64{"allowed": 100, "rate_limited": 20})
		expect(now.AddDate(0, 0, -40), "", map[string]int64{"allowed": 20})
		if err := log.Tidy(t.Context(), 30*24*time.Hour); err != nil {
			t.Error(err)
		}
		expect(now.AddDate(0, 0, -40), "", map[string]int64{})
		if _, err := directory.New(db).DeleteUser(t.Context(), "ada", ""); err != nil {
			t.Error(err)
		}
		expect(now, "", map[string]int64{"allowed": 40})
	})
}

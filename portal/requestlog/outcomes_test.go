package requestlog_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keyporter/keyporter/portal/requestlog"
	"github.com/keyporter/keyporter/usage"
)

// Requests are counted by user, day and reason, saved once a minute and at the end, and never in
// more memory than that of 10,000 counts of charged requests, and as many of others.
func TestOutcomesAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var saves []map[requestlog.Outcome]int64
		l := requestlog.New(requestlog.Config{
			Save: func(context.Context, requestlog.Batch) error { return nil },
			SaveOutcomes: func(_ context.Context, all map[requestlog.Outcome]int64) error {
				saves = append(saves, all)
				return nil
			},
		})
		stop := run(l)
		today := usage.DayOf(time.Now())
		add := func(user, reason string, credits int64) {
			r := record(user, "curl")
			r.Reason, r.Credits = reason, credits
			l.Add(r)
		}
		for range 20 {
			add("ada", "allowed", 1)
			time.Sleep(1500 * time.Millisecond)
		}
		add("ada", "allowed", 0) // a route without a price
		add("ada", "rate_limited", 0)
		add("eve", "made up", 0)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		total := map[requestlog.Outcome]int64{}
		for _, s := range saves {
			for key, n := range s {
				total[key] += n
			}
		}
		want := map[requestlog.Outcome]int64{{"ada", today, "allowed"}: 21, {"ada", today, "rate_limited"}: 1, {"eve", today, "other"}: 1}
		if diff := cmp.Diff(want, total); diff != "" || len(saves) != 2 {
			t.Errorf("%d saves: %s", len(saves), diff)
		}
		saves = nil
		for i := range 30_000 {
			add(fmt.Sprint("user", i), "revoked_key", 0)
		}
		add("ada", "allowed", 1)
		stop()
		if len(saves) != 1 || len(saves[0]) != 10_001 || saves[0][requestlog.Outcome{User: "ada", Day: today, Reason: "allowed"}] != 1 {
			t.Errorf("a flood and a charged request are saved otherwise, in %d saves", len(saves))
		}
	})
}

// Counts of very many users are saved in slices, beside the records of each tick.
func TestManyOutcomesDelayNoRecords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		records, most, total := 0, 0, 0
		l := requestlog.New(requestlog.Config{
			Save: func(_ context.Context, b requestlog.Batch) error {
				records += len(b.Records)
				return nil
			},
			SaveOutcomes: func(_ context.Context, all map[requestlog.Outcome]int64) error {
				most, total = max(most, len(all)), total+len(all)
				time.Sleep(500 * time.Millisecond)
				return nil
			},
		})
		stop := run(l)
		for i := range 9_000 {
			l.Add(record(fmt.Sprint("user", i), "curl"))
		}
		time.Sleep(10 * time.Second)
		before := records
		for range 5 { // while the counts are being saved
			l.Add(record("ada", "curl"))
			time.Sleep(2 * time.Second)
		}
		synctest.Wait()
		if records != before+5 || most > 1000 {
			t.Errorf("%d records of 5 were saved meanwhile; up to %d counts at a time", records-before, most)
		}
		stop()
		if total != 9_000+1 {
			t.Errorf("%d counts were saved, want 9001", total)
		}
	})
}

package cache_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/store/cache"
	"github.com/keyporter/keyporter/store/lease"
)

// Two caches share a registry. Every result exists from the start, and each look-up counts as one.
func TestMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		registry := prometheus.NewPedanticRegistry()
		s, keys := open(t, cache.Config[apikey.Digest, int]{Name: "keys", Metrics: registry, Fills: 2})
		_, _ = open(t, cache.Config[apikey.Digest, int]{Name: "sessions", Metrics: registry})

		expect(t, keys, key, 1, nil) // miss
		expect(t, keys, key, 1, nil) // hit
		expect(t, keys, key, 1, nil) // hit
		// expires applies only to values
		s.set(numbered(10), answer{err: errUnknown, expires: time.Now()})
		expect(t, keys, numbered(10), 0, errUnknown) // miss
		expect(t, keys, numbered(10), 0, errUnknown) // negative
		s.set(numbered(11), answer{err: errDown})
		expect(t, keys, numbered(11), 0, errDown) // error

		s.set(numbered(12), answer{after: time.Millisecond, does: func() { s.change("*") }})
		expect(t, keys, numbered(12), 0, cache.ErrStale) // stale, and four fills discarded
		s.loseLease()
		late, leave := context.WithTimeout(t.Context(), time.Millisecond)
		defer leave()
		expectIn(t, late, keys, key, 0, lease.ErrNotHeld) // no_lease
		s.fail(nil)
		time.Sleep(s.life)

		s.set(numbered(12), answer{after: 500 * time.Millisecond})
		s.set(numbered(13), answer{after: 200 * time.Millisecond})
		var callers sync.WaitGroup
		callers.Go(func() { expect(t, keys, numbered(12), 8, nil) }) // miss
		synctest.Wait()
		callers.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			defer cancel()
			expectIn(t, ctx, keys, numbered(13), 0, context.DeadlineExceeded) // error
		})
		synctest.Wait()
		callers.Go(func() { // shared
			if _, err := keys.Find(t.Context(), numbered(13)); err != nil {
				t.Error(err)
			}
		})
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		expectIn(t, ctx, keys, other, 0, cache.ErrBusy) // busy
		callers.Wait()

		if err := testutil.GatherAndCompare(registry, strings.NewReader(`
# HELP keyporter_cache_discarded_fills_total Answers that were not kept, since what they rest on had changed while they were read.
# TYPE keyporter_cache_discarded_fills_total counter
keyporter_cache_discarded_fills_total{cache="keys"} 4
keyporter_cache_discarded_fills_total{cache="sessions"} 0
# HELP keyporter_cache_entries Values and negative answers in memory, including those that may not be used any more.
# TYPE keyporter_cache_entries gauge
keyporter_cache_entries{cache="keys"} 4
keyporter_cache_entries{cache="sessions"} 0
# HELP keyporter_cache_lookups_total Look-ups, by result.
# TYPE keyporter_cache_lookups_total counter
keyporter_cache_lookups_total{cache="keys",result="busy"} 1
keyporter_cache_lookups_total{cache="keys",result="error"} 2
keyporter_cache_lookups_total{cache="keys",result="hit"} 2
keyporter_cache_lookups_total{cache="keys",result="miss"} 3
keyporter_cache_lookups_total{cache="keys",result="negative"} 1
keyporter_cache_lookups_total{cache="keys",result="no_lease"} 1
keyporter_cache_lookups_total{cache="keys",result="shared"} 1
keyporter_cache_lookups_total{cache="keys",result="stale"} 1
keyporter_cache_lookups_total{cache="sessions",result="busy"} 0
keyporter_cache_lookups_total{cache="sessions",result="error"} 0
keyporter_cache_lookups_total{cache="sessions",result="hit"} 0
keyporter_cache_lookups_total{cache="sessions",result="miss"} 0
keyporter_cache_lookups_total{cache="sessions",result="negative"} 0
keyporter_cache_lookups_total{cache="sessions",result="no_lease"} 0
keyporter_cache_lookups_total{cache="sessions",result="shared"} 0
keyporter_cache_lookups_total{cache="sessions",result="stale"} 0
`), "keyporter_cache_discarded_fills_total", "keyporter_cache_entries", "keyporter_cache_lookups_total"); err != nil {
			t.Error(err)
		}
		if n, err := testutil.GatherAndCount(registry, "keyporter_cache_fill_seconds"); n != 2 || err != nil {
			t.Errorf("%d histograms, %v", n, err)
		}
	})
}

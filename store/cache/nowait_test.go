package cache_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/nowait"
	"github.com/keyporter/keyporter/store/cache"
)

// expectLookups compares all results that were counted at all.
func expectLookups(t *testing.T, registry prometheus.Gatherer, want map[string]float64) {
	t.Helper()
	const name = "keyporter_cache_lookups_total"
	var text strings.Builder
	fmt.Fprintf(&text, "# HELP %s Look-ups, by result.\n# TYPE %s counter\n", name, name)
	for _, result := range []string{"busy", "error", "hit", "miss", "negative", "no_lease", "shared", "stale"} {
		fmt.Fprintf(&text, "%s{cache=\"\",result=%q} %v\n", name, result, want[result])
	}
	if err := testutil.GatherAndCompare(registry, strings.NewReader(text.String()), name); err != nil {
		t.Error(err)
	}
}

// A look-up that may not wait is answered from memory. If memory has no answer, the look-up reads
// nothing, joins no read, waits for no lease, and is not counted.
func TestALookUpThatMayNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		registry := prometheus.NewPedanticRegistry()
		s, c := open(t, cache.Config[apikey.Digest, int]{Metrics: registry})
		began, counts := time.Now(), map[string]float64{}
		expectNow := func(d apikey.Digest, want int, wantErr error) {
			t.Helper()
			ctx, cancel := context.WithTimeout(nowait.Context(t.Context()), time.Second)
			defer cancel()
			expectIn(t, ctx, c, d, want, wantErr)
			if waited := time.Since(began); waited != 0 {
				t.Errorf("waited for %v", waited)
			}
			expectLookups(t, registry, counts)
		}

		expectNow(key, 0, nowait.ErrWouldWait)
		synctest.Wait()
		s.expectReads(t, 0)
		s.set(other, answer{err: errUnknown})
		expect(t, c, key, 1, nil)
		expect(t, c, other, 0, errUnknown)
		counts["miss"], counts["hit"] = 2, 1
		expectNow(key, 1, nil)
		counts["negative"] = 1
		expectNow(other, 0, errUnknown)

		third := numbered(3)
		s.set(third, answer{after: time.Millisecond})
		var reading sync.WaitGroup
		reading.Go(func() { expect(t, c, third, 3, nil) })
		synctest.Wait()
		expectNow(third, 0, nowait.ErrWouldWait) // although a read is running
		reading.Wait()
		began, counts["miss"], counts["hit"] = time.Now(), 3, 2
		expectNow(third, 3, nil)
		s.expectReads(t, 3)

		s.loseLease()
		began = time.Now()
		expectNow(key, 0, nowait.ErrWouldWait)
		s.expectReads(t, 3)
	})
}

// A look-up that is repeated counts once: what it finds in memory again was counted at first.
func TestARepeatedLookUpCountsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		registry := prometheus.NewPedanticRegistry()
		s, c := open(t, cache.Config[apikey.Digest, int]{Metrics: registry})
		s.set(other, answer{err: errUnknown})
		twice := func(d apikey.Digest) {
			c.Find(nowait.Context(t.Context()), d)
			c.Find(nowait.Repetition(t.Context()), d)
		}
		twice(key)
		twice(other)
		expectLookups(t, registry, map[string]float64{"miss": 2})
		twice(key)
		twice(other)
		expectLookups(t, registry, map[string]float64{"miss": 2, "hit": 1, "negative": 1})
	})
}

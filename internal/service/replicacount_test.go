package service

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// In a rolling update, replicas overlap for a moment: limits are then divided by one more, but
// nothing is logged, because no one has to act. A lasting change is logged once, and its end once.
func TestOnlyDividedLimitsThatLastAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logs bytes.Buffer
		var live atomic.Int64
		live.Store(1)
		r := newReplicaCount(&replicaCount{
			ask: func(context.Context) (int, error) { return int(live.Load()), nil }, log: slog.New(slog.NewTextHandler(&logs, nil)),
		}, prometheus.NewRegistry())
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		go r.follow(ctx)
		expect := func(when string, lines int, last string) {
			t.Helper()
			synctest.Wait()
			if got := strings.Count(logs.String(), "\n"); got != lines || !strings.Contains(logs.String(), last) {
				t.Errorf("%s: the log says\n%swant %d lines, and %q", when, logs.String(), lines, last)
			}
		}
		for range 5 { // rolling update
			live.Store(2)
			time.Sleep(10 * time.Second)
			if r.count() != 2 {
				t.Errorf("limits are divided by %d while there are two", r.count())
			}
			live.Store(1)
			time.Sleep(10 * time.Second)
		}
		expect("after a rolling restart", 0, "")
		live.Store(3)
		time.Sleep(time.Minute)
		expect("three for a minute", 1, "level=WARN")
		live.Store(4)
		time.Sleep(5 * time.Second)
		live.Store(3)
		time.Sleep(time.Minute)
		expect("one more for a moment", 1, "replicas=3")
		live.Store(1)
		time.Sleep(time.Minute)
		expect("one again", 2, "level=INFO msg=\"rate limits are exact")
	})
}

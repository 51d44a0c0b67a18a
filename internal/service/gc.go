package service

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// garbageRoom is the minimum of garbage, in bytes, that accumulates before a collection. By default
// the runtime lets garbage grow to the size of the live heap; with a small heap, as here, it
// collects many times a second, which took a third of the cost of a Check.
const garbageRoom = 64 << 20

// gcPercent returns the GOGC value that leaves room for garbage beside live bytes in use: at least
// twice as many. The runtime's default of once as many would collect every second with 100,000
// active users, and each collection scans all of them.
func gcPercent(live uint64) int {
	const least, most = 200, 2000
	return int(min(most, max(least, garbageRoom*100/max(live, 1))))
}

// gcInterval is how often the setting is adjusted.
const gcInterval = time.Second

// tuneGC adjusts the garbage collector until ctx ends. An explicit GOGC takes precedence, and
// GOMEMLIMIT always applies.
func tuneGC(ctx context.Context) {
	if os.Getenv("GOGC") != "" {
		return
	}
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	set, tick := 0, time.NewTicker(gcInterval)
	defer tick.Stop()
	for {
		metrics.Read(sample)
		if percent := gcPercent(sample[0].Value.Uint64()); percent > set*5/4 || percent < set*4/5 {
			debug.SetGCPercent(percent)
			set = percent
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

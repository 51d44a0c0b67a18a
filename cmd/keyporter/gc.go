package main

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// garbageRoom is how much garbage may lie around at least, in bytes, before it is collected. The runtime's own
// rule, as much as there is in use, collects many times a second where little is in use, as here: that was
// a third of what a Check costs.
const garbageRoom = 64 << 20

// gcPercent returns the setting of the collector with which there is room for garbage beside what is in
// use, in bytes: at least twice as much as that. Once as much, as the runtime does by itself, is collected every
// second where there are some 100,000 active users, each of whom has to be looked at.
func gcPercent(live uint64) int {
	const least, most = 200, 2000
	return int(min(most, max(least, garbageRoom*100/max(live, 1))))
}

// gcInterval is how often the setting is looked at.
const gcInterval = time.Second

// tuneGC keeps the collector's setting right until ctx ends. Whoever sets GOGC knows better. GOMEMLIMIT holds
// in any case.
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

//go:build !race

package ratelimit

import (
	"testing"
	"time"
)

// An active user's log is one object, because the garbage collector visits each.
func TestALogIsOneObject(t *testing.T) {
	var log slidingLog
	if n := testing.AllocsPerRun(100, func() { log = slidingLog(nil).add(0, time.Minute, 60) }); n != 1 {
		t.Errorf("a new log: %v objects, want 1", n)
	}
	if n := testing.AllocsPerRun(100, func() {
		for log = nil; log.n() < 60; {
			log = log.add(0, time.Minute, 60)
		}
	}); n != 5 { // for 4, 8, 16, 32 and 60 requests
		t.Errorf("a log that grows to 60 requests: %v objects, want 5", n)
	}
}

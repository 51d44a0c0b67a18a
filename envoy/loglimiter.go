package envoy

import (
	"sync"
	"time"
)

// logLimiter lets one event per second through and counts the others, so that an event of every
// request does not fill a disk. The zero value is ready.
type logLimiter struct {
	mu         sync.Mutex
	last       time.Time
	suppressed int
}

// allow reports whether to log an event, and how many events were suppressed since the last logged
// one.
func (t *logLimiter) allow(now time.Time) (suppressed int, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if now.Sub(t.last) < time.Second {
		t.suppressed++
		return 0, false
	}
	suppressed, t.suppressed, t.last = t.suppressed, 0, now
	return suppressed, true
}

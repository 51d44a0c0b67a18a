package admin

import (
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/keyporter/keyporter/bearer"
)

// The bounds of what callers do at once on one replica. A call that waits for an unreachable
// replica keeps its place; half of the places are left to other tokens.
const (
	maxCalls         = 128
	maxCallsOfCaller = maxCalls / 2
)

// limits bounds the callers, each by its own rate and all by their number at once.
type limits struct {
	mu    sync.Mutex
	rates map[string]*rate.Limiter // name of a caller → its rate; guarded by mu, as are the others
	calls map[string]int           // name of a caller → calls in progress
	all   int                      // calls in progress
}

func newLimits() *limits {
	return &limits{rates: map[string]*rate.Limiter{}, calls: map[string]int{}}
}

// allow counts a request, or returns when the next one fits.
func (l *limits) allow(c bearer.Caller) (wait time.Duration, ok bool) {
	l.mu.Lock()
	limiter := l.rates[c.Name]
	if limiter == nil || limiter.Burst() != c.Rate {
		limiter = rate.NewLimiter(rate.Limit(c.Rate), c.Rate)
		l.rates[c.Name] = limiter
	}
	l.mu.Unlock()
	if limiter.Allow() {
		return 0, true
	}
	return time.Second, false
}

// enter begins a call, unless too many are in progress. The caller must call leave if it did.
func (l *limits) enter(name string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all >= maxCalls || l.calls[name] >= maxCallsOfCaller {
		return false
	}
	l.all++
	l.calls[name]++
	return true
}

func (l *limits) leave(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all--
	if l.calls[name]--; l.calls[name] == 0 {
		delete(l.calls, name)
	}
}

package admin

import (
	"sync"

	"golang.org/x/time/rate"

	"github.com/keyporter/keyporter/bearer"
)

// rates bounds how often each token is used. Two tokens of one caller with different rates have one
// each, so that neither replaces the other's count.
type rates struct {
	mu  sync.Mutex
	all map[rated]*rate.Limiter // guarded by mu
}

type rated struct {
	name      string
	perSecond int
}

func newRates() *rates { return &rates{all: map[rated]*rate.Limiter{}} }

// allow counts a request, unless the caller has sent too many in this second.
func (r *rates) allow(c bearer.Caller) bool {
	token := rated{c.Name, c.Rate}
	r.mu.Lock()
	limiter := r.all[token]
	if limiter == nil {
		limiter = rate.NewLimiter(rate.Limit(c.Rate), c.Rate)
		r.all[token] = limiter
	}
	r.mu.Unlock()
	return limiter.Allow()
}

// The number of calls at once on one replica. A call that waits for an unreachable replica keeps
// its place; half of the places are left to other callers.
const (
	maxCalls         = 128
	maxCallsOfCaller = maxCalls / 2
)

// places bounds the calls at once.
type places struct {
	mu  sync.Mutex
	of  map[string]int // name of a caller → calls in progress; guarded by mu, as is the next
	all int            // calls in progress
}

func newPlaces() *places { return &places{of: map[string]int{}} }

// enter begins a call, unless too many are in progress. The caller must call leave if it did.
func (p *places) enter(name string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.all >= maxCalls || p.of[name] >= maxCallsOfCaller {
		return false
	}
	p.all++
	p.of[name]++
	return true
}

func (p *places) leave(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all--
	if p.of[name]--; p.of[name] == 0 {
		delete(p.of, name)
	}
}

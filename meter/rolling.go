package meter

import (
	"math"
	"slices"
	"time"
)

// rolling is the exact log of one user: when each request of the last window was admitted. Times come
// from a clock that never goes back.
type rolling struct {
	// ring holds the times, oldest first: n of them from head on. It grows up to the limit.
	ring    []time.Duration
	head, n int
	window  time.Duration // as of the last request, for the sweep
	recent  []mark        // who was admitted a moment ago, oldest first
}

// mark is an admitted request whose Check may come again.
type mark struct {
	id    uint64 // of the request
	at    time.Duration
	twice bool // a second Check was told that it is admitted
	// charge is the name of what the first Check has charged.
	charge string
}

// rememberFor is how long a second Check of a request is taken for the first one. Envoy asks again
// within its Check timeout, times its retries, after the first.
const rememberFor = 5 * time.Second

// never is before all times.
const never = time.Duration(math.MinInt64)

// last returns the time of the newest request, which no later one may precede.
func (r *rolling) last() time.Duration {
	if r.n == 0 {
		return never
	}
	return r.ring[(r.head+r.n-1)%len(r.ring)]
}

// expire drops what is out of the window, and the marks that no Check can repeat any more. A request
// counts for exactly one window: one admitted at t makes room at t + window.
func (r *rolling) expire(now, window time.Duration) {
	for r.n > 0 && r.ring[r.head] <= now-window {
		r.head = (r.head + 1) % len(r.ring)
		r.n--
	}
	old := 0
	for old < len(r.recent) && r.recent[old].at <= now-rememberFor {
		old++
	}
	if old > 0 {
		r.recent = slices.Delete(r.recent, 0, old)
	}
	r.window = window
}

// again returns the mark of the request with this id if it was admitted a moment ago, else nil. From
// then on it cannot be taken back. An id of 0 is none.
func (r *rolling) again(id uint64) *mark {
	for i := range r.recent {
		if r.recent[i].id == id {
			r.recent[i].twice = true
			return &r.recent[i]
		}
	}
	return nil
}

// add counts a request. An id of 0 is none.
func (r *rolling) add(at time.Duration, id uint64, charge string) {
	if r.n == len(r.ring) {
		r.grow()
	}
	r.ring[(r.head+r.n)%len(r.ring)] = at
	r.n++
	if id != 0 {
		r.recent = append(r.recent, mark{id: id, at: at, charge: charge})
	}
}

// grow doubles the ring, from 4 on.
func (r *rolling) grow() {
	ring := make([]time.Duration, max(4, 2*len(r.ring)))
	copied := copy(ring, r.ring[r.head:])
	copy(ring[copied:], r.ring[:r.head])
	r.ring, r.head = ring, 0
}

// reset returns how long it takes until the oldest of the newest limit requests leaves the window:
// then there is room for one more. 0 if nothing is counted.
func (r *rolling) reset(now time.Duration, limit int) time.Duration {
	if r.n == 0 || limit <= 0 {
		return 0
	}
	oldest := r.ring[(r.head+max(0, r.n-limit))%len(r.ring)]
	return oldest + r.window - now
}

// remove takes back the request with this id, if it was admitted a moment ago and once.
func (r *rolling) remove(id uint64) {
	for i, m := range r.recent {
		if m.id == id && !m.twice {
			r.recent = slices.Delete(r.recent, i, i+1)
			r.removeTime(m.at)
			return
		}
	}
}

func (r *rolling) removeTime(at time.Duration) {
	for i := r.n - 1; i >= 0; i-- {
		if r.ring[(r.head+i)%len(r.ring)] != at {
			continue
		}
		for ; i < r.n-1; i++ {
			r.ring[(r.head+i)%len(r.ring)] = r.ring[(r.head+i+1)%len(r.ring)]
		}
		r.n--
		return
	}
}

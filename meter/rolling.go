package meter

import "time"

// rolling is the exact log of one user: when each request of the last window was admitted.
type rolling struct {
	// ring holds the times, oldest first: n of them from head on. It grows up to the limit, and has a power of
	// two of places, so that they are masked.
	ring    []time.Duration
	head, n int
	window  time.Duration // as of the last request, for the sweep
	seen    time.Duration // when the last request came; time goes on from there, whatever the clock says
	recent  marks         // who was admitted a moment ago
}

// expire drops what is out of the window, and the marks that no Check can repeat any more, and returns the
// time, which never goes back. A request counts for exactly one window: one admitted at t makes room at
// t + window.
func (r *rolling) expire(clock, window time.Duration) (now time.Duration) {
	now = max(clock, r.seen)
	for r.n > 0 && r.ring[r.head] <= now-window {
		r.head = (r.head + 1) & (len(r.ring) - 1)
		r.n--
	}
	r.recent.expire(now)
	r.window, r.seen = window, now
	return now
}

// again returns the mark of the request with this id if it was admitted a moment ago, else nil. From
// then on it cannot be taken back. An id of 0 is none.
func (r *rolling) again(id uint64) *mark {
	first := r.recent.find(id)
	if first != nil {
		first.twice = true
	}
	return first
}

// add counts a request. An id of 0 is none.
func (r *rolling) add(at time.Duration, id uint64, charge string) {
	if r.n == len(r.ring) {
		r.grow()
	}
	r.ring[(r.head+r.n)&(len(r.ring)-1)] = at
	r.n++
	r.remember(at, id, charge)
}

// remember notes a request whose Check may come again.
func (r *rolling) remember(at time.Duration, id uint64, charge string) {
	if id != 0 {
		r.recent.add(mark{id: id, at: at, charge: charge})
	}
}

// idle reports whether nothing of the log counts any more.
func (r *rolling) idle(now time.Duration) bool {
	return r.seen+max(r.window, rememberFor) <= now
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
	oldest := r.ring[(r.head+max(0, r.n-limit))&(len(r.ring)-1)]
	return oldest + r.window - now
}

// look returns how many requests count in a window, and how long it takes until there is room for one
// more. It changes nothing.
func (r *rolling) look(now, window time.Duration, limit int) (n int, reset time.Duration) {
	gone := 0
	for gone < r.n && r.ring[(r.head+gone)&(len(r.ring)-1)] <= now-window {
		gone++
	}
	if n = r.n - gone; n == 0 || limit <= 0 {
		return n, 0
	}
	oldest := r.ring[(r.head+gone+max(0, n-limit))&(len(r.ring)-1)]
	return n, oldest + window - now
}

// remove takes back the request with this id, if it was admitted a moment ago and once, and reports
// whether it was.
func (r *rolling) remove(id uint64) bool {
	one := r.recent.find(id)
	if one == nil || one.twice {
		return false
	}
	r.removeTime(one.at)
	r.recent.remove(one)
	return true
}

func (r *rolling) removeTime(at time.Duration) {
	for i := r.n - 1; i >= 0; i-- {
		if r.ring[(r.head+i)&(len(r.ring)-1)] != at {
			continue
		}
		for ; i < r.n-1; i++ {
			r.ring[(r.head+i)&(len(r.ring)-1)] = r.ring[(r.head+i+1)&(len(r.ring)-1)]
		}
		r.n--
		return
	}
}

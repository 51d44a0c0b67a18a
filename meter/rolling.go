package meter

import "time"

// rolling is the exact log of one user: when each request of the last window was admitted.
type rolling struct {
	// ring holds the times, oldest first: n of them from head on.
	ring    []time.Duration
	head, n int
	window  time.Duration // as of the last request, for the sweep
	seen    time.Duration // when the last request came; time goes on from there, whatever the clock says
}

// place is where the time number i lies, counted from the oldest.
func (r *rolling) place(i int) *time.Duration {
	if i += r.head; i >= len(r.ring) {
		i -= len(r.ring)
	}
	return &r.ring[i]
}

// expire drops what is out of the window, and returns the time, which never goes back. A request counts for
// exactly one window: one admitted at t makes room at t + window.
func (r *rolling) expire(clock, window time.Duration) (now time.Duration) {
	now = max(clock, r.seen)
	for r.n > 0 && r.ring[r.head] <= now-window {
		if r.head++; r.head == len(r.ring) {
			r.head = 0
		}
		r.n--
	}
	r.window, r.seen = window, now
	return now
}

// add counts a request, of so many that may count at a time.
func (r *rolling) add(at time.Duration, limit int) {
	if r.n == len(r.ring) {
		r.grow(limit)
	}
	r.n++
	*r.place(r.n - 1) = at
}

// idle reports whether nothing of the log counts any more.
func (r *rolling) idle(now time.Duration) bool { return r.seen+r.window <= now }

// grow doubles the ring, from 4 on, but not beyond the limit if that is enough.
func (r *rolling) grow(limit int) {
	places := max(4, 2*len(r.ring))
	if limit > len(r.ring) {
		places = min(places, limit)
	}
	ring := make([]time.Duration, places)
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
	return *r.place(max(0, r.n-limit)) + r.window - now
}

// look returns how many requests count in a window, and how long it takes until there is room for one
// more. It changes nothing.
func (r *rolling) look(now, window time.Duration, limit int) (n int, reset time.Duration) {
	gone := 0
	for gone < r.n && *r.place(gone) <= now-window {
		gone++
	}
	if n = r.n - gone; n == 0 || limit <= 0 {
		return n, 0
	}
	return n, *r.place(gone + max(0, n-limit)) + window - now
}

// remove takes one request of a moment back.
func (r *rolling) remove(at time.Duration) {
	for i := r.n - 1; i >= 0; i-- {
		if *r.place(i) != at {
			continue
		}
		for ; i < r.n-1; i++ {
			*r.place(i) = *r.place(i + 1)
		}
		r.n--
		return
	}
}

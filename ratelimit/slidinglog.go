package ratelimit

import "time"

// slidingLog is the log of one user: the time of each request admitted in the last window. It
// is one object without pointers, because there is one for each user, and the garbage collector
// visits each object. A ring of times follows the first words. The nil slidingLog is empty.
type slidingLog []time.Duration

// The first words of a slidingLog.
const (
	headWord   = iota // index of the oldest time in the ring
	countWord         // number of times
	windowWord        // as of the last request, for the sweep
	seenWord          // time of the last request; time never goes back before it
	ringWords         // the ring begins here
)

// n is the number of requests that count.
func (r slidingLog) n() int {
	if r == nil {
		return 0
	}
	return int(r[countWord])
}

func (r slidingLog) window() time.Duration { return r[windowWord] }

func (r slidingLog) ring() []time.Duration { return r[ringWords:] }

// at is the location of time number i, counted from the oldest.
func (r slidingLog) at(i int) *time.Duration {
	ring := r.ring()
	if i += int(r[headWord]); i >= len(ring) {
		i -= len(ring)
	}
	return &ring[i]
}

// now returns the time, which never goes back, and begins at 0.
func (r slidingLog) now(clock time.Duration) time.Duration {
	if r == nil {
		return max(clock, 0)
	}
	return max(clock, r[seenWord])
}

// expire drops the times outside the window, and returns the time, which never goes back. A request
// counts for exactly one window: one admitted at t makes room at t + window.
func (r slidingLog) expire(clock, window time.Duration) (now time.Duration) {
	if now = r.now(clock); r == nil {
		return now
	}
	gone := time.Duration(r.gone(now, window))
	r[countWord] -= gone
	if r[headWord] += gone; int(r[headWord]) >= len(r.ring()) {
		r[headWord] -= time.Duration(len(r.ring()))
	}
	r[windowWord], r[seenWord] = window, now
	return now
}

// gone returns the number of times outside the window.
func (r slidingLog) gone(now, window time.Duration) (gone int) {
	for gone < r.n() && *r.at(gone) <= now-window {
		gone++
	}
	return gone
}

// add counts a request, and returns the log, which may have moved. At most limit requests count at
// a time.
func (r slidingLog) add(at, window time.Duration, limit int) slidingLog {
	seen := r.now(at)
	if r == nil || r.n() == len(r.ring()) {
		r = r.grown(limit)
	}
	r[countWord]++
	*r.at(r.n() - 1) = at
	r[windowWord], r[seenWord] = window, seen
	return r
}

// grown returns the log with a ring twice as large, at least 4, and no larger than limit if that is
// enough.
func (r slidingLog) grown(limit int) slidingLog {
	if r == nil {
		r = make(slidingLog, ringWords)
	}
	ring := r.ring()
	places := max(4, 2*len(ring))
	if limit > len(ring) {
		places = min(places, limit)
	}
	larger := make(slidingLog, ringWords+places)
	copied := copy(larger, r[:ringWords])
	copied += copy(larger[copied:], ring[r[headWord]:])
	copy(larger[copied:], ring[:r[headWord]])
	larger[headWord] = 0
	return larger
}

// idle reports whether nothing in the log counts any more.
func (r slidingLog) idle(now time.Duration) bool { return r[seenWord]+r[windowWord] <= now }

// reset returns the time until the oldest of the newest limit requests leaves the window: then
// there is room for one more. It returns 0 if nothing counts.
func (r slidingLog) reset(now time.Duration, limit int) time.Duration {
	if r.n() == 0 || limit <= 0 {
		return 0
	}
	return *r.at(max(0, r.n()-limit)) + r.window() - now
}

// peek returns the number of requests that count in a window, and the time until there is room for
// one more. It changes nothing.
func (r slidingLog) peek(now, window time.Duration, limit int) (n int, reset time.Duration) {
	gone := r.gone(now, window)
	if n = r.n() - gone; n == 0 || limit <= 0 {
		return n, 0
	}
	return n, *r.at(gone + max(0, n-limit)) + window - now
}

// remove takes back one request admitted at a time.
func (r slidingLog) remove(at time.Duration) {
	for i := r.n() - 1; i >= 0; i-- {
		if *r.at(i) != at {
			continue
		}
		for ; i < r.n()-1; i++ {
			*r.at(i) = *r.at(i + 1)
		}
		r[countWord]--
		return
	}
}

package cache_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"pgregory.net/rapid"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/store/cache"
	"github.com/keyporter/keyporter/store/lease"
)

// script is the plan of callers, store and database in one random run, in virtual time.
type script struct {
	fills   int
	keys    []apikey.Digest
	expires []time.Duration // when each key does, since the start; never if 0
	callers []caller
	reads   []answer // of the first read, the second, …, and from the beginning again
	changes []change
	pauses  []time.Duration // delays of the replica's calls, in the same way
	outages []outage
}

type caller struct {
	from time.Duration // since the start
	key  int
	own  time.Duration // after which it leaves
}

type change struct {
	at      time.Duration
	what    []string
	removes bool
	told    bool // the replica gets a hint
}

// outage is a time in which the replica cannot reach the database. After it the replica may have
// been fenced, unless its lease still lasts.
type outage struct {
	at, lasts time.Duration
	fenced    bool
}

// step is the unit of the random times, so that events often coincide.
const step = 100 * time.Millisecond

func drawSteps(t *rapid.T, name string, least, most int) time.Duration {
	return time.Duration(rapid.IntRange(least, most).Draw(t, name)) * step
}

// drawn draws a list.
func drawn[T any](t *rapid.T, name string, least, most int, draw func(*rapid.T) T) []T {
	return rapid.SliceOfN(rapid.Custom(draw), least, most).Draw(t, name)
}

func drawScript(t *rapid.T) script {
	const end = 120 // steps
	s := script{fills: rapid.IntRange(1, 3).Draw(t, "fills")}
	for n := range len(origins) {
		s.keys = append(s.keys, numbered(n))
		s.expires = append(s.expires, rapid.SampledFrom([]time.Duration{0, 0, end / 2 * step}).Draw(t, "expires"))
	}
	s.callers = drawn(t, "callers", 20, 120, func(t *rapid.T) caller {
		return caller{drawSteps(t, "from", 0, end), rapid.IntRange(0, len(s.keys)-1).Draw(t, "key"), drawSteps(t, "own", 1, 50)}
	})
	s.reads = drawn(t, "reads", 1, 20, func(t *rapid.T) answer {
		a := answer{after: drawSteps(t, "after", 0, 6), deaf: rapid.IntRange(0, 5).Draw(t, "deaf") == 5}
		a.err = rapid.SampledFrom([]error{nil, nil, nil, nil, errDown}).Draw(t, "error")
		if rapid.IntRange(0, 19).Draw(t, "panics") == 19 {
			a.does = func() { panic("oh") }
		}
		return a
	})
	s.changes = drawn(t, "changes", 5, 60, func(t *rapid.T) change {
		what := rapid.SampledFrom([][]string{
			nil, nil, {"user:ada"}, {"user:bob"}, {"account:acme"}, {"account:other"}, {"plan:pro"}, {"plan:free"}, {"user:ada", "user:eve"}, {"*"},
		}).Draw(t, "what")
		return change{drawSteps(t, "at", 0, end), what, rapid.Bool().Draw(t, "removes"), rapid.Bool().Draw(t, "told")}
	})
	s.pauses = drawn(t, "pauses", 1, 20, func(t *rapid.T) time.Duration {
		return rapid.SampledFrom([]time.Duration{0, 0, 0, step, 2 * step, 10 * step}).Draw(t, "pause")
	})
	s.outages = drawn(t, "outages", 0, 2, func(t *rapid.T) outage {
		return outage{drawSteps(t, "at", 0, end), drawSteps(t, "lasts", 1, 50), rapid.Bool().Draw(t, "fenced")}
	})
	return s
}

var origins = []lease.Origin{
	{User: "ada", Account: "acme", Plan: "pro"},
	{User: "ada", Account: "acme", Plan: "pro"},
	{User: "bob", Account: "acme", Plan: "free"},
	{User: "eve", Account: "other", Plan: "pro"},
}

// run is one run of a script, with all errors found in it.
type run struct {
	script
	db    *database
	lease *lease.Lease
	start time.Time

	mu      sync.Mutex
	number  int
	running int
	useful  map[apikey.Digest]useful // digest → its last read with an answer that must be kept
	paused  int
	wrong   []string
	results map[string]int // for the log
}

// useful is an answer that need not be read again while it is fresh.
type useful struct {
	stamp   lease.Stamp
	expires time.Time
}

// downAt is an error of a read that ended at a moment.
type downAt struct{ at time.Time }

func (e downAt) Error() string { return fmt.Sprintf("down at %v", e.at) }
func (e downAt) Unwrap() error { return errDown }

func (r *run) wrongf(format string, values ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wrong = append(r.wrong, fmt.Sprintf("%v: ", time.Since(r.start))+fmt.Sprintf(format, values...))
}

func (r *run) expiry(d apikey.Digest) time.Time {
	if after := r.expires[d[0]]; after > 0 {
		return r.start.Add(after)
	}
	return time.Time{}
}

// begin counts a starting read. It reports whether a fresh answer must be kept (sure): not if
// everything may have been forgotten at this very moment.
func (r *run) begin(d apikey.Digest) (a answer, reading lease.Reading, sure bool) {
	r.mu.Lock()
	a = r.reads[r.number%len(r.reads)]
	r.number++
	r.running++
	running, last := r.running, r.useful[d]
	r.mu.Unlock()
	if running > r.fills {
		r.wrongf("%d reads at once, %d may run", running, r.fills)
	}
	expired := !last.expires.IsZero() && !time.Now().Before(last.expires)
	if r.lease.Fresh(&last.stamp) && !expired {
		r.wrongf("what was known was read again")
	}
	reading = r.lease.Read()
	r.db.mu.Lock()
	defer r.db.mu.Unlock()
	return a, reading, !r.db.returned.Equal(time.Now())
}

func (r *run) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.running--
}

// find is the store. It looks at the database half-way.
func (r *run) find(ctx context.Context, d apikey.Digest) (found cache.Found[version], err error) {
	a, reading, sure := r.begin(d)
	defer r.end()
	if a.deaf {
		ctx = context.Background()
	}
	wait := func(long time.Duration) error {
		select {
		case <-time.After(long):
			return nil
		case <-ctx.Done():
			return downAt{time.Now()}
		}
	}
	if err := wait(a.after / 2); err != nil {
		return found, err
	}
	found, err = r.db.answer(d, r.expiry(d))
	if err := wait(a.after / 2); err != nil {
		return found, err
	}
	if a.does != nil {
		a.does()
	}
	if a.err != nil {
		return found, downAt{time.Now()}
	}
	if sure {
		origin := found.Origin
		if err != nil {
			origin = lease.Origin{Epoch: origin.Epoch}
		}
		r.mu.Lock()
		r.useful[d] = useful{reading.Stamp(origin), found.Expires}
		r.mu.Unlock()
	}
	return found, err
}

// call is a caller: it looks up a key, and is the oracle for its answer.
func (r *run) call(t *testing.T, c *cache.Cache[apikey.Digest, version], who caller) {
	time.Sleep(who.from)
	ctx, cancel := context.WithTimeout(t.Context(), who.own)
	defer cancel()
	d, came, asked := r.keys[who.key], time.Now(), r.db.appliedNow()
	v, err := c.Find(ctx, d)
	now := time.Now()
	stayed := now.Sub(came)
	r.db.mu.Lock()
	held := now.Before(r.db.until)
	recent := before(r.db.applied, now.Add(1)) != before(r.db.applied, came)
	r.db.mu.Unlock()
	r.mu.Lock()
	r.results[fmt.Sprint(errorOf(err))]++
	r.mu.Unlock()
	if wrong := r.db.wrong(d, r.expiry(d), v, err, r.db.since(asked)); wrong != "" {
		r.wrongf("%s", wrong)
	}
	var down downAt
	switch {
	case stayed > who.own:
		r.wrongf("a caller with %v was held for %v", who.own, stayed)
	case (err == nil || err == errUnknown) && !held:
		r.wrongf("there was an answer, %v, and no lease", v)
	case errors.Is(err, lease.ErrNotHeld) && stayed < who.own:
		r.wrongf("a caller with %v waited %v for a lease", who.own, stayed)
	case errors.Is(err, cache.ErrStale) && !recent && r.expiry(d).IsZero():
		r.wrongf("was too late, and nothing had changed")
	case errors.As(err, &down) && down.at.Before(came):
		r.wrongf("an error was kept for %v", came.Sub(down.at))
	}
}

func errorOf(err error) error {
	for _, sort := range []error{errUnknown, errDown, cache.ErrBusy, cache.ErrStale, lease.ErrNotHeld, context.DeadlineExceeded} {
		if errors.Is(err, sort) {
			return sort
		}
	}
	return err
}

// live runs the script.
func (r *run) live(t *testing.T) {
	r.start, r.useful = time.Now(), map[apikey.Digest]useful{}
	r.db = newDatabase(r.wrongf)
	for n, d := range r.keys {
		r.db.keys[d] = origins[n]
	}
	r.db.commit(true, "user:ada")
	r.db.pause = func() {
		r.mu.Lock()
		long := r.pauses[r.paused%len(r.pauses)]
		r.paused++
		r.mu.Unlock()
		time.Sleep(long)
	}
	r.lease = r.db.held(t)
	c := cache.New(cache.Config[apikey.Digest, version]{
		Fills: r.fills, Find: r.find, Lease: r.lease,
		Negative: func(err error) bool { return err == errUnknown },
	})
	var all sync.WaitGroup
	for _, who := range r.callers {
		all.Go(func() { r.call(t, c, who) })
	}
	for _, change := range r.changes {
		all.Go(func() {
			time.Sleep(change.at)
			if epoch := r.db.commit(!change.removes, change.what...); change.told {
				r.lease.Notify(epoch)
			}
		})
	}
	for _, outage := range r.outages {
		all.Go(func() {
			time.Sleep(outage.at)
			r.db.fail(errDown)
			time.Sleep(outage.lasts)
			r.db.fail(nil)
			if outage.fenced {
				r.db.fence()
			}
		})
	}
	all.Wait()
	c.Close()
}

// For any behaviour of readers, store, database and list: an answer is the state of the database at
// a moment after all changes that the replica had applied and after the beginning of its lease, and
// is given only under a lease. No caller is held beyond its deadline, no read is wasted, and no
// error is kept.
func TestNoAnswerIsStale(t *testing.T) {
	results := map[string]int{}
	rapid.Check(t, func(rt *rapid.T) {
		r := &run{script: drawScript(rt), results: results}
		synctest.Test(t, r.live)
		for _, wrong := range r.wrong {
			rt.Error(wrong)
		}
	})
	t.Log(results)
}

// The same on the real scheduler and clock, where a goroutine may be late at any point, with
// changes one after the other.
func TestNoAnswerIsStaleInRealTime(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	db := newDatabase(t.Errorf)
	for n, origin := range origins {
		db.keys[numbered(n)] = origin
	}
	db.commit(true, "*")
	l := db.held(t)
	c := cache.New(cache.Config[apikey.Digest, version]{
		Lease: l, Fills: 2, Metrics: registry,
		Negative: func(err error) bool { return err == errUnknown },
		Find: func(_ context.Context, d apikey.Digest) (cache.Found[version], error) {
			found, err := db.answer(d, time.Time{})
			time.Sleep(time.Duration(rand.IntN(int(200 * time.Microsecond)))) // travel time
			return found, err
		},
	})
	defer c.Close()
	var all sync.WaitGroup
	var answers, stale, tooLate atomic.Int64
	end := time.Now().Add(500 * time.Millisecond)
	all.Go(func() {
		for n := 0; time.Now().Before(end); n++ {
			what := [][]string{{"user:ada"}, {"account:other"}, {"plan:free"}, nil, {"user:bob", "user:eve"}}[rand.IntN(5)]
			if n%100 == 0 {
				what = []string{"*"}
			}
			l.Notify(db.commit(rand.IntN(4) > 0, what...))
			time.Sleep(time.Duration(rand.IntN(int(300 * time.Microsecond))))
		}
	})
	for range 8 {
		all.Go(func() {
			for time.Now().Before(end) {
				d, applied := numbered(rand.IntN(len(origins))), db.appliedNow()
				v, err := c.Find(t.Context(), d)
				switch {
				case errors.Is(err, cache.ErrStale):
					tooLate.Add(1)
					continue
				case err != nil && err != errUnknown:
					t.Errorf("got %v", err)
				}
				answers.Add(1)
				if wrong := db.wrong(d, time.Time{}, v, err, applied); wrong != "" {
					stale.Add(1)
					t.Error(wrong)
				}
			}
		})
	}
	all.Wait()
	t.Logf("%d changes, %d answers, %d fills discarded, %d look-ups too late, %d answers stale",
		len(db.feed), answers.Load(), discarded(t, registry), tooLate.Load(), stale.Load())
}

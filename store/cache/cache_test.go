package cache_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/store/cache"
	"github.com/keyporter/keyporter/store/lease"
)

var (
	errUnknown = errors.New("unknown")
	errDown    = errors.New("the store is down")
)

// answer is the result of one read of a store.
type answer struct {
	after   time.Duration
	err     error
	deaf    bool // ignores its context
	does    func()
	expires time.Time
}

// store numbers its reads from 1. The value of a read is its number. A read looks at the database
// at its beginning, and its answer takes some time to arrive.
type store struct {
	*database
	lease *lease.Lease

	mu      sync.Mutex
	reads   int
	running int
	most    int // maximum number of concurrent reads
	// digest → the result of its reads; by default a value, at once
	answers map[apikey.Digest]answer
}

func (s *store) find(ctx context.Context, d apikey.Digest) (cache.Found[int], error) {
	_, origin := s.look(d)
	s.mu.Lock()
	s.reads++
	s.running++
	s.most = max(s.most, s.running)
	n, a := s.reads, s.answers[d]
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.running--
		s.mu.Unlock()
	}()
	found := cache.Found[int]{Value: n, Origin: origin, Expires: a.expires}
	if a.deaf {
		ctx = context.Background()
	}
	if a.after > 0 {
		select {
		case <-time.After(a.after):
		case <-ctx.Done():
			return found, ctx.Err()
		}
	}
	if a.does != nil {
		a.does()
	}
	return found, a.err
}

// change makes a change. The replica has applied it when change returns.
func (s *store) change(what ...string) {
	s.lease.Notify(s.commit(true, what...))
	runAll()
}

// loseLease makes the database unreachable until the lease is over.
func (s *store) loseLease() {
	s.fail(errDown)
	time.Sleep(s.life)
}

// runAll returns when everything that can happen at this moment has happened.
func runAll() { time.Sleep(time.Nanosecond) }

func (s *store) set(d apikey.Digest, a answer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answers[d] = a
}

func (s *store) expectReads(t *testing.T, want int) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reads != want {
		t.Errorf("the store was read %d times, want %d", s.reads, want)
	}
}

// open returns a store, with a held lease, and a cache in front of it. All are closed with the
// test.
func open(t *testing.T, c cache.Config[apikey.Digest, int]) (*store, *cache.Cache[apikey.Digest, int]) {
	s := &store{database: newDatabase(t.Errorf), answers: map[apikey.Digest]answer{}}
	s.keys[key] = lease.Origin{User: "ada", Account: "acme", Plan: "pro"}
	s.keys[other] = lease.Origin{User: "bob", Account: "acme", Plan: "free"}
	s.lease = s.held(t)
	c.Find, c.Lease = s.find, s.lease
	c.Negative = func(err error) bool { return errors.Is(err, errUnknown) }
	cached := cache.New(c)
	t.Cleanup(cached.Close)
	return s, cached
}

// key and other are two digests; numbered makes more.
var key, other = numbered(1), numbered(2)

func numbered(n int) apikey.Digest {
	return apikey.Digest{byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24)}
}

// bubble runs a sub-test in virtual time.
func bubble(t *testing.T, name string, f func(*testing.T)) {
	t.Helper()
	t.Run(name, func(t *testing.T) { synctest.Test(t, f) })
}

func expect(t *testing.T, c *cache.Cache[apikey.Digest, int], d apikey.Digest, want int, wantErr error) {
	t.Helper()
	expectIn(t, t.Context(), c, d, want, wantErr)
}

func expectIn(t *testing.T, ctx context.Context, c *cache.Cache[apikey.Digest, int], d apikey.Digest, want int, wantErr error) {
	t.Helper()
	got, err := c.Find(ctx, d)
	if got != want || !errors.Is(err, wantErr) {
		t.Errorf("found %d, %v; want %d, %v", got, err, want, wantErr)
	}
}

// Without a lease nothing is answered, not even from memory, and nothing is read. When the lease is
// back, untouched entries are still there.
func TestNoLeaseNoAnswer(t *testing.T) {
	for _, test := range []struct {
		name    string
		answer  answer
		known   bool
		want    int
		wantErr error
	}{
		{"a value in memory is not used", answer{}, true, 1, nil},
		{"nor is a negative answer", answer{err: errUnknown}, true, 0, errUnknown},
		{"what is not in memory is not read", answer{}, false, 1, nil},
		{"nor is what would be an error", answer{err: errDown}, false, 0, errDown},
	} {
		bubble(t, test.name, func(t *testing.T) {
			s, c := open(t, cache.Config[apikey.Digest, int]{})
			s.set(key, test.answer)
			reads := 0
			if test.known {
				reads = 1
				expect(t, c, key, test.want, test.wantErr)
			}
			s.loseLease()
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			began := time.Now()
			expectIn(t, ctx, c, key, 0, lease.ErrNotHeld)
			if held := time.Since(began); held != 100*time.Millisecond {
				t.Errorf("a caller with 100 ms was held for %v", held)
			}
			s.expectReads(t, reads)

			var patient sync.WaitGroup
			patient.Go(func() { expect(t, c, key, test.want, test.wantErr) })
			time.Sleep(time.Minute)
			s.expectReads(t, reads)
			s.fail(nil)
			patient.Wait()
			s.expectReads(t, 1)
		})
	}
	bubble(t, "there never was one", func(t *testing.T) {
		s := &store{database: newDatabase(t.Errorf)}
		c := cache.New(cache.Config[apikey.Digest, int]{Find: s.find, Lease: s.database.lease()})
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		expectIn(t, ctx, c, key, 0, lease.ErrNotHeld)
		s.expectReads(t, 0)
	})
}

// A change makes exactly those entries be read again that rest on the names in it, or all if it has
// an unknown name. Negative answers rest on everything.
func TestAChangeMakesWhatItTouchesBeReadAgain(t *testing.T) {
	origins := map[string]lease.Origin{
		"ada's":         {User: "ada", Account: "acme", Plan: "pro"},
		"ada's second":  {User: "ada", Account: "acme", Plan: "pro"},
		"bob's":         {User: "bob", Account: "acme", Plan: "free"},
		"eve's":         {User: "eve", Account: "other", Plan: "pro"},
		"nobody's":      {}, // a value without names
		"the negative":  {User: "ada", Account: "acme", Plan: "pro"},
		"of no account": {User: "joe"},
	}
	var names []string
	digests := map[string]apikey.Digest{}
	for name := range origins {
		digests[name] = numbered(100 + len(names))
		names = append(names, name)
	}
	always := []string{"nobody's", "the negative"}
	for _, test := range []struct {
		change string // its names
		again  []string
	}{
		{"", nil},
		{"user:nobody", nil},
		{"user:ada", []string{"ada's", "ada's second"}},
		{"user:bob", []string{"bob's"}},
		{"account:acme", []string{"ada's", "ada's second", "bob's"}},
		{"account:other", []string{"eve's"}},
		{"plan:pro", []string{"ada's", "ada's second", "eve's"}},
		{"plan:free", []string{"bob's"}},
		{"user:bob account:other", []string{"bob's", "eve's"}},
		{"user:joe", []string{"of no account"}},
		{"*", names},
		{"key:1", names},
		{"user:nobody and more", names},
	} {
		bubble(t, "a change of "+test.change, func(t *testing.T) {
			s, c := open(t, cache.Config[apikey.Digest, int]{})
			stamps := map[string]lease.Stamp{}
			find := func(name string) (read bool) {
				before := s.reads
				if _, err := c.Find(t.Context(), digests[name]); err != nil && name != "the negative" {
					t.Error(err)
				}
				return s.reads > before
			}
			for _, name := range names {
				s.keys[digests[name]] = origins[name]
				_, origin := s.look(digests[name])
				stamps[name] = s.lease.Read().Stamp(origin)
			}
			s.set(digests["the negative"], answer{err: errUnknown})
			for _, name := range names {
				find(name)
			}
			s.change(strings.Fields(test.change)...)
			for _, name := range names {
				stamp := stamps[name]
				want := slices.Contains(test.again, name) || slices.Contains(always, name)
				if !want && !s.lease.Fresh(&stamp) {
					t.Logf("%s shares a slot by chance", name)
					want = true
				}
				if got := find(name); got != want {
					t.Errorf("%s: was read again: %v, want %v", name, got, want)
				}
				if find(name) {
					t.Errorf("%s: was read a third time", name)
				}
			}
		})
	}
}

// The newest answer for a digest replaces an older one of the other kind.
func TestAKeyCanAppearAndDisappear(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, c := open(t, cache.Config[apikey.Digest, int]{})
		for round := 1; round <= 6; round += 2 {
			expect(t, c, key, round, nil)
			expect(t, c, key, round, nil)
			s.set(key, answer{err: errUnknown})
			s.change("user:ada")
			expect(t, c, key, 0, errUnknown)
			expect(t, c, key, 0, errUnknown)
			s.set(key, answer{})
			s.change()
		}
		s.expectReads(t, 6)
	})
}

// An answer that was being read during a change that touches it is used by no caller, neither by
// the one that began the read nor by those that joined it, and is not stored. They all share a
// second read.
func TestAnAnswerThatWasOnItsWayDuringAChange(t *testing.T) {
	change := func(what ...string) func(*store) { return func(s *store) { s.change(what...) } }
	refresh := func(s *store) { // registers the replica again, without a change
		s.loseLease()
		s.fence()
		s.fail(nil)
		time.Sleep(s.life / 4)
	}
	for _, test := range []struct {
		name      string
		err       error
		meanwhile func(*store)
		wantReads int
	}{
		{"of its user", nil, change("user:ada"), 2},
		{"of its account", nil, change("account:acme"), 2},
		{"of its plan", nil, change("plan:pro"), 2},
		{"of everything", nil, change("*"), 2},
		{"of somebody else", nil, change("user:bob"), 1},
		{"of nothing", nil, change(), 1},
		{"of somebody else, and is negative", errUnknown, change("user:bob"), 2},
		{"of nothing, and is negative", errUnknown, change(), 2},
		{"that did not happen, and everything was forgotten", nil, refresh, 2},
		{"that did not happen, and everything was forgotten, and is negative", errUnknown, refresh, 2},
	} {
		bubble(t, test.name, func(t *testing.T) {
			registry := prometheus.NewPedanticRegistry()
			s, c := open(t, cache.Config[apikey.Digest, int]{FillTimeout: time.Minute, Metrics: registry})
			s.set(key, answer{after: 10 * time.Second, err: test.err})
			var callers sync.WaitGroup
			for range 10 {
				callers.Go(func() {
					want := test.wantReads
					if test.err != nil {
						want = 0
					}
					expect(t, c, key, want, test.err)
				})
			}
			time.Sleep(5 * time.Second)
			test.meanwhile(s)
			time.Sleep(5*time.Second + time.Millisecond)
			s.expectReads(t, test.wantReads)
			callers.Wait()
			s.expectReads(t, test.wantReads)
			if n := discarded(t, registry); n != test.wantReads-1 {
				t.Errorf("%d fills were discarded, want %d", n, test.wantReads-1)
			}
		})
	}
}

func discarded(t *testing.T, registry prometheus.Gatherer) (n int) {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == "keyporter_cache_discarded_fills_total" {
			for _, metric := range family.GetMetric() {
				n += int(metric.GetCounter().GetValue())
			}
		}
	}
	return n
}

// A read looks at the database, a change is made and applied, and a caller joins, in all possible
// orders: an answer is never older than the changes that were applied before its use.
func TestNoInterleavingMakesAnAnswerStale(t *testing.T) {
	const end = 4 // of a read, in steps
	for _, change := range []struct {
		name string
		what []string
	}{
		{"user", []string{"user:ada"}}, {"account", []string{"account:acme"}}, {"plan", []string{"plan:pro"}},
		{"everything", []string{"*"}}, {"nothing", nil},
	} {
		bubble(t, change.name, func(t *testing.T) {
			db := newDatabase(t.Errorf)
			db.life = time.Hour
			db.keys[key] = lease.Origin{User: "ada", Account: "acme", Plan: "pro"}
			l := db.held(t)
			looks := 0 // when the read looks at the database, in steps
			registry := prometheus.NewPedanticRegistry()
			c := cache.New(cache.Config[apikey.Digest, version]{
				Lease: l, Metrics: registry,
				Negative: func(err error) bool { return err == errUnknown },
				Find: func(_ context.Context, d apikey.Digest) (cache.Found[version], error) {
					time.Sleep(time.Duration(looks) * step)
					found, err := db.answer(d, time.Time{})
					time.Sleep(time.Duration(end-looks) * step)
					return found, err
				},
			})
			defer c.Close()
			rounds := 0
			var answers, stale atomic.Int64
			for looks = 0; looks <= end; looks++ {
				for made := 0; made <= end+1; made++ {
					for applied := made; applied <= end+1; applied++ {
						for joins := 0; joins <= end+1; joins++ {
							rounds++
							l.Notify(db.commit(false, "user:ada")) // invalidates everything stored
							runAll()
							var all sync.WaitGroup
							at := func(moment int, do func()) {
								all.Go(func() {
									time.Sleep(time.Duration(moment) * step)
									do()
								})
							}
							find := func() {
								asked := db.appliedNow()
								v, err := c.Find(t.Context(), key)
								answers.Add(1)
								if wrong := db.wrong(key, time.Time{}, v, err, db.since(asked)); wrong != "" {
									stale.Add(1)
									t.Errorf("looks at %d, made at %d, applied at %d, joins at %d: %s", looks, made, applied, joins, wrong)
								}
							}
							at(made, func() { db.commit(true, change.what...) })
							at(applied, func() { l.Notify(0) })
							at(0, find)
							at(joins, find)
							all.Wait()
						}
					}
				}
			}
			t.Logf("%d interleavings, %d answers, %d fills discarded, %d answers stale", rounds, answers.Load(), discarded(t, registry), stale.Load())
		})
	}
}

// A caller that wakes up late checks again, and does not use an answer that is outdated by then.
func TestACallerWokenLateUsesNothingOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, c := open(t, cache.Config[apikey.Digest, int]{})
		for _, test := range []struct {
			name      string
			err       error
			expires   time.Time
			meanwhile func()
			used      bool
		}{
			{"nothing happened", nil, time.Time{}, func() {}, true},
			{"nothing happened, negative", errUnknown, time.Time{}, func() {}, true},
			{"a change", nil, time.Time{}, func() { s.change("user:ada") }, false},
			{"a change, negative", errUnknown, time.Time{}, func() { s.change() }, false},
			{"not expired yet", nil, time.Now().Add(time.Hour), func() {}, true},
			{"expired", nil, time.Now(), func() {}, false},
			{"no lease", nil, time.Time{}, s.loseLease, false},
			{"still no lease, negative", errUnknown, time.Time{}, func() {}, false},
		} {
			_, origin := s.look(key)
			reading := s.lease.Read()
			if test.err != nil {
				origin = lease.Origin{Epoch: origin.Epoch}
			}
			found := cache.Found[int]{Value: 7, Origin: origin, Expires: test.expires}
			test.meanwhile()
			want := 0
			if test.used && test.err == nil {
				want = 7
			}
			got, err, used := cache.Landed(c, reading, found, test.err)
			if got != want || used != test.used || used && err != test.err {
				t.Errorf("%s: got %d, %v, used: %v", test.name, got, err, used)
			}
		}
	})
}

// A look-up gives up on a value that changes during each read, after four reads.
func TestAReadThatIsAlwaysTooLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, c := open(t, cache.Config[apikey.Digest, int]{})
		s.set(key, answer{after: time.Millisecond, does: func() { s.change("user:ada") }})
		var callers sync.WaitGroup
		for range 10 {
			callers.Go(func() { expect(t, c, key, 0, cache.ErrStale) })
		}
		callers.Wait()
		s.expectReads(t, 4)
		s.set(key, answer{})
		expect(t, c, key, 5, nil)
		expect(t, c, key, 5, nil)
		s.expectReads(t, 5)
	})
}

// If the lease ends during a read, the answer is not used until the lease is back. It is used then,
// without another read, if nothing has touched it.
func TestALeaseThatEndsDuringARead(t *testing.T) {
	for _, test := range []struct {
		name      string
		err       error
		meanwhile func(*store)
		want      int
		wantReads int
	}{
		{"nothing changed", nil, func(*store) {}, 1, 1},
		{"nothing changed, negative", errUnknown, func(*store) {}, 0, 1},
		{"it was changed", nil, func(s *store) { s.commit(true, "user:ada") }, 2, 2},
		{"anything was changed, negative", errUnknown, func(s *store) { s.commit(true) }, 0, 2},
	} {
		bubble(t, test.name, func(t *testing.T) {
			s, c := open(t, cache.Config[apikey.Digest, int]{FillTimeout: time.Minute})
			s.set(key, answer{after: 10 * time.Second, err: test.err})
			began := time.Now()
			at := func(second time.Duration) { time.Sleep(second*time.Second - time.Since(began)) }
			var callers sync.WaitGroup
			callers.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
				defer cancel()
				expectIn(t, ctx, c, key, 0, lease.ErrNotHeld)
			})
			callers.Go(func() {
				expect(t, c, key, test.want, test.err)
				if used := time.Since(began); used < 20*time.Second {
					t.Errorf("there was no lease when the answer was used after %v", used)
				}
			})
			at(5)
			s.fail(errDown)
			at(12)
			s.set(key, answer{err: test.err})
			test.meanwhile(s)
			at(20)
			s.fail(nil)
			callers.Wait()
			s.expectReads(t, test.wantReads)
		})
	}
}

// A value is used until it expires, to the nanosecond, even if it expires while it is read.
func TestAValueExpires(t *testing.T) {
	for _, test := range []struct {
		name     string
		expires  time.Duration // since the first look-up; never if 0
		takes    time.Duration // duration of the first read
		lookedUp time.Duration
		want     int
	}{
		{"it is used until its last moment", time.Second, 0, time.Second - 1, 1},
		{"and not after it", time.Second, 0, time.Second, 2},
		{"a slow read makes no difference", time.Second, 500 * time.Millisecond, time.Second - 1, 1},
		{"nor after it", time.Second, 500 * time.Millisecond, time.Second, 2},
		{"one without an expiry is used for as long as nothing changes", 0, 0, time.Hour, 1},
	} {
		bubble(t, test.name, func(t *testing.T) {
			s, c := open(t, cache.Config[apikey.Digest, int]{})
			began := time.Now()
			a := answer{after: test.takes}
			if test.expires > 0 {
				a.expires = began.Add(test.expires)
			}
			s.set(key, a)
			expect(t, c, key, 1, nil)
			time.Sleep(test.lookedUp - time.Since(began))
			s.set(key, answer{})
			expect(t, c, key, test.want, nil)
			s.expectReads(t, test.want)
		})
	}
	bubble(t, "while it is read", func(t *testing.T) {
		s, c := open(t, cache.Config[apikey.Digest, int]{})
		s.set(key, answer{after: time.Second / 2, expires: time.Now().Add(time.Second / 2), does: func() { s.set(key, answer{err: errUnknown}) }})
		expect(t, c, key, 0, errUnknown)
		s.expectReads(t, 2)
	})
	bubble(t, "a negative answer does not", func(t *testing.T) {
		s, c := open(t, cache.Config[apikey.Digest, int]{})
		s.set(key, answer{err: errUnknown, expires: time.Now()})
		expect(t, c, key, 0, errUnknown)
		expect(t, c, key, 0, errUnknown)
		s.expectReads(t, 1)
	})
}

// An error goes to the callers that waited for it, and to none later.
func TestAnErrorIsNotKept(t *testing.T) {
	for name, err := range map[string]error{"of the store": errDown, "that wraps it": fmt.Errorf("x: %w", errDown)} {
		bubble(t, name, func(t *testing.T) {
			s, c := open(t, cache.Config[apikey.Digest, int]{})
			s.set(key, answer{err: err})
			for n := range 10 {
				expect(t, c, key, 0, errDown)
				s.expectReads(t, n+1)
			}
			s.set(key, answer{})
			expect(t, c, key, 11, nil)
		})
	}
}

// Concurrent look-ups of one digest share one read, and all get its answer.
func TestManyCallersShareOneRead(t *testing.T) {
	for _, fills := range []int{1, 8} {
		for name, a := range map[string]answer{"at once": {}, "slow": {after: 100 * time.Millisecond}, "unknown": {after: 1, err: errUnknown}} {
			bubble(t, fmt.Sprintf("%s, %d at a time", name, fills), func(t *testing.T) {
				s, c := open(t, cache.Config[apikey.Digest, int]{Fills: fills})
				s.set(key, a)
				want := 1
				if a.err != nil {
					want = 0
				}
				var callers sync.WaitGroup
				for range 1000 {
					callers.Go(func() { expect(t, c, key, want, a.err) })
				}
				callers.Wait()
				s.expectReads(t, 1)
			})
		}
	}
}

// A caller that leaves is answered at once and takes nothing away from those that stay.
func TestALeaderWhoLeavesDoesNotFailItsFollowers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, c := open(t, cache.Config[apikey.Digest, int]{})
		s.set(key, answer{after: 500 * time.Millisecond})
		gone := errors.New("the client hung up")
		ctx, hangUp := context.WithCancelCause(t.Context())
		var callers sync.WaitGroup
		began := time.Now()
		callers.Go(func() {
			expectIn(t, ctx, c, key, 0, gone)
			if took := time.Since(began); took != 200*time.Millisecond {
				t.Errorf("the leader left after %v", took)
			}
		})
		synctest.Wait()
		for range 10 {
			callers.Go(func() { expect(t, c, key, 1, nil) })
		}
		time.Sleep(200 * time.Millisecond)
		hangUp(gone)
		callers.Wait()
		if took := time.Since(began); took != 500*time.Millisecond {
			t.Errorf("the followers were answered after %v", took)
		}
		expect(t, c, key, 1, nil)
		s.expectReads(t, 1)
	})
}

// A read keeps the values of the context of the caller that began it.
func TestAReadKeepsTheValuesOfItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type traceKey struct{}
		c := cache.New(cache.Config[apikey.Digest, any]{
			Find: func(ctx context.Context, _ apikey.Digest) (found cache.Found[any], _ error) {
				found.Value, found.Origin = ctx.Value(traceKey{}), lease.Origin{Epoch: 1000, User: "ada"}
				return found, nil
			},
			Lease: newDatabase(t.Errorf).held(t),
		})
		defer c.Close()
		if got, err := c.Find(context.WithValue(t.Context(), traceKey{}, "trace"), key); got != "trace" || err != nil {
			t.Errorf("got %v, %v", got, err)
		}
	})
}

// A read that hangs holds no caller beyond its own deadline. Its answer is used in the end if it is
// still fresh.
func TestAHangingReadHoldsNobody(t *testing.T) {
	for _, test := range []struct {
		name      string
		meanwhile func(*store)
		want      int
	}{
		{"nothing changed", func(*store) {}, 1},
		{"its user was changed", func(s *store) { s.change("user:ada") }, 2},
	} {
		bubble(t, test.name, func(t *testing.T) {
			s, c := open(t, cache.Config[apikey.Digest, int]{})
			s.set(key, answer{after: time.Minute, deaf: true})
			began := time.Now()
			var callers sync.WaitGroup
			for _, caller := range []struct{ from, own time.Duration }{
				{0, 150 * time.Millisecond}, {0, 2 * time.Second}, {900 * time.Millisecond, 50 * time.Millisecond},
			} {
				callers.Go(func() {
					time.Sleep(caller.from)
					ctx, cancel := context.WithTimeout(t.Context(), caller.own)
					defer cancel()
					expectIn(t, ctx, c, key, 0, context.DeadlineExceeded)
					if until := time.Since(began); until != caller.from+caller.own {
						t.Errorf("a caller from %v with %v was held until %v", caller.from, caller.own, until)
					}
				})
			}
			callers.Wait()
			s.set(key, answer{})
			test.meanwhile(s)
			expect(t, c, key, test.want, nil)
			s.expectReads(t, test.want)
		})
	}
}

// A read ends at its own time limit although its callers have more time, and the failure is not
// stored.
func TestAReadHasItsOwnTimeLimit(t *testing.T) {
	for _, test := range []struct {
		name   string
		config cache.Config[apikey.Digest, int]
		want   time.Duration
	}{
		{"the default", cache.Config[apikey.Digest, int]{}, 900 * time.Millisecond},
		{"one's own", cache.Config[apikey.Digest, int]{FillTimeout: 30 * time.Millisecond}, 30 * time.Millisecond},
	} {
		bubble(t, test.name, func(t *testing.T) {
			s, c := open(t, test.config)
			s.set(key, answer{after: time.Hour})
			began := time.Now()
			if _, err := c.Find(t.Context(), key); err == nil {
				t.Error("there was an answer")
			}
			synctest.Wait()
			if took := time.Since(began); took != test.want {
				t.Errorf("the caller was held for %v, want %v", took, test.want)
			}
			if s.running != 0 {
				t.Error("the read still runs")
			}
			s.set(key, answer{})
			expect(t, c, key, 2, nil)
		})
	}
}

// A read that panics, or ends its goroutine, is an error for all waiting callers. It reveals
// nothing of the panic's value, and frees its slot.
func TestAPanicIsAnError(t *testing.T) {
	const canary = "wh_canary"
	for name, does := range map[string]func(){
		"panic":  func() { panic("cannot read " + canary) },
		"error":  func() { panic(errors.New(canary)) },
		"nil":    func() { panic(nil) },
		"Goexit": runtime.Goexit,
	} {
		bubble(t, name, func(t *testing.T) {
			s, c := open(t, cache.Config[apikey.Digest, int]{Fills: 2})
			s.set(key, answer{after: time.Millisecond, does: does})
			var callers sync.WaitGroup
			for range 10 { // more often than there are slots
				for range 3 {
					callers.Go(func() {
						v, err := c.Find(t.Context(), key)
						if v != 0 || err == nil || errors.Is(err, cache.ErrBusy) {
							t.Errorf("got %d, %v", v, err)
						} else if strings.Contains(err.Error(), canary) {
							t.Errorf("the error quotes the value: %v", err)
						}
					})
				}
				callers.Wait()
			}
			s.expectReads(t, 10)
			s.set(key, answer{})
			expect(t, c, key, 11, nil)
		})
	}
	bubble(t, "in Negative", func(t *testing.T) {
		c := cache.New(cache.Config[apikey.Digest, int]{
			Find: func(context.Context, apikey.Digest) (cache.Found[int], error) {
				return cache.Found[int]{Value: 1}, errDown
			},
			Negative: func(error) bool { panic(canary) },
			Lease:    newDatabase(t.Errorf).held(t),
		})
		defer c.Close()
		for range 100 {
			if v, err := c.Find(t.Context(), key); v != 0 || err == nil || strings.Contains(err.Error(), canary) {
				t.Fatalf("got %d, %v", v, err)
			}
		}
	})
}

// At most Fills reads run at once. A caller waits for its turn within its own deadline and at most
// FillTimeout, and then gets ErrBusy. Memory still answers meanwhile.
func TestTooManyReadsAreBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, c := open(t, cache.Config[apikey.Digest, int]{Fills: 2, FillTimeout: 700 * time.Millisecond})
		known, unknown := numbered(100), numbered(101)
		s.set(unknown, answer{err: errUnknown})
		expect(t, c, known, 1, nil)
		expect(t, c, unknown, 0, errUnknown)
		var callers sync.WaitGroup
		for n := range 2 {
			s.set(numbered(n+10), answer{after: time.Minute, deaf: true})
			callers.Go(func() { expect(t, c, numbered(n+10), n+3, nil) })
			synctest.Wait()
		}
		for _, test := range []struct {
			name  string
			ctx   func() (context.Context, context.CancelFunc)
			after time.Duration
			also  error
		}{
			{"a deadline", func() (context.Context, context.CancelFunc) {
				return context.WithTimeout(t.Context(), 50*time.Millisecond)
			}, 50 * time.Millisecond, context.DeadlineExceeded},
			{"a caller who is gone", func() (context.Context, context.CancelFunc) {
				ctx, cancel := context.WithCancel(t.Context())
				cancel()
				return ctx, cancel
			}, 0, context.Canceled},
			{"no deadline", func() (context.Context, context.CancelFunc) {
				return context.WithCancel(t.Context())
			}, 700 * time.Millisecond, cache.ErrBusy},
		} {
			began := time.Now()
			ctx, cancel := test.ctx()
			_, err := c.Find(ctx, key)
			cancel()
			if !errors.Is(err, cache.ErrBusy) || !errors.Is(err, test.also) {
				t.Errorf("%s: %v", test.name, err)
			}
			if took := time.Since(began); took != test.after {
				t.Errorf("%s: waited %v, want %v", test.name, took, test.after)
			}
			expect(t, c, known, 1, nil)
			expect(t, c, unknown, 0, errUnknown)
		}
		callers.Wait()
		s.expectReads(t, 4)
	})
	bubble(t, "eight by default", func(t *testing.T) {
		s, c := open(t, cache.Config[apikey.Digest, int]{})
		var callers sync.WaitGroup
		for n := range 80 {
			s.set(numbered(n), answer{after: 50 * time.Millisecond})
			callers.Go(func() {
				if _, err := c.Find(t.Context(), numbered(n)); err != nil {
					t.Error(err)
				}
			})
		}
		callers.Wait()
		if s.most != 8 {
			t.Errorf("%d reads ran at once, want 8", s.most)
		}
	})
}

// A caller that waited for its turn does not repeat another caller's read, and does not get ErrBusy
// if the answer is there.
func TestATurnIsNotWastedOnWhatIsKnown(t *testing.T) {
	bubble(t, "read meanwhile", func(t *testing.T) {
		s, c := open(t, cache.Config[apikey.Digest, int]{Fills: 1})
		s.set(other, answer{after: 100 * time.Millisecond})
		var callers sync.WaitGroup
		callers.Go(func() { expect(t, c, other, 1, nil) })
		synctest.Wait()
		for range 100 {
			callers.Go(func() { expect(t, c, key, 2, nil) })
		}
		callers.Wait()
		s.expectReads(t, 2)
	})
	bubble(t, "the turn came too late", func(t *testing.T) {
		s, c := open(t, cache.Config[apikey.Digest, int]{Fills: 1})
		var callers sync.WaitGroup
		find := func(d apikey.Digest, want int, a answer) {
			s.set(d, a)
			callers.Go(func() { expect(t, c, d, want, nil) })
			synctest.Wait()
		}
		find(numbered(10), 1, answer{after: 100 * time.Millisecond})
		find(key, 2, answer{after: 100 * time.Millisecond})
		find(numbered(11), 3, answer{after: 800 * time.Millisecond})
		callers.Go(func() { // fourth in the queue: key is known after 200 ms, its turn would be after 1 s
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			defer cancel()
			expectIn(t, ctx, c, key, 2, nil)
		})
		callers.Wait()
		s.expectReads(t, 3)
	})
}

// It does not get ErrBusy either while another caller reads the same key.
func TestATurnThatNeverCameIsNoMatterWhileSomebodyReads(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		s, c := open(t, cache.Config[apikey.Digest, int]{Fills: 1, FillTimeout: 100 * time.Millisecond})
		s.set(other, answer{after: 90 * time.Millisecond})
		s.set(key, answer{after: 50 * time.Millisecond})
		var callers sync.WaitGroup
		callers.Go(func() { expect(t, c, other, 1, nil) })
		time.Sleep(time.Millisecond)
		for range 3 { // one of them gets the turn, the others wait for theirs until it is too late
			callers.Go(func() { expect(t, c, key, 2, nil) })
		}
		callers.Wait()
		s.expectReads(t, 2)
	})
}

// A flood of unknown digests evicts no value.
func TestAFloodOfUnknownDigestsEvictsNoValue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, c := open(t, cache.Config[apikey.Digest, int]{Size: 10, NegativeSize: 10})
		for n := range 10 {
			expect(t, c, numbered(n), n+1, nil)
		}
		const flood = 20_000
		for n := range flood {
			unknown := numbered(1000 + n)
			s.set(unknown, answer{err: errUnknown})
			expect(t, c, unknown, 0, errUnknown)
		}
		for n := range 10 {
			expect(t, c, numbered(n), n+1, nil)
		}
		s.expectReads(t, 10+flood)
	})
}

// The configured numbers of values and negative answers are kept, those that were used last.
func TestSizesBoundWhatIsKept(t *testing.T) {
	for _, test := range []struct {
		name             string
		config           cache.Config[apikey.Digest, int]
		values, negative int
	}{
		{"configured", cache.Config[apikey.Digest, int]{Size: 3, NegativeSize: 2}, 3, 2},
		{"by default", cache.Config[apikey.Digest, int]{}, 100_000, 10_000},
	} {
		for _, sort := range []struct {
			name string
			size int
			err  error
		}{{"values", test.values, nil}, {"negative answers", test.negative, errUnknown}} {
			bubble(t, sort.name+", "+test.name, func(t *testing.T) {
				reads := 0
				test.config.Negative = func(error) bool { return true }
				db := newDatabase(t.Errorf)
				test.config.Lease = db.held(t)
				test.config.Find = func(context.Context, apikey.Digest) (found cache.Found[int], _ error) {
					reads++
					found.Origin = lease.Origin{Epoch: db.newest(), User: "ada"}
					return found, sort.err
				}
				c := cache.New(test.config)
				defer c.Close()
				expectReads := func(from, to, want int) {
					t.Helper()
					for n := from; n < to; n++ {
						expect(t, c, numbered(n), 0, sort.err)
					}
					if reads != want {
						t.Errorf("%d reads, want %d", reads, want)
					}
				}
				expectReads(0, sort.size, sort.size)
				expectReads(0, sort.size, sort.size)
				expectReads(0, 1, sort.size)                     // now 1 is the least recently used
				expectReads(sort.size, sort.size+1, sort.size+1) // and is evicted
				expectReads(0, 1, sort.size+1)
				expectReads(1, 2, sort.size+2)
			})
		}
	}
}

// Close returns when the reads have ended, including those of callers that have left. After that no
// read begins, and memory still answers.
func TestCloseWaitsForReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, c := open(t, cache.Config[apikey.Digest, int]{})
		s.set(key, answer{after: 300 * time.Millisecond})
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		began := time.Now()
		expectIn(t, ctx, c, key, 0, context.DeadlineExceeded)
		c.Close()
		if took := time.Since(began); took != 300*time.Millisecond || s.running != 0 {
			t.Errorf("closed after %v with %d reads running", took, s.running)
		}
		c.Close()
		expect(t, c, key, 1, nil)
		expect(t, c, other, 0, cache.ErrBusy)
		s.expectReads(t, 1)
	})
}

package cache_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/store/cache"
)

var (
	errUnknown = errors.New("unknown")
	errDown    = errors.New("the store is down")
)

// answer is what one read of a store gives.
type answer struct {
	after time.Duration
	err   error
	deaf  bool // does not respect its context
	does  func()
}

// store numbers its reads from 1. The value of a read is its number.
type store struct {
	mu      sync.Mutex
	reads   int
	running int
	most    int                      // reads that ran at the same time
	answers map[apikey.Digest]answer // digest → what its reads give; at once, with a value, if none
}

func (s *store) find(ctx context.Context, d apikey.Digest) (int, error) {
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
	if a.deaf {
		ctx = context.Background()
	}
	if a.after > 0 {
		select {
		case <-time.After(a.after):
		case <-ctx.Done():
			return n, ctx.Err()
		}
	}
	if a.does != nil {
		a.does()
	}
	return n, a.err
}

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

// open returns a store with a cache in front of it, closed with the test.
func open(t *testing.T, c cache.Config[int]) (*store, *cache.Cache[int]) {
	s := &store{answers: map[apikey.Digest]answer{}}
	c.Find = s.find
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

func expect(t *testing.T, c *cache.Cache[int], d apikey.Digest, want int, wantErr error) {
	t.Helper()
	expectIn(t, t.Context(), c, d, want, wantErr)
}

func expectIn(t *testing.T, ctx context.Context, c *cache.Cache[int], d apikey.Digest, want int, wantErr error) {
	t.Helper()
	got, err := c.Find(ctx, d)
	if got != want || !errors.Is(err, wantErr) {
		t.Errorf("found %d, %v; want %d, %v", got, err, want, wantErr)
	}
}

// Answers live from before their read was sent until MaxAge or NegativeAge later, to the
// nanosecond, however long the read took.
func TestAnAnswerLivesFromBeforeItsReadWasSent(t *testing.T) {
	const second = time.Second
	for _, test := range []struct {
		name        string
		config      cache.Config[int]
		answer      answer
		lookedUp    time.Duration // since the first look-up
		fromMemory  bool
		wantFailure error
	}{
		{"a value is used until its last moment", cache.Config[int]{}, answer{}, second, true, nil},
		{"and not after it", cache.Config[int]{}, answer{}, second + 1, false, nil},
		{"a slow read shortens the life of its value", cache.Config[int]{}, answer{after: 800 * time.Millisecond}, second, true, nil},
		{"by as long as it took", cache.Config[int]{}, answer{after: 800 * time.Millisecond}, second + 1, false, nil},
		{"MaxAge is what is configured", cache.Config[int]{MaxAge: 50 * time.Millisecond}, answer{}, 50 * time.Millisecond, true, nil},
		{"and no more", cache.Config[int]{MaxAge: 50 * time.Millisecond}, answer{}, 50*time.Millisecond + 1, false, nil},
		{"NegativeAge does not lengthen it", cache.Config[int]{MaxAge: 50 * time.Millisecond, NegativeAge: 9 * second}, answer{}, second, false, nil},

		{"a negative answer is used until its last moment", cache.Config[int]{}, answer{err: errUnknown}, second, true, errUnknown},
		{"a negative answer is not used after it", cache.Config[int]{}, answer{err: errUnknown}, second + 1, false, errUnknown},
		{"a slow read shortens the life of a negative answer", cache.Config[int]{}, answer{after: 800 * time.Millisecond, err: errUnknown}, second, true, errUnknown},
		{"by as long as that took", cache.Config[int]{}, answer{after: 800 * time.Millisecond, err: errUnknown}, second + 1, false, errUnknown},
		{"NegativeAge is what is configured", cache.Config[int]{NegativeAge: 50 * time.Millisecond}, answer{err: errUnknown}, 50 * time.Millisecond, true, errUnknown},
		{"and not more", cache.Config[int]{NegativeAge: 50 * time.Millisecond}, answer{err: errUnknown}, 50*time.Millisecond + 1, false, errUnknown},
		{"a negative answer slower than NegativeAge is for those who waited", cache.Config[int]{NegativeAge: 50 * time.Millisecond}, answer{after: 60 * time.Millisecond, err: errUnknown}, 60 * time.Millisecond, false, errUnknown},

		{"an error is for those who waited", cache.Config[int]{}, answer{err: errDown}, 0, false, errDown},
		{"so is an error that wraps none of ours", cache.Config[int]{}, answer{err: fmt.Errorf("x: %w", errDown)}, 1, false, errDown},
	} {
		bubble(t, test.name, func(t *testing.T) {
			s, c := open(t, test.config)
			s.set(key, test.answer)
			began := time.Now()
			want := func(n int) int {
				if test.wantFailure != nil {
					return 0
				}
				return n
			}
			expect(t, c, key, want(1), test.wantFailure)
			time.Sleep(test.lookedUp - time.Since(began))
			if test.fromMemory {
				expect(t, c, key, want(1), test.wantFailure)
				s.expectReads(t, 1)
				return
			}
			expect(t, c, key, want(2), test.wantFailure)
			s.expectReads(t, 2)
		})
	}
}

// The newest answer of a digest replaces an older one of the other sort.
func TestAKeyCanAppearAndDisappear(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, c := open(t, cache.Config[int]{})
		for round := 1; round <= 6; round += 2 {
			expect(t, c, key, round, nil)
			time.Sleep(time.Second + 1)
			s.set(key, answer{err: errUnknown})
			expect(t, c, key, 0, errUnknown)
			expect(t, c, key, 0, errUnknown)
			time.Sleep(time.Second + 1)
			s.set(key, answer{})
		}
		s.expectReads(t, 6)
	})
}

// A read that took longer than MaxAge is used by nobody and not stored.
func TestALateAnswerIsUsedByNobody(t *testing.T) {
	for name, err := range map[string]error{"value": nil, "negative answer": errUnknown} {
		bubble(t, name, func(t *testing.T) {
			s, c := open(t, cache.Config[int]{})
			s.set(key, answer{after: time.Second + 1, deaf: true, err: err})
			began := time.Now()
			var callers sync.WaitGroup
			for range 10 {
				callers.Go(func() { expect(t, c, key, 0, cache.ErrStale) })
			}
			callers.Wait()
			if took := time.Since(began); took != time.Second {
				t.Errorf("the callers waited %v for what they could not use after one second", took)
			}
			time.Sleep(time.Second)
			s.set(key, answer{})
			expect(t, c, key, 2, nil)
		})
	}
}

// A caller that is woken late looks at the age again: what was fresh when it arrived is not used.
func TestACallerWokenLateUsesNothingOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, c := open(t, cache.Config[int]{})
		time.Sleep(time.Hour)
		for _, err := range []error{nil, errUnknown} {
			for range 100 { // two channels are ready: either may be taken
				if v, err := cache.Wake(c, time.Now().Add(-time.Second-1), 7, err); v != 0 || !errors.Is(err, cache.ErrStale) {
					t.Fatalf("got %d, %v", v, err)
				}
			}
		}
		if v, err := cache.Wake(c, time.Now().Add(-time.Second+1), 7, nil); v != 7 || err != nil {
			t.Errorf("fresh: got %d, %v", v, err)
		}
	})
}

// However many ask for one digest at once, it is read once, and all get the answer.
func TestManyCallersShareOneRead(t *testing.T) {
	for _, fills := range []int{1, 8} {
		for name, a := range map[string]answer{"at once": {}, "slow": {after: 100 * time.Millisecond}, "unknown": {after: 1, err: errUnknown}} {
			bubble(t, fmt.Sprintf("%s, %d at a time", name, fills), func(t *testing.T) {
				s, c := open(t, cache.Config[int]{Fills: fills})
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

// A caller who leaves is answered at once and takes nothing away from those who stay.
func TestALeaderWhoLeavesDoesNotFailItsFollowers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, c := open(t, cache.Config[int]{})
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

// A read keeps the values of the context of whoever began it.
func TestAReadKeepsTheValuesOfItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type traceKey struct{}
		c := cache.New(cache.Config[any]{Find: func(ctx context.Context, _ apikey.Digest) (any, error) {
			return ctx.Value(traceKey{}), nil
		}})
		defer c.Close()
		if got, err := c.Find(context.WithValue(t.Context(), traceKey{}, "trace"), key); got != "trace" || err != nil {
			t.Errorf("got %v, %v", got, err)
		}
	})
}

// A read that hangs holds nobody beyond the caller's own time, nor beyond MaxAge, and from then on the
// next caller reads anew. What the hanging read says in the end is not believed.
func TestAHangingReadHoldsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, c := open(t, cache.Config[int]{})
		s.set(key, answer{after: time.Minute, deaf: true})
		began := time.Now()
		var callers sync.WaitGroup
		for _, caller := range []struct {
			from, own time.Duration
			until     time.Duration
			want      error
		}{
			{0, 150 * time.Millisecond, 150 * time.Millisecond, context.DeadlineExceeded},
			{0, time.Minute, time.Second, cache.ErrStale},
			{900 * time.Millisecond, 50 * time.Millisecond, 950 * time.Millisecond, context.DeadlineExceeded},
			{900 * time.Millisecond, time.Minute, time.Second, cache.ErrStale},
		} {
			callers.Go(func() {
				time.Sleep(caller.from)
				ctx, cancel := context.WithTimeout(t.Context(), caller.own)
				defer cancel()
				expectIn(t, ctx, c, key, 0, caller.want)
				if until := time.Since(began); until != caller.until {
					t.Errorf("a caller from %v with %v was held until %v, want %v", caller.from, caller.own, until, caller.until)
				}
			})
		}
		callers.Wait()
		s.expectReads(t, 1)

		at := func(moment time.Duration) { time.Sleep(moment - time.Since(began)) }
		at(time.Second + 1)
		s.set(key, answer{after: 10 * time.Millisecond})
		expect(t, c, key, 2, nil)
		at(time.Minute - 500*time.Millisecond)
		expect(t, c, key, 3, nil)
		at(time.Minute) // the first read ends
		synctest.Wait()
		expect(t, c, key, 3, nil)
		s.expectReads(t, 3)
	})
}

// Nor does the end of a read that hung keep callers from sharing the one that took its place.
func TestAHangingReadEndsUnnoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, c := open(t, cache.Config[int]{})
		s.set(key, answer{after: 2 * time.Second, deaf: true})
		expect(t, c, key, 0, cache.ErrStale)
		time.Sleep(900 * time.Millisecond)
		s.set(key, answer{after: 800 * time.Millisecond})
		var callers sync.WaitGroup
		callers.Go(func() { expect(t, c, key, 2, nil) })
		time.Sleep(300 * time.Millisecond) // the first read has ended
		expect(t, c, key, 2, nil)
		callers.Wait()
		s.expectReads(t, 2)
	})
}

// A read ends by its own time limit although its callers have more, and the failure is not kept.
func TestAReadHasItsOwnTimeLimit(t *testing.T) {
	for _, test := range []struct {
		name   string
		config cache.Config[int]
		want   time.Duration
	}{
		{"the default leaves time to use the answer", cache.Config[int]{}, 900 * time.Millisecond},
		{"one's own", cache.Config[int]{FillTimeout: 30 * time.Millisecond}, 30 * time.Millisecond},
		{"none is longer than its answer may be used", cache.Config[int]{FillTimeout: time.Minute, MaxAge: 10 * time.Millisecond}, 10 * time.Millisecond},
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

// A read that panics, or ends its goroutine, is an error for all who wait, says nothing of the panic's
// value, and gives its place free.
func TestAPanicIsAnError(t *testing.T) {
	const canary = "wh_canary"
	for name, does := range map[string]func(){
		"panic":  func() { panic("cannot read " + canary) },
		"error":  func() { panic(errors.New(canary)) },
		"nil":    func() { panic(nil) },
		"Goexit": runtime.Goexit,
	} {
		bubble(t, name, func(t *testing.T) {
			s, c := open(t, cache.Config[int]{Fills: 2})
			s.set(key, answer{after: time.Millisecond, does: does})
			var callers sync.WaitGroup
			for range 10 { // more often than there are places
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
		c := cache.New(cache.Config[int]{
			Find:     func(context.Context, apikey.Digest) (int, error) { return 1, errDown },
			Negative: func(error) bool { panic(canary) },
		})
		defer c.Close()
		for range 100 {
			if v, err := c.Find(t.Context(), key); v != 0 || err == nil || strings.Contains(err.Error(), canary) {
				t.Fatalf("got %d, %v", v, err)
			}
		}
	})
}

// No more than Fills reads run at once. Who has to wait waits within its own time and never longer than
// FillTimeout, and is then told that the cache is busy; what is in memory is answered all the same.
func TestTooManyReadsAreBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, c := open(t, cache.Config[int]{Fills: 2, FillTimeout: 700 * time.Millisecond})
		known, unknown := numbered(100), numbered(101)
		s.set(unknown, answer{err: errUnknown})
		expect(t, c, known, 1, nil)
		expect(t, c, unknown, 0, errUnknown)
		var callers sync.WaitGroup
		for n := range 2 {
			s.set(numbered(n+10), answer{after: time.Minute, deaf: true})
			callers.Go(func() { expect(t, c, numbered(n+10), 0, cache.ErrStale) })
		}
		synctest.Wait()
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
		s, c := open(t, cache.Config[int]{})
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

// Who waits for its turn does not read what somebody else has read by then, nor is told that the cache
// is busy when the answer is there.
func TestATurnIsNotWastedOnWhatIsKnown(t *testing.T) {
	bubble(t, "read meanwhile", func(t *testing.T) {
		s, c := open(t, cache.Config[int]{Fills: 1})
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
		s, c := open(t, cache.Config[int]{Fills: 1})
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

// Nor is it told so when somebody else is reading the very same.
func TestATurnThatNeverCameIsNoMatterWhileSomebodyReads(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		s, c := open(t, cache.Config[int]{Fills: 1, FillTimeout: 100 * time.Millisecond})
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
		s, c := open(t, cache.Config[int]{Size: 10, NegativeSize: 10})
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

// As many values and negative answers are kept as configured; of more, those that were used last.
func TestSizesBoundWhatIsKept(t *testing.T) {
	for _, test := range []struct {
		name             string
		config           cache.Config[int]
		values, negative int
	}{
		{"configured", cache.Config[int]{Size: 3, NegativeSize: 2}, 3, 2},
		{"by default", cache.Config[int]{}, 100_000, 10_000},
	} {
		for _, sort := range []struct {
			name string
			size int
			err  error
		}{{"values", test.values, nil}, {"negative answers", test.negative, errUnknown}} {
			bubble(t, sort.name+", "+test.name, func(t *testing.T) {
				reads := 0
				test.config.Negative = func(error) bool { return true }
				test.config.Find = func(context.Context, apikey.Digest) (int, error) { reads++; return 0, sort.err }
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
				expectReads(0, 1, sort.size)                     // now 1 is the one used longest ago
				expectReads(sort.size, sort.size+1, sort.size+1) // which gives way
				expectReads(0, 1, sort.size+1)
				expectReads(1, 2, sort.size+2)
			})
		}
	}
}

// Close returns when the reads have ended, even those of callers who are gone. After that no read
// begins, and memory still answers.
func TestCloseWaitsForReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, c := open(t, cache.Config[int]{})
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

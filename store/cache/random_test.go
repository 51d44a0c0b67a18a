package cache_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/store/cache"
)

// script is what callers and the store do in one random run, in virtual time.
type script struct {
	config  cache.Config[seen]
	callers []caller
	reads   []answer // what the first read gives, the second, …, and from the start again
}

type caller struct {
	from time.Duration // since the start
	key  int
	own  time.Duration // after which it leaves
}

// seen is a value that says when it was read.
type seen struct {
	key apikey.Digest
	at  time.Time
}

// seenError is an error that says so too.
type seenError struct {
	seen
	kind error
}

func (e seenError) Error() string { return fmt.Sprintf("%v, read at %v", e.kind, e.at) }
func (e seenError) Unwrap() error { return e.kind }

// step is the unit of the random times, so that events often fall on one moment.
const step = 100 * time.Millisecond

func drawSteps(t *rapid.T, name string, least, most int) time.Duration {
	return time.Duration(rapid.IntRange(least, most).Draw(t, name)) * step
}

func drawScript(t *rapid.T) script {
	s := script{config: cache.Config[seen]{
		Fills:       rapid.IntRange(1, 3).Draw(t, "fills"),
		NegativeAge: drawSteps(t, "negative age", 1, 15),
	}}
	s.callers = rapid.SliceOfN(rapid.Custom(func(t *rapid.T) caller {
		return caller{drawSteps(t, "from", 0, 60), rapid.IntRange(0, 3).Draw(t, "key"), drawSteps(t, "own", 1, 20)}
	}), 1, 60).Draw(t, "callers")
	s.reads = rapid.SliceOfN(rapid.Custom(func(t *rapid.T) answer {
		a := answer{after: drawSteps(t, "after", 0, 13), deaf: rapid.Bool().Draw(t, "deaf")}
		a.err = rapid.SampledFrom([]error{nil, nil, nil, errUnknown, errDown}).Draw(t, "error")
		if rapid.IntRange(0, 9).Draw(t, "panics") == 9 {
			a.does = func() { panic("oh") }
		}
		return a
	}), 1, 20).Draw(t, "reads")
	return s
}

// run is one run of a script, with all that went wrong in it.
type run struct {
	script
	mu      sync.Mutex
	number  int
	running int
	useful  map[apikey.Digest]time.Time // when the last read was sent whose value must be kept
	wrong   []string
}

func (r *run) wrongf(format string, values ...any) {
	r.wrong = append(r.wrong, fmt.Sprintf(format, values...))
}

// find is the store: it keeps count of itself.
func (r *run) find(ctx context.Context, d apikey.Digest) (seen, error) {
	value := seen{d, time.Now()}
	r.mu.Lock()
	a := r.reads[r.number%len(r.reads)]
	r.number++
	r.running++
	if r.running > r.config.Fills {
		r.wrongf("%d reads at once, %d may run", r.running, r.config.Fills)
	}
	if at, ok := r.useful[d]; ok && time.Since(at) <= time.Second {
		r.wrongf("read again %v after a read that is good for one second", time.Since(at))
	}
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		r.running--
		r.mu.Unlock()
	}()
	if a.deaf {
		ctx = context.Background()
	}
	select {
	case <-time.After(a.after):
	case <-ctx.Done():
		return value, seenError{value, ctx.Err()}
	}
	if a.does != nil {
		a.does()
	}
	if a.err != nil {
		return value, seenError{value, a.err}
	}
	r.mu.Lock()
	if time.Since(value.at) < time.Second { // at one second exactly, keeping it is a matter of luck
		r.useful[d] = value.at
	} else {
		delete(r.useful, d)
	}
	r.mu.Unlock()
	return value, nil
}

// judge is the oracle: what a caller who came and left at these times may have been told.
func (r *run) judge(d apikey.Digest, came time.Time, own time.Duration, value seen, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	stayed := time.Since(came)
	if stayed > own {
		r.wrongf("a caller with %v was held for %v", own, stayed)
	}
	var failure seenError
	switch {
	case err == nil && value.key != d:
		r.wrongf("the value of another key")
	case err == nil && time.Since(value.at) > time.Second:
		r.wrongf("a value was used %v after its read", time.Since(value.at))
	case err == nil:
	case value != seen{}:
		r.wrongf("a value beside the error %v", err)
	case errors.As(err, &failure) && failure.key != d:
		r.wrongf("the error of another key")
	case errors.Is(err, errUnknown) && time.Since(failure.at) > max(time.Second, r.config.NegativeAge):
		r.wrongf("a negative answer was used %v after its read", time.Since(failure.at))
	case errors.Is(err, errUnknown) && stayed == 0 && time.Since(failure.at) > r.config.NegativeAge && failure.at.Add(r.longest()).Before(came):
		r.wrongf("a negative answer was kept for %v", time.Since(failure.at))
	case errors.Is(err, errDown) && failure.at.Add(r.longest()).Before(came):
		r.wrongf("an error was kept for %v", time.Since(failure.at))
	}
}

// longest is how long a read may take.
func (r *run) longest() time.Duration {
	var longest time.Duration
	for _, a := range r.reads {
		longest = max(longest, a.after)
	}
	return longest
}

// An answer used at any time was read at most one second before, whatever readers and store do. Nor is
// a caller held beyond its time, a read wasted, or an error kept.
func TestNoAnswerIsUsedTooLate(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		r := &run{script: drawScript(rt), useful: map[apikey.Digest]time.Time{}}
		synctest.Test(t, func(t *testing.T) {
			r.config.Find = r.find
			r.config.Negative = func(err error) bool { return errors.Is(err, errUnknown) }
			c := cache.New(r.config)
			var callers sync.WaitGroup
			for _, who := range r.callers {
				callers.Go(func() {
					time.Sleep(who.from)
					ctx, cancel := context.WithTimeout(t.Context(), who.own)
					defer cancel()
					came := time.Now()
					value, err := c.Find(ctx, numbered(who.key))
					r.judge(numbered(who.key), came, who.own, value, err)
				})
			}
			callers.Wait()
			c.Close()
		})
		for _, wrong := range r.wrong {
			rt.Error(wrong)
		}
	})
}

// The same on the real scheduler and clock, where a goroutine may be late at any point.
func TestNoAnswerIsUsedTooLateInRealTime(t *testing.T) {
	const maxAge = 2 * time.Millisecond
	c := cache.New(cache.Config[seen]{
		MaxAge: maxAge, Fills: 2, Size: 4,
		Find: func(_ context.Context, d apikey.Digest) (seen, error) {
			value := seen{d, time.Now()}
			time.Sleep(time.Duration(rand.IntN(int(3 * maxAge / 2))))
			return value, nil
		},
	})
	defer c.Close()
	var callers sync.WaitGroup
	end := time.Now().Add(300 * time.Millisecond)
	for range 8 {
		callers.Go(func() {
			for time.Now().Before(end) {
				d, came := numbered(rand.IntN(8)), time.Now()
				value, err := c.Find(t.Context(), d)
				switch {
				case errors.Is(err, cache.ErrStale), errors.Is(err, cache.ErrBusy):
				case err != nil || value.key != d:
					t.Errorf("got %v, %v", value, err)
				case came.Sub(value.at) > maxAge:
					t.Errorf("a value was used at least %v after its read", came.Sub(value.at))
				}
			}
		})
	}
	callers.Wait()
}

package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// slowServer answers batches after a delay, and remembers them.
type slowServer struct {
	takes time.Duration
	err   error

	mu   sync.Mutex
	seen []string // the users of each batch
}

func (s *slowServer) ask(ctx context.Context, b *batch) ([]Verdict, error) {
	users := []string{b.identity}
	verdicts := make([]Verdict, len(b.attempts))
	for i, a := range b.attempts {
		users = append(users, a.User)
		verdicts[i] = Verdict{Admitted: true, Charge: ChargeRef{Name: "of " + a.User}}
	}
	s.mu.Lock()
	s.seen = append(s.seen, strings.Join(users, " "))
	s.mu.Unlock()
	select {
	case <-time.After(s.takes):
		return verdicts, s.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// asking is a caller, and its result.
type asking struct {
	user, identity string
	v              Verdict
	err            error
	took           time.Duration
}

// askAll runs callers, a millisecond apart, and returns when all have an answer. It passes panics
// to told.
func askAll(b *batches, timeout time.Duration, all []asking, told ...func(any)) {
	var waiting sync.WaitGroup
	for i := range all {
		waiting.Go(func() {
			defer func() {
				for _, tell := range told {
					if p := recover(); p != nil {
						tell(p)
					}
				}
			}()
			one := &all[i]
			began := time.Now()
			one.v, one.err = b.admit(timeout, one.identity, Attempt{User: one.user})
			one.took = time.Since(began)
		})
		time.Sleep(time.Millisecond)
	}
	waiting.Wait()
}

func callers(n int) []asking {
	all := make([]asking, n)
	for i := range all {
		all[i] = asking{user: fmt.Sprint("u", i), identity: "memory"}
	}
	return all
}

// A caller that finds the server free is asked about at once and alone. Callers that arrive while
// it is busy share a batch as soon as it is free. Each gets its own verdict.
func TestAttemptsGatherWhileTheServerIsBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &slowServer{takes: 10 * time.Millisecond}
		all := callers(6)
		askAll(newBatches(s.ask), time.Second, all)
		if got, want := strings.Join(s.seen, ", "), "memory u0, memory u1, memory u2 u3 u4 u5"; got != want {
			t.Errorf("asked about %q, want %q", got, want)
		}
		for i, one := range all {
			if one.err != nil || one.v.Charge.Name != "of "+one.user {
				t.Errorf("%s got %+v, %v", one.user, one.v, one.err)
			}
			if alone := one.took == s.takes; alone != (i < batchesUnderWay) {
				t.Errorf("%s waited %v", one.user, one.took)
			}
		}
	})
}

// Nobody waits longer than the timeout for earlier batches, and as long again for the server, and
// nobody is admitted by an answer that did not come.
func TestNobodyWaitsLongerThanTwoTimeouts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const timeout = 50 * time.Millisecond
		all := callers(200)
		askAll(newBatches((&slowServer{takes: time.Hour}).ask), timeout, all)
		for _, one := range all {
			if !errors.Is(one.err, context.DeadlineExceeded) || one.v.Admitted || one.took > 2*timeout {
				t.Errorf("%s waited %v and got %+v, %v", one.user, one.took, one.v, one.err)
			}
		}
	})
}

// An answer within the timeout counts, however many callers wait for earlier batches.
func TestASlowServerIsNotAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := callers(500)
		askAll(newBatches((&slowServer{takes: 45 * time.Millisecond}).ask), 50*time.Millisecond, all)
		for _, one := range all {
			if one.err != nil || !one.v.Admitted {
				t.Errorf("%s got %+v, %v after %v", one.user, one.v, one.err, one.took)
			}
		}
	})
}

// If a batch fails, nobody in it is admitted.
func TestAFailedBatchAdmitsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("broken")
		all := callers(10)
		askAll(newBatches((&slowServer{takes: 5 * time.Millisecond, err: broken}).ask), time.Second, all)
		for _, one := range all {
			if !errors.Is(one.err, broken) || one.v != (Verdict{}) {
				t.Errorf("%s got %+v, %v", one.user, one.v, one.err)
			}
		}
	})
}

// A caller that panics while it asks for others leaves them an error, and room for the next batch.
func TestAPanicLeavesAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var panics atomic.Int64
		b := newBatches(func(context.Context, *batch) ([]Verdict, error) {
			time.Sleep(7 * time.Millisecond) // until all have come
			panic("broken")
		})
		for range 2 {
			all := callers(6)
			askAll(b, time.Second, all, func(any) { panics.Add(1) })
			failed := int64(0)
			for _, one := range all {
				if errors.Is(one.err, errNotAsked) {
					failed++
				}
			}
			// Three callers ask: the first two for themselves, the third for the rest.
			if n := panics.Swap(0); n != 3 || failed != 3 {
				t.Errorf("%d panicked and %d have an error, want 3 each", n, failed)
			}
		}
	})
}

// A batch is for one memory of the server: callers with another identity are not in it. No batch is
// long enough to make the server seem unreachable to others.
func TestABatchIsOfOneMemoryAndShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &slowServer{takes: time.Second}
		all := callers(batchesUnderWay + maxBatch + 10)
		for i := range all {
			if i >= len(all)-5 {
				all[i].identity = "another"
			}
		}
		askAll(newBatches(s.ask), time.Hour, all)
		var sizes []string
		for _, batch := range s.seen {
			users := strings.Fields(batch)
			sizes = append(sizes, fmt.Sprint(users[0], " ", len(users)-1))
		}
		want := "memory 1, memory 1, memory 100, memory 5, another 5"
		if got := strings.Join(sizes, ", "); got != want {
			t.Errorf("batches of %s, want %s", got, want)
		}
	})
}

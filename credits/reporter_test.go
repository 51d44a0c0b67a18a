package credits_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyporter/keyporter/credits"
	"github.com/keyporter/keyporter/credits/ledgertest"
	"github.com/keyporter/keyporter/internal/parts/partstest"
	"github.com/keyporter/keyporter/usage"
)

// A wave of new users, which asks the ledger at once, does not change that the others are reported
// once a second.
func TestReportsAreMadeOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := ledgertest.New(1_000_000)
		b.Delay = func() time.Duration { return 5 * time.Millisecond }
		c, _ := b.Start(t, nil)
		time.Sleep(1500 * time.Millisecond)
		var stop atomic.Bool
		go func() {
			for i := 0; !stop.Load(); i++ { // 1000 requests a second by ten users
				spend(context.Background(), c, spender(fmt.Sprint("u", i%10), "acme", usage.PoolUser, 1_000_000), 1)
				time.Sleep(time.Millisecond)
			}
		}()
		time.Sleep(5 * time.Second)
		before := b.Reports()
		time.Sleep(10 * time.Second)
		t.Logf("before: %d reports in 10 s", b.Reports()-before)
		go func() {
			for i := range 200 { // a new user every 17 ms, for 3 s
				go spend(context.Background(), c, spender(fmt.Sprint("new", i), "acme", usage.PoolUser, 1_000_000), 1)
				time.Sleep(17 * time.Millisecond)
			}
		}()
		time.Sleep(10 * time.Second)
		before = b.Reports()
		time.Sleep(10 * time.Second)
		n := b.Reports() - before
		t.Logf("8 s after the new users: %d reports in 10 s", n)
		stop.Store(true)
		if n > 30 {
			t.Errorf("%d reports in 10 s, one a second is meant", n)
		}
	})
}

// A process with constantly waiting requests still gives back the credits that others ask for.
func TestABusyProcessGivesBackWhatOthersWant(t *testing.T) {
	partstest.Slow(t)
	synctest.Test(t, func(t *testing.T) {
		b := ledgertest.New(1000)
		b.Delay = func() time.Duration { return 2 * time.Millisecond }
		a, _ := b.Start(t, nil)
		z, _ := b.Start(t, nil)
		time.Sleep(1500 * time.Millisecond)
		// New users on a, one every ms, as after a start: a request always waits.
		var stop atomic.Bool
		go func() {
			for i := 0; !stop.Load(); i++ {
				go spend(context.Background(), a, spender(fmt.Sprint("new", i), "acme", usage.PoolUser, 1000), 1)
				time.Sleep(time.Millisecond)
			}
		}()
		time.Sleep(time.Second)
		// Ada's pool: a holds all of its 20 remaining credits.
		ada := spender("ada", "acme", usage.PoolUser, 1000)
		for range 5 {
			spend(t.Context(), a, ada, 1)
			time.Sleep(20 * time.Millisecond)
		}
		sold, failed := 0, 0
		for range 1100 {
			_, result, err := spend(t.Context(), z, ada, 1)
			if err != nil {
				failed++
				if failed > 5 {
					break
				}
			} else if result == credits.Spent {
				sold++
			} else {
				break
			}
		}
		stop.Store(true)
		t.Logf("sold on the other replica: %d, undecided %d", sold, failed)
		if failed > 0 {
			t.Errorf("503 for want of an answer to a recall: a is busy")
		}
	})
}

// A process under steady traffic does so too, after a wave of new users.
func TestASteadyProcessGivesBackWhatOthersWant(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := ledgertest.New(100_000)
		b.Delay = func() time.Duration { return 5 * time.Millisecond }
		a, _ := b.Start(t, nil)
		z, _ := b.Start(t, nil)
		time.Sleep(1500 * time.Millisecond)
		var stop atomic.Bool
		go func() { // steady: ten long-known users
			for i := 0; !stop.Load(); i++ {
				spend(context.Background(), a, spender(fmt.Sprint("u", i%10), "acme", usage.PoolUser, 100_000), 1)
				time.Sleep(time.Millisecond)
			}
		}()
		for i := range 200 { // new users for 3 s
			go spend(context.Background(), a, spender(fmt.Sprint("new", i), "acme", usage.PoolUser, 100_000), 1)
			time.Sleep(17 * time.Millisecond)
		}
		time.Sleep(5 * time.Second)
		ada := spender("ada", "acme", usage.PoolUser, 100_000)
		spend(t.Context(), a, ada, 1) // a holds 15 more
		time.Sleep(2 * time.Second)
		if _, result, err := spend(t.Context(), z, ada, 99_980); err != nil || result != credits.Spent {
			t.Log(result, err)
		}
		time.Sleep(2 * time.Second)
		failed := 0
		for range 40 {
			if _, _, err := spend(t.Context(), z, ada, 1); err != nil {
				failed++
			}
			time.Sleep(100 * time.Millisecond)
		}
		stop.Store(true)
		t.Logf("%d of 40 answered with 503", failed)
		if failed > 0 {
			t.Fail()
		}
	})
}

// The database's clock goes back over the end of a month, as after a fail-over to a server with a
// slow clock: a process that has since counted from zero again gives up what it holds, once, and
// goes on.
func TestTheClockOfTheDatabaseGoesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := ledgertest.New(1000)
		c, _ := b.Start(t, nil)
		time.Sleep(time.Second)
		ada := spender("ada", "acme", usage.PoolUser, 1000)
		bob := spender("bob", "acme", usage.PoolUser, 1000)
		jump := func(to time.Time) {
			b.Mu.Lock()
			b.Jumped = time.Until(to)
			b.Mu.Unlock()
		}
		wait := func() { time.Sleep(3 * time.Second) }
		for range 10 {
			spend(t.Context(), c, ada, 1)
		}
		wait()
		end := usage.MonthOf(time.Now()).End()
		jump(end.Add(time.Second))
		spend(t.Context(), c, bob, 1)
		wait()
		spend(t.Context(), c, ada, 1)
		wait()
		jump(end.Add(-10 * time.Minute)) // back
		spend(t.Context(), c, bob, 1)
		wait()
		spend(t.Context(), c, ada, 1)
		wait()
		jump(end.Add(time.Minute)) // and on
		failed := 0
		for i := range 20 {
			_, _, err := spend(t.Context(), c, spender(fmt.Sprint("other", i), "acme", usage.PoolUser, 1000), 1)
			if err != nil {
				failed++
			}
			time.Sleep(time.Second)
		}
		if len(b.Refused) > 2 || failed > 2 {
			t.Errorf("%d of 20 requests were not decided, %d reports refused: %v", failed, len(b.Refused), b.Refused)
		}
	})
}

package credits_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyporter/keyporter/credits"
	"github.com/keyporter/keyporter/credits/ledger"
	"github.com/keyporter/keyporter/credits/ledgertest"
	"github.com/keyporter/keyporter/internal/parts/partstest"
	"github.com/keyporter/keyporter/usage"
)

// spend spends credits as a request does.
func spend(ctx context.Context, c *credits.Allocator, p *credits.Spender, cost int64) (usage.Charge, credits.Result, error) {
	charge, result := c.TrySpend(p, cost)
	if result == credits.Spent {
		return charge, result, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 150*time.Millisecond)
	defer cancel()
	return c.Spend(ctx, p, cost)
}

func spender(user, account string, kind usage.PoolKind, limit usage.Limit) *credits.Spender {
	return &credits.Spender{User: user, Account: account, Pool: kind, Limit: limit}
}

// However many callers ask however many processes, they get exactly all credits of a pool; and when
// the first of them is refused, no live process has a credit left.
func TestAllCreditsAreSoldAndNotOneMore(t *testing.T) {
	runs := 40
	if os.Getenv("KEYPORTER_LONG") != "" {
		runs = 5000
	}
	for run := range runs {
		synctest.Test(t, func(t *testing.T) {
			limit := rand.Int64N(3000)
			b := ledgertest.New(usage.Limit(limit))
			b.Delay = func() time.Duration { return rand.N(3 * time.Millisecond) }
			var tellers []*credits.Allocator
			for range 1 + rand.N(4) {
				c, _ := b.Start(t, nil)
				tellers = append(tellers, c)
			}
			synctest.Wait()
			var mu sync.Mutex
			admitted, undecided := int64(0), 0
			var refused, last time.Time // the first refused, and the last admitted
			var all sync.WaitGroup
			for range 1000 {
				all.Go(func() {
					for range 3 {
						time.Sleep(rand.N(100 * time.Millisecond))
						_, result, err := spend(t.Context(), tellers[rand.N(len(tellers))], spender("ada", "acme", usage.PoolUser, usage.Limit(limit)), 1)
						mu.Lock()
						switch {
						case err != nil:
							undecided++
						case result == credits.Spent:
							admitted++
							last = time.Now()
						case refused.IsZero():
							refused = time.Now()
						}
						mu.Unlock()
					}
				})
			}
			all.Wait()
			if admitted > limit || admitted < limit && int64(undecided) == 0 || undecided > 0 {
				t.Errorf("run %d: %d admitted of %d, %d undecided, by %d processes", run, admitted, limit, undecided, len(tellers))
			}
			if stranded := last.Sub(refused); stranded > 0 && !refused.IsZero() {
				t.Errorf("run %d: somebody had a credit %v after the first refusal", run, stranded)
			}
			b.MustBalance(t)
		})
		if t.Failed() {
			return
		}
	}
}

// Processes are killed and the database fails, again and again: nothing is sold twice, and each
// kill loses no more than the killed process held.
func TestNothingIsSoldTwiceWhateverFails(t *testing.T) {
	for range 5 {
		synctest.Test(t, func(t *testing.T) {
			const limit = 20_000
			b := ledgertest.New(limit)
			b.Delay = func() time.Duration { return rand.N(20 * time.Millisecond) }
			b.Fails = func() bool { return rand.N(10) == 0 }
			type process struct {
				*credits.Allocator
				stop    func()
				pending sync.WaitGroup
			}
			start := func() *process {
				p := &process{}
				p.Allocator, p.stop = b.Start(t, nil)
				return p
			}
			tellers := []*process{start(), start(), start()}
			admitted := int64(0)
			var mu sync.Mutex
			var all sync.WaitGroup
			end := time.Now().Add(10 * time.Second)
			for i := range 60 {
				all.Go(func() {
					for time.Now().Before(end) {
						mu.Lock()
						p := tellers[rand.N(len(tellers))]
						p.pending.Add(1)
						mu.Unlock()
						charge, result, err := spend(t.Context(), p.Allocator, spender(fmt.Sprint("user", i%7), "acme", usage.PoolUser, limit), 1+rand.Int64N(3))
						if err == nil && result == credits.Spent {
							mu.Lock()
							if rand.N(20) == 0 {
								p.Void(charge) // the caller had gone
							} else {
								admitted += charge.Cost
							}
							mu.Unlock()
						}
						p.pending.Done()
						time.Sleep(rand.N(40 * time.Millisecond))
					}
				})
			}
			for range 8 {
				time.Sleep(time.Second)
				mu.Lock()
				i := rand.N(len(tellers))
				dead := tellers[i]
				tellers[i] = start()
				mu.Unlock()
				b.Kill(dead.Allocator)
				dead.pending.Wait()
				go dead.stop()
			}
			all.Wait()
			for _, p := range tellers {
				b.Mu.Lock()
				b.Fails = nil
				b.Mu.Unlock()
				p.stop()
				if n := p.Outstanding(); n != 0 {
					t.Errorf("%d credits are outstanding after a stop in good order", n)
				}
			}
			b.Mu.Lock()
			used, leased := int64(0), int64(0)
			for pool, balance := range b.Pools {
				if pool.Kind == usage.PoolUser {
					used += balance.Used - balance.Refunded
					leased += balance.Leased
					if balance.Used-balance.Refunded+balance.Leased > limit {
						t.Errorf("%v: %+v of %d", pool, balance, limit)
					}
				}
			}
			b.Mu.Unlock()
			// Everything that the killed processes held at their last report counts as used: their
			// users can lose no more.
			if missing := admitted - used; missing < 0 || missing > leased {
				t.Errorf("admitted %d, used %d, lost %d with 8 kills", admitted, used, leased)
			}
			t.Logf("admitted %d, used %d, lost %d with 8 kills", admitted, used, leased-(admitted-used))
			b.MustBalance(t)
		})
		if t.Failed() {
			return
		}
	}
}

// A hundred months end under load: no credit of one month pays for a request of another, and no
// request near the end of a month is refused while its month has credits. The processes' clocks
// have arbitrary offsets, and drift.
func TestACreditPaysForItsOwnMonthOnly(t *testing.T) {
	partstest.Slow(t)
	synctest.Test(t, func(t *testing.T) {
		const limit = 10_000
		b := ledgertest.New(limit)
		b.Delay = func() time.Duration { return rand.N(30 * time.Millisecond) }
		var tellers []*credits.Allocator
		for _, drift := range []float64{1, 1.04, 0.96} {
			began, offset := b.Now(), rand.N(time.Hour)
			c, _ := b.Start(t, func() time.Duration { return offset + time.Duration(float64(b.Now().Sub(began))*drift) })
			tellers = append(tellers, c)
		}
		var wrong, right, undecided atomic.Int64
		for range 100 {
			end := usage.MonthOf(b.Now()).End()
			b.Mu.Lock()
			b.Jumped += end.Add(-3 * time.Second).Sub(time.Now().Add(b.Jumped))
			b.Mu.Unlock()
			var all sync.WaitGroup
			for range 12 {
				all.Go(func() {
					for now := b.Now(); now.Before(end.Add(2 * time.Second)); now = b.Now() {
						charge, result, err := spend(t.Context(), tellers[rand.N(len(tellers))], spender("ada", "acme", usage.PoolUser, limit), 1)
						switch {
						case err != nil:
							undecided.Add(1)
						case result != credits.Spent || charge.Month != usage.MonthOf(now) && charge.Month != usage.MonthOf(b.Now()):
							wrong.Add(1)
						default:
							right.Add(1)
						}
						time.Sleep(rand.N(20 * time.Millisecond))
					}
				})
			}
			all.Wait()
		}
		t.Logf("%d requests around 100 month ends, %d charged to another month or refused, %d undecided", right.Load(), wrong.Load(), undecided.Load())
		if wrong.Load() > 0 || right.Load() < 10_000 || undecided.Load() > right.Load()/1000 {
			t.Errorf("%d wrong, %d undecided of %d", wrong.Load(), undecided.Load(), right.Load())
		}
		b.MustBalance(t)
	})
}

// A flood of requests refused for want of credits causes no database work, except one look a second
// for returned credits.
func TestRefusalsCostNoWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := ledgertest.New(1)
		c, _ := b.Start(t, nil)
		p := spender("ada", "acme", usage.PoolUser, 1)
		synctest.Wait()
		if _, result, err := spend(t.Context(), c, p, 1); err != nil || result != credits.Spent {
			t.Fatal(result, err)
		}
		spend(t.Context(), c, p, 1)
		before := b.Reports()
		for range 100_000 {
			if _, result, err := spend(t.Context(), c, p, 1); result != credits.Exhausted || err != nil {
				t.Fatal(result, err)
			}
			time.Sleep(100 * time.Microsecond)
		}
		if n := b.Reports() - before; n > 11 {
			t.Errorf("100,000 refusals in 10 s caused %d reports", n)
		}
		// Returned credits are found all the same.
		c.Settle(t.Context(), ledger.Outcome{
			ChargeID: ledger.ChargeID{Holder: c.Name(), Number: 1}, Month: usage.MonthOf(time.Now()), Credits: 1, Refund: 1, User: "ada", Account: "acme", Cause: "test",
		})
		eventually(t, func() bool { _, result, _ := spend(t.Context(), c, p, 1); return result == credits.Spent })
	})
}

// eventually waits in virtual time.
func eventually(t testing.TB, done func() bool) {
	t.Helper()
	for range 1000 {
		if done() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("it did not happen in 10 s")
}

// A lowered limit holds for the first request decided by it, even if the process still holds
// credits of the old one; a raised limit gives more at once.
func TestAChangedLimitHoldsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := ledgertest.New(1000)
		c, _ := b.Start(t, nil)
		synctest.Wait()
		p := spender("ada", "acme", usage.PoolUser, 1000)
		for range 10 {
			if _, result, err := spend(t.Context(), c, p, 1); err != nil || result != credits.Spent {
				t.Fatal(result, err)
			}
		}
		change := func(limit usage.Limit) *credits.Spender {
			b.Mu.Lock()
			defer b.Mu.Unlock()
			b.Plan, b.Epoch = limit, b.Epoch+1
			p := spender("ada", "acme", usage.PoolUser, limit)
			p.Epoch = b.Epoch
			return p
		}
		p = change(10)
		if charge, result, err := spend(t.Context(), c, p, 1); err != nil || result != credits.Exhausted || charge.Credits.Used != 10 || charge.Credits.Limit != 10 {
			t.Errorf("%+v %v %v", charge.Credits, result, err)
		}
		p = change(11)
		if charge, result, err := spend(t.Context(), c, p, 1); err != nil || result != credits.Spent || charge.Credits.Remaining() != 0 {
			t.Errorf("%+v %v %v", charge.Credits, result, err)
		}
		if _, result, err := spend(t.Context(), c, p, 1); err != nil || result != credits.Exhausted {
			t.Errorf("%v %v", result, err)
		}
		p = change(usage.Unlimited)
		for range 100 {
			if _, result, err := spend(t.Context(), c, p, 1); err != nil || result != credits.Spent {
				t.Fatal(result, err)
			}
		}
		p = change(100)
		if charge, result, err := spend(t.Context(), c, p, 1); err != nil || result != credits.Exhausted || charge.Credits.Used != 111 {
			t.Errorf("%+v %v %v", charge.Credits, result, err)
		}
		b.MustBalance(t)
	})
}

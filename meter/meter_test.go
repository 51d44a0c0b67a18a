package meter_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/credits"
	"github.com/keyporter/keyporter/credits/ledgertest"
	"github.com/keyporter/keyporter/meter"
	"github.com/keyporter/keyporter/ratelimit"
	"github.com/keyporter/keyporter/receipt"
	"github.com/keyporter/keyporter/usage"
)

// However often a Check is sent, and whichever of its callers hang up: a request that passed is
// charged once, and one that did not pass is not charged. The exception is a request with two lost
// answers: its first Void does not know that the second will follow.
func TestARequestThatPassesIsChargedOnce(t *testing.T) {
	for range 30 {
		synctest.Test(t, func(t *testing.T) {
			const requests = 300
			limit := []usage.Limit{requests / 2, 2 * requests}[rand.N(2)]
			b := ledgertest.New(limit)
			b.Delay = func() time.Duration { return rand.N(10 * time.Millisecond) }
			credits, stop := b.Start(t, nil)
			limiter := ratelimit.NewMemory(nil)
			m := meter.New(meter.Config{Limiter: limiter, Credits: credits, Signer: signer(t)})
			synctest.Wait()
			p := principal("ada", "acme", usage.PoolUser, limit)
			p.RateLimit = 10_000

			var mu sync.Mutex
			names := map[string]map[string]bool{} // names of the charges each request passed with
			told := map[string]int{}              // number of answers on their way
			var all sync.WaitGroup
			for i := range requests {
				request := fmt.Sprint("request ", i)
				patience := []time.Duration{50 * time.Millisecond, 6 * time.Second, 10 * time.Second, 50 * time.Second}[rand.N(4)]
				for range 1 + rand.N(5) {
					all.Go(func() {
						time.Sleep(rand.N(patience))
						ctx, cancel := context.WithTimeout(t.Context(), rand.N(60*time.Millisecond))
						defer cancel()
						charge, reason, err := m.Take(ctx, authz.Use{Principal: *p, Request: request, CallerTimeout: patience, Cost: 1})
						if err == nil && reason == authz.Allowed {
							mu.Lock()
							told[request]++
							mu.Unlock()
						}
						// The answer is late, and nobody waits for it any more.
						if err == nil && rand.N(4) == 0 {
							time.Sleep(rand.N(20 * time.Millisecond))
							err = context.Canceled
						}
						if err != nil { // as the server does
							m.Void(charge)
							return
						}
						if reason == authz.Allowed {
							mu.Lock()
							defer mu.Unlock()
							if names[request] == nil {
								names[request] = map[string]bool{}
							}
							names[request][charge.ID] = true
						}
					})
				}
			}
			all.Wait()
			stop()
			for request, charges := range names {
				if len(charges) != 1 {
					t.Errorf("%s was charged under %d names", request, len(charges))
				}
			}
			lost, used := 0, 0
			for request, answers := range told {
				if answers > 1 && names[request] == nil {
					lost++
				}
			}
			for pool, balance := range b.Pools {
				if pool.Kind == usage.PoolUser {
					used += int(balance.Used - balance.Refunded)
				}
			}
			v, _ := limiter.Admit(t.Context(), ratelimit.Attempt{User: "ada", ID: "another", Limit: 10_000, Window: time.Minute})
			counted := 10_000 - 1 - int(v.Remaining)
			if used < len(names) || used > len(names)+lost || counted != used {
				t.Errorf("%d requests were let pass, of %d two answers were lost; %d credits were used, %d are in the rate log", len(names), lost, used, counted)
			}
			b.MustBalance(t)
		})
		if t.Failed() {
			return
		}
	}
}

// A repeated Check is charged once as long as its caller waits for an answer, and passes with the
// charge of the first one.
func TestARepeatedCheckIsChargedOnceWhileItsCallerWaits(t *testing.T) {
	for name, row := range map[string]struct {
		timeout, after time.Duration
		charges        int64
	}{
		"8 s later by a caller that waits for 10 s":         {10 * time.Second, 8 * time.Second, 1},
		"5.5 s later by a caller that waits for 6 s":        {6 * time.Second, 5500 * time.Millisecond, 1},
		"50 s later by a caller that waits without a limit": {0, 50 * time.Second, 1},
		"long after the caller's time":                      {10 * time.Second, 12 * time.Second, 2},
		"later than anything is remembered":                 {time.Hour, 2 * time.Minute, 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := ledgertest.New(1000)
				credits, stop := b.Start(t, nil)
				m := meter.New(meter.Config{Limiter: ratelimit.NewMemory(nil), Credits: credits, Signer: signer(t)})
				synctest.Wait()
				use := authz.Use{Principal: *principal("ada", "acme", usage.PoolUser, 1000), Request: "r", CallerTimeout: row.timeout, Cost: 1}
				first, reason, err := m.Take(t.Context(), use)
				if reason != authz.Allowed || err != nil {
					t.Fatal(reason, err)
				}
				time.Sleep(row.after)
				use.CallerTimeout -= min(use.CallerTimeout, row.after) // some callers tell what is left
				second, reason, err := m.Take(t.Context(), use)
				if reason != authz.Allowed || err != nil || (second.ID == first.ID) != (row.charges == 1) {
					t.Errorf("%v, %v: charged as %q, at first as %q", reason, err, second.ID, first.ID)
				}
				stop()
				if used := b.Used() / 2; used != row.charges { // a use is posted to two pools
					t.Errorf("%d credits are used, want %d", used, row.charges)
				}
			})
		})
	}
}

// A repeated Check passes with the charge of the first one although that has taken the last credit,
// or the last request of the window. Another request does not pass.
func TestARepeatedCheckNeedsNothingMore(t *testing.T) {
	for name, row := range map[string]struct {
		credits, rate usage.Limit
		named         bool
		refused       authz.Reason
	}{
		"the last credit":                               {1, 60, false, authz.CreditsExhausted},
		"the last credit, with a log that waits":        {1, 60, true, authz.CreditsExhausted},
		"the last request":                              {1000, 1, false, authz.RateLimited},
		"the last request, and its credit":              {1, 1, false, authz.RateLimited},
		"the last request, and its credit, if it waits": {1, 1, true, authz.RateLimited},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := ledgertest.New(row.credits)
				credits, stop := b.Start(t, nil)
				m := meter.New(meter.Config{Limiter: &limiter{Memory: ratelimit.NewMemory(nil), named: row.named}, Credits: credits, Signer: signer(t)})
				synctest.Wait()
				p := principal("ada", "acme", usage.PoolUser, row.credits)
				p.RateLimit = row.rate
				use := authz.Use{Principal: *p, Request: "r", CallerTimeout: 30 * time.Second, Cost: 1}
				first, reason, err := m.Take(t.Context(), use)
				if reason != authz.Allowed || err != nil {
					t.Fatal(reason, err)
				}
				for _, after := range []time.Duration{0, 2 * time.Second, 20 * time.Second} { // the last time the block has been given back
					time.Sleep(after)
					again, reason, err := m.Take(t.Context(), use)
					if reason != authz.Allowed || err != nil || again.ID != first.ID || again.Receipt != first.Receipt || again.User != "" {
						t.Errorf("%v later: %v, %v, %+v; at first %+v", after, reason, err, again, first)
					}
					other := use
					other.Request = "another"
					if _, reason, err := m.Take(t.Context(), other); reason != row.refused || err != nil {
						t.Errorf("%v later, another request: %v, %v, want %v", after, reason, err, row.refused)
					}
				}
				stop()
				if used := b.Used() / 2; used != 1 {
					t.Errorf("%d credits are used, want 1", used)
				}
			})
		})
	}
}

// A request over the rate limit learns so, even without credits, and asks the ledger nothing; a
// request without credits leaves no entry in the rate log.
func TestTheRateLimitComesBeforeTheCredits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := ledgertest.New(2)
		credits, _ := b.Start(t, nil)
		m := meter.New(meter.Config{Limiter: ratelimit.NewMemory(nil), Credits: credits, Signer: signer(t)})
		synctest.Wait()
		take := func(limit usage.Limit) (usage.Charge, authz.Reason) {
			t.Helper()
			p := principal("ada", "acme", usage.PoolUser, 2)
			p.RateLimit = limit
			ctx, cancel := context.WithTimeout(t.Context(), 150*time.Millisecond)
			defer cancel()
			charge, reason, err := m.Take(ctx, authz.Use{Principal: *p, Cost: 1})
			if err != nil {
				t.Fatal(err)
			}
			return charge, reason
		}
		for i, want := range []authz.Reason{authz.Allowed, authz.Allowed, authz.CreditsExhausted, authz.CreditsExhausted} {
			charge, reason := take(60)
			if left := int64(max(58, 59-i)); reason != want || charge.Rate.Remaining != left {
				t.Errorf("request %d: %v with %d left of 60, want %v with %d", i, reason, charge.Rate.Remaining, want, left)
			}
		}
		before := b.Reports()
		if _, reason := take(2); reason != authz.RateLimited || b.Reports() != before {
			t.Errorf("with neither: %v, and the ledger was asked %d times", reason, b.Reports()-before)
		}
	})
}

// Usage returns what the next request would get, on every process and however long it has been
// idle, including a grant or a changed plan. It counts nothing, spends nothing, and fails if the
// ledger cannot be asked.
func TestWhereAUserStands(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := ledgertest.New(1000)
		var failing atomic.Bool
		b.Fails = failing.Load
		var meters []*meter.Meter
		for range 2 {
			credits, _ := b.Start(t, nil)
			meters = append(meters, meter.New(meter.Config{Limiter: ratelimit.NewMemory(nil), Credits: credits, Signer: signer(t)}))
		}
		synctest.Wait()
		p := principal("ada", "acme", usage.PoolUser, 1000)
		p.RateLimit = 60
		expect := func(i int, used, remaining int64, limit usage.Limit) {
			t.Helper()
			rate, credits, err := meters[i].Usage(t.Context(), p)
			if err != nil || !credits.Counted || credits.Used != used || credits.Limit != limit || rate.Remaining != remaining || rate.Limit != 60 || rate.Window != time.Minute {
				t.Errorf("at %d: %+v, %+v, %v; want %d of %v credits used, %d requests remaining", i, rate, credits, err, used, limit, remaining)
			}
		}
		take := func(i int) (used int64) {
			t.Helper()
			charge, reason, err := meters[i].Take(t.Context(), authz.Use{Principal: *p, Cost: 1})
			if err != nil || reason != authz.Allowed {
				t.Fatal(reason, err)
			}
			return charge.Credits.Used
		}
		expect(0, 0, 60, 1000)
		expect(1, 0, 60, 1000)
		holdNothing(t, b)
		for n := range int64(5) {
			if used := take(0); used != n+1 {
				t.Errorf("the request is told that %d credits are used", used)
			}
			expect(0, n+1, 59-n, 1000) // before it is reported
		}
		time.Sleep(1500 * time.Millisecond)
		expect(1, 5, 60, 1000)
		time.Sleep(time.Hour)
		for range 10 {
			take(1)
		}
		time.Sleep(1500 * time.Millisecond)
		expect(0, 15, 60, 1000) // this process was idle for an hour
		time.Sleep(time.Minute)
		expect(0, 15, 60, 1000)
		expect(1, 15, 60, 1000)
		holdNothing(t, b)
		take(0)
		expect(0, 16, 59, 1000)

		b.Mu.Lock()
		b.Plan, b.Epoch = 2000, b.Epoch+1
		p.Credits, p.Epoch = 2000, b.Epoch
		b.Mu.Unlock()
		expect(0, 16, 59, 2000)

		time.Sleep(time.Minute)
		failing.Store(true)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, credits, err := meters[0].Usage(ctx, p); err == nil {
			t.Errorf("without the ledger: %+v", credits)
		}
		failing.Store(false)
		b.MustBalance(t)
	})
}

// holdNothing fails if a process holds credits.
func holdNothing(t testing.TB, b *ledgertest.Ledger) {
	t.Helper()
	b.Mu.Lock()
	defer b.Mu.Unlock()
	for holder, blocks := range b.Blocks {
		for pool, block := range blocks {
			if block.Taken > block.Used {
				t.Errorf("%s holds %d credits of %v", holder, block.Taken-block.Used, pool)
			}
		}
	}
}

// A repeated Check gets the charge of the first one, or none: never a charge that was not made,
// however the two differ. So no more is refunded than was charged.
func TestASecondCheckMakesNoOtherCharge(t *testing.T) {
	first := authz.Use{Principal: *principal("ada", "acme", usage.PoolUser, 1000), Request: "r", Cost: 1, Refund: usage.RefundRule{Codes: []int{404}}}
	first.Principal.RateLimit = 60
	for name, change := range map[string]func(*authz.Use){
		"nothing":     func(*authz.Use) {},
		"the cost":    func(u *authz.Use) { u.Cost = 100 },
		"the refund":  func(u *authz.Use) { u.Refund = usage.RefundRule{Codes: []int{503}} },
		"never":       func(u *authz.Use) { u.Refund = usage.RefundRule{Never: true} },
		"the account": func(u *authz.Use) { u.Principal.Account = "other" },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := ledgertest.New(1000)
				credits, _ := b.Start(t, nil)
				m := meter.New(meter.Config{Limiter: ratelimit.NewMemory(nil), Credits: credits, Signer: signer(t)})
				synctest.Wait()
				second := first
				change(&second)
				one, reason, err := m.Take(t.Context(), first)
				if reason != authz.Allowed || err != nil || one.ID == "" {
					t.Fatal(one, reason, err)
				}
				two, reason, err := m.Take(t.Context(), second)
				want := one
				if name != "nothing" {
					want.ID, want.Receipt = "", ""
				}
				if reason != authz.Allowed || err != nil || two.ID != want.ID || two.Receipt != want.Receipt {
					t.Errorf("told %q, %q; want %q, %q; %v, %v", two.ID, two.Receipt, want.ID, want.Receipt, reason, err)
				}
			})
		})
	}
}

// charged returns a meter on a ledger, and a charge of ada's by it.
func charged(t *testing.T, b *ledgertest.Ledger, cost int64) (*meter.Meter, usage.Charge, receipt.Receipt) {
	t.Helper()
	s := signer(t)
	credits, _ := b.Start(t, nil)
	m := meter.New(meter.Config{Limiter: ratelimit.NewMemory(nil), Credits: credits, Signer: s})
	synctest.Wait()
	ada := principal("ada", "acme", usage.PoolUser, 1000)
	ada.RateLimit = usage.Unlimited
	charge, reason, err := m.Take(t.Context(), authz.Use{Principal: *ada, Cost: cost})
	if reason != authz.Allowed || err != nil {
		t.Fatal(reason, err)
	}
	r, err := s.ParseID(charge.ID)
	if err != nil {
		t.Fatal(err)
	}
	return m, charge, r
}

// An upstream that asks for a refund does not get the result of another outcome of the same charge
// that is already on its way to the ledger.
func TestASettleCallWaitsForItsOwnOutcome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := ledgertest.New(1000)
		m, charge, receipt := charged(t, b, 1)
		b.Delay = func() time.Duration { return 200 * time.Millisecond }
		m.Complete(usage.Completion{Receipt: charge.Receipt, Status: 200})
		time.Sleep(1100 * time.Millisecond) // the report with it is on its way
		if refunded, err := m.Settle(t.Context(), receipt, receipt.Cost); refunded != receipt.Cost || err != nil {
			t.Errorf("refunded: %v, %v", refunded, err)
		}
	})
}

// Simultaneous settle calls for one charge all get an answer, and one of them brings the credits
// back; a caller that leaves does not disturb the others.
func TestSettleCallsOfOneChargeAtTheSameMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := ledgertest.New(1000)
		b.Delay = func() time.Duration { return 50 * time.Millisecond }
		c, _ := b.Start(t, nil)
		m := meter.New(meter.Config{Limiter: ratelimit.NewMemory(nil), Credits: c, Signer: signer(t)})
		receipt := receipt.Receipt{Holder: "other", Month: usage.MonthOf(time.Now()), Cost: 1, User: "ada", Account: "acme"}
		for receipt.Number = range 20 {
			var back atomic.Int64
			var all sync.WaitGroup
			impatient, leave := context.WithTimeout(t.Context(), time.Duration(receipt.Number)*10*time.Millisecond)
			all.Go(func() { m.Settle(impatient, receipt, receipt.Cost) })
			synctest.Wait()
			for i := range 30 {
				all.Go(func() {
					refunded, err := m.Settle(t.Context(), receipt, []int64{receipt.Cost, 0}[i%2])
					if err != nil {
						t.Errorf("call %d: %v", i, err)
					}
					if refunded > 0 {
						back.Add(1)
					}
				})
			}
			all.Wait()
			leave()
			if n := b.Refunds(); n != int(receipt.Number)+1 {
				t.Errorf("the credits of %d charges came back, want %d", n, receipt.Number+1)
			}
			if n := back.Load(); n > 1 || n == 0 && receipt.Number == 0 {
				t.Errorf("%d calls of charge %d say that the credits came back by them", n, receipt.Number)
			}
		}
	})
}

// A meter without names or without credits charges nothing, whatever an access log claims.
func TestAMeterWithoutCreditsChargesNothing(t *testing.T) {
	signer := signer(t)
	_, receipt := signer.Sign(receipt.Receipt{Holder: "h", Number: 1, Month: usage.MonthOf(time.Now()), Cost: 1, User: "ann", Account: "acme"})
	for name, config := range map[string]meter.Config{"nothing": {}, "a signer": {Signer: signer}, "credits": {Credits: &credits.Allocator{}}} {
		config.Limiter = ratelimit.NewMemory(nil)
		if credits, refunded := meter.New(config).Complete(usage.Completion{Receipt: receipt, Status: 503}); credits != 0 || refunded {
			t.Errorf("with %s: %d credits, refunded %v", name, credits, refunded)
		}
	}
}

package meter_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/meter"
)

// However often a Check is sent, and whoever hangs up on which of them: a request that was let pass is
// charged once, and one that was not is not charged. But for one of which two answers were lost: the first
// of them to be void does not know that the second will be.
func TestARequestThatPassesIsChargedOnce(t *testing.T) {
	for range 30 {
		synctest.Test(t, func(t *testing.T) {
			const requests = 300
			b := newBank(requests / 2)
			b.delay = func() time.Duration { return rand.N(10 * time.Millisecond) }
			credits, stop := b.teller(t, nil)
			limiter := meter.NewMemory(nil)
			m := meter.New(meter.Config{Limiter: limiter, Credits: credits, Signer: signer(t)})
			synctest.Wait()
			p := principal("ada", "acme", authz.PoolUser, requests/2)
			p.RateLimit = 10_000

			var mu sync.Mutex
			names := map[string]map[string]bool{} // of the charges that each request was let pass with
			told := map[string]int{}              // how many answers were on their way
			var all sync.WaitGroup
			for i := range requests {
				request := fmt.Sprint("request ", i)
				for range 1 + rand.N(5) {
					all.Go(func() {
						time.Sleep(rand.N(50 * time.Millisecond))
						ctx, cancel := context.WithTimeout(t.Context(), rand.N(60*time.Millisecond))
						defer cancel()
						charge, reason, err := m.Take(ctx, authz.Use{Principal: p, Request: request, Cost: 1})
						if err == nil && reason == authz.Allowed {
							mu.Lock()
							told[request]++
							mu.Unlock()
						}
						if err == nil && rand.N(4) == 0 { // the answer is late, and nobody waits for it any more
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
			for pool, balance := range b.pools {
				if pool.Kind == authz.PoolUser {
					used += int(balance.Used - balance.Refunded)
				}
			}
			v, _ := limiter.Admit(t.Context(), meter.Attempt{User: "ada", ID: "another", Limit: 10_000, Window: time.Minute})
			counted := 10_000 - 1 - int(v.Remaining)
			if used < len(names) || used > len(names)+lost || counted != used {
				t.Errorf("%d requests were let pass, of %d two answers were lost; %d credits were used, %d are in the rate log", len(names), lost, used, counted)
			}
			b.mustBeRight(t)
		})
		if t.Failed() {
			return
		}
	}
}

// A request over the rate limit is told so, also where there are no credits either, and asks the ledger
// nothing; one without credits leaves no mark in the rate log.
func TestTheRateLimitComesBeforeTheCredits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBank(2)
		credits, _ := b.teller(t, nil)
		m := meter.New(meter.Config{Limiter: meter.NewMemory(nil), Credits: credits, Signer: signer(t)})
		synctest.Wait()
		take := func(limit authz.Limit) (authz.Charge, authz.Reason) {
			t.Helper()
			p := principal("ada", "acme", authz.PoolUser, 2)
			p.RateLimit = limit
			ctx, cancel := context.WithTimeout(t.Context(), 150*time.Millisecond)
			defer cancel()
			charge, reason, err := m.Take(ctx, authz.Use{Principal: p, Cost: 1})
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
		before := b.posted()
		if _, reason := take(2); reason != authz.RateLimited || b.posted() != before {
			t.Errorf("with neither: %v, and the ledger was asked %d times", reason, b.posted()-before)
		}
	})
}

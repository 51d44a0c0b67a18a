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
// charged once, and one that was not is not charged.
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
			var all sync.WaitGroup
			for i := range requests {
				request := fmt.Sprint("request ", i)
				for range 1 + rand.N(5) {
					all.Go(func() {
						time.Sleep(rand.N(50 * time.Millisecond))
						ctx, cancel := context.WithTimeout(t.Context(), rand.N(60*time.Millisecond))
						defer cancel()
						charge, reason, err := m.Take(ctx, authz.Use{Principal: p, Request: request, Cost: 1})
						if err == nil {
							err = ctx.Err()
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
			used := int64(0)
			for pool, balance := range b.pools {
				if pool.Kind == authz.PoolUser {
					used += balance.Used - balance.Refunded
				}
			}
			if int(used) != len(names) {
				t.Errorf("%d requests were let pass, %d credits were used", len(names), used)
			}
			v, _ := limiter.Admit(t.Context(), meter.Attempt{User: "ada", ID: "another", Limit: 10_000, Window: time.Minute})
			if counted := 10_000 - 1 - v.Remaining; int(counted) != len(names) {
				t.Errorf("%d requests were let pass, %d are in the rate log", len(names), counted)
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

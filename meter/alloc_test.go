//go:build !race

// The race detector makes sync.Pool drop items on purpose.

package meter_test

import (
	"strconv"
	"testing"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/credits"
	"github.com/keyporter/keyporter/credits/ledgertest"
	"github.com/keyporter/keyporter/internal/parts/partstest"
	"github.com/keyporter/keyporter/meter"
	"github.com/keyporter/keyporter/ratelimit"
	"github.com/keyporter/keyporter/usage"
)

// A charge from credits held in this process allocates its two names, in one piece of memory, and
// nothing else. A request over its rate limit allocates nothing.
func TestAChargeAllocatesItsNames(t *testing.T) {
	bank := ledgertest.New(1 << 40)
	bank.Unaudited = true
	held, _ := bank.Start(t, nil)
	m := meter.New(meter.Config{Limiter: ratelimit.NewMemory(nil), Credits: held, Signer: signer(t)})
	admitted, refused := *principal("ada", "acme", usage.PoolUser, usage.Unlimited), *principal("ada", "acme", usage.PoolUser, usage.Unlimited)
	admitted.RateLimit, refused.RateLimit = 10_000, 10
	partstest.Eventually(t, "the month is known", func() bool {
		_, result := held.TrySpend(spenderOf(&admitted), 1)
		return result == credits.Spent
	})
	const runs = 2000
	requests := make([]string, 4*runs)
	for i := range requests {
		requests[i] = strconv.Itoa(i)
	}
	take := func(p *authz.Principal, want authz.Reason) {
		_, reason, err := m.Take(t.Context(), authz.Use{Principal: *p, Request: requests[0], Cost: 1})
		if requests = requests[1:]; err != nil || reason != want {
			t.Fatal(reason, err)
		}
	}
	for range runs { // so that the logs have room
		take(&admitted, authz.Allowed)
	}
	if n := testing.AllocsPerRun(runs, func() { take(&admitted, authz.Allowed) }); n > 1 {
		t.Errorf("a charge: %v allocations, want 1", n)
	}
	if n := testing.AllocsPerRun(runs, func() { take(&refused, authz.RateLimited) }); n > 0 {
		t.Errorf("a refusal: %v allocations, want 0", n)
	}
}

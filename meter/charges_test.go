package meter_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/credits"
	"github.com/keyporter/keyporter/credits/ledger"
	"github.com/keyporter/keyporter/credits/ledgertest"
	"github.com/keyporter/keyporter/meter"
	"github.com/keyporter/keyporter/ratelimit"
	"github.com/keyporter/keyporter/receipt"
	"github.com/keyporter/keyporter/usage"
)

// pay spends credits as a request does that no rate limit counts.
func pay(ctx context.Context, c *credits.Allocator, p *authz.Principal, cost int64) (usage.Charge, credits.Result, error) {
	charge, result := c.TrySpend(spenderOf(p), cost)
	if result == credits.Spent {
		return charge, result, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 150*time.Millisecond)
	defer cancel()
	return c.Spend(ctx, spenderOf(p), cost)
}

func spenderOf(p *authz.Principal) *credits.Spender {
	return &credits.Spender{User: p.User, Account: p.Account, Pool: p.Pool, Limit: p.Credits, Epoch: p.Epoch}
}

func principal(user, account string, kind usage.PoolKind, credits usage.Limit) *authz.Principal {
	return &authz.Principal{User: user, Account: account, Pool: kind, Credits: credits, RateLimit: usage.Unlimited, RateWindow: time.Minute}
}

// A repeated Check that arrives while the first waits for the ledger does not pass for free, and
// refunds nothing.
func TestASecondCheckWaitsForTheSameCredits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := ledgertest.New(0) // nobody has a single credit
		b.Delay = func() time.Duration { return 20 * time.Millisecond }
		c, _ := b.Start(t, nil)
		time.Sleep(time.Second)
		m := meter.New(meter.Config{Limiter: ratelimit.NewMemory(nil), Credits: c, Signer: signer(t)})
		p := principal("ada", "acme", usage.PoolUser, 0)
		use := authz.Use{Principal: *p, Request: "r1", Cost: 1}
		first := make(chan authz.Reason, 1)
		go func() { _, r, _ := m.Take(t.Context(), use); first <- r }()
		time.Sleep(5 * time.Millisecond)
		charge, second, err := m.Take(t.Context(), use)
		t.Logf("first %v, second %v (err %v)", <-first, second, err)
		if second == authz.Allowed {
			t.Errorf("let pass with an empty pool, named %q", charge.ID)
		}
		// The upstream fails: a charge that nobody paid would be refunded.
		m.Complete(usage.Completion{Receipt: charge.Receipt, Status: 503, Failure: usage.Answered5xx})
		time.Sleep(3 * time.Second)
		b.Mu.Lock()
		defer b.Mu.Unlock()
		for pool, bal := range b.Pools {
			if bal.Refunded > bal.Used {
				t.Errorf("%v: used %d, refunded %d", pool, bal.Used, bal.Refunded)
			}
		}
	})
}

// If more requests fail in a second than one report has room for, their refunds do not wait for the
// pause between two reports of everything.
func TestManyRefundsDoNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := ledgertest.New(1_000_000)
		b.Delay = func() time.Duration { return 20 * time.Millisecond } // twice in each report
		c, _ := b.Start(t, nil)
		m := meter.New(meter.Config{Limiter: ratelimit.NewMemory(nil), Credits: c, Signer: signer(t)})
		p := principal("ada", "acme", usage.PoolUser, 1_000_000)
		time.Sleep(1500 * time.Millisecond)
		const failed = 4000
		for i := range failed {
			charge, reason, err := m.Take(t.Context(), authz.Use{Principal: *p, Request: fmt.Sprint(i), Cost: 1})
			if reason != authz.Allowed {
				t.Fatalf("request %d: %v, %v", i, reason, err)
			}
			m.Complete(usage.Completion{Receipt: charge.Receipt, Status: 503, Failure: usage.Answered5xx})
		}
		time.Sleep(2 * time.Second) // one until the next report, and one for twenty of them
		if n := b.Refunds(); n != failed {
			t.Errorf("%d charges are given back after two seconds, want %d", n, failed)
		}
	})
}

// If more users are active in a second than fit into one report, reports take only part of the
// time, all users get their turn, a request that waits for credits waits only for the reports in
// flight, and refunds go with the next second's report.
func TestManyActiveUsersLeaveRoom(t *testing.T) {
	t.Run("five reports of 200 ms", func(t *testing.T) { manyActive(t, 1000, 200*time.Millisecond) })
	t.Run("four reports of 400 ms", func(t *testing.T) { manyActive(t, 800, 400*time.Millisecond) })
}

func manyActive(t *testing.T, users int, took time.Duration) {
	synctest.Test(t, func(t *testing.T) {
		b := ledgertest.New(1_000_000)
		b.Unaudited = true
		b.Delay = func() time.Duration { return took / 2 }
		c, _ := b.Start(t, nil)
		m := meter.New(meter.Config{Limiter: ratelimit.NewMemory(nil), Credits: c, Signer: signer(t)})
		time.Sleep(1500 * time.Millisecond)
		all := make([]*authz.Principal, users)
		for i := range all {
			all[i] = principal(fmt.Sprint("u", i), "acme", usage.PoolUser, 1_000_000)
		}
		var asking sync.WaitGroup
		for _, p := range all {
			asking.Go(func() { c.Spend(t.Context(), spenderOf(p), 1) })
		}
		asking.Wait()
		var stop atomic.Bool
		go func() {
			for !stop.Load() { // each uses a credit a second, of a block that lasts
				for _, p := range all {
					c.TrySpend(spenderOf(p), 1)
				}
				time.Sleep(time.Second)
			}
		}()
		time.Sleep(10 * time.Second)
		const seconds = 30
		before, many, sold := b.Reports(), b.LargeReports(), b.Used()
		var longest time.Duration
		for i := range seconds {
			began := time.Now()
			pay(t.Context(), c, principal(fmt.Sprint("new", i), "acme", usage.PoolUser, 1_000_000), 1)
			longest = max(longest, time.Since(began))
			for j := range 10 { // the upstream fails these
				charge, _, _ := m.Take(t.Context(), authz.Use{Principal: *all[j], Request: fmt.Sprint(i, "-", j), Cost: 1})
				m.Complete(usage.Completion{Receipt: charge.Receipt, Status: 503, Failure: usage.Answered5xx})
				time.Sleep(10 * time.Millisecond)
			}
			time.Sleep(time.Second - time.Since(began))
			if back := b.Refunds(); i > 2 && back < 10*(i-2) {
				t.Errorf("after %d seconds %d charges are given back, want at least %d", i+1, back, 10*(i-2))
			}
		}
		stop.Store(true)
		reports, ofMany := b.Reports()-before, b.LargeReports()-many
		sold = (b.Used() - sold) / 2 // a use is posted to two pools, the user's and the account's
		t.Logf("%d reports in %d s, %d of many, %d credits posted of %d used; new users waited for at most %v", reports, seconds, ofMany, sold, users*seconds, longest)
		if busy := time.Duration(ofMany) * took; busy > seconds*time.Second/5 {
			t.Errorf("reports of all users took %v of %d s, want about an eighth", busy, seconds)
		}
		if sold < int64(users*20) {
			t.Errorf("%d credits posted, want at least those of 20 seconds: some users never come", sold)
		}
		if longest > 3*took {
			t.Errorf("a new user waited for %v, a report takes %v", longest, took)
		}
	})
}

// A charge from before its process was renamed is refunded under the name that made it: otherwise
// it would be refunded again when the month is closed.
func TestAChargeKeepsTheNameOfItsProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := ledgertest.New(1000)
		c, _ := b.Start(t, nil)
		m := meter.New(meter.Config{Limiter: ratelimit.NewMemory(nil), Credits: c, Signer: signer(t)})
		ada := principal("ada", "acme", usage.PoolUser, 1000)
		time.Sleep(time.Second)
		for range 3 {
			pay(t.Context(), c, ada, 1)
		}
		charge, reason, err := m.Take(t.Context(), authz.Use{Principal: *ada, Request: "r1", Cost: 1})
		if reason != authz.Allowed {
			t.Fatal(reason, err)
		}
		time.Sleep(3 * time.Second) // it is reported as used
		old := c.Name()
		b.Mu.Lock()
		for id := range b.Usages { // the ledger has more than will be reported
			for payer := range b.Usages[id] {
				b.Usages[id][payer] += 1000
			}
		}
		b.Mu.Unlock()
		for range 5 {
			pay(t.Context(), c, ada, 1)
			time.Sleep(time.Second)
		}
		if c.Name() == old {
			t.Fatal("the process has kept its name")
		}
		m.Void(charge)
		time.Sleep(3 * time.Second)
		b.Mu.Lock()
		defer b.Mu.Unlock()
		if name := fmt.Sprint(old, "-", charge.Number); b.Refunded[name] == 0 {
			t.Errorf("%v came back, want %s", b.Refunded, name)
		}
	})
}

// If an upstream has failed for a while and very many refunds are due, a settle call does not wait
// for them.
func TestASettledChargeDoesNotWaitForRefunds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := ledgertest.New(1000)
		b.Unaudited = true
		b.Delay = func() time.Duration { return 25 * time.Millisecond } // and as much again
		c, _ := b.Start(t, nil)
		signer := signer(t)
		m := meter.New(meter.Config{Limiter: ratelimit.NewMemory(nil), Credits: c, Signer: signer})
		receipt := receipt.Receipt{Holder: "other", Month: usage.MonthOf(time.Now()), Cost: 1, User: "ada", Account: "acme"}
		for receipt.Number = range 20_000 {
			_, text := signer.Sign(receipt)
			m.Complete(usage.Completion{Receipt: text, Status: 503, Failure: usage.Answered5xx})
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		began := time.Now()
		receipt.Number = 20_000
		if refunded, err := m.Settle(ctx, receipt, receipt.Cost); err != nil || refunded != receipt.Cost {
			t.Errorf("refunded %d after %v: %v", refunded, time.Since(began), err)
		}
		time.Sleep(time.Minute)
		if n := b.Refunds(); n != 20_001 {
			t.Errorf("%d credits came back, not all", n)
		}
	})
}

// However many requests of one user have ended, a report carries a bounded number of them, and the
// rest follows; other users do not wait for all of them.
func TestOneUserDoesNotFillAReport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := ledgertest.New(1000)
		b.Unaudited = true
		c, _ := b.Start(t, nil)
		signer := signer(t)
		m := meter.New(meter.Config{Limiter: ratelimit.NewMemory(nil), Credits: c, Signer: signer})
		const many = 25_000
		receipt := receipt.Receipt{Holder: "other", Month: usage.MonthOf(time.Now()), Cost: 1, User: "ada", Account: "acme"}
		for receipt.Number = range many {
			_, text := signer.Sign(receipt)
			m.Complete(usage.Completion{Receipt: text, Status: 200})
		}
		receipt.Number, receipt.User = many, "eve"
		_, text := signer.Sign(receipt)
		m.Complete(usage.Completion{Receipt: text, Status: 200})
		time.Sleep(time.Minute)
		b.Mu.Lock()
		defer b.Mu.Unlock()
		reported := 0
		for _, n := range b.Outcomes {
			if reported += n; n > 10_000 {
				t.Errorf("a report has the outcomes of %d requests", n)
			}
		}
		if reported != many+1 {
			t.Errorf("%d outcomes were reported, want %d", reported, many+1)
		}
	})
}

// A refund for last month does not lower the use shown for this month.
func TestARefundOfLastMonthLeavesThisOneAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := ledgertest.New(1000)
		c, _ := b.Start(t, nil)
		signer := signer(t)
		m := meter.New(meter.Config{Limiter: ratelimit.NewMemory(nil), Credits: c, Signer: signer})
		time.Sleep(time.Second)
		ada := principal("ada", "acme", usage.PoolUser, 1000)
		var last []string // receipts
		for range 5 {
			charge, _, err := pay(t.Context(), c, ada, 1)
			if err != nil {
				t.Fatal(err)
			}
			_, text := signer.Sign(receipt.Receipt{Holder: c.Name(), Number: charge.Number, Month: charge.Month, Cost: 1, User: "ada", Account: "acme"})
			last = append(last, text)
		}
		time.Sleep(2 * time.Second)
		b.Mu.Lock()
		b.Jumped = time.Until(usage.MonthOf(time.Now()).End().Add(time.Second))
		b.Mu.Unlock()
		for range 20 {
			pay(t.Context(), c, principal("bob", "acme", usage.PoolUser, 1000), 1)
			time.Sleep(time.Second)
		}
		for range 10 {
			pay(t.Context(), c, ada, 1)
		}
		time.Sleep(2 * time.Second)
		for _, text := range last {
			m.Complete(usage.Completion{Receipt: text, Status: 503, Failure: usage.Answered5xx})
		}
		time.Sleep(2 * time.Second)
		if charge, _, err := pay(t.Context(), c, ada, 1); err != nil || charge.Credits.Used != 11 {
			t.Errorf("%d credits are used, %v; want 11", charge.Credits.Used, err)
		}
	})
}

// An entry about one user with the receipt of another is forged.
func TestAReceiptOfAnotherUserCountsForNobody(t *testing.T) {
	b := ledgertest.New(1000)
	c, _ := b.Start(t, nil)
	signer := signer(t)
	m := meter.New(meter.Config{Limiter: ratelimit.NewMemory(nil), Credits: c, Signer: signer})
	_, text := signer.Sign(receipt.Receipt{Holder: "other", Month: usage.MonthOf(time.Now()), Cost: 3, User: "ada", Account: "acme"})
	for _, row := range []struct {
		user    string
		credits int64
	}{{"bob", 0}, {"ada", 3}, {"", 3}} { // the user of the last one is unknown
		ending := usage.Completion{Receipt: text, Status: 503, Failure: usage.Answered5xx, Record: usage.Record{User: row.user}}
		if credits, refunded := m.Complete(ending); credits != row.credits || refunded != (row.credits > 0) {
			t.Errorf("%q: %d credits, refunded %t", row.user, credits, refunded)
		}
	}
}

// An upstream that asks for a refund gets the result of its own call, not that of the access log's
// refund of the same credits: here the log changes nothing, since the upstream has said first that
// the charge stands.
func TestASettleCallIsNotAnsweredByTheLogsRefund(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := ledgertest.New(1000)
		m, charge, receipt := charged(t, b, 10)
		if _, err := m.Settle(t.Context(), receipt, 0); err != nil { // it stands
			t.Fatal(err)
		}
		b.Delay = func() time.Duration { return 200 * time.Millisecond }
		m.Complete(usage.Completion{Receipt: charge.Receipt, Status: 503, Failure: usage.Failures()[0]})
		time.Sleep(1100 * time.Millisecond) // the report with it is on its way
		refunded, err := m.Settle(t.Context(), receipt, receipt.Cost)
		b.Mu.Lock()
		ledgerHas := b.Refunded[(ledger.ChargeID{Holder: receipt.Holder, Number: receipt.Number}).String()]
		b.Mu.Unlock()
		if refunded != receipt.Cost || err != nil || ledgerHas != receipt.Cost {
			t.Errorf("answered %d, %v; want %d; the ledger has refunded %d when the call returns", refunded, err, receipt.Cost, ledgerHas)
		}
	})
}

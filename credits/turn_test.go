package credits

import (
	"context"
	"runtime"
	"testing"
	"time"
	"weak"

	"github.com/keyporter/keyporter/credits/ledger"
	"github.com/keyporter/keyporter/usage"
)

// A request that waits for the lock of its shard while the month turns leaves no wallet of the old
// month behind.
func TestARequestInTheTurnOfTheMonth(t *testing.T) {
	for try := range 200 {
		c := New(Config{})
		nov := time.Date(2026, 11, 30, 23, 0, 0, 0, time.UTC)
		c.follow(c.config.Clock(), &ledger.Result{Now: nov})
		p := &Spender{User: "ada", Account: "acme", Limit: usage.Limit(10)}
		s := c.shard("ada")
		c.TrySpend(p, 1)
		s.mu.Lock()
		done := make(chan struct{})
		go func() { c.TrySpend(p, 1); close(done) }()
		time.Sleep(500 * time.Microsecond)
		s.mu.Unlock()
		c.follow(c.config.Clock(), &ledger.Result{Now: nov.Add(time.Hour)}) // December
		<-done
		if w := s.wallets[owner{usage.PoolUser, "ada"}]; w != nil && w.pool.Month == 202611 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, _, err := c.Spend(ctx, p, 1)
			t.Fatalf("try %d: a wallet of November is left in December, and every Take until January: %v", try, err)
		}
	}
}

// A wallet of the old month frees its memory once it is reported, whatever the new month uses.
func TestTheOldMonthIsForgotten(t *testing.T) {
	c := New(Config{})
	november := time.Date(2026, 11, 30, 23, 0, 0, 0, time.UTC)
	c.follow(c.config.Clock(), &ledger.Result{Now: november})
	p := &Spender{User: "ada", Account: "acme", Limit: usage.Unlimited}
	c.TrySpend(p, 1)
	s := c.shard("ada")
	old := weak.Make(s.wallets[owner{usage.PoolUser, "ada"}])
	c.follow(c.config.Clock(), &ledger.Result{Now: november.Add(time.Hour)})
	s.dirty = nil // as if it had been reported
	if _, result := c.TrySpend(p, 1); result != Spent {
		t.Fatal(result)
	}
	runtime.GC()
	if old.Value() != nil {
		t.Error("the wallet of November is still in memory")
	}
	runtime.KeepAlive(c)
}

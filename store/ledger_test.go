package store_test

import (
	"fmt"
	"testing"

	"github.com/keyporter/keyporter/credits/ledger"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/usage"
)

// month returns the month of the database.
func month(t testing.TB, db *store.DB) usage.Month {
	t.Helper()
	result, err := db.Report(t.Context(), ledger.Report{Holder: "clock" + t.Name(), Seq: 1})
	if err != nil {
		t.Fatal(err)
	}
	return usage.MonthOf(result.Now)
}

// mustAddUp fails the test unless the ledger adds up.
func mustAddUp(t testing.TB, db *store.DB) {
	t.Helper()
	wrong, checked, err := db.VerifyLedger(t.Context())
	if err != nil || len(wrong) > 0 {
		t.Errorf("%d pools checked, these do not add up: %v %v", checked, wrong, err)
	}
}

// A process takes credits, uses them, and gives back the rest; the ledger adds up at each step.
func TestABlockIsTakenUsedAndGivenBack(t *testing.T) {
	onEach(t, func(t *testing.T, url string) {
		db := open(t, store.Config{URL: url})
		withAda(t, db)
		m := month(t, db)
		pool := ledger.Pool{Month: m, Kind: usage.PoolUser, Name: "ada"}
		payer := ledger.Payer{Month: m, User: "ada", Account: "acme"}
		for i, step := range []struct {
			ask        ledger.Ask
			taken      int64
			used, free int64
		}{
			{ledger.Ask{Need: 10}, 10, 0, 19_990},
			{ledger.Ask{Used: 4, Keep: 10}, 10, 4, 19_990},
			{ledger.Ask{Used: 9, Keep: 10, Need: 5, Want: 1000}, 1015, 9, 18_985},
			{ledger.Ask{Used: 11, Keep: 11}, 11, 11, 19_989},
		} {
			step.ask.Pool = pool
			result, err := db.Report(t.Context(), ledger.Report{
				Holder: "one", Seq: int64(i + 1), Asks: []ledger.Ask{step.ask},
				Usages: []ledger.Usage{{Payer: payer, Used: step.ask.Used}},
			})
			if err != nil {
				t.Fatal(err)
			}
			if g := result.Grants[0]; g.Taken != step.taken || g.Used != step.used || g.Free != step.free || g.Limit != 20_000 {
				t.Errorf("step %d: %+v, want taken %d, used %d, free %d", i, g, step.taken, step.used, step.free)
			}
			mustAddUp(t, db)
		}
	})
}

// Many processes that take the last credits of a pool concurrently get exactly the remainder
// together.
func TestNothingIsSoldTwice(t *testing.T) {
	onEach(t, func(t *testing.T, url string) {
		db := open(t, store.Config{URL: url})
		withAda(t, db)
		m := month(t, db)
		const holders, need = 12, 2000
		taken := make(chan int64, holders)
		for i := range holders {
			go func() {
				result, err := db.Report(t.Context(), ledger.Report{Holder: fmt.Sprint(i), Seq: 1, Asks: []ledger.Ask{
					{Pool: ledger.Pool{Month: m, Kind: usage.PoolUser, Name: "ada"}, Need: need},
				}})
				if err != nil {
					t.Error(err)
					taken <- 0
					return
				}
				taken <- result.Grants[0].Taken
			}()
		}
		sum := int64(0)
		for range holders {
			sum += <-taken
		}
		if sum != 20_000 {
			t.Errorf("%d credits of 20,000 were sold", sum)
		}
		mustAddUp(t, db)
	})
}

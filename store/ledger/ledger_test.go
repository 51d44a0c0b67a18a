package ledger_test

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/keyporter/keyporter/credits/ledger"
	"github.com/keyporter/keyporter/internal/parts/partstest"
	"github.com/keyporter/keyporter/internal/storetest"
	"github.com/keyporter/keyporter/store"
	storeledger "github.com/keyporter/keyporter/store/ledger"
	"github.com/keyporter/keyporter/usage"
)

// mustAddUp fails the test unless the ledger adds up.
func mustAddUp(t testing.TB, db *store.DB) {
	t.Helper()
	wrong, checked, err := storeledger.New(db).Verify(t.Context())
	if err != nil || len(wrong) > 0 {
		t.Errorf("%d pools checked, these do not add up: %v %v", checked, wrong, err)
	}
}

// A process takes credits, uses them, and gives back the rest; the ledger adds up at each step.
func TestABlockIsTakenUsedAndGivenBack(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		db := storetest.Open(t, store.Config{URL: url})
		storetest.WithAda(t, db)
		m := storetest.Month(t, db)
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
			result, err := storeledger.New(db).Report(t.Context(), ledger.Report{
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
	storetest.OnEach(t, func(t *testing.T, url string) {
		db := storetest.Open(t, store.Config{URL: url})
		storetest.WithAda(t, db)
		m := storetest.Month(t, db)
		const holders, need = 12, 2000
		taken := make(chan int64, holders)
		for i := range holders {
			go func() {
				result, err := storeledger.New(db).Report(t.Context(), ledger.Report{Holder: fmt.Sprint(i), Seq: 1, Asks: []ledger.Ask{
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

// The days of a month add up to the ledger's figures, for reports in any order, repeated or late;
// reports after the month count for its last day.
func TestTheDaysAddUpToTheLedger(t *testing.T) {
	partstest.Slow(t)
	storetest.OnEach(t, func(t *testing.T, url string) {
		db := storetest.Open(t, store.Config{URL: url})
		storetest.WithAda(t, db)
		storetest.WithUser(t, db, "eve")
		this := storetest.Month(t, db)
		last := usage.MonthOf(this.Start().Add(-time.Hour))
		used := map[string]map[ledger.Payer]int64{"one": {}, "two": {}}
		for i := range 60 {
			holder := []string{"one", "two"}[rand.N(2)]
			r := ledger.Report{Holder: holder, Seq: int64(i + 1), Replica: "r"}
			for payer := range map[ledger.Payer]bool{payerOf(this): true, payerOf(last): true, payerOf(this): true} {
				used[holder][payer] += rand.Int64N(20)
			}
			byPool := map[ledger.Pool]int64{}
			for payer, n := range used[holder] {
				r.Usages = append(r.Usages, ledger.Usage{Payer: payer, Used: n})
				byPool[ledger.Pool{Month: payer.Month, Name: payer.User}] += n
			}
			for pool, n := range byPool {
				r.Asks = append(r.Asks, ledger.Ask{Pool: pool, Used: n, Keep: n})
			}
			if payer := payerOf(this); used[holder][payer] > 0 {
				charge := ledger.Refund{Payer: payer, Charge: fmt.Sprint("charge ", i/2), Total: 1, Cause: "answered_5xx"} // each twice
				r.Refunds = append(r.Refunds, charge, charge)
			}
			if _, err := storeledger.New(db).Report(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			if again := r; rand.N(4) == 0 {
				if _, err := storeledger.New(db).Report(t.Context(), again); err == nil {
					t.Error("a report was posted twice")
				}
			}
		}
		mustAddUp(t, db)
		for _, user := range []string{"ada", "eve"} {
			days, err := storeledger.New(db).Days(t.Context(), user, 62)
			if err != nil || len(days) != 62 {
				t.Fatalf("%d days, %v", len(days), err)
			}
			for _, m := range []usage.Month{this, last} {
				var got, want usage.Day
				for _, d := range days {
					if usage.MonthOf(d.Date) == m {
						got.Used, got.Refunded = got.Used+d.Used, got.Refunded+d.Refunded
						if m == last && d.Used != 0 && !d.Date.AddDate(0, 0, 1).Equal(this.Start()) {
							t.Errorf("%s: %v has what was reported later", user, d.Date)
						}
					}
				}
				for p, err := range storeledger.New(db).EachPosting(t.Context(), user, m) {
					if err != nil {
						t.Fatal(err)
					}
					switch p.Kind {
					case "used":
						want.Used -= p.Credits
					case "refunded":
						want.Refunded += p.Credits
					}
				}
				if got != want || want.Used == 0 {
					t.Errorf("%s in %v: the days have %+v, the ledger %+v", user, m, got, want)
				}
			}
		}
	})
}

// payerOf returns one of two users as a payer in a month.
func payerOf(m usage.Month) ledger.Payer {
	return ledger.Payer{Month: m, User: []string{"ada", "eve"}[rand.N(2)], Account: "acme"}
}

// Replicas report refunds of the same charges at the same time: each charge comes back up to its
// largest total, and pools, days and statement say the same.
func TestPartsOfManyReplicas(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		db := storetest.Open(t, store.Config{URL: url})
		storetest.WithAda(t, db)
		m := usage.MonthOf(time.Now())
		var all sync.WaitGroup
		for h := range 6 {
			all.Go(func() {
				for seq := range 12 {
					r := ledger.Report{Holder: fmt.Sprint("h", h), Seq: int64(seq + 1)}
					for range 1 + rand.IntN(4) {
						n, total := uint64(rand.IntN(5)), rand.Int64N(51)
						o := ledger.Outcome{ChargeID: ledger.ChargeID{Holder: "x", Number: n}, Month: m, User: "ada", Account: "acme", Credits: 50, Refund: total}
						if total > 0 {
							o.Cause = []string{ledger.CauseSettled, "answered_5xx"}[rand.IntN(2)]
						}
						r.Outcomes = append(r.Outcomes, o)
					}
					if _, err := storeledger.New(db).Report(t.Context(), r); err != nil {
						t.Error(err)
					}
				}
			})
		}
		all.Wait()
		f := storetest.SQL{T: t, DB: db.Changes}
		if n := f.Number(`SELECT count(*) FROM (SELECT charge FROM credit_refunds GROUP BY charge HAVING sum(credits) <> max(total)) x`); n > 0 {
			t.Errorf("the parts of %d charges do not add up to their totals", n)
		}
		inParts := f.Number(`SELECT CAST(sum(credits) AS BIGINT) FROM credit_refunds`)
		for _, other := range []string{`SELECT refunded FROM credit_pools WHERE kind = 'user'`, `SELECT refunded FROM credit_pools WHERE kind = 'account'`,
			`SELECT CAST(sum(refunded) AS BIGINT) FROM credit_daily`} {
			if n := f.Number(other); n != inParts {
				t.Errorf("%s: %d, want %d", other, n, inParts)
			}
		}
		listed := int64(0)
		for p, err := range storeledger.New(db).EachPosting(t.Context(), "ada", m) {
			if err != nil {
				t.Fatal(err)
			}
			if p.Kind == "refunded" {
				listed += p.Credits
			}
		}
		if listed != inParts {
			t.Errorf("the statement lists %d refunded credits, want %d", listed, inParts)
		}
	})
}

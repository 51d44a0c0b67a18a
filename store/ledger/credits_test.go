package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyporter/keyporter/credits"
	"github.com/keyporter/keyporter/credits/ledger"
	"github.com/keyporter/keyporter/internal/parts/partstest"
	"github.com/keyporter/keyporter/internal/storetest"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
	"github.com/keyporter/keyporter/store/feed"
	"github.com/keyporter/keyporter/store/lease"
	storeledger "github.com/keyporter/keyporter/store/ledger"
	"github.com/keyporter/keyporter/usage"
)

// teller is a process that takes credits for requests.
type teller struct {
	*credits.Allocator
	db   *store.DB
	stop func() // ends it in good order
}

// newTeller starts a process on a database, on the list of replicas and with recalls, as in
// `serve`.
func newTeller(t testing.TB, url string) *teller {
	t.Helper()
	db := storetest.Open(t, store.Config{URL: url})
	recalls := credits.NewRecalls()
	registry, err := feed.NewRegistry(db, feed.Replica{Name: t.Name(), Recall: recalls.Announce})
	if err != nil {
		t.Fatal(err)
	}
	held := credits.New(credits.Config{Ledger: storeledger.New(db), Replica: registry.ID, Recalls: recalls})
	member := lease.New(lease.Config{Registry: registry})
	ctx, cancel := context.WithCancel(context.Background())
	listed, leave := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() { registry.Watch(listed, member.Notify) })
	all.Go(func() { member.Run(listed) })
	if err := member.Hold(t.Context()); err != nil {
		t.Fatal(err)
	}
	settled := make(chan struct{})
	go func() { defer close(settled); held.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		<-settled
		leave()
		all.Wait()
		registry.Close()
	})
	t.Cleanup(stop)
	return &teller{held, db, stop}
}

// spend takes a credit like a request, but waits longer, and retries undecided requests, for busy
// machines.
func (c *teller) spend(ctx context.Context, p *credits.Spender) (result credits.Result, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		if _, result = c.TrySpend(p, 1); result == credits.Spent {
			return result, nil
		}
		if _, result, err = c.Spend(ctx, p, 1); err == nil || ctx.Err() != nil {
			return result, err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// audit verifies the ledger every 100 ms until end is called. The function end returns the number
// of checks.
func audit(t testing.TB, db *store.DB) (end func() int) {
	over, done := make(chan struct{}), make(chan struct{})
	rounds := 0
	go func() {
		defer close(done)
		for {
			mustAddUp(t, db)
			rounds++
			select {
			case <-over:
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
	}()
	return sync.OnceValue(func() int { close(over); <-done; return rounds })
}

// A thousand callers ask three processes for the credits of one pool. Every credit is granted as
// long as there is demand, and none twice; the ledger adds up at any time.
func TestThreeProcessesSellAPoolToTheLastCredit(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		runs := 3
		if os.Getenv("KEYPORTER_LONG") != "" && !strings.HasPrefix(url, "sqlite") {
			runs = 1000
		}
		tellers := []*teller{newTeller(t, url), newTeller(t, url), newTeller(t, url)}
		db := tellers[0].db
		storetest.WithAda(t, db)
		end := audit(t, db)
		callers, wrong := 0, 0
		for run := range runs {
			const demand = 1000
			limit := int64(1 + (run*397)%1200)
			user := fmt.Sprint("user", run)
			plan := fmt.Sprint("plan", run)
			_, _, err1 := directory.New(db).SetPlan(t.Context(), plan, directory.PlanChange{Credits: new(usage.Limit(limit))}, "")
			_, _, err2 := directory.New(db).SetAccount(t.Context(), user, directory.AccountChange{Plan: &plan}, "")
			_, _, err3 := directory.New(db).SetUser(t.Context(), user, directory.UserChange{Account: &user}, "")
			if err1 != nil || err2 != nil || err3 != nil {
				t.Fatal(err1, err2, err3)
			}
			p := &credits.Spender{User: user, Account: user, Limit: usage.Limit(limit)}
			var admitted, undecided atomic.Int64
			var all sync.WaitGroup
			for i := range demand {
				all.Go(func() {
					result, err := tellers[i%3].spend(t.Context(), p)
					if err != nil {
						undecided.Add(1)
						t.Log(err)
					}
					if result == credits.Spent {
						admitted.Add(1)
					}
				})
			}
			all.Wait()
			callers += demand
			if n := admitted.Load(); n != min(limit, demand) || undecided.Load() > 0 {
				wrong++
				t.Errorf("run %d: %d of %d credits were used by %d callers, %d undecided", run, n, limit, demand, undecided.Load())
			}
		}
		for _, teller := range tellers {
			teller.stop()
			if n := teller.Outstanding(); n != 0 {
				t.Errorf("%d credits are outstanding after a stop", n)
			}
		}
		t.Logf("%d runs, %d callers, %d wrong; the ledger was verified %d times", runs, callers, wrong, end())
		if left := leased(t, db); left != 0 {
			t.Errorf("%d credits are still leased after all have stopped", left)
		}
	})
}

// leased returns the number of credits that processes hold, by the ledger.
func leased(t testing.TB, db *store.DB) (n int64) {
	t.Helper()
	if err := db.Changes.QueryRow(`SELECT CAST(coalesce(sum(leased), 0) AS BIGINT) FROM credit_ledger`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// The constraint of the database is the last line of defence: a write that sells a credit twice is
// refused, and writes that bypass the program are reported by name.
func TestTheDatabaseRefusesToSellTwice(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		c := newTeller(t, url)
		storetest.WithAda(t, c.db)
		p := &credits.Spender{User: "ada", Account: "acme", Limit: 20_000}
		for range 10 {
			if result, err := c.spend(t.Context(), p); err != nil || result != credits.Spent {
				t.Fatal(result, err)
			}
		}
		c.stop()
		mustAddUp(t, c.db)
		for _, statement := range []string{
			`UPDATE credit_pools SET leased = leased + 20000 WHERE name = 'ada'`,
			`UPDATE credit_pools SET used = used + 20000 WHERE name = 'ada'`,
			`UPDATE credit_pools SET granted = 9 WHERE name = 'ada'`,
			`UPDATE credit_blocks SET used = taken + 1 WHERE name = 'ada'`,
		} {
			if _, err := c.db.Changes.Exec(statement); err == nil {
				t.Errorf("done: %s", statement)
			}
		}
		for _, row := range []struct{ seed, finds string }{
			{`UPDATE credit_pools SET used = used + 7 WHERE name = 'ada'`, "used is 17, but its parts are 10"},
			{`UPDATE credit_blocks SET taken = taken + 3 WHERE name = 'ada'`, "leased is 0, but its parts are 3"},
			{`INSERT INTO credit_refunds (charge, total, credits, month, user_name, account, cause, made_at)
				SELECT 'x', 2, 2, month, 'ada', 'acme', 'x', 0 FROM credit_pools WHERE name = 'ada'`, "refunded is 0, but its parts are 2"},
		} {
			if _, err := c.db.Changes.Exec(row.seed); err != nil {
				t.Fatal(err)
			}
			wrong, _, err := storeledger.New(c.db).Verify(t.Context())
			if err != nil || !strings.Contains(fmt.Sprint(wrong), row.finds) {
				t.Errorf("%s: found %v %v", row.seed, wrong, err)
			}
		}
	})
}

// A report that is repeated, late, or older than another one changes nothing more.
func TestAReportMayBeMadeAgain(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		db := storetest.Open(t, store.Config{URL: url})
		storetest.WithAda(t, db)
		m := storetest.Month(t, db)
		payer := ledger.Payer{Month: m, User: "ada", Account: "acme"}
		report := func(seq, used, confirmed int64) ledger.Report {
			return ledger.Report{
				Holder: "one", Seq: seq, Asks: []ledger.Ask{{Pool: ledger.Pool{Month: m, Name: "ada"}, Used: used, Keep: used, Need: 100 - used}},
				Usages:   []ledger.Usage{{Payer: payer, Used: used}},
				Outcomes: outcomes(m, "one", confirmed, "answered_5xx"),
			}
		}
		for i, step := range []struct {
			report ledger.Report
			posted bool
		}{
			{report(1, 0, 0), true}, {report(2, 60, 5), true}, {report(2, 60, 5), false}, {report(1, 0, 0), false}, {report(3, 60, 5), true},
			{report(4, 59, 5), false}, {report(5, 80, 6), true}, {report(3, 100, 9), false},
		} {
			for range 10 {
				_, err := storeledger.New(db).Report(t.Context(), step.report)
				if posted := err == nil; posted != step.posted {
					t.Fatalf("step %d: %v", i, err)
				}
				step.posted = false // the second time
			}
		}
		var used, refunded, confirmed int64
		err := db.Changes.QueryRow(`SELECT used, refunded, (SELECT credits FROM credit_reported) FROM credit_ledger WHERE kind = 'account'`).Scan(&used, &refunded, &confirmed)
		if err != nil || used != 80 || refunded != 1 || confirmed != 6 {
			t.Errorf("used %d, refunded %d, confirmed %d, %v", used, refunded, confirmed, err)
		}
		mustAddUp(t, db)
	})
}

// outcomes returns the outcomes of the first n charges of a process in a month, of one credit each.
// The first is refunded for the cause, if there is one.
func outcomes(m usage.Month, holder string, n int64, cause string) (all []ledger.Outcome) {
	for i := range n {
		one := ledger.Outcome{
			ChargeID: ledger.ChargeID{Holder: holder, Number: uint64(i + 1)}, Month: m, User: "ada", Account: "acme", Credits: 1,
		}
		if i == 0 && cause != "" {
			one.Refund, one.Cause = 1, cause
		}
		all = append(all, one)
	}
	return all
}

// tidyLater tidies as if some minutes had passed.
func tidyLater(t testing.TB, url string) error {
	later := storetest.Open(t, store.Config{URL: url})
	storetest.SetClock(later, 5*time.Minute)
	return storeledger.New(later).Tidy(context.Background())
}

// A hundred thousand refunds and users fit into reports, and ended processes are added up into one
// row for each user.
func TestProcessesThatHaveEndedAreAddedUp(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		db := storetest.Open(t, store.Config{URL: url})
		storetest.WithAda(t, db)
		p := &credits.Spender{User: "ada", Account: "acme", Limit: 20_000}
		for range 3 {
			c := newTeller(t, url)
			for range 5 {
				if result, err := c.spend(t.Context(), p); err != nil || result != credits.Spent {
					t.Fatal(result, err)
				}
			}
			c.stop()
			for range 2 {
				if err := tidyLater(t, url); err != nil {
					t.Fatal(err)
				}
			}
			mustAddUp(t, db)
		}
		var rows, used int64
		if err := db.Changes.QueryRow(`SELECT count(*), CAST(sum(used) AS BIGINT) FROM credit_usages`).Scan(&rows, &used); err != nil || rows != 1 || used != 15 {
			t.Errorf("%d rows with %d used, %v", rows, used, err)
		}
	})
}

// With `--unreported refund`, charges without a reported outcome are refunded once after the month;
// reported and void ones are not.
func TestWhatIsNotReportedComesBackOnce(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		db := storetest.Open(t, store.Config{URL: url})
		storetest.WithAda(t, db)
		now, err := db.Now(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		// the last month that ended at least an hour ago
		last := usage.MonthOf(usage.MonthOf(now.Add(-time.Hour)).Start().Add(-time.Hour))
		payer := ledger.Payer{Month: last, User: "ada", Account: "acme"}
		if _, err := storeledger.New(db).Report(t.Context(), ledger.Report{
			Holder: "one", Seq: 1, Asks: []ledger.Ask{{Pool: ledger.Pool{Month: last, Name: "ada"}, Used: 10, Keep: 10}},
			Usages:   []ledger.Usage{{Payer: payer, Used: 10}},
			Outcomes: outcomes(last, "one", 7, "void"),
		}); err != nil {
			t.Fatal(err)
		}
		for _, want := range []int64{3, 0, 0} {
			if n, err := storeledger.New(db).RefundUnreported(t.Context()); err != nil || n != want {
				t.Errorf("%d credits came back, want %d: %v", n, want, err)
			}
		}
		mustAddUp(t, db)
	})
}

// A database clock that has jumped into the next month closes no month that is not over.
func TestAClockThatHasJumpedClosesNoMonth(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		db := storetest.Open(t, store.Config{URL: url})
		storetest.WithAda(t, db)
		reportUse(t, db, storetest.Month(t, db), "one", 1, 10, false)
		storetest.SetClock(db, 32*24*time.Hour)
		if n, err := storeledger.New(db).RefundUnreported(t.Context()); err == nil || n != 0 || storetest.RowsOf(t, db, "credit_months") != 0 {
			t.Errorf("%d credits came back, %v", n, err)
		}
	})
}

func reportUse(t *testing.T, db *store.DB, m usage.Month, holder string, seq, used int64, last bool) {
	t.Helper()
	if _, err := storeledger.New(db).Report(t.Context(), storetest.UseOf(m, holder, seq, used, last)); err != nil {
		t.Fatal(err)
	}
}

// A replica stops in good order while another one adds up earlier ended ones: its use is not lost.
func TestAReplicaThatStopsWhileOthersTidyUpIsCountedOnce(t *testing.T) {
	partstest.Slow(t)
	url := partstest.Database(t, 16)
	db := storetest.Open(t, store.Config{URL: url})
	storetest.WithAda(t, db)
	m := storetest.Month(t, db)
	reportUse(t, db, m, "zero", 1, 1, true)
	if err := tidyLater(t, url); err != nil {
		t.Fatal(err)
	}
	reportUse(t, db, m, "one", 1, 5, true) // ended: will be tidied
	reportUse(t, db, m, "two", 1, 7, false)
	// The first INSERT of Tidy takes a moment, here because of a lock on the row.
	tx, err := db.Changes.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(`SELECT 1 FROM credit_usages WHERE holder = '' FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	tidied := make(chan error)
	go func() { tidied <- tidyLater(t, url) }()
	time.Sleep(300 * time.Millisecond)
	reportUse(t, db, m, "two", 2, 7, true) // stops
	tx.Rollback()
	if err := <-tidied; err != nil {
		t.Fatal(err)
	}
	mustAddUp(t, db)
}

// A replica reports outcomes of charges of an ended replica while a third one adds that replica up:
// the outcomes are not lost.
func TestAnOutcomeThatIsReportedWhileOthersTidyUpCounts(t *testing.T) {
	partstest.Slow(t)
	url := partstest.Database(t, 18)
	db := storetest.Open(t, store.Config{URL: url})
	storetest.WithAda(t, db)
	m := storetest.Month(t, db)
	reportUse(t, db, m, "one", 1, 5, true)
	report := func(seq, charges int64) error {
		_, err := storeledger.New(db).Report(t.Context(), ledger.Report{Holder: "two", Seq: seq, Outcomes: outcomes(m, "one", charges, "")})
		return err
	}
	if err := report(1, 2); err != nil {
		t.Fatal(err)
	}
	// The report with the other outcomes takes a moment to end, here because of a lock on the last
	// row it writes.
	tx, err := db.Changes.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(`SELECT 1 FROM credit_reported WHERE holder = 'one' FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	reported, tidied := make(chan error, 1), make(chan error, 1)
	go func() { reported <- report(2, 5) }()
	time.Sleep(300 * time.Millisecond)
	go func() { tidied <- tidyLater(t, url) }()
	time.Sleep(300 * time.Millisecond)
	tx.Rollback()
	if err := errors.Join(<-reported, <-tidied); err != nil {
		t.Fatal(err)
	}
	if n, err := storeledger.New(db).Unreported(t.Context(), m); err != nil || n != 0 {
		t.Errorf("%d credits count as not reported, %v; all were", n, err)
	}
}

// A replica that stops repeats its last report, since it does not know whether it was posted, while
// another one tidies up: its use counts once.
func TestALastReportThatIsRepeatedCountsOnce(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		db := storetest.Open(t, store.Config{URL: url})
		storetest.WithAda(t, db)
		m := storetest.Month(t, db)
		reportUse(t, db, m, "one", 1, 5, true)
		if err := storeledger.New(db).Tidy(t.Context()); err != nil {
			t.Fatal(err)
		}
		reportUse(t, db, m, "one", 2, 5, true)
		// Its machine sleeps until it has been added up.
		if err := tidyLater(t, url); err != nil {
			t.Fatal(err)
		}
		later := storetest.Open(t, store.Config{URL: url})
		storetest.SetClock(later, 2*time.Minute)
		if _, err := storeledger.New(later).Report(t.Context(), storetest.UseOf(m, "one", 3, 5, true)); err == nil {
			t.Error("a report is posted of a process that was added up")
		}
		if b, err := storeledger.New(db).Balance(t.Context(), "ada"); err != nil || b.Used != 5 {
			t.Errorf("%d used, %v; want 5", b.Used, err)
		}
		mustAddUp(t, db)
	})
}

// A replica is killed before it has reported the use of a plan without a limit, and others report
// that its requests failed. The refunds are no gift: once the plan has a limit, there are no more
// credits than that, and the use is never negative.
func TestRefundsOfWhatWasNeverReportedAreNoGift(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		db := storetest.Open(t, store.Config{URL: url})
		storetest.WithAda(t, db)
		m := storetest.Month(t, db)
		set := func(credits usage.Limit) {
			t.Helper()
			if _, _, err := directory.New(db).SetPlan(t.Context(), "pro", directory.PlanChange{Credits: &credits}, ""); err != nil {
				t.Fatal(err)
			}
		}
		set(usage.Unlimited)
		if _, err := storeledger.New(db).Report(t.Context(), ledger.Report{Holder: "two", Seq: 1, Outcomes: outcomes(m, "killed", 1, "answered_5xx")}); err != nil {
			t.Fatal(err)
		}
		if b, err := storeledger.New(db).Balance(t.Context(), "ada"); err != nil || b.Used != 0 || b.Refunded != 1 {
			t.Errorf("%+v, %v; want 0 used, 1 refunded", b, err)
		}
		set(100)
		result, err := storeledger.New(db).Report(t.Context(), ledger.Report{Holder: "two", Seq: 2, Asks: []ledger.Ask{{Pool: ledger.Pool{Month: m, Name: "ada"}, Need: 1000}}})
		if err != nil || result.Grants[0].Taken != 100 || result.Grants[0].Used != 0 {
			t.Errorf("of 100 credits were sold: %+v, %v", result.Grants, err)
		}
		mustAddUp(t, db)
	})
}

// Ended replicas with very many users are added up, in steps.
func TestManyUsersOfReplicasThatHaveEndedAreAddedUp(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		db := storetest.Open(t, store.Config{URL: url})
		const users = 2100 // more than one step
		all := `(WITH RECURSIVE g(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM g WHERE i < ` + fmt.Sprint(users) + `) SELECT i FROM g) g`
		for _, holder := range []string{"one", "two"} {
			for _, statement := range []string{
				`INSERT INTO credit_holders (id, replica, seq, ended, reported_at) VALUES ('HOLDER', '', 1, TRUE, 0)`,
				`INSERT INTO credit_usages (month, kind, user_name, account, holder, used) SELECT 202611, 'user', 'u' || i, 'acme', 'HOLDER', 10 FROM ` + all,
				`INSERT INTO credit_reported (month, user_name, account, holder, credits) SELECT 202611, 'u' || i, 'acme', 'HOLDER', 9 FROM ` + all,
				`INSERT INTO credit_blocks (month, kind, name, holder, taken, used) SELECT 202611, 'user', 'u' || i, 'HOLDER', 10, 10 FROM ` + all,
			} {
				if _, err := db.Changes.Exec(strings.ReplaceAll(statement, "HOLDER", holder)); err != nil {
					t.Fatal(err)
				}
			}
		}
		for range 5 { // one round leaves the rest to the next if it takes too long
			if err := storeledger.New(db).Tidy(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		for query, want := range map[string]int64{
			`count(*) FROM credit_usages WHERE used = 20 AND holder = ''`:      users,
			`count(*) FROM credit_reported WHERE credits = 18 AND holder = ''`: users,
			`count(*) FROM credit_usages`:                                      users,
			`count(*) FROM credit_reported`:                                    users,
			`count(*) FROM credit_blocks`:                                      0,
		} {
			var got int64
			if err := db.Changes.QueryRow(`SELECT ` + query).Scan(&got); err != nil || got != want {
				t.Errorf("%s: %d, %v; want %d", query, got, err, want)
			}
		}
	})
}

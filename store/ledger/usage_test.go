package ledger_test

import (
	"errors"
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keyporter/keyporter/credits/ledger"
	"github.com/keyporter/keyporter/internal/parts/partstest"
	"github.com/keyporter/keyporter/internal/storetest"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
	storeledger "github.com/keyporter/keyporter/store/ledger"
	"github.com/keyporter/keyporter/usage"
)

// year is a random history of usage, report by report, and its model. Users change their account,
// accounts their plan, plans their pool; processes are killed, paused and stopped; months end and
// are closed.
type year struct {
	*testing.T
	rand  *rand.Rand
	db    *store.DB
	l     *storeledger.Ledger
	now   time.Time
	clock *store.Dialect // with the clock of the machine

	processes []*replica
	gone      []*replica // killed or stopped
	started   int
	charges   []*spent
	accountOf map[string]string         // user → account
	poolOf    map[string]usage.PoolKind // account → the pool that pays
	closed    map[usage.Month]bool
	refunded  map[ledger.Payer]int64   // user and account in a month → refunds
	open      map[ledger.Payer]int64   // of these, refunded as unreported
	reported  map[ledger.Charged]int64 // outcomes that were counted
	days      map[day]usage.Day        // what the days must show
}

// day is the usage of a user of an account on a day.
type day struct {
	day           int64
	user, account string
}

// replica is a process that charges.
type replica struct {
	name, row string
	seq       int64
	blocks    map[ledger.Pool]*held
	used      map[ledger.Payer]int64 // with its last report
	pending   map[ledger.Payer]int64 // charged since then
	posted    int64                  // number of its charges
	live      bool
	stopped   bool
}

// held is a block, and the account of its user at the last report.
type held struct {
	ledger.Block
	pending int64
	account string
}

// spent is a charge, with the model of its outcome.
type spent struct {
	account
	ledger.ChargeID
	ledger.Payer
	cost int64
}

func plain(p ledger.Payer) ledger.Payer { p.Kind = usage.PoolUser; return p }

func (y *year) month() usage.Month { return usage.MonthOf(y.now) }

// user returns a random user.
func (y *year) user() string { return fmt.Sprint("u", y.rand.IntN(5)) }

func (y *year) must(err error) {
	y.Helper()
	if err != nil {
		y.Fatal(err)
	}
}

func (y *year) exec(statement string, args ...any) {
	y.Helper()
	_, err := y.db.Changes.Exec(statement, args...)
	y.must(err)
}

// begin makes the directory and moves the clock.
func (y *year) begin(start time.Time) {
	for _, kind := range []string{"user", "account"} {
		_, _, err := directory.New(y.db).SetPlan(y.Context(), kind, directory.PlanChange{Pool: new(kind)}, "")
		y.must(err)
	}
	for i := range 3 {
		name := fmt.Sprint("a", i)
		_, _, err := directory.New(y.db).SetAccount(y.Context(), name, directory.AccountChange{Plan: new("user")}, "")
		y.must(err)
	}
	for i := range 5 {
		user, account := fmt.Sprint("u", i), fmt.Sprint("a", i%3)
		_, _, err := directory.New(y.db).SetUser(y.Context(), user, directory.UserChange{Account: new(account)}, "")
		y.must(err)
		y.accountOf[user] = account
	}
	y.now, y.clock = time.Now(), y.db.Dialect
	y.advance(start.Sub(y.now))
}

// advance moves the clocks of the model and of the database forward to the same time. The
// database's runs on while the test works, so the last minutes of a day are left out.
func (y *year) advance(by time.Duration) {
	const margin = 10 * time.Minute
	if y.now = y.now.Add(by); usage.DayOf(y.now) != usage.DayOf(y.now.Add(margin)) {
		y.now = y.now.Add(margin)
	}
	y.db.Dialect = y.clock
	storetest.SetClock(y.db, time.Until(y.now))
}

// move changes the account of a user, or the pool of an account.
func (y *year) move() {
	account := fmt.Sprint("a", y.rand.IntN(3))
	if y.rand.IntN(2) == 0 {
		user := y.user()
		y.exec(`UPDATE users SET account = $1 WHERE name = $2`, account, user)
		y.accountOf[user] = account
		return
	}
	pool := usage.PoolKind(y.rand.IntN(2))
	y.exec(`UPDATE accounts SET plan = $1 WHERE name = $2`, pool.String(), account)
	y.poolOf[account] = pool
}

// start starts a process.
func (y *year) start() {
	y.started++
	r := &replica{name: fmt.Sprint("p", y.started), row: fmt.Sprint("r", y.started), live: true,
		blocks: map[ledger.Pool]*held{}, used: map[ledger.Payer]int64{}, pending: map[ledger.Payer]int64{}}
	y.exec(`INSERT INTO replicas (id, name, address, version, life, acked, started_at, seen_at) VALUES ($1, '', '', '', 86400000, 1, 0, $2)`, r.row, time.Now().UnixMilli())
	y.processes = append(y.processes, r)
}

// charge charges users of a process as far as it holds credits.
func (y *year) charge(r *replica) {
	for range 1 + y.rand.IntN(6) {
		user := y.user()
		payer := ledger.Payer{Month: y.month(), User: user, Account: y.accountOf[user]}
		payer.Kind = y.poolOf[payer.Account]
		b, cost := r.block(payer), 1+y.rand.Int64N(4)
		if b.Taken-b.Used-b.pending < cost {
			continue
		}
		b.pending += cost
		r.pending[payer] += cost
		r.posted++
		y.charges = append(y.charges, &spent{ChargeID: ledger.ChargeID{Holder: r.name, Number: uint64(r.posted)}, Payer: payer, cost: cost})
	}
}

// block returns the block that pays.
func (r *replica) block(p ledger.Payer) *held {
	pool := ledger.Pool{Month: p.Month, Kind: p.Kind, Name: p.User}
	if p.Kind == usage.PoolAccount {
		pool.Name = p.Account
	}
	if r.blocks[pool] == nil {
		r.blocks[pool] = &held{}
	}
	return r.blocks[pool]
}

// report posts what a process has charged, with some outcomes; the last report gives all back.
func (y *year) report(r *replica, last bool) {
	for range y.rand.IntN(3) { // takes credits in advance
		user := y.user()
		p := ledger.Payer{Month: y.month(), User: user, Account: y.accountOf[user]}
		p.Kind = y.poolOf[p.Account]
		r.block(p)
	}
	r.seq++
	report := ledger.Report{Holder: r.name, Replica: r.row, Seq: r.seq, Last: last}
	var pools []*held
	for pool, b := range r.blocks {
		if b.pending == 0 && !last && y.rand.IntN(3) == 0 {
			continue
		}
		b.Used += b.pending
		b.pending = 0
		ask := ledger.Ask{Pool: pool, Used: b.Used, Keep: b.Used}
		if !last || y.rand.IntN(4) == 0 { // a stop may leave something behind
			ask.Keep += y.rand.Int64N(1 + b.Taken - b.Used)
		}
		if !last {
			ask.Want = y.rand.Int64N(40)
		}
		if pool.Kind == usage.PoolUser {
			b.account = y.accountOf[pool.Name]
		} else {
			b.account = pool.Name
		}
		report.Asks, pools = append(report.Asks, ask), append(pools, b)
	}
	for payer, credits := range r.pending {
		r.used[payer] += credits
		report.Usages = append(report.Usages, ledger.Usage{Payer: payer, Used: r.used[payer]})
		y.onDay(plain(payer), credits, 0)
	}
	clear(r.pending)
	for range y.rand.IntN(5) {
		y.outcome(&report)
	}
	result, err := y.l.Report(y.Context(), report)
	y.must(err)
	for i, grant := range result.Grants {
		pools[i].Taken = grant.Taken
	}
}

func (y *year) onDay(p ledger.Payer, used, refunded int64) {
	at := usage.DayOf(y.now)
	if p.Month != y.month() {
		at = usage.DayOf(p.Month.End().AddDate(0, 0, -1))
	}
	id := day{at, p.User, p.Account}
	d := y.days[id]
	d.Used, d.Refunded = d.Used+used, d.Refunded+refunded
	y.days[id] = d
}

// outcome adds the outcome of some charge of this month or the last one to a report.
func (y *year) outcome(r *ledger.Report) {
	if len(y.charges) == 0 {
		return
	}
	c := y.charges[y.rand.IntN(len(y.charges))]
	if c.Month < y.month().Previous() {
		return
	}
	o := ledger.Outcome{ChargeID: c.ChargeID, Month: c.Month, User: c.User, Account: c.Account, Credits: c.cost}
	if o.Refund = y.rand.Int64N(1 + c.cost); o.Refund > 0 {
		o.Cause = []string{ledger.CauseSettled, "answered_5xx", ledger.CauseVoid}[y.rand.IntN(3)]
	}
	before := c.account
	c.outcome(o.Refund, o.Cause == ledger.CauseSettled, y.closed[c.Month])
	if !before.known && c.known {
		y.reported[ledger.Charged{Month: c.Month, User: c.User, Account: c.Account, Holder: c.Holder}] += c.cost
	}
	if back := c.back - before.back; back > 0 {
		y.refunded[plain(c.Payer)] += back
		y.onDay(plain(c.Payer), 0, back)
	}
	r.Outcomes = append(r.Outcomes, o)
}

// end ends a process, in good order or not.
func (y *year) end() {
	i := y.rand.IntN(len(y.processes))
	r := y.processes[i]
	y.processes = slices.Delete(y.processes, i, i+1)
	y.gone = append(y.gone, r)
	if y.rand.IntN(2) == 0 {
		y.report(r, true)
		r.stopped = true
	}
	r.live = false
	y.exec(`DELETE FROM replicas WHERE id = $1`, r.row)
}

// unreported returns the charges without a reported outcome, as far as the ledger can know: those
// of a killed process less all its outcomes, even those of charges that it has not reported.
func (y *year) unreported() map[ledger.Payer]int64 {
	of, ended := map[ledger.Payer]int64{}, map[ledger.Payer]int64{}
	for _, r := range slices.Concat(y.processes, y.gone) {
		sums := map[ledger.Payer]int64{}
		for payer, credits := range r.used {
			sums[plain(payer)] += credits
		}
		for c, credits := range y.reported {
			if c.Holder == r.name {
				sums[ledger.Payer{Month: c.Month, User: c.User, Account: c.Account}] -= credits
			}
		}
		for payer, credits := range sums {
			if r.stopped {
				ended[payer] += credits
			} else {
				of[payer] += max(0, credits)
			}
		}
	}
	for payer, credits := range ended {
		of[payer] += max(0, credits)
	}
	return of
}

// closeMonth refunds the unreported charges of the last month.
func (y *year) closeMonth() {
	last := usage.MonthOf(y.month().Start().Add(-time.Hour))
	if y.now.Sub(y.month().Start()) < time.Hour {
		return
	}
	want := int64(0)
	for payer, credits := range y.unreported() {
		if payer.Month == last && credits > 0 && y.open[payer] == 0 {
			y.open[payer] += credits
			y.refunded[payer] += credits
			y.onDay(payer, 0, credits)
			want += credits
		}
	}
	y.closed[last] = true
	got, err := y.l.RefundUnreportedAt(y.Context(), y.now)
	if y.must(err); got != want {
		y.Errorf("%d credits came back when %v was closed, want %d", got, last, want)
	}
}

// months returns the model's figures by month, user and account.
func (y *year) months() map[ledger.Payer]storeledger.MonthUsage {
	all := map[ledger.Payer]storeledger.MonthUsage{}
	add := func(p ledger.Payer, f func(*storeledger.MonthUsage)) {
		p = plain(p)
		u := all[p]
		u.Month, u.User, u.Account = p.Month, p.User, p.Account
		if f(&u); u.Used != 0 || u.Refunded != 0 || u.Lost != 0 || u.Outstanding != 0 {
			all[p] = u
		}
	}
	for _, r := range slices.Concat(y.processes, y.gone) {
		for payer, credits := range r.used {
			add(payer, func(u *storeledger.MonthUsage) { u.Used += credits })
		}
		for pool, b := range r.blocks {
			payer := ledger.Payer{Month: pool.Month, User: pool.Name, Account: b.account}
			if pool.Kind == usage.PoolAccount {
				payer.User = ""
			}
			add(payer, func(u *storeledger.MonthUsage) {
				if r.live {
					u.Outstanding += b.Taken - b.Used
				} else {
					u.Lost += b.Taken - b.Used
				}
			})
		}
	}
	for payer, credits := range y.refunded {
		add(payer, func(u *storeledger.MonthUsage) { u.Refunded += credits })
	}
	for payer, credits := range y.unreported() {
		add(payer, func(u *storeledger.MonthUsage) { u.Unreported = max(0, credits-y.open[payer]) })
	}
	return all
}

// byKey orders usage by month, account and user.
func byKey(all []storeledger.MonthUsage) map[string]storeledger.MonthUsage {
	rows := map[string]storeledger.MonthUsage{}
	for _, u := range all {
		key := fmt.Sprint(u.Month, " ", u.Account, " ", u.User)
		if _, twice := rows[key]; twice {
			key += " twice"
		}
		rows[key] = u
	}
	return rows
}

// check compares all figures with the model and with the ledger's pools.
func (y *year) check(first usage.Month) {
	y.Helper()
	mustAddUp(y, y.db)
	model := slices.Collect(maps.Values(y.months()))
	f := storetest.SQL{T: y.T, DB: y.db.Changes}
	for m := first; m <= y.month(); m = usage.MonthOf(m.End()) {
		wantUsers := slices.DeleteFunc(slices.Clone(model), func(u storeledger.MonthUsage) bool { return u.Month != m })
		users, err := store.Collect(y.l.UsageByUser(y.Context(), m, storeledger.Owner{}))
		y.must(err)
		y.same(fmt.Sprint("by user in ", m), users, wantUsers)
		accounts, err := store.Collect(y.l.UsageByAccount(y.Context(), m, storeledger.Owner{}))
		y.must(err)
		y.same(fmt.Sprint("by account in ", m), accounts, byAccount(wantUsers))
		for i := range 5 {
			of := storeledger.Owner{User: fmt.Sprint("u", i)}
			one, err := store.Collect(y.l.UsageByUser(y.Context(), m, of))
			y.must(err)
			y.same(fmt.Sprint(of, " in ", m), one, slices.DeleteFunc(slices.Clone(wantUsers), func(u storeledger.MonthUsage) bool { return u.User != of.User }))
			y.sameDays(m, of, one)
		}
		for i := range 3 {
			of := storeledger.Owner{Account: fmt.Sprint("a", i)}
			mine := slices.DeleteFunc(slices.Clone(wantUsers), func(u storeledger.MonthUsage) bool { return u.Account != of.Account })
			parts, err := store.Collect(y.l.UsageByUser(y.Context(), m, of))
			y.must(err)
			y.same(fmt.Sprint("users of ", of, " in ", m), parts, mine)
			whole, err := store.Collect(y.l.UsageByAccount(y.Context(), m, of))
			y.must(err)
			y.same(fmt.Sprint(of, " in ", m), whole, byAccount(mine))
			y.sameDays(m, of, whole)
			y.sameStatement(m, of.Account, whole)
		}
		y.sameDays(m, storeledger.Owner{}, accounts)
		total := sum(users)
		for _, kind := range []string{"user", "account"} {
			used := f.Number(`SELECT CAST(coalesce(sum(used), 0) AS BIGINT) FROM credit_pools WHERE month = $1 AND kind = $2`, int64(m), kind)
			refunded := f.Number(`SELECT CAST(coalesce(sum(refunded), 0) AS BIGINT) FROM credit_pools WHERE month = $1 AND kind = $2`, int64(m), kind)
			if used != total.Used || refunded != total.Refunded {
				y.Errorf("in %v the pools of the kind %s have %d used and %d refunded; the users %d and %d", m, kind, used, refunded, total.Used, total.Refunded)
			}
		}
		if leased := f.Number(`SELECT CAST(coalesce(sum(leased), 0) AS BIGINT) FROM credit_pools WHERE month = $1`, int64(m)); leased != total.Lost+total.Outstanding {
			y.Errorf("in %v the pools have leased %d; the users %d", m, leased, total.Lost+total.Outstanding)
		}
	}
}

func (y *year) same(what string, got, want []storeledger.MonthUsage) {
	y.Helper()
	if diff := cmp.Diff(byKey(want), byKey(got)); diff != "" {
		y.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// sameDays compares the days of a month with the model, and their sum with the month.
func (y *year) sameDays(m usage.Month, of storeledger.Owner, month []storeledger.MonthUsage) {
	y.Helper()
	days, err := store.Collect(y.l.EachDay(y.Context(), m.Start(), m.End().AddDate(0, 0, -1), of))
	y.must(err)
	if want := m.End().Sub(m.Start()).Hours() / 24; len(days) != int(want) {
		y.Errorf("%v has %d days, want %v", m, len(days), want)
	}
	var got usage.Day
	for _, d := range days {
		var want usage.Day
		for id, u := range y.days {
			if id.day == usage.DayOf(d.Date) && (of.User == "" || of.User == id.user) && (of.Account == "" || of.Account == id.account) {
				want.Used, want.Refunded = want.Used+u.Used, want.Refunded+u.Refunded
			}
		}
		if want.Date = d.Date; want != d {
			y.Errorf("%+v: %+v, want %+v", of, d, want)
		}
		got.Used, got.Refunded = got.Used+d.Used, got.Refunded+d.Refunded
	}
	if total := sum(month); got.Used != total.Used || got.Refunded != total.Refunded {
		y.Errorf("the days of %+v in %v add up to %+v, the month to %+v", of, m, got, total)
	}
}

// sameStatement compares the statement of an account with its usage.
func (y *year) sameStatement(m usage.Month, account string, month []storeledger.MonthUsage) {
	y.Helper()
	var used, refunded int64
	for p, err := range y.l.EachPostingOfAccount(y.Context(), account, m) {
		y.must(err)
		if p.Account != account {
			y.Errorf("the statement of %s has a posting of %s", account, p.Account)
		}
		switch p.Kind {
		case "used":
			used -= p.Credits
		case "refunded":
			refunded += p.Credits
		}
	}
	if total := sum(month); used != total.Used || refunded != total.Refunded {
		y.Errorf("the statement of %s in %v has %d used and %d refunded; its usage is %+v", account, m, used, refunded, total)
	}
}

// byAccount adds up the users of each account.
func byAccount(users []storeledger.MonthUsage) (all []storeledger.MonthUsage) {
	of := map[string][]storeledger.MonthUsage{}
	for _, u := range users {
		of[u.Account] = append(of[u.Account], u)
	}
	for account, users := range of {
		total := sum(users)
		total.Month, total.Account = users[0].Month, account
		all = append(all, total)
	}
	return all
}

func sum(all []storeledger.MonthUsage) (total storeledger.MonthUsage) {
	for _, u := range all {
		total.Used += u.Used
		total.Refunded += u.Refunded
		total.Unreported += u.Unreported
		total.Lost += u.Lost
		total.Outstanding += u.Outstanding
	}
	return total
}

// Whatever happens in a month, the usage by user, by account and by day, the statements of accounts
// and the pools of the ledger have the same sums, and are those of the model. The months are a
// year's end, and a February of 29 days.
func TestUsageIsTheLedgers(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		partstest.Slow(t)
		steps := 150
		if os.Getenv("KEYPORTER_LONG") != "" {
			steps = 3000
		}
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		y := &year{T: t, rand: rand.New(rand.NewPCG(seed, 0)), db: storetest.Open(t, store.Config{URL: url}),
			accountOf: map[string]string{}, poolOf: map[string]usage.PoolKind{}, closed: map[usage.Month]bool{}, refunded: map[ledger.Payer]int64{},
			open: map[ledger.Payer]int64{}, reported: map[ledger.Charged]int64{}, days: map[day]usage.Day{}}
		y.l = storeledger.New(y.db)
		y.begin(time.Date(2027, 12, 20, 0, 0, 0, 0, time.UTC))
		// The steps end at the beginning of March 2028.
		first, hours := y.month(), 75*24*time.Hour/time.Duration(steps)
		y.start()
		y.start()
		for range steps {
			y.advance(time.Duration(y.rand.Int64N(int64(2 * hours))))
			for _, r := range y.processes {
				if y.rand.IntN(3) > 0 { // else it hangs, or the database does
					y.charge(r)
				}
				if y.rand.IntN(3) > 0 {
					y.report(r, false)
				}
			}
			switch y.rand.IntN(10) {
			case 0, 1:
				y.move()
			case 2:
				y.end()
				y.start()
			case 3:
				y.closeMonth()
			case 4:
				y.must(y.l.Tidy(t.Context()))
			case 5:
				if steps < 1000 || y.rand.IntN(20) == 0 {
					y.check(first)
				}
			}
			if t.Failed() {
				return
			}
		}
		y.check(first)
		t.Logf("%d charges of %d processes until %v", len(y.charges), y.started, y.now.Format(time.DateOnly))
	})
}

// Usage by user and by account is read in pages, and each user and account is there once.
func TestUsageOfMoreThanAPage(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		db := storetest.Open(t, store.Config{URL: url})
		n, l := 600, storeledger.New(db)
		fillUsage(t, db, n)
		for name, list := range map[string]func(storeledger.Owner) (all []storeledger.MonthUsage, err error){
			"users": func(of storeledger.Owner) ([]storeledger.MonthUsage, error) {
				return store.Collect(l.UsageByUser(t.Context(), usageMonth, of))
			},
			"accounts": func(of storeledger.Owner) ([]storeledger.MonthUsage, error) {
				return store.Collect(l.UsageByAccount(t.Context(), usageMonth, of))
			},
		} {
			all, err := list(storeledger.Owner{})
			if total := sum(all); err != nil || len(byKey(all)) != n || total.Used != int64(7*n) || total.Refunded != int64(2*n) || total.Unreported != int64(7*n) {
				t.Errorf("%s: %d rows, in all %+v, %v", name, len(all), total, err)
			}
		}
		cut, broken := 0, errors.New("the reader has gone")
		err := func() error {
			for _, err := range l.UsageByUser(t.Context(), usageMonth, storeledger.Owner{}) {
				if cut++; cut == 300 {
					return broken
				}
				if err != nil {
					return err
				}
			}
			return nil
		}()
		if err != broken || cut != 300 {
			t.Errorf("after %d rows: %v", cut, err)
		}
	})
}

const usageMonth = usage.Month(202802)

// fillUsage makes users with an account each, and their use of a month.
func fillUsage(t testing.TB, db *store.DB, n int) {
	t.Helper()
	numbers := `WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < $1), names AS (SELECT 'n' || CAST(1000000 + i AS TEXT) AS name FROM n) `
	for _, statement := range []string{
		`INSERT INTO credit_pools (month, kind, name, granted, used, refunded) SELECT 202802, 'user', name, 20000, 7, 2 FROM names`,
		`INSERT INTO credit_pools (month, kind, name, granted, used, refunded) SELECT 202802, 'account', 'of-' || name, 20000, 7, 2 FROM names`,
		`INSERT INTO credit_usages (month, kind, user_name, account, holder, used) SELECT 202802, 'user', name, 'of-' || name, 'one', 4 FROM names`,
		`INSERT INTO credit_usages (month, kind, user_name, account, holder, used) SELECT 202802, 'user', name, 'of-' || name, 'two', 3 FROM names`,
		`INSERT INTO credit_blocks (month, kind, name, holder, taken, used, account) SELECT 202802, 'user', name, 'one', 4, 4, 'of-' || name FROM names`,
		`INSERT INTO credit_refunds (charge, total, credits, month, user_name, account, cause, made_at) SELECT name, 2, 2, 202802, name, 'of-' || name, 'settled', 0 FROM names`,
		`INSERT INTO credit_daily (user_name, day, account, used, refunded) SELECT name, 20280229, 'of-' || name, 7, 2 FROM names`,
	} {
		if _, err := db.Changes.Exec(numbers+statement, n); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
	if strings.HasPrefix(db.Dialect.Now, "changes_now") {
		db.Changes.Exec(`ANALYZE`)
	}
}

// fillAccount makes an account with many users, each with some refunds.
func fillAccount(t testing.TB, db *store.DB, users, refunds int) {
	t.Helper()
	numbers := `WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < $1), names AS (SELECT i, 'b' || CAST(1000000 + i AS TEXT) AS name FROM n) `
	for _, statement := range []string{
		`INSERT INTO credit_pools (month, kind, name, granted, used, refunded) SELECT 202802, 'user', name, 20000, 70, 20 FROM names`,
		`INSERT INTO credit_pools (month, kind, name, granted, used, refunded) SELECT 202802, 'account', 'big', 100 * count(*), 70 * count(*), 20 * count(*) FROM names`,
		`INSERT INTO credit_usages (month, kind, user_name, account, holder, used) SELECT 202802, 'user', name, 'big', 'one', 70 FROM names`,
	} {
		if _, err := db.Changes.Exec(numbers+statement, users); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
	for i := range refunds {
		if _, err := db.Changes.Exec(numbers+`INSERT INTO credit_refunds (charge, total, credits, month, user_name, account, cause, made_at)
			SELECT name || '-' || $2, 2, 2, 202802, name, 'big', 'settled', i FROM names`, users, fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	if strings.HasPrefix(db.Dialect.Now, "changes_now") {
		db.Changes.Exec(`ANALYZE`)
	}
}

// BenchmarkUsage measures the time to the first row, and to all, of 50,000 users, and of an account
// with 20,000 more and 200,000 refunds.
func BenchmarkUsage(b *testing.B) {
	for name, database := range storetest.Databases {
		b.Run(name, func(b *testing.B) {
			db := storetest.Open(b, store.Config{URL: database(b)})
			fillUsage(b, db, 50_000)
			l, all := storeledger.New(db), storeledger.Owner{}
			b.Run("user", func(b *testing.B) {
				benchmarkList(b, func() iter.Seq2[storeledger.MonthUsage, error] { return l.UsageByUser(b.Context(), usageMonth, all) })
			})
			b.Run("account", func(b *testing.B) {
				benchmarkList(b, func() iter.Seq2[storeledger.MonthUsage, error] { return l.UsageByAccount(b.Context(), usageMonth, all) })
			})
			fillAccount(b, db, 20_000, 10)
			b.Run("users of one account", func(b *testing.B) {
				benchmarkList(b, func() iter.Seq2[storeledger.MonthUsage, error] {
					return l.UsageByUser(b.Context(), usageMonth, storeledger.Owner{Account: "big"})
				})
			})
			b.Run("one account", func(b *testing.B) {
				benchmarkList(b, func() iter.Seq2[storeledger.MonthUsage, error] {
					return l.UsageByAccount(b.Context(), usageMonth, storeledger.Owner{Account: "big"})
				})
			})
			b.Run("statement of one account", func(b *testing.B) {
				benchmarkList(b, func() iter.Seq2[storeledger.Posting, error] {
					return l.EachPostingOfAccount(b.Context(), "big", usageMonth)
				})
			})
			b.Run("day", func(b *testing.B) {
				benchmarkList(b, func() iter.Seq2[usage.Day, error] {
					return l.EachDay(b.Context(), usageMonth.Start(), usageMonth.End().AddDate(0, 0, -1), all)
				})
			})
		})
	}
}

func benchmarkList[T any](b *testing.B, list func() iter.Seq2[T, error]) {
	b.ReportAllocs()
	first, rows := time.Duration(0), 0
	for b.Loop() {
		began, n := time.Now(), 0
		for _, err := range list() {
			if err != nil {
				b.Fatal(err)
			}
			if n++; n == 1 {
				first += time.Since(began)
			}
		}
		rows += n
	}
	b.ReportMetric(float64(first.Microseconds())/1000/float64(b.N), "first-ms")
	b.ReportMetric(float64(rows)/float64(b.N), "rows")
}

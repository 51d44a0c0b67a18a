package ledgertest

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyporter/keyporter/credits"
	"github.com/keyporter/keyporter/credits/ledger"
	"github.com/keyporter/keyporter/usage"
)

// Subject is an empty ledger under test. It knows the users ada and eve of the account acme. A
// method that fails ends the test.
type Subject interface {
	credits.Ledger
	// SetPlan sets the plan of acme.
	SetPlan(pool usage.PoolKind, credits usage.Limit)
	// Join puts a replica on the list of live ones until leave is called.
	Join() (replica string, leave func())
	// Advance moves the clock of the ledger forward.
	Advance(d time.Duration)
	// Audit fails the test unless the books add up.
	Audit()
}

// Conformance tests the promises of [credits.Ledger]. Each test opens a ledger of its own.
func Conformance(t *testing.T, open func(t *testing.T) Subject) {
	for _, test := range []struct {
		name string
		run  func(*suite)
	}{
		{"a block is taken, used and given back", blockIsGivenBack},
		{"processes that ask at once get all credits, and no more", concurrentAsks},
		{"a report that is repeated or late is refused", lateReports},
		{"a refused report leaves nothing behind", refusedReports},
		{"a process that has ended may report again for a minute", endedProcesses},
		{"a charge is refunded up to the largest total, whoever asks", refunds},
		{"a refund pays for a need of the same report", refundPaysForNeed},
		{"the first outcome of a charge decides", outcomes},
		{"credits that others hold are recalled for a second", recalls},
		{"credits of a dead process count as used", deadProcess},
		{"a process that is off the list may still report what it used", offTheList},
		{"a pool without a plan sells nothing", unsoldPool},
		{"a plan without a limit grants every need", noLimit},
		{"a lowered limit takes nothing back", loweredLimit},
		{"only credits of this month are granted", otherMonths},
		{"any history gets the answers of the ledger in memory", histories},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := &suite{T: t, Subject: open(t)}
			s.SetPlan(usage.PoolUser, 100)
			s.enterMonth()
			test.run(s)
			s.Audit()
		})
	}
}

// suite is one test with its ledger.
type suite struct {
	*testing.T
	Subject
	month usage.Month
	asked int64 // how often for the time
}

// enterMonth moves the clock an hour into the next month, so that no test sees a month end.
func (s *suite) enterMonth() {
	now := s.now()
	s.Advance(usage.MonthOf(now).End().Add(time.Hour).Sub(now))
	s.month = usage.MonthOf(s.now())
}

func (s *suite) now() time.Time {
	s.asked++
	return s.post(ledger.Report{Holder: "clock", Seq: s.asked}).Now
}

func (s *suite) post(r ledger.Report) ledger.Result {
	s.Helper()
	result, err := s.Report(context.Background(), r)
	if err != nil {
		s.Fatalf("the report %+v is refused: %v", r, err)
	}
	return result
}

func (s *suite) mustRefuse(what string, r ledger.Report) {
	s.Helper()
	if _, err := s.Report(context.Background(), r); err == nil {
		s.Errorf("%s is posted", what)
	}
}

func (s *suite) user(name string) ledger.Pool {
	return ledger.Pool{Month: s.month, Kind: usage.PoolUser, Name: name}
}

func (s *suite) payer(kind usage.PoolKind, user string) ledger.Payer {
	return ledger.Payer{Month: s.month, Kind: kind, User: user, Account: "acme"}
}

// process reports its use of ada's pool.
type process struct {
	*suite
	name, replica string
	die           func()
	seq           int64
}

// process starts one on a live replica of its own.
func (s *suite) process(name string) *process {
	replica, leave := s.Join()
	return &process{suite: s, name: name, replica: replica, die: leave}
}

// report returns the next report: of ada's pool the process has used so many, may use up to keep,
// and needs more.
func (p *process) report(used, keep, need int64) ledger.Report {
	p.seq++
	return ledger.Report{
		Holder: p.name, Replica: p.replica, Seq: p.seq,
		Asks:   []ledger.Ask{{Pool: p.user("ada"), Used: used, Keep: keep, Need: need}},
		Usages: []ledger.Usage{{Payer: p.payer(usage.PoolUser, "ada"), Used: used}},
	}
}

func (p *process) grant(used, keep, need int64) ledger.Grant {
	p.Helper()
	return p.post(p.report(used, keep, need)).Grants[0]
}

func blockIsGivenBack(s *suite) {
	one := s.process("one")
	for i, step := range []struct{ used, keep, need, taken, free int64 }{
		{0, 0, 10, 10, 90},
		{4, 10, 0, 10, 90},
		{9, 10, 5, 15, 85},
		{11, 11, 0, 11, 89},
		{11, 11, 100, 100, 0},
	} {
		want := ledger.Grant{Pool: s.user("ada"), Sells: true, Plan: 100, Limit: 100, Taken: step.taken, Used: step.used, Free: step.free}
		if g := one.grant(step.used, step.keep, step.need); g != want {
			s.Errorf("step %d: %+v, want %+v", i, g, want)
		}
		s.Audit()
	}
}

func concurrentAsks(s *suite) {
	var taken atomic.Int64
	var all sync.WaitGroup
	for i := range 12 {
		p := s.process(fmt.Sprint("process ", i))
		all.Go(func() {
			result, err := s.Report(context.Background(), p.report(0, 0, 20))
			if err != nil {
				s.Error(err)
				return
			}
			taken.Add(result.Grants[0].Taken)
		})
	}
	all.Wait()
	if n := taken.Load(); n != 100 {
		s.Errorf("%d credits of 100 were granted", n)
	}
}

func lateReports(s *suite) {
	one, late := s.process("one"), s.process("late")
	first, second := one.report(0, 0, 50), one.report(4, 50, 0)
	s.post(first)
	s.post(second)
	s.mustRefuse("a repeated report", second)
	s.mustRefuse("the first report after the second", first)
	third, fourth := one.report(5, 50, 0), one.report(6, 50, 0)
	s.post(fourth)
	s.mustRefuse("a report after one that replaces it", third)
	late.report(0, 0, 0) // has not arrived
	if g := late.grant(0, 0, 7); g.Taken != 7 || g.Used != 6 || g.Elsewhere != 44 {
		s.Errorf("a process whose first report has not arrived: %+v", g)
	}
}

func refusedReports(s *suite) {
	one := s.process("one")
	one.grant(0, 0, 10)
	one.grant(4, 10, 0)
	for i, row := range []struct {
		what   string
		change func(*ledger.Report)
	}{
		{"a use that goes back", func(r *ledger.Report) { r.Asks[0].Used, r.Usages[0].Used = 3, 3 }},
		{"a use without a user", func(r *ledger.Report) { r.Asks[0].Used = 5 }},
		{"a user without a use", func(r *ledger.Report) { r.Usages[0].Used = 5 }},
		{"keeping less than was used", func(r *ledger.Report) { r.Asks[0].Keep = 3 }},
		{"a negative need", func(r *ledger.Report) { r.Asks[0].Need = -1 }},
	} {
		good := func() ledger.Report {
			r := one.report(4, 10, 0)
			r.Outcomes = []ledger.Outcome{s.outcome("one", uint64(i), s.month, "answered_5xx")}
			r.Refunds = []ledger.Refund{{Payer: s.payer(usage.PoolUser, "ada"), Charge: row.what, Total: 1, Cause: ledger.CauseListed}}
			return r
		}
		bad := good()
		row.change(&bad)
		s.mustRefuse(row.what, bad)
		one.seq-- // the number is free again
		if result := s.post(good()); result.Reported != 1 || len(result.Refunds) != 2 {
			s.Errorf("%s: then %d credits are reported, and refunded %v", row.what, result.Reported, result.Refunds)
		}
	}
}

func endedProcesses(s *suite) {
	one := s.process("one")
	last := func() ledger.Report {
		r := one.report(5, 5, 0)
		r.Last = true
		return r
	}
	s.post(last())
	s.Advance(30 * time.Second)
	s.post(last())
	s.Advance(2 * time.Minute)
	s.mustRefuse("a report of a process that ended some time ago", last())
}

func refunds(s *suite) {
	one, two := s.process("one"), s.process("two")
	one.grant(0, 0, 20)
	one.grant(20, 20, 0)
	type total struct {
		charge string
		all    int64
	}
	for i, step := range []struct {
		p      *process
		used   int64
		totals []total
		parts  map[string]int64 // credits that come back, by charge
	}{
		{one, 20, []total{{"a", 2}, {"b", 3}, {"a", 2}}, map[string]int64{"a": 2, "b": 3}},
		{one, 20, []total{{"a", 2}}, nil},
		{two, 0, []total{{"b", 3}, {"c", 2}}, map[string]int64{"c": 2}},
		{two, 0, []total{{"a", 5}, {"a", 7}}, map[string]int64{"a": 5}},
		{one, 20, []total{{"a", 6}, {"d", 0}}, nil},
	} {
		r := step.p.report(step.used, step.used, 0)
		for _, total := range step.totals {
			r.Refunds = append(r.Refunds, ledger.Refund{Payer: s.payer(usage.PoolUser, "ada"), Charge: total.charge, Total: total.all, Cause: ledger.CauseSettled})
		}
		parts := map[string]int64{}
		for _, refund := range s.post(r).Refunds {
			parts[refund.Charge] += refund.Credits
		}
		if !maps.Equal(parts, step.parts) {
			s.Errorf("step %d: %v come back, want %v", i, parts, step.parts)
		}
	}
	if g := two.grant(0, 0, 0); g.Used != 8 || g.Free != 92 {
		s.Errorf("after refunds of 12 of 20 credits: %+v", g)
	}
}

func refundPaysForNeed(s *suite) {
	one := s.process("one")
	one.grant(0, 0, 100)
	r := one.report(100, 100, 3)
	r.Refunds = []ledger.Refund{{Payer: s.payer(usage.PoolUser, "ada"), Charge: "a", Total: 2, Cause: ledger.CauseSettled}}
	if g := s.post(r).Grants[0]; g.Taken != 102 || g.Used != 98 || g.Free != 0 {
		s.Errorf("two credits came back, and three are needed: %+v", g)
	}
}

// outcome returns that of a charge of one credit, which comes back if there is a cause.
func (s *suite) outcome(holder string, number uint64, month usage.Month, cause string) ledger.Outcome {
	one := ledger.Outcome{
		ChargeID: ledger.ChargeID{Holder: holder, Number: number}, Month: month, User: "ada", Account: "acme", Credits: 1, Cause: cause,
	}
	if cause != "" {
		one.Refund = one.Credits
	}
	return one
}

func outcomes(s *suite) {
	one, two := s.process("one"), s.process("two")
	last := s.month.Previous()
	for i, step := range []struct {
		p        *process
		number   uint64
		month    usage.Month
		cause    string
		reported int64
		refunds  int
	}{
		{one, 1, s.month, "", 1, 0},
		{one, 1, s.month, "", 0, 0},
		{two, 1, s.month, "answered_5xx", 0, 0},
		{two, 1, s.month, ledger.CauseSettled, 0, 1},
		{one, 1, s.month, ledger.CauseSettled, 0, 0},
		{two, ledger.PageSize, s.month, "answered_5xx", 1, 1},
		{one, ledger.PageSize, s.month, "", 0, 0},
		{one, 2, s.month, ledger.CauseVoid, 0, 1},
		{one, 3, last, "answered_5xx", 1, 1},
		{one, 4, last.Previous(), "answered_5xx", 0, 0},
		{one, 5, last.Previous(), ledger.CauseSettled, 0, 1},
	} {
		r := step.p.report(0, 0, 0)
		r.Outcomes = []ledger.Outcome{s.outcome("other", step.number, step.month, step.cause)}
		if result := s.post(r); result.Reported != step.reported || len(result.Refunds) != step.refunds {
			s.Errorf("step %d: %d reported, refunds %v; want %d, and %d refunds", i, result.Reported, result.Refunds, step.reported, step.refunds)
		}
	}
}

func (s *suite) recalled() []ledger.Pool {
	s.Helper()
	pools, err := s.Recalled(context.Background())
	if err != nil {
		s.Fatal(err)
	}
	slices.SortFunc(pools, func(a, b ledger.Pool) int { return cmp.Compare(a.Name, b.Name) })
	return pools
}

func recalls(s *suite) {
	one, two, three := s.process("one"), s.process("two"), s.process("three")
	of := func(user string, r ledger.Report) ledger.Report {
		r.Asks[0].Name, r.Usages[0].User = user, user
		return r
	}
	s.post(one.report(0, 0, 100))
	s.post(of("eve", one.report(0, 0, 100)))
	if pools := s.recalled(); len(pools) != 0 {
		s.Errorf("%v are recalled, but no process lacks credits", pools)
	}
	// A busy machine may take longer than a recall is valid.
	want := []ledger.Pool{s.user("ada"), s.user("eve")}
	for attempt := 0; ; attempt++ {
		g := two.grant(0, 0, 5)
		s.post(of("eve", three.report(0, 0, 5)))
		pools := s.recalled()
		if g.Taken == 0 && g.Elsewhere == 100 && slices.Equal(pools, want) {
			break
		}
		if attempt == 20 {
			s.Fatalf("%+v, recalled %v, want %v", g, pools, want)
		}
	}
	s.Advance(2 * time.Second)
	if pools := s.recalled(); len(pools) != 0 {
		s.Errorf("%v are still recalled", pools)
	}
	s.post(one.report(0, 0, 0))
	if g := two.grant(0, 0, 5); g.Taken != 5 {
		s.Errorf("credits that were given back are not granted: %+v", g)
	}
}

func deadProcess(s *suite) {
	one, two := s.process("one"), s.process("two")
	one.grant(0, 0, 100)
	one.grant(30, 100, 0)
	one.die()
	want := ledger.Grant{Pool: s.user("ada"), Sells: true, Plan: 100, Limit: 100, Used: 100}
	if g := two.grant(0, 0, 5); g != want {
		s.Errorf("%+v, want %+v", g, want)
	}
	if pools := s.recalled(); len(pools) != 0 {
		s.Errorf("%v are recalled from a dead process", pools)
	}
}

// A replica that was fenced, and not killed, has used credits that it still reports.
func offTheList(s *suite) {
	one := s.process("one")
	one.grant(0, 0, 10)
	one.die()
	if g := one.grant(4, 10, 0); g.Used != 4 {
		s.Errorf("%+v", g)
	}
}

func unsoldPool(s *suite) {
	s.SetPlan(usage.PoolAccount, 100)
	one := s.process("one")
	user, account := s.user("ada"), ledger.Pool{Month: s.month, Kind: usage.PoolAccount, Name: "acme"}
	if g := one.grant(0, 0, 5); g != (ledger.Grant{Pool: user}) {
		s.Errorf("a user whose account pays: %+v", g)
	}
	r := one.report(0, 0, 5)
	r.Asks[0].Pool = account
	want := ledger.Grant{Pool: account, Taken: 5, Sells: true, Plan: 100, Limit: 100, Free: 95}
	if g := s.post(r).Grants[0]; g != want {
		s.Errorf("the account that pays: %+v, want %+v", g, want)
	}
	if g := one.grant(3, 3, 0); g.Taken != 3 || g.Used != 3 {
		s.Errorf("a use from before the plan's change does not count: %+v", g)
	}
}

func noLimit(s *suite) {
	s.SetPlan(usage.PoolUser, usage.Unlimited)
	const need = 1 << 30
	want := ledger.Grant{Pool: s.user("ada"), Taken: need, Sells: true, Plan: usage.Unlimited, Limit: usage.Unlimited}
	if g := s.process("one").grant(0, 0, need); g != want {
		s.Errorf("%+v, want %+v", g, want)
	}
}

func loweredLimit(s *suite) {
	one := s.process("one")
	one.grant(0, 0, 50)
	before := s.post(one.report(30, 50, 0))
	s.SetPlan(usage.PoolUser, 10)
	after := s.post(one.report(30, 50, 5))
	want := ledger.Grant{Pool: s.user("ada"), Taken: 50, Sells: true, Plan: 10, Limit: 10, Used: 30}
	if g := after.Grants[0]; g != want || after.Epoch <= before.Epoch {
		s.Errorf("%+v in epoch %d after %d, want %+v", g, after.Epoch, before.Epoch, want)
	}
	if g := one.grant(30, 30, 5); g.Taken != 30 {
		s.Errorf("%+v: credits above the limit were given back, and granted again", g)
	}
}

func otherMonths(s *suite) {
	one := s.process("one")
	one.grant(0, 0, 10)
	s.Advance(s.month.End().Sub(s.now()) + time.Hour)
	if g := one.grant(6, 10, 5); g.Taken != 10 || g.Used != 6 {
		s.Errorf("last month's pool: %+v", g)
	}
	s.month = usage.MonthOf(s.now())
	if g := one.grant(0, 0, 5); g.Taken != 5 || g.Used != 0 {
		s.Errorf("this month's pool: %+v", g)
	}
}

// histories posts random reports, some of them broken, to the ledger and to one in memory.
func histories(s *suite) {
	memory := New(100)
	memory.Jumped = time.Until(s.now())
	h := &history{suite: s, memory: memory, replicas: map[string]string{"": ""}}
	for _, name := range []string{"one", "two", "dead"} {
		p := s.process(name)
		if name == "dead" {
			p.die()
			p.replica = ""
		} else {
			h.replicas[p.replica], _ = memory.Join()
		}
		h.processes = append(h.processes, &historian{process: p, blocks: map[ledger.Pool]ledger.Block{}})
	}
	for range 200 {
		h.step()
		if s.Failed() {
			return
		}
	}
	memory.Refused = nil // as intended
	memory.MustBalance(s)
}

// history is a random one on two ledgers.
type history struct {
	*suite
	memory    *Ledger
	replicas  map[string]string // on the list of the subject → on that of memory
	processes []*historian
}

// historian is a process that reports its use of three pools.
type historian struct {
	*process
	blocks map[ledger.Pool]ledger.Block // as they were granted, and reported
}

func (h *history) step() {
	if rand.N(20) == 0 {
		kind, limit := []usage.PoolKind{usage.PoolUser, usage.PoolAccount}[rand.N(2)], usage.Limit(rand.N(200))
		h.SetPlan(kind, limit)
		h.memory.Kind, h.memory.Plan = kind, limit
	}
	p := h.processes[rand.N(len(h.processes))]
	r := p.next()
	got, err := h.Report(context.Background(), r)
	there := r
	there.Replica = h.replicas[r.Replica]
	want, refused := h.memory.Report(context.Background(), there)
	if got, want := plain(got), plain(want); (err == nil) != (refused == nil) || !reflect.DeepEqual(got, want) {
		h.Errorf("the report %+v\n gets    %+v, %v\n in memory %+v, %v", r, got, err, want, refused)
		return
	}
	if err != nil {
		p.seq = r.Seq - 1
		return
	}
	for i, g := range got.Grants {
		p.blocks[g.Pool] = ledger.Block{Taken: g.Taken, Used: r.Asks[i].Used}
	}
}

// plain returns a result without its time and epoch, and with its refunds in one order.
func plain(r ledger.Result) ledger.Result {
	r.Now, r.Epoch = time.Time{}, 0
	r.Refunds = append([]ledger.Part{}, r.Refunds...)
	slices.SortFunc(r.Refunds, func(a, b ledger.Part) int {
		return cmp.Or(cmp.Compare(a.Charge, b.Charge), cmp.Compare(a.Total, b.Total))
	})
	return r
}

// next returns a report. One in ten contradicts the last one.
func (p *historian) next() ledger.Report {
	p.seq++
	r := ledger.Report{Holder: p.name, Replica: p.replica, Seq: p.seq}
	for _, payer := range []ledger.Payer{p.payer(usage.PoolUser, "ada"), p.payer(usage.PoolUser, "eve"), p.payer(usage.PoolAccount, "eve")} {
		pool := p.user(payer.User)
		if payer.Kind == usage.PoolAccount {
			pool = ledger.Pool{Month: p.month, Kind: payer.Kind, Name: "acme"}
		}
		b := p.blocks[pool]
		used := b.Used + rand.Int64N(b.Taken-b.Used+1)
		if rand.N(30) == 0 {
			used-- // back, or below the user's use
		}
		r.Asks = append(r.Asks, ledger.Ask{Pool: pool, Used: used, Keep: used + rand.Int64N(max(1, b.Taken-used+1)), Need: rand.Int64N(30), Want: rand.Int64N(60)})
		r.Usages = append(r.Usages, ledger.Usage{Payer: payer, Used: used})
	}
	for range rand.N(4) {
		cause := []string{"", "answered_5xx", ledger.CauseSettled, ledger.CauseVoid}[rand.N(4)]
		r.Outcomes = append(r.Outcomes, p.outcome([]string{"one", "two"}[rand.N(2)], rand.Uint64N(30), p.month, cause))
		r.Refunds = append(r.Refunds, ledger.Refund{
			Payer: p.payer(usage.PoolUser, "eve"), Charge: fmt.Sprint("charge ", rand.N(30)), Total: rand.Int64N(5), Cause: ledger.CauseSettled,
		})
	}
	if rand.N(30) == 0 {
		r.Usages[0].Used++
	}
	return r
}

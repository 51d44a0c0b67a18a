package meter_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/internal/parts/partstest"
	"github.com/keyporter/keyporter/meter"
	"github.com/keyporter/keyporter/meter/ledger"
	"github.com/keyporter/keyporter/usage"
)

// bank is a ledger in memory, with the arithmetic of the real one. It audits the books after each
// report.
type bank struct {
	plan  usage.Limit // of every pool
	kind  usage.PoolKind
	delay func() time.Duration // before and after a report is posted
	fails func() bool          // true: the caller gets an error, posted or not

	mu        sync.Mutex
	pools     map[ledger.Pool]*ledger.Balance
	blocks    map[string]map[ledger.Pool]ledger.Block
	usages    map[string]map[ledger.Payer]int64
	seqs      map[string]int64
	dead      map[string]bool
	refunded  map[string]bool
	pages     map[ledger.PageID]*ledger.Page
	recalls   []ledger.Pool
	tellers   []*meter.Credits
	reports   int
	large     int   // reports of more than ten pools
	outcomes  []int // in each report
	broken    []string
	epoch     int64
	unaudited bool          // for benchmarks
	jumped    time.Duration // how long all machines were suspended, which time.Now does not know
}

func newBank(plan usage.Limit) *bank {
	return &bank{
		plan: plan, pools: map[ledger.Pool]*ledger.Balance{}, blocks: map[string]map[ledger.Pool]ledger.Block{},
		usages: map[string]map[ledger.Payer]int64{}, seqs: map[string]int64{}, dead: map[string]bool{}, refunded: map[string]bool{}, pages: map[ledger.PageID]*ledger.Page{},
	}
}

// teller returns Credits that run on the bank until the test ends, with their own clock, and a
// function that stops them.
func (b *bank) teller(t testing.TB, clock func() time.Duration) (c *meter.Credits, stop func()) {
	c = meter.NewCredits(meter.CreditsConfig{Ledger: b, Clock: clock})
	b.mu.Lock()
	b.tellers = append(b.tellers, c)
	b.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); c.Run(ctx) }()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return c, stop
}

// now is the time on the bank's clock.
func (b *bank) now() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return time.Now().Add(b.jumped)
}

// posted is the number of reports.
func (b *bank) posted() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.reports
}

// postedMany is the number of reports of many pools.
func (b *bank) postedMany() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.large
}

// used is the number of credits posted as used.
func (b *bank) used() (n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, balance := range b.pools {
		n += balance.Used
	}
	return n
}

// givenBack is the number of refunded charges.
func (b *bank) givenBack() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.refunded)
}

// kill makes the bank ignore a teller from now on, as if it were killed.
func (b *bank) kill(c *meter.Credits) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.dead[c.Name()] = true
}

var errBank = errors.New("the bank is away")

func (b *bank) Report(_ context.Context, r ledger.Report) (ledger.Result, error) {
	b.wait()
	b.mu.Lock()
	fails, posted := b.fails != nil && b.fails(), rand.N(2) == 0
	b.mu.Unlock()
	if fails && !posted {
		return ledger.Result{}, errBank
	}
	result, err := b.post(r)
	b.wait()
	if fails {
		return ledger.Result{}, errBank
	}
	return result, err
}

func (b *bank) wait() {
	if b.delay != nil {
		time.Sleep(b.delay())
	}
}

func (b *bank) post(r ledger.Report) (ledger.Result, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reports++
	b.outcomes = append(b.outcomes, len(r.Outcomes))
	if len(r.Asks) > 10 {
		b.large++
	}
	if b.dead[r.Holder] || r.Seq <= b.seqs[r.Holder] {
		return ledger.Result{}, errBank
	}
	b.seqs[r.Holder] = r.Seq
	if b.blocks[r.Holder] == nil {
		b.blocks[r.Holder], b.usages[r.Holder] = map[ledger.Pool]ledger.Block{}, map[ledger.Payer]int64{}
	}
	book := ledger.Book{
		Now: time.Now().Add(b.jumped), Replicas: len(b.tellers), Pools: map[ledger.Pool]*ledger.Balance{},
		Blocks: b.blocks[r.Holder], Usages: b.usages[r.Holder],
	}
	for _, pool := range r.Touches() {
		if b.pools[pool] == nil {
			b.pools[pool] = &ledger.Balance{}
		}
		balance := b.pools[pool]
		balance.Sells, balance.Plan = pool.Kind == b.kind, b.plan
		balance.Elsewhere, balance.Lost = 0, 0
		for holder, blocks := range b.blocks {
			switch held := blocks[pool].Taken - blocks[pool].Used; {
			case holder == r.Holder:
			case b.dead[holder]:
				balance.Lost += held
			default:
				balance.Elsewhere += held
			}
		}
		book.Pools[pool] = balance
	}
	for _, page := range r.Pages() {
		if b.pages[page] == nil {
			b.pages[page] = &ledger.Page{}
		}
	}
	tally := (&ledger.Outcomes{Now: usage.MonthOf(book.Now), Pages: b.pages}).Count(r.Outcomes)
	r.Refunds = append(r.Refunds, tally.Refunds...)
	fresh := r.Refunds[:0:0]
	for _, refund := range r.Refunds {
		if !b.refunded[refund.Charge] {
			b.refunded[refund.Charge] = true
			fresh = append(fresh, refund)
		}
	}
	r.Refunds = fresh
	grants, err := book.Post(r)
	if err != nil {
		b.broken = append(b.broken, err.Error())
		return ledger.Result{}, err
	}
	if !b.unaudited {
		b.audit()
	}
	b.ask(r.Asks, grants)
	return ledger.Result{Now: book.Now, Epoch: b.epoch, Grants: grants, Refunds: fresh, Confirmed: tally.Reported}, nil
}

// audit records errors in the books.
func (b *bank) audit() {
	for pool, balance := range b.pools {
		leased, used := int64(0), int64(0)
		for _, blocks := range b.blocks {
			leased += blocks[pool].Taken - blocks[pool].Used
		}
		for _, usages := range b.usages {
			for payer, n := range usages {
				if payer.Month == pool.Month && (pool.Kind == usage.PoolUser && payer.User == pool.Name || pool.Kind == usage.PoolAccount && payer.Account == pool.Name) {
					used += n
				}
			}
		}
		if leased != balance.Leased || used != balance.Used || balance.Leased+balance.Used-balance.Refunded > balance.Granted {
			b.broken = append(b.broken, fmt.Sprintf("%v: %+v, but %d leased, %d used", pool, *balance, leased, used))
		}
	}
}

// ask recalls credits.
func (b *bank) ask(asks []ledger.Ask, grants []ledger.Grant) {
	b.recalls = nil
	for i, grant := range grants {
		if grant.Taken < asks[i].Keep+asks[i].Need && grant.Elsewhere > 0 {
			b.recalls = append(b.recalls, grant.Pool)
		}
	}
	if b.recalls != nil {
		for _, c := range b.tellers {
			c.Hint()
		}
	}
}

func (b *bank) Recalled(context.Context) ([]ledger.Pool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]ledger.Pool(nil), b.recalls...), nil
}

func (b *bank) mustBeRight(t testing.TB) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.broken) > 0 {
		t.Fatalf("the books are wrong %d times, first: %s", len(b.broken), b.broken[0])
	}
}

// pay spends credits as a request does.
func pay(ctx context.Context, c *meter.Credits, p *authz.Principal, cost int64) (authz.Charge, authz.Reason, error) {
	charge, reason := c.Reserve(p, cost)
	if reason == authz.Allowed {
		return charge, reason, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 150*time.Millisecond)
	defer cancel()
	return c.Take(ctx, p, cost)
}

func principal(user, account string, kind usage.PoolKind, credits usage.Limit) *authz.Principal {
	return &authz.Principal{User: user, Account: account, Pool: kind, Credits: credits, RateLimit: usage.Unlimited, RateWindow: time.Minute}
}

// However many callers ask however many processes, they get exactly all credits of a pool; and when
// the first of them is refused, no live process has a credit left.
func TestAllCreditsAreSoldAndNotOneMore(t *testing.T) {
	runs := 40
	if os.Getenv("KEYPORTER_LONG") != "" {
		runs = 5000
	}
	for run := range runs {
		synctest.Test(t, func(t *testing.T) {
			credits := rand.Int64N(3000)
			b := newBank(usage.Limit(credits))
			b.delay = func() time.Duration { return rand.N(3 * time.Millisecond) }
			var tellers []*meter.Credits
			for range 1 + rand.N(4) {
				c, _ := b.teller(t, nil)
				tellers = append(tellers, c)
			}
			synctest.Wait()
			var mu sync.Mutex
			admitted, undecided := int64(0), 0
			var refused, last time.Time // the first refused, and the last admitted
			var all sync.WaitGroup
			for range 1000 {
				all.Go(func() {
					for range 3 {
						time.Sleep(rand.N(100 * time.Millisecond))
						_, reason, err := pay(t.Context(), tellers[rand.N(len(tellers))], principal("ada", "acme", usage.PoolUser, usage.Limit(credits)), 1)
						mu.Lock()
						switch {
						case err != nil:
							undecided++
						case reason == authz.Allowed:
							admitted++
							last = time.Now()
						case refused.IsZero():
							refused = time.Now()
						}
						mu.Unlock()
					}
				})
			}
			all.Wait()
			if admitted > credits || admitted < credits && int64(undecided) == 0 || undecided > 0 {
				t.Errorf("run %d: %d admitted of %d, %d undecided, by %d processes", run, admitted, credits, undecided, len(tellers))
			}
			if stranded := last.Sub(refused); stranded > 0 && !refused.IsZero() {
				t.Errorf("run %d: somebody had a credit %v after the first refusal", run, stranded)
			}
			b.mustBeRight(t)
		})
		if t.Failed() {
			return
		}
	}
}

// Processes are killed and the database fails, again and again: nothing is sold twice, and each
// kill loses no more than the killed process held.
func TestNothingIsSoldTwiceWhateverFails(t *testing.T) {
	for range 5 {
		synctest.Test(t, func(t *testing.T) {
			const credits = 20_000
			b := newBank(credits)
			b.delay = func() time.Duration { return rand.N(20 * time.Millisecond) }
			b.fails = func() bool { return rand.N(10) == 0 }
			type process struct {
				*meter.Credits
				stop    func()
				pending sync.WaitGroup
			}
			start := func() *process {
				p := &process{}
				p.Credits, p.stop = b.teller(t, nil)
				return p
			}
			tellers := []*process{start(), start(), start()}
			admitted := int64(0)
			var mu sync.Mutex
			var all sync.WaitGroup
			end := time.Now().Add(10 * time.Second)
			for i := range 60 {
				all.Go(func() {
					for time.Now().Before(end) {
						mu.Lock()
						p := tellers[rand.N(len(tellers))]
						p.pending.Add(1)
						mu.Unlock()
						charge, reason, err := pay(t.Context(), p.Credits, principal(fmt.Sprint("user", i%7), "acme", usage.PoolUser, credits), 1+rand.Int64N(3))
						if err == nil && reason == authz.Allowed {
							mu.Lock()
							if rand.N(20) == 0 {
								p.Void(charge) // the caller had gone
							} else {
								admitted += charge.Cost
							}
							mu.Unlock()
						}
						p.pending.Done()
						time.Sleep(rand.N(40 * time.Millisecond))
					}
				})
			}
			for range 8 {
				time.Sleep(time.Second)
				mu.Lock()
				i := rand.N(len(tellers))
				dead := tellers[i]
				tellers[i] = start()
				mu.Unlock()
				b.kill(dead.Credits)
				dead.pending.Wait()
				go dead.stop()
			}
			all.Wait()
			for _, p := range tellers {
				b.mu.Lock()
				b.fails = nil
				b.mu.Unlock()
				p.stop()
				if n := p.Unsettled(); n != 0 {
					t.Errorf("%d credits are unsettled after a stop in good order", n)
				}
			}
			b.mu.Lock()
			settled, leased := int64(0), int64(0)
			for pool, balance := range b.pools {
				if pool.Kind == usage.PoolUser {
					settled += balance.Used - balance.Refunded
					leased += balance.Leased
					if balance.Used-balance.Refunded+balance.Leased > credits {
						t.Errorf("%v: %+v of %d", pool, balance, credits)
					}
				}
			}
			b.mu.Unlock()
			// Everything that the killed processes held at their last report counts as used: their
			// users can lose no more.
			if missing := admitted - settled; missing < 0 || missing > leased {
				t.Errorf("admitted %d, settled %d, lost %d with 8 kills", admitted, settled, leased)
			}
			t.Logf("admitted %d, settled %d, lost %d with 8 kills", admitted, settled, leased-(admitted-settled))
			b.mustBeRight(t)
		})
		if t.Failed() {
			return
		}
	}
}

// A hundred months end under load: no credit of one month pays for a request of another, and no
// request near the end of a month is refused while its month has credits. The processes' clocks
// have arbitrary offsets, and drift.
func TestACreditPaysForItsOwnMonthOnly(t *testing.T) {
	partstest.Slow(t)
	synctest.Test(t, func(t *testing.T) {
		const credits = 10_000
		b := newBank(credits)
		b.delay = func() time.Duration { return rand.N(30 * time.Millisecond) }
		var tellers []*meter.Credits
		for _, drift := range []float64{1, 1.04, 0.96} {
			began, offset := b.now(), rand.N(time.Hour)
			c, _ := b.teller(t, func() time.Duration { return offset + time.Duration(float64(b.now().Sub(began))*drift) })
			tellers = append(tellers, c)
		}
		var wrong, right, undecided atomic.Int64
		for range 100 {
			end := usage.MonthOf(b.now()).End()
			b.mu.Lock()
			b.jumped += end.Add(-3 * time.Second).Sub(time.Now().Add(b.jumped))
			b.mu.Unlock()
			var all sync.WaitGroup
			for range 12 {
				all.Go(func() {
					for now := b.now(); now.Before(end.Add(2 * time.Second)); now = b.now() {
						charge, reason, err := pay(t.Context(), tellers[rand.N(len(tellers))], principal("ada", "acme", usage.PoolUser, credits), 1)
						switch {
						case err != nil:
							undecided.Add(1)
						case reason != authz.Allowed || charge.Month != usage.MonthOf(now) && charge.Month != usage.MonthOf(b.now()):
							wrong.Add(1)
						default:
							right.Add(1)
						}
						time.Sleep(rand.N(20 * time.Millisecond))
					}
				})
			}
			all.Wait()
		}
		t.Logf("%d requests around 100 month ends, %d charged to another month or refused, %d undecided", right.Load(), wrong.Load(), undecided.Load())
		if wrong.Load() > 0 || right.Load() < 10_000 || undecided.Load() > right.Load()/1000 {
			t.Errorf("%d wrong, %d undecided of %d", wrong.Load(), undecided.Load(), right.Load())
		}
		b.mustBeRight(t)
	})
}

// A flood of requests refused for want of credits causes no database work, except one look a second
// for returned credits.
func TestRefusalsCostNoWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBank(1)
		c, _ := b.teller(t, nil)
		p := principal("ada", "acme", usage.PoolUser, 1)
		synctest.Wait()
		if _, reason, err := pay(t.Context(), c, p, 1); err != nil || reason != authz.Allowed {
			t.Fatal(reason, err)
		}
		pay(t.Context(), c, p, 1)
		before := b.posted()
		for range 100_000 {
			if _, reason, err := pay(t.Context(), c, p, 1); reason != authz.CreditsExhausted || err != nil {
				t.Fatal(reason, err)
			}
			time.Sleep(100 * time.Microsecond)
		}
		if n := b.posted() - before; n > 11 {
			t.Errorf("100,000 refusals in 10 s caused %d reports", n)
		}
		// Returned credits are found all the same.
		c.Settle(t.Context(), meter.Receipt{Holder: c.Name(), Number: 1, Month: usage.MonthOf(time.Now()), Cost: 1, User: "ada", Account: "acme"}, "test")
		eventually(t, func() bool { _, reason, _ := pay(t.Context(), c, p, 1); return reason == authz.Allowed })
	})
}

// eventually waits in virtual time.
func eventually(t testing.TB, done func() bool) {
	t.Helper()
	for range 1000 {
		if done() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("it did not happen in 10 s")
}

// A lowered limit holds for the first request decided by it, even if the process still holds
// credits of the old one; a raised limit gives more at once.
func TestAChangedLimitHoldsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBank(1000)
		c, _ := b.teller(t, nil)
		synctest.Wait()
		p := principal("ada", "acme", usage.PoolUser, 1000)
		for range 10 {
			if _, reason, err := pay(t.Context(), c, p, 1); err != nil || reason != authz.Allowed {
				t.Fatal(reason, err)
			}
		}
		change := func(limit usage.Limit) *authz.Principal {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.plan, b.epoch = limit, b.epoch+1
			p := principal("ada", "acme", usage.PoolUser, limit)
			p.Epoch = b.epoch
			return p
		}
		p = change(10)
		if charge, reason, err := pay(t.Context(), c, p, 1); err != nil || reason != authz.CreditsExhausted || charge.Credits.Used != 10 || charge.Credits.Limit != 10 {
			t.Errorf("%+v %v %v", charge.Credits, reason, err)
		}
		p = change(11)
		if charge, reason, err := pay(t.Context(), c, p, 1); err != nil || reason != authz.Allowed || charge.Credits.Remaining() != 0 {
			t.Errorf("%+v %v %v", charge.Credits, reason, err)
		}
		if _, reason, err := pay(t.Context(), c, p, 1); err != nil || reason != authz.CreditsExhausted {
			t.Errorf("%v %v", reason, err)
		}
		p = change(usage.Unlimited)
		for range 100 {
			if _, reason, err := pay(t.Context(), c, p, 1); err != nil || reason != authz.Allowed {
				t.Fatal(reason, err)
			}
		}
		p = change(100)
		if charge, reason, err := pay(t.Context(), c, p, 1); err != nil || reason != authz.CreditsExhausted || charge.Credits.Used != 111 {
			t.Errorf("%+v %v %v", charge.Credits, reason, err)
		}
		b.mustBeRight(t)
	})
}

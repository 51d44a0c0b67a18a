package meter_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

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

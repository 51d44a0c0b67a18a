// Package ledgertest has a strict ledger in memory, for tests of what reports to a ledger.
package ledgertest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/keyporter/keyporter/credits"
	"github.com/keyporter/keyporter/credits/ledger"
	"github.com/keyporter/keyporter/usage"
)

// Ledger is a [credits.Ledger] with the arithmetic of the real one. It audits the books after each
// report. The first fields are set before the first report; Mu guards all others.
type Ledger struct {
	Kind      usage.PoolKind       // of the pools that the plan's credits are taken from
	Delay     func() time.Duration // before and after a report is posted; nil: none
	Unaudited bool                 // for benchmarks

	Mu       sync.Mutex
	Plan     usage.Limit // of every pool
	Epoch    int64
	Fails    func() bool   // true: the caller gets an error, posted or not; nil: never
	Jumped   time.Duration // how long all machines were suspended, which time.Now does not know
	Pools    map[ledger.Pool]*ledger.Balance
	Blocks   map[string]map[ledger.Pool]ledger.Block // by holder, as are the usages
	Usages   map[string]map[ledger.Payer]int64
	Refunded map[string]int64 // in total, by charge
	Outcomes []int            // number in each report
	Broken   []string         // what the audits and the arithmetic have found

	seqs       map[string]int64
	killed     map[string]bool
	pages      map[ledger.PageID]*ledger.Page
	recalls    []ledger.Pool
	allocators []*credits.Allocator
	reports    int
	large      int // reports of more than ten pools
}

// New returns a Ledger with a plan of that many credits.
func New(plan usage.Limit) *Ledger {
	return &Ledger{
		Plan: plan, Pools: map[ledger.Pool]*ledger.Balance{}, Blocks: map[string]map[ledger.Pool]ledger.Block{},
		Usages: map[string]map[ledger.Payer]int64{}, Refunded: map[string]int64{},
		seqs: map[string]int64{}, killed: map[string]bool{}, pages: map[ledger.PageID]*ledger.Page{},
	}
}

// Start returns an allocator that reports to the ledger until the test ends, with its own clock,
// and a function that stops it.
func (l *Ledger) Start(t testing.TB, clock func() time.Duration) (a *credits.Allocator, stop func()) {
	a = credits.New(credits.Config{Ledger: l, Clock: clock})
	l.Mu.Lock()
	l.allocators = append(l.allocators, a)
	l.Mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); a.Run(ctx) }()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return a, stop
}

// Now returns the time on the ledger's clock.
func (l *Ledger) Now() time.Time {
	l.Mu.Lock()
	defer l.Mu.Unlock()
	return time.Now().Add(l.Jumped)
}

// Reports returns the number of reports.
func (l *Ledger) Reports() int {
	l.Mu.Lock()
	defer l.Mu.Unlock()
	return l.reports
}

// LargeReports returns the number of reports of more than ten pools.
func (l *Ledger) LargeReports() int {
	l.Mu.Lock()
	defer l.Mu.Unlock()
	return l.large
}

// Used returns the number of credits posted as used, over all pools.
func (l *Ledger) Used() (n int64) {
	l.Mu.Lock()
	defer l.Mu.Unlock()
	for _, balance := range l.Pools {
		n += balance.Used
	}
	return n
}

// Refunds returns the number of refunded charges.
func (l *Ledger) Refunds() int {
	l.Mu.Lock()
	defer l.Mu.Unlock()
	return len(l.Refunded)
}

// Kill ignores an allocator from now on, as if its process were killed.
func (l *Ledger) Kill(a *credits.Allocator) {
	l.Mu.Lock()
	defer l.Mu.Unlock()
	l.killed[a.Name()] = true
}

var errUnreachable = errors.New("the ledger is unreachable")

// Report implements [credits.Ledger].
func (l *Ledger) Report(_ context.Context, r ledger.Report) (ledger.Result, error) {
	l.wait()
	l.Mu.Lock()
	fails, posted := l.Fails != nil && l.Fails(), rand.N(2) == 0
	l.Mu.Unlock()
	if fails && !posted {
		return ledger.Result{}, errUnreachable
	}
	result, err := l.post(r)
	l.wait()
	if fails {
		return ledger.Result{}, errUnreachable
	}
	return result, err
}

func (l *Ledger) wait() {
	if l.Delay != nil {
		time.Sleep(l.Delay())
	}
}

func (l *Ledger) post(r ledger.Report) (ledger.Result, error) {
	l.Mu.Lock()
	defer l.Mu.Unlock()
	l.reports++
	l.Outcomes = append(l.Outcomes, len(r.Outcomes))
	if len(r.Asks) > 10 {
		l.large++
	}
	if l.killed[r.Holder] || r.Seq <= l.seqs[r.Holder] {
		return ledger.Result{}, errUnreachable
	}
	l.seqs[r.Holder] = r.Seq
	book := l.open(&r)
	tally := (&ledger.Outcomes{Now: usage.MonthOf(book.Now), Pages: l.pages}).Count(r.Outcomes)
	parts := ledger.Parts(append(r.Refunds, tally.Refunds...), l.Refunded)
	grants, err := book.Post(r, parts)
	if err != nil {
		l.Broken = append(l.Broken, err.Error())
		return ledger.Result{}, err
	}
	if !l.Unaudited {
		l.audit()
	}
	l.recall(r.Asks, grants)
	return ledger.Result{Now: book.Now, Epoch: l.Epoch, Grants: grants, Refunds: parts, Reported: tally.Reported}, nil
}

// open returns the book that a report is posted to.
func (l *Ledger) open(r *ledger.Report) ledger.Book {
	if l.Blocks[r.Holder] == nil {
		l.Blocks[r.Holder], l.Usages[r.Holder] = map[ledger.Pool]ledger.Block{}, map[ledger.Payer]int64{}
	}
	book := ledger.Book{
		Now: time.Now().Add(l.Jumped), Replicas: len(l.allocators), Pools: map[ledger.Pool]*ledger.Balance{},
		Blocks: l.Blocks[r.Holder], Usages: l.Usages[r.Holder],
	}
	for _, pool := range r.Touches() {
		if l.Pools[pool] == nil {
			l.Pools[pool] = &ledger.Balance{}
		}
		balance := l.Pools[pool]
		balance.Sells, balance.Plan = pool.Kind == l.Kind, l.Plan
		balance.Elsewhere, balance.Lost = 0, 0
		for holder, blocks := range l.Blocks {
			switch held := blocks[pool].Taken - blocks[pool].Used; {
			case holder == r.Holder:
			case l.killed[holder]:
				balance.Lost += held
			default:
				balance.Elsewhere += held
			}
		}
		book.Pools[pool] = balance
	}
	for _, page := range r.Pages() {
		if l.pages[page] == nil {
			l.pages[page] = &ledger.Page{}
		}
	}
	return book
}

// audit records errors in the books.
func (l *Ledger) audit() {
	for pool, balance := range l.Pools {
		leased, used := int64(0), int64(0)
		for _, blocks := range l.Blocks {
			leased += blocks[pool].Taken - blocks[pool].Used
		}
		for _, usages := range l.Usages {
			for payer, n := range usages {
				if payer.Month == pool.Month && (pool.Kind == usage.PoolUser && payer.User == pool.Name || pool.Kind == usage.PoolAccount && payer.Account == pool.Name) {
					used += n
				}
			}
		}
		if leased != balance.Leased || used != balance.Used || balance.Leased+balance.Used-balance.Refunded > balance.Granted {
			l.Broken = append(l.Broken, fmt.Sprintf("%v: %+v, but %d leased, %d used", pool, *balance, leased, used))
		}
	}
}

// recall asks the other processes for credits that a report lacked.
func (l *Ledger) recall(asks []ledger.Ask, grants []ledger.Grant) {
	l.recalls = nil
	for i, grant := range grants {
		if grant.Taken < asks[i].Keep+asks[i].Need && grant.Elsewhere > 0 {
			l.recalls = append(l.recalls, grant.Pool)
		}
	}
	if l.recalls != nil {
		for _, a := range l.allocators {
			a.OnRecall()
		}
	}
}

// Recalled implements [credits.Ledger].
func (l *Ledger) Recalled(context.Context) ([]ledger.Pool, error) {
	l.Mu.Lock()
	defer l.Mu.Unlock()
	return append([]ledger.Pool(nil), l.recalls...), nil
}

// MustBalance ends the test if an audit has found an error.
func (l *Ledger) MustBalance(t testing.TB) {
	t.Helper()
	l.Mu.Lock()
	defer l.Mu.Unlock()
	if len(l.Broken) > 0 {
		t.Fatalf("the books are wrong %d times, first: %s", len(l.Broken), l.Broken[0])
	}
}

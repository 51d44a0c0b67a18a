// Package ledgertest has a strict ledger in memory, for tests of what reports to a ledger.
package ledgertest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/keyporter/keyporter/credits"
	"github.com/keyporter/keyporter/credits/ledger"
	"github.com/keyporter/keyporter/usage"
)

// Ledger is a [credits.Ledger] in memory that passes [Conformance]. It audits the books after each
// report. Every user and account is known, and has the same plan; months are never closed. The
// first fields are set before the first report; Mu guards all others.
type Ledger struct {
	Delay     func() time.Duration // before and after a report is posted; nil: none
	Unaudited bool                 // for benchmarks

	Mu       sync.Mutex
	Kind     usage.PoolKind // of the pools that the plan's credits are taken from
	Plan     usage.Limit    // of every pool of this kind
	Epoch    int64
	Fails    func() bool   // true: the caller gets an error, posted or not; nil: never
	Jumped   time.Duration // how long all machines were suspended, which time.Now does not know
	Pools    map[ledger.Pool]*ledger.Balance
	Blocks   map[string]map[ledger.Pool]ledger.Block // by holder, as are the usages
	Usages   map[string]map[ledger.Payer]int64
	Refunded map[string]int64 // in total, by charge
	Outcomes []int            // number in each report
	Refused  []string         // reports that contradict earlier ones, or do not add up
	Broken   []string         // what the audits have found

	holders    map[string]holder
	replicas   map[string]bool // name → live
	pages      map[ledger.PageID]*ledger.Page
	parts      []ledger.Part // made so far
	recalls    map[ledger.Pool]time.Time
	killed     map[string]bool // by holder
	allocators map[*credits.Allocator]member
	reports    int
	large      int // reports of more than ten pools
}

// member is what the ledger knows of an allocator that it has started.
type member struct {
	replica string
	recalls credits.Recalls
}

// holder is a process, by its last report.
type holder struct {
	seq     int64
	replica string
	ended   bool
	at      time.Time
}

// New returns a Ledger with a plan of that many credits.
func New(plan usage.Limit) *Ledger {
	return &Ledger{
		Plan: plan, Pools: map[ledger.Pool]*ledger.Balance{}, Blocks: map[string]map[ledger.Pool]ledger.Block{},
		Usages: map[string]map[ledger.Payer]int64{}, Refunded: map[string]int64{},
		holders: map[string]holder{}, replicas: map[string]bool{}, pages: map[ledger.PageID]*ledger.Page{},
		recalls: map[ledger.Pool]time.Time{}, killed: map[string]bool{}, allocators: map[*credits.Allocator]member{},
	}
}

// Join puts a replica on the list of live ones, and returns its name and a function that removes
// it.
func (l *Ledger) Join() (name string, leave func()) {
	l.Mu.Lock()
	defer l.Mu.Unlock()
	name = fmt.Sprint("replica ", len(l.replicas))
	l.replicas[name] = true
	return name, func() {
		l.Mu.Lock()
		defer l.Mu.Unlock()
		l.replicas[name] = false
	}
}

// live returns the number of live replicas.
func (l *Ledger) live() (n int) {
	for _, live := range l.replicas {
		if live {
			n++
		}
	}
	return n
}

// Start returns an allocator that reports to the ledger until the test ends, with its own clock,
// and a function that stops it.
func (l *Ledger) Start(t testing.TB, clock func() time.Duration) (a *credits.Allocator, stop func()) {
	replica, leave := l.Join()
	recalls := credits.NewRecalls()
	a = credits.New(credits.Config{Ledger: l, Clock: clock, Replica: func() string { return replica }, Recalls: recalls})
	l.Mu.Lock()
	l.allocators[a] = member{replica, recalls}
	l.Mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); a.Run(ctx) }()
	stop = func() { cancel(); <-done; leave() }
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
	l.replicas[l.allocators[a].replica] = false
	delete(l.allocators, a)
}

var (
	errUnreachable = errors.New("the ledger is unreachable")
	errStale       = errors.New("a later report was posted before this one, or the last one some time ago")
)

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

// post posts a report. A report that it refuses changes nothing.
func (l *Ledger) post(r ledger.Report) (ledger.Result, error) {
	l.Mu.Lock()
	defer l.Mu.Unlock()
	l.reports++
	l.Outcomes = append(l.Outcomes, len(r.Outcomes))
	if len(r.Asks) > 10 {
		l.large++
	}
	if l.killed[r.Holder] {
		return ledger.Result{}, errUnreachable
	}
	book := l.open(&r)
	if h := l.holders[r.Holder]; r.Seq <= h.seq || h.ended && book.Now.Sub(h.at) > addUpAfter {
		return ledger.Result{}, errStale
	}
	pages := l.copyPages(&r)
	tally := (&ledger.Outcomes{Now: usage.MonthOf(book.Now), Pages: pages}).Count(r.Outcomes)
	refunds := slices.Concat(r.Refunds, tally.Refunds)
	totals := l.totals(refunds)
	parts := ledger.Parts(refunds, totals)
	grants, err := book.Post(r, parts)
	if err != nil {
		l.Refused = append(l.Refused, err.Error())
		return ledger.Result{}, err
	}
	l.holders[r.Holder] = holder{r.Seq, r.Replica, r.Last, book.Now}
	maps.Copy(l.pages, pages)
	maps.Copy(l.Refunded, totals)
	l.parts = append(l.parts, parts...)
	if !l.Unaudited {
		l.audit()
	}
	l.recall(r.Asks, grants, book.Now)
	return ledger.Result{Now: book.Now, Epoch: l.Epoch, Grants: grants, Refunds: parts, Reported: tally.Reported}, nil
}

// addUpAfter is how long a process that has ended may repeat its last report.
const addUpAfter = time.Minute

// open returns the book that a report is posted to.
func (l *Ledger) open(r *ledger.Report) ledger.Book {
	if l.Blocks[r.Holder] == nil {
		l.Blocks[r.Holder], l.Usages[r.Holder] = map[ledger.Pool]ledger.Block{}, map[ledger.Payer]int64{}
	}
	book := ledger.Book{
		Now: time.Now().Add(l.Jumped), Replicas: l.live(), Pools: map[ledger.Pool]*ledger.Balance{},
		Blocks: l.Blocks[r.Holder], Usages: l.Usages[r.Holder],
	}
	for _, pool := range r.Touches() {
		if l.Pools[pool] == nil {
			l.Pools[pool] = &ledger.Balance{}
		}
		balance := l.Pools[pool]
		balance.Sells, balance.Plan = pool.Kind == l.Kind, 0
		if balance.Sells {
			balance.Plan = l.Plan
		}
		balance.Elsewhere, balance.Lost = 0, 0
		for name, blocks := range l.Blocks {
			switch held := blocks[pool].Taken - blocks[pool].Used; {
			case name == r.Holder:
			case l.replicas[l.holders[name].replica]:
				balance.Elsewhere += held
			default:
				balance.Lost += held
			}
		}
		book.Pools[pool] = balance
	}
	return book
}

// copyPages returns copies of the pages with the outcomes of a report.
func (l *Ledger) copyPages(r *ledger.Report) map[ledger.PageID]*ledger.Page {
	pages := map[ledger.PageID]*ledger.Page{}
	for _, id := range r.Pages() {
		pages[id] = &ledger.Page{}
		if page := l.pages[id]; page != nil {
			pages[id], _ = ledger.ParsePage(page.Month, page.Text()) // its own text
		}
	}
	return pages
}

// totals returns what has come back of the charges of some refunds.
func (l *Ledger) totals(refunds []ledger.Refund) map[string]int64 {
	totals := map[string]int64{}
	for _, refund := range refunds {
		if before := l.Refunded[refund.Charge]; before > 0 {
			totals[refund.Charge] = before
		}
	}
	return totals
}

// audit records errors in the books: each figure of a pool is the sum of its parts, and no credit
// is sold twice.
func (l *Ledger) audit() {
	parts := map[ledger.Pool]ledger.Balance{}
	add := func(pool ledger.Pool, leased, used, refunded int64) {
		sum := parts[pool]
		parts[pool] = ledger.Balance{Leased: sum.Leased + leased, Used: sum.Used + used, Refunded: sum.Refunded + refunded}
	}
	both := func(payer ledger.Payer, used, refunded int64) {
		add(ledger.Pool{Month: payer.Month, Kind: usage.PoolUser, Name: payer.User}, 0, used, refunded)
		add(ledger.Pool{Month: payer.Month, Kind: usage.PoolAccount, Name: payer.Account}, 0, used, refunded)
	}
	for _, blocks := range l.Blocks {
		for pool, block := range blocks {
			add(pool, block.Taken-block.Used, 0, 0)
		}
	}
	for _, usages := range l.Usages {
		for payer, n := range usages {
			both(payer, n, 0)
		}
	}
	for _, part := range l.parts {
		both(part.Payer, 0, part.Credits)
	}
	for pool, b := range l.Pools {
		sum := parts[pool]
		if sum.Leased != b.Leased || sum.Used != b.Used || sum.Refunded != b.Refunded || b.Leased < 0 || b.Leased+b.Used-b.Refunded > b.Granted {
			l.Broken = append(l.Broken, fmt.Sprintf("%v: %+v, but its parts are %d leased, %d used, %d refunded", pool, *b, sum.Leased, sum.Used, sum.Refunded))
		}
	}
}

// recall asks the other processes for credits that a report lacked.
func (l *Ledger) recall(asks []ledger.Ask, grants []ledger.Grant, now time.Time) {
	recalled := false
	for i, grant := range grants {
		if grant.Taken < asks[i].Keep+asks[i].Need && grant.Elsewhere > 0 {
			l.recalls[grant.Pool], recalled = now, true
		}
	}
	if recalled {
		for _, m := range l.allocators {
			m.recalls.Announce()
		}
	}
}

// recallLife is how long a recall is valid.
const recallLife = time.Second

// Recalled implements [credits.Ledger].
func (l *Ledger) Recalled(context.Context) (pools []ledger.Pool, err error) {
	l.Mu.Lock()
	defer l.Mu.Unlock()
	now := time.Now().Add(l.Jumped)
	for pool, at := range l.recalls {
		if now.Sub(at) < recallLife {
			pools = append(pools, pool)
		}
	}
	return pools, nil
}

// MustBalance ends the test if a report was refused or an audit has found an error.
func (l *Ledger) MustBalance(t testing.TB) {
	t.Helper()
	l.Mu.Lock()
	defer l.Mu.Unlock()
	if wrong := slices.Concat(l.Refused, l.Broken); len(wrong) > 0 {
		t.Fatalf("the books are wrong %d times, first: %s", len(wrong), wrong[0])
	}
}

// Package credits spends the credits of a month in memory, from blocks that this process holds, and
// reports the use to a ledger.
package credits

import (
	"context"
	"crypto/rand"
	"errors"
	"hash/maphash"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyporter/keyporter/credits/ledger"
	"github.com/keyporter/keyporter/usage"
)

// Ledger is the database of credits.
type Ledger interface {
	// Report posts the credits that this process has used, and returns the credits that it may use
	// from then on. If a report may or may not have been posted, the next one replaces it.
	Report(ctx context.Context, r ledger.Report) (ledger.Result, error)
	// Recalled returns the pools in which other processes want this one's unused credits.
	Recalled(ctx context.Context) ([]ledger.Pool, error)
}

// Config configures [Allocator]. Only Ledger is required.
type Config struct {
	Ledger Ledger
	// Replica returns this process's entry in the list of live replicas; nil: it has none.
	Replica func() string
	// Clock keeps running while the machine is suspended, and never goes back; nil: time since the
	// start.
	Clock   func() time.Duration
	Log     *slog.Logger          // slog.Default() if nil
	Metrics prometheus.Registerer // none if nil
}

// Allocator spends credits for requests in memory, from blocks that this process holds, and reports
// the use to the ledger. A block is a part of a pool that nobody else can use, so no credit is sold
// twice, whatever happens to this process. Credits that it has not reported when it is killed count
// as used. Its methods are safe for concurrent use. Nothing is granted unless [Allocator.Run] runs.
type Allocator struct {
	config   Config
	name     atomic.Pointer[holderName] // of this process, in receipts and in the ledger
	metrics  *metrics
	seed     maphash.Seed
	shards   [shards]shard
	calendar atomic.Pointer[calendar]
	charges  atomic.Uint64
	kick     chan struct{} // a request waits
	hints    chan struct{} // another process may want this one's unused credits

	mu       sync.Mutex
	outcomes outcomes

	// The goroutine of Run owns the fields below.
	replica string // entry in the list of replicas, as of the last report
	seq     int64
	resting []rest
	lap     lap
	failing bool
	// The next report carries outcomes, even if nothing else is due.
	outcomesDue bool
	owed        bool      // a report of everything is due
	rested      time.Time // earliest time for it
}

// shards is the number of locks of [Allocator].
const shards = 256

type shard struct {
	mu      sync.Mutex
	wallets map[owner]*wallet // of this month
	spare   []wallet
	dirty   []*wallet
	urgent  []*wallet // requests wait for these
}

// Spender is the user of a request, with the plan's credits as the decision has read them.
type Spender struct {
	User, Account string
	Pool          usage.PoolKind
	Limit         usage.Limit // the plan's credits
	Epoch         int64       // of the database state behind the decision
}

// Result is the result of an attempt to spend. The zero Result decides nothing.
type Result uint8

// The results.
const (
	Unknown   Result = iota // only the ledger knows
	Spent                   // the credits are spent
	Exhausted               // no live process has a credit to spare
)

// owner is a pool without its month.
type owner struct {
	kind usage.PoolKind
	name string
}

// calendar is the month by the database's clock. It is certain before until.
type calendar struct {
	month usage.Month
	until time.Duration // on config.Clock
	end   time.Duration // about the end of the month
}

// round is one report to wait for. done is closed once it is answered or has failed.
type round struct {
	done chan struct{}
	err  error
}

// New returns an Allocator that holds nothing yet. It panics if its metrics are already
// registered.
func New(c Config) *Allocator {
	if c.Clock == nil {
		began := time.Now()
		c.Clock = func() time.Duration { return time.Since(began) }
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Replica == nil {
		c.Replica = func() string { return "" }
	}
	credits := &Allocator{
		config: c, seed: maphash.MakeSeed(), kick: make(chan struct{}, 1), hints: make(chan struct{}, 1), outcomes: newOutcomes(),
	}
	credits.rename()
	for i := range credits.shards {
		credits.shards[i].wallets = map[owner]*wallet{}
	}
	credits.calendar.Store(&calendar{until: c.Clock() - 1})
	credits.metrics = newMetrics(c.Metrics, credits)
	return credits
}

// HolderLength is the length of a process's name, in bytes.
const HolderLength = 16

// holderName is a name of this process. It holds for charges from a number on.
type holderName struct {
	text   string
	from   uint64
	before string // the name of earlier charges
}

// Name is this process's name in its charges. It changes when the ledger contradicts the process
// for good.
func (c *Allocator) Name() string { return c.name.Load().text }

// Holder returns the name under which the charge with this number was made, and reports whether it
// is the current one.
func (c *Allocator) Holder(number uint64) (name string, present bool) {
	now := c.name.Load()
	if number < now.from {
		return now.before, false
	}
	return now.text, true
}

func (c *Allocator) rename() {
	next := &holderName{text: strings.ToLower(rand.Text()[:HolderLength])}
	if old := c.name.Load(); old != nil {
		next.from, next.before = c.charges.Load()+1, old.text
	}
	c.name.Store(next)
}

func (c *Allocator) shard(name string) *shard {
	return &c.shards[maphash.String(c.seed, name)%shards]
}

// ownerOf returns the owner of the credits that a request uses.
func ownerOf(p *Spender) owner {
	if p.Pool == usage.PoolAccount {
		return owner{usage.PoolAccount, p.Account}
	}
	return owner{usage.PoolUser, p.User}
}

// TrySpend spends the cost of a request if that needs no question to the ledger. Otherwise the
// result is [Unknown], and nothing is spent.
func (c *Allocator) TrySpend(p *Spender, cost int64) (usage.Charge, Result) {
	o, now := ownerOf(p), c.config.Clock()
	s := c.shard(o.name)
	s.mu.Lock()
	defer s.mu.Unlock()
	return c.pay(s, o, p, cost, now)
}

// Peek returns the state of a pool for its users, and asks the ledger if the last answer may be
// stale. It spends nothing. Credits that are not counted mean that the month is about to end.
func (c *Allocator) Peek(ctx context.Context, p *Spender) (usage.Credits, error) {
	o := ownerOf(p)
	s := c.shard(o.name)
	for asked := false; ; asked = true {
		now := c.config.Clock()
		s.mu.Lock()
		calendar := c.calendar.Load()
		if now >= calendar.until {
			s.mu.Unlock()
			return usage.Credits{}, nil
		}
		w := s.wallet(o, calendar.month)
		if w.told && (asked || w.fresh(p, now)) {
			credits := w.credits(p, calendar.end-now)
			s.mu.Unlock()
			return credits, nil
		}
		r := s.wait(w, 0)
		s.mu.Unlock()
		if err := c.await(ctx, r); err != nil {
			return usage.Credits{}, err
		}
	}
}

// pay asks the wallet of an owner and turns its answer into a charge. It reads the month under the
// shard's lock, because a new month replaces the old wallets under that lock.
func (c *Allocator) pay(s *shard, o owner, p *Spender, cost int64, now time.Duration) (usage.Charge, Result) {
	calendar := c.calendar.Load()
	if now >= calendar.until {
		return usage.Charge{}, Unknown
	}
	w := s.wallet(o, calendar.month)
	answer := w.pay(p, cost, now)
	if w.changed() {
		s.mark(w)
	}
	switch answer {
	case Spent:
		c.metrics.charged.Add(float64(cost))
		return usage.Charge{
			User: p.User, Account: p.Account, Pool: w.pool.Kind, Month: w.pool.Month, Cost: cost, Number: c.charges.Add(1),
			Credits: w.credits(p, calendar.end-now),
		}, Spent
	case Exhausted:
		return usage.Charge{Credits: w.credits(p, calendar.end-now)}, Exhausted
	}
	return usage.Charge{}, Unknown
}

// wallet returns the wallet of an owner in a month, and makes it if there is none.
func (s *shard) wallet(o owner, month usage.Month) *wallet {
	w := s.wallets[o]
	if w != nil && w.pool.Month != month {
		s.retire(o, w)
		w = nil
	}
	if w == nil {
		w = s.newWallet(ledger.Pool{Month: month, Kind: o.kind, Name: o.name})
		s.wallets[o] = w
	}
	return w
}

// chunk is the number of wallets in one object of 8 KiB. The garbage collector visits each object
// separately, and finds neighbors much faster. All wallets live for the same month.
const chunk = 31

// newWallet returns a wallet of a pool with no use yet.
func (s *shard) newWallet(pool ledger.Pool) *wallet {
	if len(s.spare) == 0 {
		s.spare = make([]wallet, chunk)
	}
	w := &s.spare[0]
	s.spare = s.spare[1:]
	w.pool, w.payers = pool, w.first[:0]
	return w
}

// retire makes a wallet of another month give back its remaining credits.
func (s *shard) retire(o owner, w *wallet) {
	w.back = true
	s.mark(w)
	delete(s.wallets, o)
}

// mark adds a wallet to the next report.
func (s *shard) mark(w *wallet) {
	if !w.dirty {
		w.dirty = true
		s.dirty = append(s.dirty, w)
	}
}

// ErrUnsettled is returned when the ledger could not say in time whether credits are left.
var ErrUnsettled = errors.New("whether there are credits left could not be told in time")

// recallPause is the time before a request asks again for credits that other processes hold.
const recallPause = 5 * time.Millisecond

// Spend spends the cost of a request, and waits for the ledger if this process does not know the
// answer. The result is [Spent] or [Exhausted]; the latter only if no other
// live process had a credit to spare.
func (c *Allocator) Spend(ctx context.Context, p *Spender, cost int64) (usage.Charge, Result, error) {
	o := ownerOf(p)
	s := c.shard(o.name)
	for paused := true; ; paused = !paused {
		now := c.config.Clock()
		s.mu.Lock()
		charge, result := c.pay(s, o, p, cost, now)
		if result != Unknown {
			s.mu.Unlock()
			return charge, result, nil
		}
		var w *wallet
		if now < c.calendar.Load().until {
			w = s.wallets[o]
		}
		if w != nil && w.told && !w.sells && p.Epoch <= w.epoch {
			s.mu.Unlock() // the plan changed while this request was on its way
			return usage.Charge{}, Unknown, ErrUnsettled
		}
		if w == nil || !paused { // the month is about to end, or others are giving credits back
			s.mu.Unlock()
			c.wake()
			if !sleep(ctx, recallPause) {
				return usage.Charge{}, Unknown, errors.Join(ErrUnsettled, ctx.Err())
			}
			continue
		}
		r := s.wait(w, cost)
		s.mu.Unlock()
		err := c.await(ctx, r)
		s.leave(w, cost)
		if err != nil {
			return usage.Charge{}, Unknown, err
		}
	}
}

// wait adds the cost of a request to the wallet's need, and returns the round that reports it.
func (s *shard) wait(w *wallet, cost int64) *round {
	w.dry = w.dry || cost > 0
	if w.need += cost; w.round == nil {
		w.round = &round{done: make(chan struct{})}
		s.urgent = append(s.urgent, w)
	}
	return w.round
}

// leave subtracts the cost from the need again.
func (s *shard) leave(w *wallet, cost int64) {
	s.mu.Lock()
	w.need -= cost
	s.mu.Unlock()
}

// await waits for a round or for the end of ctx.
func (c *Allocator) await(ctx context.Context, r *round) error {
	c.wake()
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return errors.Join(ErrUnsettled, ctx.Err())
	}
}

// sleep waits for d, and reports false if ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// OnRecall tells the Allocator that other processes may want its unused credits. It never blocks.
func (c *Allocator) OnRecall() {
	select {
	case c.hints <- struct{}{}:
	default:
	}
}

func (c *Allocator) wake() {
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// Void undoes the charge of a request that did not pass.
func (c *Allocator) Void(charge usage.Charge) {
	if charge.Cost == 0 {
		return
	}
	c.metrics.void.Add(float64(charge.Cost))
	o := owner{charge.Pool, charge.User}
	if charge.Pool == usage.PoolAccount {
		o.name = charge.Account
	}
	holder, present := c.Holder(charge.Number)
	s := c.shard(o.name)
	s.mu.Lock()
	w := s.wallets[o]
	undone := present && w != nil && w.pool.Month == charge.Month && w.unpay(user{charge.User, charge.Account}, charge.Cost)
	s.mu.Unlock()
	if !undone {
		c.Record(ledger.Outcome{
			ChargeID: ledger.ChargeID{Holder: holder, Number: charge.Number},
			Month:    charge.Month, User: charge.User, Account: charge.Account, Credits: charge.Cost, Cause: ledger.CauseVoid,
		})
	}
}

// CountForged counts a receipt that was not signed for the access log.
func (c *Allocator) CountForged() { c.metrics.forged.Inc() }

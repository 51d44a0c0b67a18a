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
	Recalls Recalls // none if nil
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

	outcomes *outcomes
}

// calendar is the month by the database's clock. It is certain before until.
type calendar struct {
	month usage.Month
	until time.Duration // on config.Clock
	end   time.Duration // about the end of the month
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
		config: c, seed: maphash.MakeSeed(), kick: make(chan struct{}, 1), outcomes: newOutcomes(),
	}
	credits.rename()
	for i := range credits.shards {
		credits.shards[i].wallets = map[owner]*wallet{}
	}
	credits.calendar.Store(&calendar{until: c.Clock() - 1})
	credits.metrics = newMetrics(c.Metrics, credits.Outstanding)
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

// TrySpend spends the cost of a request if that needs no question to the ledger. Otherwise the
// result is [Unknown], and nothing is spent.
func (c *Allocator) TrySpend(p *Spender, cost int64) (usage.Charge, Result) {
	o, now := ownerOf(p), c.config.Clock()
	s := c.shard(o.name)
	s.mu.Lock()
	defer s.mu.Unlock()
	return c.spend(s, o, p, cost, now)
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
		if w.answer.known && (asked || w.fresh(p, now)) {
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

// Glance returns what the last answer of the ledger and the use since then say of the user's
// credits, or the zero Credits if there was no answer. It asks nobody.
func (c *Allocator) Glance(p *Spender) usage.Credits {
	o := ownerOf(p)
	s := c.shard(o.name)
	now := c.config.Clock()
	s.mu.Lock()
	defer s.mu.Unlock()
	calendar := c.calendar.Load()
	w := s.wallets[o]
	if now >= calendar.until || w == nil || w.pool.Month != calendar.month || !w.answer.known {
		return usage.Credits{}
	}
	return w.credits(p, calendar.end-now)
}

// spend asks the wallet of an owner and turns its answer into a charge. It reads the month under
// the shard's lock, because a new month replaces the old wallets under that lock.
func (c *Allocator) spend(s *shard, o owner, p *Spender, cost int64, now time.Duration) (usage.Charge, Result) {
	calendar := c.calendar.Load()
	if now >= calendar.until {
		return usage.Charge{}, Unknown
	}
	w := s.wallet(o, calendar.month)
	result := w.spend(p, cost, now)
	if w.changed() {
		s.mark(w)
	}
	switch result {
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

// recallPause is the time before a request asks again for credits that other processes hold.
const recallPause = 5 * time.Millisecond

// Spend spends the cost of a request, and waits for the ledger if this process does not know the
// answer. The result is [Spent] or [Exhausted]; the latter only if no other live process had a
// credit to spare.
func (c *Allocator) Spend(ctx context.Context, p *Spender, cost int64) (usage.Charge, Result, error) {
	o := ownerOf(p)
	for ask := true; ; ask = !ask { // between two questions, other processes give credits back
		charge, result, turn, err := c.spendOrQueue(o, p, cost, ask)
		if result == Unknown && err == nil {
			err = c.waitTurn(ctx, turn, cost)
		}
		if result != Unknown || err != nil {
			return charge, result, err
		}
	}
}

// turn is a request's place in the next report. The zero turn is a pause.
type turn struct {
	shard  *shard
	wallet *wallet
	round  *round
}

// spendOrQueue spends the cost of a request, or, with ask, queues it for the next report. There is
// no turn without ask, or if the month is about to end.
func (c *Allocator) spendOrQueue(o owner, p *Spender, cost int64, ask bool) (usage.Charge, Result, turn, error) {
	s, now := c.shard(o.name), c.config.Clock()
	s.mu.Lock()
	defer s.mu.Unlock()
	charge, result := c.spend(s, o, p, cost, now)
	if result != Unknown || now >= c.calendar.Load().until {
		return charge, result, turn{}, nil
	}
	w := s.wallets[o]
	if w != nil && w.outdated(p) { // the plan changed while this request was on its way
		return usage.Charge{}, Unknown, turn{}, ErrUndecided
	}
	if w == nil || !ask {
		return usage.Charge{}, Unknown, turn{}, nil
	}
	return usage.Charge{}, Unknown, turn{s, w, s.wait(w, cost)}, nil
}

// waitTurn waits for a turn, or for a pause. Afterwards the request is no longer queued.
func (c *Allocator) waitTurn(ctx context.Context, t turn, cost int64) error {
	if t.wallet == nil {
		c.wake()
		if !sleep(ctx, recallPause) {
			return errors.Join(ErrUndecided, ctx.Err())
		}
		return nil
	}
	defer t.shard.leave(t.wallet, cost)
	return c.await(ctx, t.round)
}

// await waits for a round or for the end of ctx.
func (c *Allocator) await(ctx context.Context, r *round) error {
	c.wake()
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return errors.Join(ErrUndecided, ctx.Err())
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
	undone := present && w != nil && w.pool.Month == charge.Month && w.unspend(user{charge.User, charge.Account}, charge.Cost)
	s.mu.Unlock()
	if !undone {
		c.Record(ledger.Outcome{
			ChargeID: ledger.ChargeID{Holder: holder, Number: charge.Number},
			Month:    charge.Month, User: charge.User, Account: charge.Account, Credits: charge.Cost, Refund: charge.Cost, Cause: ledger.CauseVoid,
		})
	}
}

// CountForged counts a receipt that was not signed for the access log.
func (c *Allocator) CountForged() { c.metrics.forged.Inc() }

// drift bounds how much slower this machine's clock is than the database's.
const drift = 20 // one part in this many

// follow sets the month by the database's clock. It assumes an early end of the month rather than a
// late one: after it, the database is asked.
func (c *Allocator) follow(sent time.Duration, result *ledger.Result) {
	month := usage.MonthOf(result.Now)
	left := month.End().Sub(result.Now)
	old := c.calendar.Load()
	c.calendar.Store(&calendar{month: month, until: sent + left - left/drift, end: sent + left})
	if old.month != month && old.month != 0 {
		c.beginMonth(month)
	}
}

// turn begins a new month: the wallets of the old one give back their remaining credits, and are
// reported once more.
func (c *Allocator) beginMonth(month usage.Month) {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		for o, w := range s.wallets {
			if w.pool.Month != month {
				s.retire(o, w)
			}
		}
		s.spare = nil // the rest of a chunk would keep the old month's wallets in memory
		s.mu.Unlock()
	}
	c.wake()
}

// abandon gives up all wallets and the name of this process. Requests that wait fail with err.
func (c *Allocator) abandon(err error) {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		for _, w := range s.urgent {
			w.next.round.end(err)
			w.next.round = nil
		}
		clear(s.wallets)
		s.urgent, s.dirty, s.spare = nil, nil, nil
		s.mu.Unlock()
	}
	c.rename()
}

// giveBackAll makes all wallets give back their unused credits with the next reports.
func (c *Allocator) giveBackAll() {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		for _, w := range s.wallets {
			if w.taken > w.used || w.changed() {
				w.next.giveBack = true
				s.mark(w)
			}
		}
		s.mu.Unlock()
	}
}

// Outstanding is the number of credits that this process holds or has not reported.
func (c *Allocator) Outstanding() (n int64) {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		for _, w := range s.wallets {
			n += w.taken - w.sent.used
		}
		s.mu.Unlock()
	}
	return n
}

// Record queues an outcome for the next reports. It counts a drop if too many are waiting.
func (c *Allocator) Record(one ledger.Outcome) {
	if !c.outcomes.add(one) {
		c.metrics.dropped.Inc()
	}
}

// Settle reports an outcome at once, and returns the credits that came back by this call. Once it
// returns without an error, the outcome is durable. After an error the outcome may still be posted
// a moment later.
func (c *Allocator) Settle(ctx context.Context, one ledger.Outcome) (refunded int64, err error) {
	w := &waiter{one, make(chan int64, 1)}
	if !c.outcomes.wait(one, w) {
		return 0, ErrUndecided
	}
	defer c.outcomes.leave(one.ChargeID, w)
	c.wake()
	select {
	case refunded = <-w.done:
		return refunded, nil
	case <-ctx.Done():
		return 0, errors.Join(ErrUndecided, ctx.Err())
	}
}

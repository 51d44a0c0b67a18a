package credits

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/keyporter/keyporter/credits/ledger"
	"github.com/keyporter/keyporter/usage"
)

// The limits of reports.
const (
	reportInterval = time.Second
	reportTimeout  = 2 * time.Second
	// failPause is the time between two attempts while the database is unreachable.
	failPause = 100 * time.Millisecond
	// closeTimeout bounds the reports at the end.
	closeTimeout = 5 * time.Second
	// mostAsks is the maximum number of pools in a report. A report locks its pools while it is
	// posted, and requests may wait for the next one: this many take a few hundredths of a second
	// (BenchmarkReport in the store).
	maxAsks = 200
	// settleShare bounds the time for reports of all wallets to one part in this many. If very many
	// wallets are used within a second, each is reported less often, and holds more.
	reportShare = 8
	// idleTime is how long a wallet keeps unused credits.
	idleTime = 10 * time.Second
	// drift bounds how much slower this machine's clock is than the database's.
	drift = 20 // one part in this many
)

// rest is a reported wallet, to be looked at again when it may have become idle.
type rest struct {
	shard  *shard
	wallet *wallet
	used   int64
	at     time.Duration
}

// entry is a wallet in a report.
type entry struct {
	shard  *shard
	wallet *wallet
	round  *round
}

// Run reports until ctx ends, and then gives everything back. Nothing may be spent after that.
func (c *Allocator) Run(ctx context.Context) {
	tick := time.NewTicker(reportInterval)
	defer tick.Stop()
	c.wake() // to learn the month
	for ctx.Err() == nil {
		if c.failing && !sleep(ctx, failPause) {
			break
		}
		everything := c.pause(ctx, tick.C)
		began := time.Now()
		more := c.round(context.WithoutCancel(ctx), everything, false)
		if everything {
			now := time.Now()
			c.owed, c.rested = more, now.Add((reportShare-1)*now.Sub(began))
		}
		if more && !everything || c.outcomesDue {
			c.wake()
		}
	}
	c.close()
}

// pause waits until something is due: wallets that requests wait for, or, once a second,
// everything, provided that enough time has passed since the last report of everything. It reports
// whether everything is due.
func (c *Allocator) pause(ctx context.Context, tick <-chan time.Time) bool {
	var rested <-chan time.Time
	if c.owed {
		timer := time.NewTimer(time.Until(c.rested))
		defer timer.Stop()
		rested = timer.C
	}
	select {
	case <-c.kick:
	case <-c.hints:
		c.recall(ctx)
	case <-rested:
		return true
	case <-tick:
		c.idle()
		c.outcomesDue, c.owed = true, true
		return !time.Now().Before(c.rested)
	case <-ctx.Done():
	}
	return false
}

// round makes one report: of the wallets that requests wait for, of outcomes if they are due, and,
// with everything, of all changed wallets. It reports whether it left some out.
func (c *Allocator) round(ctx context.Context, everything, last bool) (more bool) {
	now := c.config.Clock()
	report := ledger.Report{Holder: c.Name(), Replica: c.config.Replica(), Seq: c.seq + 1, Last: last}
	elsewhere := report.Replica != c.replica // in the list: others must see this process live
	entries := c.collectUrgent(&report, now)
	outcomesLeft := false
	if everything || c.outcomesDue || c.pressing() {
		outcomesLeft, c.outcomesDue = c.collectOutcomes(&report)
	}
	if everything {
		entries = append(entries, c.collectChanged(&report, now)...)
	}
	more = len(report.Asks) >= maxAsks || everything && outcomesLeft
	if calendar := c.calendar.Load(); len(report.Asks)+len(report.Outcomes) == 0 && !last && !elsewhere && now < calendar.until {
		return false
	}
	c.seq++
	ctx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	result, err := c.config.Ledger.Report(ctx, report)
	c.metrics.reported(&report, &result, err, c.config.Clock()-now)
	if err != nil {
		c.failed(entries, &report, err)
		if errors.Is(err, ledger.ErrBackwards) || errors.Is(err, ledger.ErrUnbalanced) {
			c.restart(err)
		}
		return false
	}
	c.replica = report.Replica
	if c.failing {
		c.failing = false
		c.config.Log.Info("credits are reported again")
	}
	c.follow(now, &result)
	c.committed(&report, &result)
	c.answered(entries, &result, now)
	return more
}

// collectUrgent puts the wallets that requests wait for into a report, up to mostAsks.
func (c *Allocator) collectUrgent(r *ledger.Report, now time.Duration) (entries []entry) {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		for len(s.urgent) > 0 && len(r.Asks) < maxAsks {
			w := s.urgent[len(s.urgent)-1]
			s.urgent[len(s.urgent)-1] = nil
			s.urgent = s.urgent[:len(s.urgent)-1]
			if w.round == nil && !w.changed() {
				continue
			}
			if e := c.enter(s, w, r, now); e != nil {
				entries = append(entries, *e)
			}
		}
		s.mu.Unlock()
	}
	return entries
}

// lap is the reporter's position among the changed wallets: a shard, and the shard's list as it was
// on arrival. So every wallet gets its turn, however fast others change again.
type lap struct {
	shard int
	list  []*wallet
	next  int // index in list
}

// collectChanged puts the changed wallets into a report, up to mostAsks.
func (c *Allocator) collectChanged(r *ledger.Report, now time.Duration) (entries []entry) {
	l := &c.lap
	for range len(c.shards) + 1 { // the first shard may have more than its list
		s := &c.shards[l.shard]
		s.mu.Lock()
		if l.next == len(l.list) {
			clear(l.list)
			l.list, s.dirty, l.next = s.dirty, l.list[:0], 0
		}
		for ; l.next < len(l.list) && len(r.Asks) < maxAsks; l.next++ {
			w := l.list[l.next]
			w.dirty = false
			if !w.changed() {
				continue
			}
			if e := c.enter(s, w, r, now); e != nil {
				entries = append(entries, *e)
			} else {
				s.mark(w) // it was used after it went into this report
			}
		}
		s.mu.Unlock()
		if l.next < len(l.list) {
			break
		}
		l.shard = (l.shard + 1) % len(c.shards)
	}
	return entries
}

// enter puts a wallet into a report, unless it is in it already. Later needs are left for the next
// report.
func (c *Allocator) enter(s *shard, w *wallet, r *ledger.Report, now time.Duration) *entry {
	if w.entered == r.Seq {
		return nil
	}
	w.entered = r.Seq
	e := entry{shard: s, wallet: w, round: w.round}
	w.round = nil
	r.Asks = append(r.Asks, w.ask(now))
	for i := range w.payers {
		p := &w.payers[i]
		if p.used != p.sent || w.unsure {
			p.sent = p.used
			r.Usages = append(r.Usages, ledger.Usage{
				Payer: ledger.Payer{Month: w.pool.Month, Kind: w.pool.Kind, User: p.name, Account: p.account}, Used: p.used,
			})
		}
	}
	w.unsure = false
	return &e
}

// failed marks everything in a failed report to be reported again.
func (c *Allocator) failed(entries []entry, r *ledger.Report, err error) {
	if !c.failing {
		c.failing = true
		c.config.Log.Error("credits cannot be reported: requests go on as long as this replica holds some, then they are answered with 503", "error", err)
	}
	for _, e := range entries {
		e.shard.mu.Lock()
		e.wallet.unsure = true
		e.shard.mark(e.wallet)
		e.shard.mu.Unlock()
		e.round.end(fmt.Errorf("%w: %w", ErrUnsettled, err))
	}
	c.requeue(r)
}

// restart goes on under another name, because the ledger contradicts this process for good: its
// clock went back over the end of a month, or somebody has changed its tables. Everything that the
// old name holds counts as used.
func (c *Allocator) restart(err error) {
	c.config.Log.Error("the ledger contradicts this replica: what it holds is given up and counts as used", "credits", c.Unsettled(), "error", err)
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		for _, w := range s.urgent {
			w.round.end(fmt.Errorf("%w: %w", ErrUnsettled, err))
			w.round = nil
		}
		clear(s.wallets)
		s.urgent, s.dirty, s.spare = nil, nil, nil
		s.mu.Unlock()
	}
	c.rename()
	c.seq, c.resting, c.lap = 0, nil, lap{}
}

// end wakes the requests that wait for a round.
func (r *round) end(err error) {
	if r != nil {
		r.err = err
		close(r.done)
	}
}

// follow sets the month by the database's clock. It assumes an early end of the month rather than a
// late one: after it, the database is asked.
func (c *Allocator) follow(sent time.Duration, result *ledger.Result) {
	month := usage.MonthOf(result.Now)
	left := month.End().Sub(result.Now)
	old := c.calendar.Load()
	c.calendar.Store(&calendar{month: month, until: sent + left - left/drift, end: sent + left})
	if old.month != month && old.month != 0 {
		c.turn(month)
	}
}

// turn begins a new month: the wallets of the old one give back their remaining credits, and are
// reported once more.
func (c *Allocator) turn(month usage.Month) {
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

// answered applies the ledger's answer to the wallets.
func (c *Allocator) answered(entries []entry, result *ledger.Result, now time.Duration) {
	for i, e := range entries {
		grant := result.Grants[i]
		e.shard.mu.Lock()
		e.wallet.settle(grant, result.Epoch, c.config.Clock())
		if e.wallet.taken > e.wallet.used && !e.wallet.resting {
			e.wallet.resting = true
			c.resting = append(c.resting, rest{e.shard, e.wallet, e.wallet.used, now})
		}
		e.shard.mu.Unlock()
		e.round.end(nil)
	}
}

// idle gives back the credits of wallets that have been unused for idleTime.
func (c *Allocator) idle() {
	now, kept := c.config.Clock(), c.resting[:0]
	for i, r := range c.resting {
		if r.at > now-idleTime {
			kept = append(kept, c.resting[i:]...)
			break
		}
		r.shard.mu.Lock()
		w := r.wallet
		switch {
		case w.taken == w.used:
			w.resting = false
		case w.used == r.used:
			w.resting, w.back = false, true
			r.shard.mark(w)
		default:
			r.used, r.at = w.used, now
			kept = append(kept, r)
		}
		r.shard.mu.Unlock()
	}
	clear(c.resting[len(kept):])
	c.resting = kept
}

// recall gives back the unused credits of the pools that other processes ask for.
func (c *Allocator) recall(ctx context.Context) {
	pools, err := c.config.Ledger.Recalled(ctx)
	if err != nil {
		return // they ask again
	}
	now := c.config.Clock()
	for _, pool := range pools {
		s := c.shard(pool.Name)
		s.mu.Lock()
		if w := s.wallets[owner{pool.Kind, pool.Name}]; w != nil && w.pool == pool && (w.taken > w.used || w.used != w.sent.used) && w.round == nil {
			w.back, w.scarce = true, now+askAgain
			w.round = &round{done: make(chan struct{})}
			s.urgent = append(s.urgent, w)
			c.metrics.recalls.WithLabelValues("answered").Inc()
		}
		s.mu.Unlock()
	}
}

// close gives everything back, so that nothing is lost when the process ends.
func (c *Allocator) close() {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		for _, w := range s.wallets {
			if w.taken > w.used || w.changed() {
				w.back = true
				s.mark(w)
			}
		}
		s.mu.Unlock()
	}
	for ctx.Err() == nil && (c.round(ctx, true, false) || c.failing) {
		if c.failing {
			sleep(ctx, failPause)
		}
	}
	for c.round(ctx, true, true); c.failing && sleep(ctx, failPause); {
		c.round(ctx, true, true)
	}
	if c.failing {
		c.config.Log.Error("stopping without having reported all: what this replica held counts as used", "credits", c.Unsettled())
	}
}

// Unsettled is the number of credits that this process holds or has not reported.
func (c *Allocator) Unsettled() (n int64) {
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

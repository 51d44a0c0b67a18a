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
	reportTimeout = 2 * time.Second
	// failPause is the time between two attempts while the database is unreachable.
	failPause = 100 * time.Millisecond
	// closeTimeout bounds the reports at the end.
	closeTimeout = 5 * time.Second
	// maxAsks is the maximum number of pools in a report. A report locks its pools while it is
	// posted, and requests may wait for the next one: this many take a few hundredths of a second
	// (BenchmarkReport in store/ledger).
	maxAsks = 200
	// reportFraction bounds the time for reports of all wallets to one part in this many. If very
	// many wallets are used within a second, each is reported less often, and holds more.
	reportFraction = 8
	// idleTime is how long a wallet keeps unused credits.
	idleTime = 10 * time.Second
)

// reporter makes the reports of an [Allocator]. It runs in one goroutine, which owns its fields.
type reporter struct {
	a *Allocator

	replica string // entry in the list of replicas, as of the last report
	seq     int64  // of the last report
	failing bool   // the last report has failed

	// When the next report of everything is due.
	owed        bool      // it is due
	rested      time.Time // earliest time for it
	outcomesDue bool      // the next report carries outcomes, even if nothing else is due

	resting []rest // wallets that may become idle, oldest first
	lap     lap
}

// rest is a reported wallet, to be looked at again when it may have become idle.
type rest struct {
	shard  *shard
	wallet *wallet
	used   int64
	at     time.Duration
}

// lap is the reporter's position among the changed wallets: a shard, and the shard's list as it was
// on arrival. So every wallet gets its turn, however fast others change again.
type lap struct {
	shard int
	list  []*wallet
	next  int // index in list
}

// entry is a wallet in a report.
type entry struct {
	shard  *shard
	wallet *wallet
	round  *round
}

// Run reports until ctx ends, and then gives everything back. Nothing may be spent after that. Run
// must be called once.
func (c *Allocator) Run(ctx context.Context) {
	r := &reporter{a: c}
	tick := time.NewTicker(reportInterval)
	defer tick.Stop()
	c.wake() // to learn the month
	for ctx.Err() == nil {
		if r.failing && !sleep(ctx, failPause) {
			break
		}
		everything := r.pause(ctx, tick.C)
		began := time.Now()
		more := r.round(context.WithoutCancel(ctx), everything, false)
		if everything {
			now := time.Now()
			r.owed, r.rested = more, now.Add((reportFraction-1)*now.Sub(began))
		}
		if more && !everything || r.outcomesDue {
			c.wake()
		}
	}
	r.close()
}

// pause waits until something is due: wallets that requests wait for, or, once a second,
// everything, provided that enough time has passed since the last report of everything. It reports
// whether everything is due.
func (r *reporter) pause(ctx context.Context, tick <-chan time.Time) bool {
	var rested <-chan time.Time
	if r.owed {
		timer := time.NewTimer(time.Until(r.rested))
		defer timer.Stop()
		rested = timer.C
	}
	select {
	case <-r.a.kick:
	case <-r.a.config.Recalls:
		r.recall(ctx)
	case <-rested:
		return true
	case <-tick:
		r.idle()
		r.outcomesDue, r.owed = true, true
		return !time.Now().Before(r.rested)
	case <-ctx.Done():
	}
	return false
}

// round makes one report: of the wallets that requests wait for, of outcomes if they are due, and,
// with everything, of all changed wallets. It reports whether it left some out.
func (r *reporter) round(ctx context.Context, everything, last bool) (more bool) {
	now := r.a.config.Clock()
	report := ledger.Report{Holder: r.a.Name(), Replica: r.a.config.Replica(), Seq: r.seq + 1, Last: last}
	entries, more := r.collect(&report, everything, now)
	elsewhere := report.Replica != r.replica // in the list: others must see this process live
	empty := len(report.Asks)+len(report.Outcomes) == 0
	if empty && !last && !elsewhere && now < r.a.calendar.Load().until {
		return false
	}
	r.seq++
	ctx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	result, err := r.a.config.Ledger.Report(ctx, report)
	r.a.metrics.reported(&report, &result, err, r.a.config.Clock()-now)
	if err != nil {
		r.failed(entries, &report, err)
		if errors.Is(err, ledger.ErrBackwards) || errors.Is(err, ledger.ErrUnbalanced) {
			r.restart(err)
		}
		return false
	}
	r.replica = report.Replica
	if r.failing {
		r.failing = false
		r.a.config.Log.Info("credits are reported again")
	}
	r.a.follow(now, &result)
	r.committed(&report, &result)
	r.answered(entries, &result, now)
	return more
}

// collect puts what is due into a report. It reports whether it left some out.
func (r *reporter) collect(report *ledger.Report, everything bool, now time.Duration) (entries []entry, more bool) {
	entries = r.collectUrgent(report, now)
	outcomesLeft := false
	if everything || r.outcomesDue || r.a.outcomes.pressing() {
		outcomesLeft, r.outcomesDue = r.a.outcomes.take(report)
	}
	if everything {
		entries = append(entries, r.collectChanged(report, now)...)
	}
	return entries, len(report.Asks) >= maxAsks || everything && outcomesLeft
}

// collectUrgent puts the wallets that requests wait for into a report, up to maxAsks.
func (r *reporter) collectUrgent(report *ledger.Report, now time.Duration) (entries []entry) {
	for i := range r.a.shards {
		s := &r.a.shards[i]
		s.mu.Lock()
		for len(s.urgent) > 0 && len(report.Asks) < maxAsks {
			w := s.urgent[len(s.urgent)-1]
			s.urgent[len(s.urgent)-1] = nil
			s.urgent = s.urgent[:len(s.urgent)-1]
			if w.next.round == nil && !w.changed() {
				continue
			}
			if e := s.enter(w, report, now); e != nil {
				entries = append(entries, *e)
			}
		}
		s.mu.Unlock()
	}
	return entries
}

// collectChanged puts the changed wallets into a report, up to maxAsks.
func (r *reporter) collectChanged(report *ledger.Report, now time.Duration) (entries []entry) {
	l := &r.lap
	for range len(r.a.shards) + 1 { // the first shard may have more than its list
		s := &r.a.shards[l.shard]
		s.mu.Lock()
		if l.next == len(l.list) {
			clear(l.list)
			l.list, s.dirty, l.next = s.dirty, l.list[:0], 0
		}
		for ; l.next < len(l.list) && len(report.Asks) < maxAsks; l.next++ {
			w := l.list[l.next]
			w.lists.dirty = false
			if !w.changed() {
				continue
			}
			if e := s.enter(w, report, now); e != nil {
				entries = append(entries, *e)
			} else {
				s.mark(w) // it was used after it went into this report
			}
		}
		s.mu.Unlock()
		if l.next < len(l.list) {
			break
		}
		l.shard = (l.shard + 1) % len(r.a.shards)
	}
	return entries
}

// enter puts a wallet into a report, unless it is in it already. Later needs are left for the next
// report.
func (s *shard) enter(w *wallet, report *ledger.Report, now time.Duration) *entry {
	if w.lists.entered == report.Seq {
		return nil
	}
	w.lists.entered = report.Seq
	e := entry{shard: s, wallet: w, round: w.next.round}
	w.next.round = nil
	report.Asks = append(report.Asks, w.request(now))
	for i := range w.payers {
		p := &w.payers[i]
		if p.used != p.sent || w.next.resend {
			p.sent = p.used
			report.Usages = append(report.Usages, ledger.Usage{
				Payer: ledger.Payer{Month: w.pool.Month, Kind: w.pool.Kind, User: p.name, Account: p.account}, Used: p.used,
			})
		}
	}
	w.next.resend = false
	return &e
}

// failed marks everything in a failed report to be reported again.
func (r *reporter) failed(entries []entry, report *ledger.Report, err error) {
	if !r.failing {
		r.failing = true
		r.a.config.Log.Error("credits cannot be reported: requests go on as long as this replica holds some, then they are answered with 503", "error", err)
	}
	for _, e := range entries {
		e.shard.mu.Lock()
		e.wallet.next.resend = true
		e.shard.mark(e.wallet)
		e.shard.mu.Unlock()
		e.round.end(fmt.Errorf("%w: %w", ErrUndecided, err))
	}
	r.a.metrics.dropped.Add(float64(r.a.outcomes.requeue(report)))
}

// restart goes on under another name, because the ledger contradicts this process for good: its
// clock went back over the end of a month, or somebody has changed its tables. Everything that the
// old name holds counts as used.
func (r *reporter) restart(err error) {
	r.a.config.Log.Error("the ledger contradicts this replica: it gives up the credits it holds, and they count as used", "credits", r.a.Outstanding(), "error", err)
	r.a.abandon(fmt.Errorf("%w: %w", ErrUndecided, err))
	r.seq, r.resting, r.lap = 0, nil, lap{}
}

// committed applies what a report has done to charges: it notifies those who wait for their
// outcomes, and lets the wallets of refunded pools spend again.
func (r *reporter) committed(report *ledger.Report, result *ledger.Result) {
	r.a.outcomes.committed(report, result.Refunds)
	for _, refund := range result.Refunds {
		for _, o := range []owner{{usage.PoolUser, refund.User}, {usage.PoolAccount, refund.Account}} {
			s := r.a.shard(o.name)
			s.mu.Lock()
			if w := s.wallets[o]; w != nil && w.pool.Month == refund.Month {
				w.applyRefund(refund.Credits)
			}
			s.mu.Unlock()
		}
	}
}

// answered applies the ledger's answer to the wallets.
func (r *reporter) answered(entries []entry, result *ledger.Result, now time.Duration) {
	for i, e := range entries {
		w := e.wallet
		e.shard.mu.Lock()
		w.applyGrant(result.Grants[i], result.Epoch, r.a.config.Clock())
		if w.taken > w.used && !w.lists.resting {
			w.lists.resting = true
			r.resting = append(r.resting, rest{e.shard, w, w.used, now})
		}
		e.shard.mu.Unlock()
		e.round.end(nil)
	}
}

// idle gives back the credits of wallets that have been unused for idleTime.
func (r *reporter) idle() {
	now, kept := r.a.config.Clock(), r.resting[:0]
	for i, one := range r.resting {
		if one.at > now-idleTime {
			kept = append(kept, r.resting[i:]...)
			break
		}
		one.shard.mu.Lock()
		w := one.wallet
		switch {
		case w.taken == w.used:
			w.lists.resting = false
		case w.used == one.used:
			w.lists.resting, w.next.giveBack = false, true
			one.shard.mark(w)
		default:
			one.used, one.at = w.used, now
			kept = append(kept, one)
		}
		one.shard.mu.Unlock()
	}
	clear(r.resting[len(kept):])
	r.resting = kept
}

// recall gives back the unused credits of the pools that other processes ask for.
func (r *reporter) recall(ctx context.Context) {
	pools, err := r.a.config.Ledger.Recalled(ctx)
	if err != nil {
		return // they ask again
	}
	now := r.a.config.Clock()
	for _, pool := range pools {
		s := r.a.shard(pool.Name)
		s.mu.Lock()
		if w := s.wallets[owner{pool.Kind, pool.Name}]; w != nil && w.pool == pool && w.recall(now) {
			s.urgent = append(s.urgent, w)
			r.a.metrics.recalls.WithLabelValues("answered").Inc()
		}
		s.mu.Unlock()
	}
}

// close gives everything back, so that nothing is lost when the process ends.
func (r *reporter) close() {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	r.a.giveBackAll()
	for ctx.Err() == nil && (r.round(ctx, true, false) || r.failing) {
		if r.failing {
			sleep(ctx, failPause)
		}
	}
	for r.round(ctx, true, true); r.failing && sleep(ctx, failPause); {
		r.round(ctx, true, true)
	}
	if r.failing {
		r.a.config.Log.Error("stopping without having reported all: what this replica held counts as used", "credits", r.a.Outstanding())
	}
}

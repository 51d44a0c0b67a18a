package meter

import (
	"context"
	"errors"
	"slices"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/meter/ledger"
)

// maxPending bounds the outcomes that wait for the ledger.
const maxPending = 1 << 20

// outcomes are what this process was told of charges, and the ledger was not. [Credits.mu] guards
// them.
type outcomes struct {
	// awaited are those that somebody waits for, and prompt those that move credits, the oldest
	// first.
	awaited, prompt []ledger.Outcome
	// plain are those that only confirm, by who pays, and order is the order of the payers: where
	// they come faster than they can be reported, all get their turn.
	plain map[ledger.Confirmed][]plain
	order []ledger.Confirmed
	n     int // of plain, in all
	// waiting are the charges that somebody waits for, those who came first at the head.
	waiting map[ledger.ChargeID][]*waiter
}

// waiter waits until an outcome is posted, and is told whether credits came back by it.
type waiter struct {
	cause string
	done  chan bool // with room for one
}

// wait has w wait for an outcome. Where others wait for the same, it is on its way already.
func (o *outcomes) wait(one ledger.Outcome, w *waiter) bool {
	all := o.waiting[one.ChargeID]
	o.waiting[one.ChargeID] = append(all, w)
	if slices.ContainsFunc(all, func(other *waiter) bool { return other.cause == w.cause }) || o.add(one) {
		return true
	}
	o.leave(one.ChargeID, func(other *waiter) bool { return other == w })
	return false
}

// leave takes some of those off who wait for a charge.
func (o *outcomes) leave(charge ledger.ChargeID, leaves func(*waiter) bool) {
	if rest := slices.DeleteFunc(o.waiting[charge], leaves); len(rest) > 0 {
		o.waiting[charge] = rest
		return
	}
	delete(o.waiting, charge)
}

// tell tells those who wait for an outcome that it is posted. Credits came back by the call of the
// first of them alone.
func (o *outcomes) tell(one ledger.Outcome, refunded bool) {
	o.leave(one.ChargeID, func(w *waiter) bool {
		if w.cause != one.Cause {
			return false
		}
		w.done <- refunded
		refunded = false
		return true
	})
}

// plain is a charge that stays charged.
type plain struct {
	number  uint64
	credits int64
}

func newOutcomes() outcomes {
	return outcomes{plain: map[ledger.Confirmed][]plain{}, waiting: map[ledger.ChargeID][]*waiter{}}
}

// add notes an outcome for the next reports, or reports false where too many wait.
func (o *outcomes) add(one ledger.Outcome) bool {
	if o.left() >= maxPending {
		return false
	}
	if _, pressing := o.waiting[one.ChargeID]; pressing {
		o.awaited = append(o.awaited, one)
		return true
	}
	if one.Cause != "" {
		o.prompt = append(o.prompt, one)
		return true
	}
	payer := ledger.Confirmed{Month: one.Month, User: one.User, Account: one.Account, Holder: one.Holder}
	if len(o.plain[payer]) == 0 {
		o.order = append(o.order, payer)
	}
	o.plain[payer] = append(o.plain[payer], plain{one.Number, one.Credits})
	o.n++
	return true
}

// left is how many outcomes there are.
func (o *outcomes) left() int { return len(o.awaited) + len(o.prompt) + o.n }

// How many outcomes one report carries.
const (
	maxPrompt = 200
	maxPayers = 500
	maxPlain  = 10_000
)

// take moves outcomes into a report, and reports whether some are left, and whether any of these
// are prompt.
func (o *outcomes) take(r *ledger.Report) (more, prompt bool) {
	// Whoever waits does not wait for the refunds of an upstream that has failed for a while.
	awaited := takeFirst(&o.awaited, r, maxPrompt)
	takeFirst(&o.prompt, r, maxPrompt-awaited)
	payers, room := 0, maxPlain
	for ; payers < min(len(o.order), maxPayers) && room > 0; payers++ {
		room -= o.takePlain(r, o.order[payers], room)
	}
	if o.order = o.order[payers:]; len(o.order) == 0 {
		o.order = nil
	}
	return o.left() > 0, len(o.awaited)+len(o.prompt) > 0
}

// takeFirst moves the oldest outcomes of a list into a report, and returns how many.
func takeFirst(list *[]ledger.Outcome, r *ledger.Report, most int) int {
	n := min(len(*list), most)
	r.Outcomes = append(r.Outcomes, (*list)[:n]...)
	if *list = (*list)[n:]; len(*list) == 0 {
		*list = nil // or it would keep what it had room for
	}
	return n
}

// takePlain moves the oldest outcomes of one payer into a report, and returns how many. Who has
// more comes last in the order.
func (o *outcomes) takePlain(r *ledger.Report, payer ledger.Confirmed, most int) int {
	all := o.plain[payer]
	n := min(len(all), most)
	if o.n -= n; n < len(all) {
		o.plain[payer], o.order = all[n:], append(o.order, payer)
	} else {
		delete(o.plain, payer)
	}
	for _, one := range all[:n] {
		r.Outcomes = append(r.Outcomes, ledger.Outcome{
			ChargeID: ledger.ChargeID{Holder: payer.Holder, Number: one.number},
			Month:    payer.Month, User: payer.User, Account: payer.Account, Credits: one.credits,
		})
	}
	return n
}

// note notes an outcome for the next reports.
func (c *Credits) note(one ledger.Outcome) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	noted := c.outcomes.add(one)
	if !noted {
		c.metrics.dropped.Inc()
	}
	return noted
}

// Settle tells the ledger at once how a charge ended, as its upstream says: the credits come back
// for a cause, or stay charged (""). It reports whether they came back by this call. When it
// returns, that is durable. On an error it may be done all the same, a moment later.
func (c *Credits) Settle(ctx context.Context, r Receipt, cause string) (refunded bool, err error) {
	one, w := r.outcome(cause), &waiter{cause, make(chan bool, 1)}
	if !c.wait(one, w) {
		return false, ErrUnsettled
	}
	defer c.stopWaiting(one.ChargeID, w)
	c.wake()
	select {
	case refunded = <-w.done:
		return refunded, nil
	case <-ctx.Done():
		return false, errors.Join(ErrUnsettled, ctx.Err())
	}
}

func (c *Credits) wait(one ledger.Outcome, w *waiter) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.outcomes.wait(one, w)
}

func (c *Credits) stopWaiting(charge ledger.ChargeID, w *waiter) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.outcomes.leave(charge, func(other *waiter) bool { return other == w })
}

// collectOutcomes is [outcomes.take].
func (c *Credits) collectOutcomes(r *ledger.Report) (more, prompt bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.outcomes.take(r)
}

// unposted takes back the outcomes of a report that failed, as older than those that have come
// since.
func (c *Credits) unposted(r *ledger.Report) {
	c.mu.Lock()
	defer c.mu.Unlock()
	awaited, prompt := c.outcomes.awaited, c.outcomes.prompt
	c.outcomes.awaited, c.outcomes.prompt = nil, nil
	for _, one := range r.Outcomes {
		if !c.outcomes.add(one) {
			c.metrics.dropped.Inc()
		}
	}
	c.outcomes.awaited = append(c.outcomes.awaited, awaited...)
	c.outcomes.prompt = append(c.outcomes.prompt, prompt...)
}

// posted tells those who wait for an outcome, and has the pools to which something came back asked
// again.
func (c *Credits) posted(r *ledger.Report, result *ledger.Result) {
	fresh := map[string]bool{}
	for _, refund := range result.Refunds {
		fresh[refund.Charge] = true
	}
	c.mu.Lock()
	for _, one := range r.Outcomes {
		c.outcomes.tell(one, one.Cause != "" && fresh[one.String()])
	}
	c.mu.Unlock()
	for _, refund := range result.Refunds {
		for _, o := range []owner{{authz.PoolUser, refund.User}, {authz.PoolAccount, refund.Account}} {
			s := c.shard(o.name)
			s.mu.Lock()
			if w := s.wallets[o]; w != nil && w.pool.Month == refund.Month {
				w.empty = false
				w.others -= refund.Credits
			}
			s.mu.Unlock()
		}
	}
}

// pressing reports whether somebody waits for an outcome.
func (c *Credits) pressing() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.outcomes.waiting) > 0
}

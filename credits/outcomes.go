package credits

import (
	"slices"
	"sync"

	"github.com/keyporter/keyporter/credits/ledger"
)

// maxPending bounds the outcomes that wait for the ledger.
const maxPending = 1 << 20

// outcomes are the outcomes of charges that this process knows and the ledger does not know yet.
// Its methods are safe for concurrent use.
type outcomes struct {
	mu sync.Mutex // guards all fields
	// awaited holds outcomes that callers wait for, and prompt those that move credits; both oldest
	// first.
	awaited, prompt []ledger.Outcome
	// plain holds outcomes without a refund, by payer, and order holds the payers in their order,
	// so that all get their turn when outcomes arrive faster than they can be reported.
	plain map[ledger.Charged][]plain
	order []ledger.Charged
	n     int // outcomes in plain, in total
	// waiting holds the waiters of each charge, earliest first.
	waiting map[ledger.ChargeID][]*waiter
}

// waiter waits until an outcome is posted, and receives the credits that came back by it.
type waiter struct {
	outcome ledger.Outcome
	done    chan int64 // has room for one
}

// wait registers w for an outcome. If others wait for the same outcome, it is already queued. It
// reports false if the outcome cannot be queued.
func (o *outcomes) wait(one ledger.Outcome, w *waiter) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	all := o.waiting[one.ChargeID]
	o.waiting[one.ChargeID] = append(all, w)
	if slices.ContainsFunc(all, func(other *waiter) bool { return other.outcome == w.outcome }) || o.queue(one) {
		return true
	}
	o.remove(one.ChargeID, func(other *waiter) bool { return other == w })
	return false
}

// leave removes a waiter of a charge.
func (o *outcomes) leave(charge ledger.ChargeID, w *waiter) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.remove(charge, func(other *waiter) bool { return other == w })
}

// remove removes the waiters of a charge for which leaves returns true. Its caller holds mu.
func (o *outcomes) remove(charge ledger.ChargeID, leaves func(*waiter) bool) {
	if rest := slices.DeleteFunc(o.waiting[charge], leaves); len(rest) > 0 {
		o.waiting[charge] = rest
		return
	}
	delete(o.waiting, charge)
}

// committed notifies the waiters of a report's outcomes that these are durable. Of several waiters
// for one refund, the first learns that its call brought the credits back.
func (o *outcomes) committed(r *ledger.Report, made []ledger.Part) {
	o.mu.Lock()
	defer o.mu.Unlock()
	parts := map[part]int64{}
	for _, p := range made {
		parts[part{p.Charge, p.Total}] = p.Credits
	}
	for _, one := range r.Outcomes {
		back := parts[part{one.String(), one.Refund}]
		o.remove(one.ChargeID, func(w *waiter) bool {
			if w.outcome != one {
				return false
			}
			w.done <- back
			back = 0
			return true
		})
	}
}

// part identifies a [ledger.Part].
type part struct {
	charge string
	total  int64
}

// requeue queues the outcomes of a failed report again, ahead of those that have arrived since. It
// returns the number of those that were dropped, because too many wait.
func (o *outcomes) requeue(r *ledger.Report) (dropped int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	awaited, prompt := o.awaited, o.prompt
	o.awaited, o.prompt = nil, nil
	for _, one := range r.Outcomes {
		if !o.queue(one) {
			dropped++
		}
	}
	o.awaited = append(o.awaited, awaited...)
	o.prompt = append(o.prompt, prompt...)
	return dropped
}

// pressing reports whether a caller waits for an outcome.
func (o *outcomes) pressing() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.waiting) > 0
}

// plain is a charge that stays charged.
type plain struct {
	number  uint64
	credits int64
}

func newOutcomes() *outcomes {
	return &outcomes{plain: map[ledger.Charged][]plain{}, waiting: map[ledger.ChargeID][]*waiter{}}
}

// add queues an outcome for the next reports. It reports false if too many are waiting.
func (o *outcomes) add(one ledger.Outcome) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.queue(one)
}

// queue is add for callers that hold mu.
func (o *outcomes) queue(one ledger.Outcome) bool {
	if o.left() >= maxPending {
		return false
	}
	if _, pressing := o.waiting[one.ChargeID]; pressing {
		o.awaited = append(o.awaited, one)
		return true
	}
	if one.Refund > 0 {
		o.prompt = append(o.prompt, one)
		return true
	}
	payer := ledger.Charged{Month: one.Month, User: one.User, Account: one.Account, Holder: one.Holder}
	if len(o.plain[payer]) == 0 {
		o.order = append(o.order, payer)
	}
	o.plain[payer] = append(o.plain[payer], plain{one.Number, one.Credits})
	o.n++
	return true
}

// left is the number of queued outcomes.
func (o *outcomes) left() int { return len(o.awaited) + len(o.prompt) + o.n }

// The maximum numbers of outcomes, and of their payers, in one report.
const (
	maxPrompt = 200
	maxPayers = 500
	maxPlain  = 10_000
)

// take moves outcomes into a report. It reports whether some are left, and whether any of those are
// awaited or prompt.
func (o *outcomes) take(r *ledger.Report) (more, prompt bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	// Waiting callers go before the refunds of an upstream that has failed for a while.
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

// takeFirst moves the oldest outcomes of a list into a report, and returns their number.
func takeFirst(list *[]ledger.Outcome, r *ledger.Report, most int) int {
	n := min(len(*list), most)
	r.Outcomes = append(r.Outcomes, (*list)[:n]...)
	if *list = (*list)[n:]; len(*list) == 0 {
		*list = nil // else the backing array would be kept
	}
	return n
}

// takePlain moves the oldest outcomes of one payer into a report, and returns their number. A payer
// with more goes to the end of the order.
func (o *outcomes) takePlain(r *ledger.Report, payer ledger.Charged, most int) int {
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

package credits

import (
	"time"

	"github.com/keyporter/keyporter/credits/ledger"
	"github.com/keyporter/keyporter/usage"
)

// wallet is this process's block of one pool. Its shard's lock guards it. All figures count from
// the start of the process, as in all reports.
//
// Requests and reports move it from state to state:
//
//	unknown  → a report → stocked, or empty
//	stocked  → spending the last credit → short: requests wait for the next report
//	short    → a grant → stocked; no grant, while others hold some → short; else → empty
//	empty    → for a second, requests are rejected; then, or after a refund → short
//	any      → a request with another plan → gives its block back, and asks for the new plan
//	any      → idle, recalled, or the month is over → gives its block back
//
// A plan without a limit knows no such states: it spends, and reports the use.
type wallet struct {
	pool ledger.Pool

	// The block: 0 ≤ used ≤ taken. Requests raise used up to taken, a grant changes taken. Without
	// a limit taken follows used.
	taken, used int64
	payers      []payer      // the uses of the pool's users; their sum is used
	first       [1]payer     // room for payers while there is one: the wallet is one object then
	index       map[user]int // of payers, if they are many

	answer   answer
	shortage shortage
	next     next
	sent     sent
	reserve  reserve
	lists    lists
}

// answer is the ledger's last answer about a pool. The zero answer means that there was none.
type answer struct {
	known  bool
	sells  bool        // the plan takes credits from this pool
	plan   usage.Limit // the credits of the plan
	limit  usage.Limit // the same, plus extra grants
	others int64       // used by all other processes, as far as reported
	epoch  int64       // of the database state behind this answer
	at     time.Duration
}

// shortage is the ledger's lack of credits for a pool.
type shortage struct {
	empty     bool          // since then nobody has had a credit to spare
	since     time.Duration // meaningless unless empty
	contended time.Duration // until then other processes want credits, and no reserve is held
}

// next is what the next report carries, beside the use.
type next struct {
	need     int64  // credits that requests wait for
	round    *round // the report that will carry the need; nil: nobody waits
	giveBack bool   // the unused credits
	recheck  bool   // ask again whether an empty pool has credits
	resend   bool   // the last report may not have arrived
}

// sent is what the wallet last reported: see [ledger.Ask].
type sent struct{ used, keep, need, want int64 }

// reserve is what the wallet holds, so that requests need not wait.
type reserve struct {
	size  int64         // in credits
	short bool          // requests had to wait since the last report
	at    time.Duration // of the last report
}

// lists is the wallet's place in the reporter's lists.
type lists struct {
	dirty   bool  // among its shard's wallets to report
	resting bool  // among the wallets that may become idle
	entered int64 // number of the last report with this wallet
}

// user is a user that spends out of a wallet, and the user's account.
type user struct{ name, account string }

// payer is one user's use of a wallet.
type payer struct {
	user
	used, sent int64
}

// manyPayers is the number of payers above which a map finds them faster.
const manyPayers = 8

// payerOf returns the payer of a user.
func (w *wallet) payerOf(u user) *payer {
	if w.index != nil {
		if i, ok := w.index[u]; ok {
			return &w.payers[i]
		}
	} else {
		for i := range w.payers {
			if w.payers[i].user == u {
				return &w.payers[i]
			}
		}
	}
	w.payers = append(w.payers, payer{user: u})
	switch {
	case w.index != nil:
		w.index[u] = len(w.payers) - 1
	case len(w.payers) > manyPayers:
		w.index = make(map[user]int, 2*len(w.payers))
		for i := range w.payers {
			w.index[w.payers[i].user] = i
		}
	}
	return &w.payers[len(w.payers)-1]
}

// recheckPause is how long a pool counts as empty before the next round of reports asks the ledger
// again. That question finds credits that came back in the meantime, from failed requests.
const recheckPause = time.Second

// spend spends the cost of a request, if the wallet has it. If the request was decided by a newer
// epoch than the wallet's, and its plan differs, the wallet has to ask the ledger again.
func (w *wallet) spend(p *Spender, cost int64, now time.Duration) Result {
	if p.Limit == usage.Unlimited {
		w.use(p, cost)
		w.taken = max(w.taken, w.used)
		return Spent
	}
	newer := p.Epoch > w.answer.epoch
	switch {
	case !w.answer.known:
	case newer && (!w.answer.sells || p.Limit != w.answer.plan):
		w.next.giveBack = true
	case w.used+cost <= w.taken:
		w.use(p, cost)
		return Spent
	case !w.answer.sells: // the request was decided by an older state than the wallet's
	case w.shortage.empty && !newer:
		w.next.recheck = w.next.recheck || now-w.shortage.since > recheckPause
		return Exhausted
	}
	return Unknown
}

func (w *wallet) use(p *Spender, cost int64) {
	w.used += cost
	w.payerOf(user{p.User, p.Account}).used += cost
}

// unspend undoes spend, unless the use has been reported.
func (w *wallet) unspend(u user, cost int64) bool {
	p := w.payerOf(u)
	if w.used-cost < w.sent.used || p.used-cost < p.sent {
		return false
	}
	w.used -= cost
	p.used -= cost
	return true
}

// credits returns the state of the pool for its users.
func (w *wallet) credits(p *Spender, reset time.Duration) usage.Credits {
	limit := w.answer.limit
	if !w.answer.known || p.Limit == usage.Unlimited {
		limit = p.Limit
	}
	return usage.Credits{Counted: true, Used: max(0, w.answer.others+w.used), Limit: limit, Reset: reset}
}

// reportInterval is the time between two reports of everything.
const reportInterval = time.Second

// fresh reports whether the wallet's state can be shown without asking the ledger: the last answer
// is recent, and not older than the look-up of the user.
func (w *wallet) fresh(p *Spender, now time.Duration) bool {
	return now-w.answer.at < reportInterval && p.Epoch <= w.answer.epoch
}

// outdated reports whether a request was decided by an older state than the wallet's, in which the
// plan takes credits from another pool.
func (w *wallet) outdated(p *Spender) bool {
	return w.answer.known && !w.answer.sells && p.Epoch <= w.answer.epoch
}

// changed reports whether there is anything to report.
func (w *wallet) changed() bool {
	return w.used != w.sent.used || w.next.giveBack || w.next.recheck || w.next.resend || w.next.need > 0
}

// The reserve of a wallet: how long it should last, and its bounds. Each report, once a second, can
// ask for more, so a longer reserve would only increase the loss when this process is killed.
const (
	reserveTime = 10 * time.Second
	minReserve  = 16
	maxReserve  = 1 << 20
)

// request returns the wallet's part of a report. Until the answer arrives the wallet uses no more
// than the Keep that it reports.
func (w *wallet) request(now time.Duration) ledger.Ask {
	peeked := !w.changed() // only a request about the state waits, which needs no credits
	if w.next.giveBack && w.taken > w.used {
		w.taken, w.shortage.empty = w.used, false // the pool may have credits again
	}
	a := ledger.Ask{Pool: w.pool, Used: w.used, Keep: w.taken, Need: w.next.need}
	if w.next.recheck {
		a.Need = max(a.Need, 1)
	}
	w.planReserve(now)
	idle := peeked || w.next.giveBack && w.next.need == 0
	unlimited := w.answer.known && w.answer.plan == usage.Unlimited
	if left := w.taken - w.used; left < w.reserve.size/2 && now >= w.shortage.contended && !idle && !unlimited {
		a.Want = w.reserve.size - left
	}
	w.next.giveBack, w.next.recheck = false, false
	w.sent = sent{a.Used, a.Keep, a.Need, a.Want}
	return a
}

// planReserve sets the reserve to the use expected in reserveTime, or twice the use between two
// reports. If requests had to wait, it at least doubles the last Want.
func (w *wallet) planReserve(now time.Duration) {
	size := int64(minReserve)
	if period := now - w.reserve.at; w.reserve.at > 0 && period > 0 {
		used := w.used - w.sent.used
		rate := float64(used) / max(period.Seconds(), 0.1)
		size = max(size, int64(rate*reserveTime.Seconds()), 2*used)
		if w.reserve.short {
			size = max(size, 2*w.sent.want)
		}
	}
	w.reserve = reserve{size: min(maxReserve, size), at: now}
}

// applyGrant applies the ledger's answer to the last report.
func (w *wallet) applyGrant(g ledger.Grant, epoch int64, now time.Duration) {
	w.answer = answer{
		known: true, sells: g.Sells, plan: g.Plan, limit: g.Limit, others: g.Used - w.sent.used, epoch: epoch, at: now,
	}
	w.taken = max(g.Taken, w.used) // more is used than taken if there is no limit
	w.shortage.empty = g.Taken < w.sent.keep+w.sent.need && g.Elsewhere == 0
	if w.shortage.empty {
		w.shortage.since = now
	}
	if g.Elsewhere > 0 && g.Free == 0 && g.Limit != usage.Unlimited {
		w.shortage.contended = now + recheckPause
	}
}

// applyRefund applies a refund that this process has brought about.
func (w *wallet) applyRefund(credits int64) {
	w.shortage.empty = false
	w.answer.others -= credits
}

// recall makes the wallet give back its unused credits with the next report, unless requests wait
// for it anyway. It reports whether it does.
func (w *wallet) recall(now time.Duration) bool {
	if w.taken == w.used && w.used == w.sent.used || w.next.round != nil {
		return false
	}
	w.next.giveBack, w.shortage.contended = true, now+recheckPause
	w.next.round = &round{done: make(chan struct{})}
	return true
}

// round is one report to wait for. done is closed once it is answered or has failed.
type round struct {
	done chan struct{}
	err  error
}

// end wakes the requests that wait for a round.
func (r *round) end(err error) {
	if r != nil {
		r.err = err
		close(r.done)
	}
}

package credits

import (
	"time"

	"github.com/keyporter/keyporter/credits/ledger"
	"github.com/keyporter/keyporter/usage"
)

// wallet is this process's part of one pool: it may use up to taken credits, and has used some of
// them. Both count from the start of the process, as in all reports. The lock of its shard guards
// it.
type wallet struct {
	pool        ledger.Pool
	taken, used int64
	payers      []payer
	first       [1]payer     // room for payers while there is one: the wallet is one object then
	index       map[user]int // of payers, if they are many

	// The ledger's last answer.
	plan   usage.Limit // the credits of the plan
	limit  usage.Limit // the same, plus extra grants
	others int64       // used by all other processes, as far as reported
	epoch  int64       // of the database state behind this answer
	heard  time.Duration
	since  time.Duration // since when the pool has been empty

	need  int64  // credits that requests wait for
	round *round // the report that will carry the need; nil: nobody waits
	sent  sent

	reserve int64         // credits to hold, so that requests need not wait
	at      time.Duration // of the last report
	scarce  time.Duration // until then no reserve is held: other processes want it
	entered int64         // number of the last report with this wallet

	told    bool // the ledger has answered
	sells   bool // the plan takes credits from this pool
	empty   bool // nobody had a credit to spare
	dry     bool // the reserve was too small
	back    bool // give back the unused credits
	again   bool // ask again whether an empty pool has credits
	unsure  bool // the last report may not have arrived
	dirty   bool // on its shard's list of wallets to report
	resting bool // on the list of wallets that may become idle
}

// sent is what the wallet last reported: see [ledger.Ask].
type sent struct{ used, keep, need, want int64 }

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

// askAgain is how long a pool counts as empty before the next round of reports asks the ledger
// again. That question finds credits that came back in the meantime, from failed requests.
const askAgain = time.Second

// pay spends the cost of a request, if the wallet has it. If the request was decided by a newer
// epoch than the wallet's, and its plan differs, the wallet has to ask the ledger again.
func (w *wallet) pay(p *Spender, cost int64, now time.Duration) Result {
	if p.Limit == usage.Unlimited {
		if w.used += cost; w.used > w.taken {
			w.taken = w.used
		}
		w.payerOf(user{p.User, p.Account}).used += cost
		return Spent
	}
	newer := p.Epoch > w.epoch
	switch {
	case !w.told:
	case newer && (!w.sells || p.Limit != w.plan):
		w.back = true
	case w.used+cost <= w.taken:
		w.used += cost
		w.payerOf(user{p.User, p.Account}).used += cost
		return Spent
	case !w.sells: // the request was decided by an older state than the wallet's
	case w.empty && !newer:
		w.again = w.again || now-w.since > askAgain
		return Exhausted
	}
	return Unknown
}

// unpay undoes pay, unless the use has been reported.
func (w *wallet) unpay(u user, cost int64) bool {
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
	limit := w.limit
	if !w.told || p.Limit == usage.Unlimited {
		limit = p.Limit
	}
	return usage.Credits{Counted: true, Used: max(0, w.others+w.used), Limit: limit, Reset: reset}
}

// The reserve of a wallet: how long it should last, and its bounds. Each report, once a second, can
// ask for more, so a longer reserve would only increase the loss when this process is killed.
const (
	reserveTime  = 10 * time.Second
	leastReserve = 16
	mostReserve  = 1 << 20
)

// ask returns the wallet's part of a report. Until the answer arrives the wallet uses no more than
// the Keep that it reports.
func (w *wallet) ask(now time.Duration) ledger.Ask {
	looked := !w.changed() // only a request about the state waits, which needs no credits
	if w.back && w.taken > w.used {
		w.taken, w.empty = w.used, false // the pool may have credits again
	}
	a := ledger.Ask{Pool: w.pool, Used: w.used, Keep: w.taken, Need: w.need}
	if w.again {
		a.Need = max(a.Need, 1)
	}
	w.plansReserve(now)
	idle, unlimited := looked || w.back && w.need == 0, w.told && w.plan == usage.Unlimited
	if left := w.taken - w.used; left < w.reserve/2 && now >= w.scarce && !idle && !unlimited {
		a.Want = w.reserve - left
	}
	w.back, w.again, w.sent, w.at = false, false, sent{a.Used, a.Keep, a.Need, a.Want}, now
	return a
}

// plansReserve sets the reserve to the use expected in reserveTime, or twice the use between two
// reports. If requests had to wait, it at least doubles the last Want.
func (w *wallet) plansReserve(now time.Duration) {
	if period := now - w.at; w.at > 0 && period > 0 {
		used := w.used - w.sent.used
		rate := float64(used) / max(period.Seconds(), 0.1)
		w.reserve = min(mostReserve, max(leastReserve, int64(rate*reserveTime.Seconds()), 2*used))
		if w.dry {
			w.reserve = min(mostReserve, max(w.reserve, 2*w.sent.want))
		}
	} else {
		w.reserve = leastReserve
	}
	w.dry = false
}

// fresh reports whether the wallet's state can be shown without asking the ledger: the last answer
// is recent, and not older than the look-up of the user.
func (w *wallet) fresh(p *Spender, now time.Duration) bool {
	return now-w.heard < reportInterval && p.Epoch <= w.epoch
}

// settle applies the ledger's answer to the last report.
func (w *wallet) settle(g ledger.Grant, epoch int64, now time.Duration) {
	w.told, w.sells, w.plan, w.limit, w.epoch, w.heard = true, g.Sells, g.Plan, g.Limit, epoch, now
	w.taken = max(g.Taken, w.used) // more is used than taken if there is no limit
	w.others = g.Used - w.sent.used
	w.empty = g.Taken < w.sent.keep+w.sent.need && g.Elsewhere == 0
	if w.empty {
		w.since = now
	}
	if g.Elsewhere > 0 && g.Free == 0 && g.Limit != usage.Unlimited {
		w.scarce = now + askAgain
	}
}

// changed reports whether there is anything to report.
func (w *wallet) changed() bool {
	return w.used != w.sent.used || w.back || w.again || w.unsure || w.need > 0
}

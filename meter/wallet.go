package meter

import (
	"time"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/meter/ledger"
)

// wallet is what this process holds of one pool: it may use up to taken credits, of which it has used
// some. Both count from the beginning of the process, like everything that the ledger is told. Its shard's
// lock guards it.
type wallet struct {
	pool        ledger.Pool
	taken, used int64
	payers      []payer
	first       [1]payer     // the room for payers, as long as there is one: a wallet is one object then
	index       map[user]int // of payers, where they are many

	// What the ledger said last.
	plan   authz.Limit // the credits of the plan
	limit  authz.Limit // and with what was granted beside it
	others int64       // used by everybody else, as far as reported
	epoch  int64       // of the state of the database that says so
	heard  time.Duration
	since  time.Duration // it has been empty

	need  int64  // requests wait for so many
	round *round // of reports, that will carry the need; nil: nobody waits
	sent  sent

	reserve int64         // how many to hold, so that requests need not wait
	at      time.Duration // of the last report
	scarce  time.Duration // until then nothing is held in reserve: others want it
	entered int64         // the number of the last report that it is in

	told    bool // the ledger has said something
	sells   bool // the plan takes credits from this pool
	empty   bool // nobody had a credit to spare
	dry     bool // the reserve was too small
	back    bool // give back what is not used
	again   bool // ask whether there is something in an empty pool
	unsure  bool // what was sent may not have arrived
	dirty   bool // is on its shard's list of wallets to be reported
	resting bool // is on the list of those that may become idle
}

// sent is what a wallet reported last: see [ledger.Ask].
type sent struct{ used, keep, need, want int64 }

// user is who pays out of a wallet.
type user struct{ name, account string }

// payer is how much of a wallet one user has used.
type payer struct {
	user
	used, sent int64
}

// manyPayers is the number of payers from which on a map finds them faster.
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

// reply is what a wallet says to a request.
type reply uint8

const (
	askLedger reply = iota // it does not know: ask the ledger
	paid
	refused
)

// askAgain is how long an empty pool is taken to be empty, before the ledger is asked again, with the
// next round of reports: what came back in the meantime, from a request that failed, is found then.
const askAgain = time.Second

// pay takes the cost of a request, if the wallet has it. What it was told about the plan is compared with
// what the request was decided by: where that is newer and differs, it has to ask again.
func (w *wallet) pay(p *authz.Principal, cost int64, now time.Duration) reply {
	if p.Credits == authz.Unlimited {
		if w.used += cost; w.used > w.taken {
			w.taken = w.used
		}
		w.payerOf(user{p.User, p.Account}).used += cost
		return paid
	}
	newer := p.Epoch > w.epoch
	switch {
	case !w.told:
	case newer && (!w.sells || p.Credits != w.plan):
		w.back = true
	case w.used+cost <= w.taken:
		w.used += cost
		w.payerOf(user{p.User, p.Account}).used += cost
		return paid
	case !w.sells: // what the request was decided by is older than what the wallet was told
	case w.empty && !newer:
		w.again = w.again || now-w.since > askAgain
		return refused
	}
	return askLedger
}

// unpay undoes pay, if the ledger has not been told of it yet.
func (w *wallet) unpay(u user, cost int64) bool {
	p := w.payerOf(u)
	if w.used-cost < w.sent.used || p.used-cost < p.sent {
		return false
	}
	w.used -= cost
	p.used -= cost
	return true
}

// credits returns where the users of the pool stand.
func (w *wallet) credits(p *authz.Principal, reset time.Duration) authz.Credits {
	limit := w.limit
	if !w.told || p.Credits == authz.Unlimited {
		limit = p.Credits
	}
	return authz.Credits{Counted: true, Used: max(0, w.others+w.used), Limit: limit, Reset: reset}
}

// The reserve of a wallet: for how long it should last, and its bounds. A report a second carries the wish for
// more anyway, so that a longer one would only make the loss greater when this process is killed.
const (
	reserveTime  = 10 * time.Second
	leastReserve = 16
	mostReserve  = 1 << 20
)

// ask returns what to report, and to ask for. Until the answer is there the wallet uses no more than it
// has told that it keeps.
func (w *wallet) ask(now time.Duration) ledger.Ask {
	looked := !w.changed() // and nothing else: it needs no more for that
	if w.back && w.taken > w.used {
		w.taken, w.empty = w.used, false // now somebody may have some
	}
	a := ledger.Ask{Pool: w.pool, Used: w.used, Keep: w.taken, Need: w.need}
	if w.again {
		a.Need = max(a.Need, 1)
	}
	w.plansReserve(now)
	idle, unlimited := looked || w.back && w.need == 0, w.told && w.plan == authz.Unlimited
	if left := w.taken - w.used; left < w.reserve/2 && now >= w.scarce && !idle && !unlimited {
		a.Want = w.reserve - left
	}
	w.back, w.again, w.sent, w.at = false, false, sent{a.Used, a.Keep, a.Need, a.Want}, now
	return a
}

// plansReserve makes the reserve as large as what would be used in the time that it should last, or twice
// in the time between two reports; and twice as large as it was if requests had to wait.
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

// fresh reports whether the ledger need not be asked where a user stands: it was a moment ago, and by a state
// that is not older than what is known of the user.
func (w *wallet) fresh(p *authz.Principal, now time.Duration) bool {
	return now-w.heard < reportInterval && p.Epoch <= w.epoch
}

// settle takes note of the answer to what was sent.
func (w *wallet) settle(g ledger.Grant, epoch int64, now time.Duration) {
	w.told, w.sells, w.plan, w.limit, w.epoch, w.heard = true, g.Sells, g.Plan, g.Limit, epoch, now
	w.taken = max(g.Taken, w.used) // more is used than taken where there is no limit
	w.others = g.Used - w.sent.used
	w.empty = g.Taken < w.sent.keep+w.sent.need && g.Elsewhere == 0
	if w.empty {
		w.since = now
	}
	if g.Elsewhere > 0 && g.Free == 0 && g.Limit != authz.Unlimited {
		w.scarce = now + askAgain
	}
}

// changed reports whether there is anything to tell the ledger.
func (w *wallet) changed() bool {
	return w.used != w.sent.used || w.back || w.again || w.unsure || w.need > 0
}

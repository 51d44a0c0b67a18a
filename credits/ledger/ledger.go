// Package ledger is the arithmetic of credits. A process that answers requests holds a [Block] of
// each pool that it takes credits from, uses it in memory, and regularly makes a [Report];
// [Book.Post] computes the effect on the pools, and the credits that the process may use from then
// on. The package is pure: the store reads a Book under locks and writes it back.
//
// All figures of a report count from the start of the process. So a report that is repeated, or
// that replaces one with an unknown fate, changes nothing more than the last one.
package ledger

import (
	"errors"
	"fmt"
	"time"

	"github.com/keyporter/keyporter/usage"
)

// Pool names the credits of a user, or of an account, in one month.
type Pool struct {
	Month usage.Month
	Kind  usage.PoolKind
	Name  string
}

// Block is one process's part of a pool: it may use up to Taken credits, and had used Used of them
// when it last reported.
type Block struct {
	Taken, Used int64
}

// Payer is a user of credits: the user, the user's account at that time, and the kind of pool that
// the credits came from.
type Payer struct {
	Month         usage.Month
	Kind          usage.PoolKind
	User, Account string
}

// user and account are the two pools that count a use, whichever of them it was taken from.
func (p Payer) user() Pool    { return Pool{p.Month, usage.PoolUser, p.User} }
func (p Payer) account() Pool { return Pool{p.Month, usage.PoolAccount, p.Account} }

// Ask is a process's report of its block, and its request for more.
type Ask struct {
	Pool
	Used int64 // so far
	Keep int64 // the process may use up to this many meanwhile: from Used to what it has taken
	Need int64 // beyond Keep: requests wait for them
	Want int64 // beyond Need, so that the next requests need not wait
}

// Usage is the number of credits that a process has charged one payer so far.
type Usage struct {
	Payer
	Used int64
}

// Refund asks that credits of one charge come back, as a whole or in parts: in total, so that a
// repeated refund gives back nothing more.
type Refund struct {
	Payer
	Charge string
	Total  int64 // at least 1
	Cause  string
}

// Part is a refund that gives something back: its total less what came back before.
type Part struct {
	Refund
	Credits int64 // at least 1
}

// Parts returns the refunds that raise the total of their charge, in their order. It adds them to
// the totals so far, by charge.
func Parts(refunds []Refund, totals map[string]int64) (parts []Part) {
	for _, r := range refunds {
		if credits := r.Total - totals[r.Charge]; credits > 0 {
			totals[r.Charge] = r.Total
			parts = append(parts, Part{r, credits})
		}
	}
	return parts
}

// Report is a process's report to the ledger. Its blocks and its payers must have used the same
// sum.
type Report struct {
	Holder  string // the process
	Replica string // its entry in the list of replicas: shows others that it lives; "": none
	Seq     int64  // from 1 on, one higher with each report
	Last    bool   // the process ends
	Asks    []Ask
	Usages  []Usage
	// Outcomes are for charges of any process. A repeated outcome changes nothing.
	Outcomes []Outcome
	Refunds  []Refund // in addition to those that the outcomes ask for
}

// Grant is the answer to an [Ask].
type Grant struct {
	Pool
	Taken     int64       // the block, from now on
	Sells     bool        // the plan takes credits from this pool; false: none are granted
	Plan      usage.Limit // of the plan
	Limit     usage.Limit // of the month: the plan and extra grants
	Used      int64       // by all processes, as far as reported, less refunds
	Free      int64       // held by nobody; 0 if there is no limit
	Elsewhere int64       // held by other live processes, or used by them and not yet reported
}

// Result is the answer to a [Report].
type Result struct {
	Now      time.Time // by the database's clock, while the pools were locked
	Epoch    int64     // of the state that the limits were read from
	Grants   []Grant   // in the order of the asks
	Refunds  []Part    // what has come back
	Reported int64     // credits of charges reported for the first time, without void ones
}

// Balance is the state of a pool.
type Balance struct {
	Granted  int64 // credits of the month: at least the limit, and at least what is leased and used
	Leased   int64 // in blocks, and not reported as used
	Used     int64 // reported as used
	Refunded int64 // of Used and Leased, given back

	Sells     bool        // the plan takes credits from this pool
	Plan      usage.Limit // of the plan; only if Sells
	Extra     int64       // granted in addition to the plan
	Elsewhere int64       // of Leased, with other live processes
	Lost      int64       // of Leased, with processes that are gone
}

// free returns the number of credits that nobody holds.
func (b *Balance) free() int64 {
	if !b.Sells {
		return 0
	}
	limit := b.limit()
	if limit == usage.Unlimited {
		return unlimited
	}
	return max(0, int64(limit)-b.committed())
}

// limit returns the number of credits of the month.
func (b *Balance) limit() usage.Limit {
	if b.Plan == usage.Unlimited {
		return usage.Unlimited
	}
	return max(0, b.Plan+usage.Limit(b.Extra))
}

// committed returns the number of credits that are not free.
func (b *Balance) committed() int64 { return b.Leased + b.netUsed() }

// netUsed returns the number of credits that were used and not refunded. It is never negative: if a
// process was killed before it reported a use, a refund of that use is no gift.
func (b *Balance) netUsed() int64 { return max(0, b.Used-b.Refunded) }

// recomputeGranted sets Granted. It grows with the limit, and does not shrink below the credits
// that are gone: a lowered limit takes nothing back.
func (b *Balance) recomputeGranted() {
	b.Granted = b.committed()
	if limit := b.limit(); b.Sells && limit != usage.Unlimited {
		b.Granted = max(b.Granted, int64(limit))
	}
}

// unlimited is the number of free credits if there is no limit: more than any process asks for.
const unlimited = 1 << 40

// Book is the state that a report is posted to. The caller has locked its pools.
type Book struct {
	Now      time.Time // of the database
	Replicas int       // live ones; they share the remaining credits
	Pools    map[Pool]*Balance
	Blocks   map[Pool]Block  // of the reporting process
	Usages   map[Payer]int64 // likewise
}

// The reasons for which a report cannot be posted. The Book is unchanged then.
var (
	// ErrUnbalanced says that the blocks and the payers of a report do not add up to the same sum.
	ErrUnbalanced = errors.New("the report does not add up")
	// ErrBackwards says that a report goes back behind an earlier one.
	ErrBackwards = errors.New("the report takes back what was reported before")
)

// Post posts a report and returns the answer. The parts are those of all refunds of the report,
// also of those that its outcomes ask for.
func (b *Book) Post(r Report, parts []Part) ([]Grant, error) {
	if err := b.check(r); err != nil {
		return nil, err
	}
	for _, part := range parts {
		b.Pools[part.user()].Refunded += part.Credits
		b.Pools[part.account()].Refunded += part.Credits
	}
	for _, u := range r.Usages {
		delta := u.Used - b.Usages[u.Payer]
		b.Pools[u.user()].Used += delta
		b.Pools[u.account()].Used += delta
		b.Usages[u.Payer] = u.Used
	}
	for _, ask := range r.Asks {
		b.give(ask)
	}
	grants := make([]Grant, 0, len(r.Asks))
	for _, ask := range r.Asks {
		grants = append(grants, b.take(ask))
	}
	for _, pool := range b.Pools {
		pool.recomputeGranted()
	}
	return grants, nil
}

// check reports whether a report can follow the last one.
func (b *Book) check(r Report) error {
	balance := int64(0)
	for _, ask := range r.Asks {
		old := b.Blocks[ask.Pool]
		if ask.Used < old.Used || ask.Keep < ask.Used || ask.Need < 0 || ask.Want < 0 {
			return fmt.Errorf("%w: of %s %s in %v it had used %d, now %d, and keeps %d", ErrBackwards,
				ask.Kind, ask.Name, ask.Month, old.Used, ask.Used, ask.Keep)
		}
		balance += ask.Used - old.Used
	}
	for _, u := range r.Usages {
		old := b.Usages[u.Payer]
		if u.Used < old {
			return fmt.Errorf("%w: user %s had used %d in %v, now %d", ErrBackwards, u.User, old, u.Month, u.Used)
		}
		balance -= u.Used - old
	}
	if balance != 0 {
		return fmt.Errorf("%w: its blocks have used %d credits more than its users", ErrUnbalanced, balance)
	}
	return nil
}

// give takes used and returned credits out of the process's block. If the database has lost the
// block, as after a restored backup, its use counts all the same.
func (b *Book) give(ask Ask) {
	pool, old := b.Pools[ask.Pool], b.Blocks[ask.Pool]
	keep := min(ask.Keep, max(old.Taken, ask.Used))
	pool.Leased += keep - ask.Used - (old.Taken - old.Used)
	b.Blocks[ask.Pool] = Block{Taken: keep, Used: ask.Used}
}

// take grants the need as long as credits are free, and of the rest a share that leaves as much to
// every other process, so that blocks shrink as the pool runs out. It grants only credits of the
// current month.
func (b *Book) take(ask Ask) Grant {
	pool, block := b.Pools[ask.Pool], b.Blocks[ask.Pool]
	if ask.Month == usage.MonthOf(b.Now) {
		give := min(ask.Need, pool.free())
		give += min(ask.Want, (pool.free()-give)/int64(4*max(1, b.Replicas)))
		block.Taken += give
		pool.Leased += give
		b.Blocks[ask.Pool] = block
	}
	grant := Grant{
		Pool: ask.Pool, Taken: block.Taken, Sells: pool.Sells, Plan: pool.Plan, Limit: pool.limit(),
		Used: pool.netUsed() + pool.Lost, Elsewhere: pool.Elsewhere,
	}
	if grant.Limit != usage.Unlimited {
		grant.Free = pool.free()
	}
	return grant
}

// Touches returns the pools that a report may change, each once.
func (r *Report) Touches() []Pool {
	seen := map[Pool]bool{}
	var pools []Pool
	add := func(p Pool) {
		if !seen[p] {
			seen[p] = true
			pools = append(pools, p)
		}
	}
	for _, ask := range r.Asks {
		add(ask.Pool)
	}
	for _, u := range r.Usages {
		add(u.user())
		add(u.account())
	}
	for _, refund := range r.Refunds {
		add(refund.user())
		add(refund.account())
	}
	for _, o := range r.Outcomes {
		if payer := (Payer{Month: o.Month, User: o.User, Account: o.Account}); o.Refund > 0 {
			add(payer.user())
			add(payer.account())
		}
	}
	return pools
}

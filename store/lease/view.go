package lease

import (
	"hash/maphash"
	"strings"
	"sync/atomic"
)

// An Epoch numbers the states of a database: every commit that affects a decision makes the next
// one. Epochs may have gaps.
type Epoch int64

// Position is a place in the history of a database. Two diverged histories, as after the restore of
// a backup, may reach the same epoch, but never the same ID.
type Position struct {
	Epoch Epoch
	ID    string
}

// Change is one record of the change feed.
type Change struct {
	Position
	// What lists the names that the change touches: "user:NAME", "account:NAME", "plan:NAME".
	// [Added] and [Imported] touch none of them, and anything else, such as "*", everything.
	What []string
}

// Added is what a change touches that only added plans, accounts, users or keys. Like every change
// it ends all answers such as "there is no such key", but no others, so that an import leaves the
// caches of a running service as they are.
const Added = "added"

// Imported is the kind of what a change touches that only added keys of other systems: it is
// "imported:NUMBER", where the number is that of their import. It ends the same answers as [Added].
const Imported = "imported"

// Origin says what an answer rests on: the epoch of the snapshot in which it was read, and the
// user, account and plan it is about. An answer without a user, such as "there is no such key",
// rests on everything.
type Origin struct {
	Epoch               Epoch
	User, Account, Plan string
}

// The sizes of the tables of a view. Names share slots by chance; then a change of one only causes
// the other to be read again. Accounts and plans have their own tables, since many answers rest on
// one of them.
const (
	userSlots    = 1 << 16
	accountSlots = 1 << 14
	planSlots    = 1 << 12
)

// view holds what a replica knows of the changes since it last forgot everything. A slot holds the
// epoch of the last change that touches one of its names. So a change of a plan with a million keys
// is one store, and an answer from memory needs three loads to prove that it is still valid.
type view struct {
	// number identifies the view in stamps. A pointer in an unused stamp would keep the view in
	// memory.
	number   int64
	since    int64        // the slots hold all changes after this epoch
	applied  atomic.Int64 // and up to this one
	users    [userSlots]atomic.Int64
	accounts [accountSlots]atomic.Int64
	plans    [planSlots]atomic.Int64
}

// views counts the views of this process.
var views atomic.Int64

func newView(applied Epoch) *view {
	v := &view{number: views.Add(1), since: int64(applied)}
	v.applied.Store(int64(applied))
	return v
}

// seed makes it unpredictable which names share a slot.
var seed = maphash.MakeSeed()

func slot(name string, slots uint64) uint32 { return uint32(maphash.String(seed, name) % slots) }

// touch records a change of one name. It returns false if the change touches everything.
func (v *view) touch(what string, at Epoch) bool {
	kind, name, _ := strings.Cut(what, ":")
	switch kind {
	case "user":
		v.users[slot(name, userSlots)].Store(int64(at))
	case "account":
		v.accounts[slot(name, accountSlots)].Store(int64(at))
	case "plan":
		v.plans[slot(name, planSlots)].Store(int64(at))
	case Imported:
	default:
		return what == Added // rule 7: everything
	}
	return true
}

// Reading is a read of the database that is under way.
type Reading struct{ view *view }

// Stamp identifies what an answer rests on; see [Lease.Fresh].
type Stamp struct {
	view                int64 // view.number
	epoch               int64
	user, account, plan uint32
	anybody             bool
}

// Stamp returns the stamp of an answer of this read.
func (r Reading) Stamp(o Origin) Stamp {
	return Stamp{
		view: r.view.number, epoch: int64(o.Epoch), anybody: o.User == "", // rule 3: own epoch
		user: slot(o.User, userSlots), account: slot(o.Account, accountSlots), plan: slot(o.Plan, planSlots),
	}
}

// fresh reports whether nothing that s rests on has changed since it was read, as far as v knows.
// An answer older than the view itself is not fresh: after a failover, the old primary may still
// answer reads.
func (v *view) fresh(s *Stamp) bool {
	if s.view != v.number || s.epoch < v.since { // rule 7: older than the view
		return false
	}
	if s.anybody {
		return s.epoch >= v.applied.Load()
	}
	return s.epoch >= v.users[s.user].Load() && s.epoch >= v.accounts[s.account].Load() && s.epoch >= v.plans[s.plan].Load() // rule 4: all it rests on
}

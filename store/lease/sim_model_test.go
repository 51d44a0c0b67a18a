package lease_test

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/store/cache"
	"github.com/keyporter/keyporter/store/lease"
)

// The size of the model. Each user has one key, each account a plan.
const (
	users    = 6
	accounts = 3
	plans    = 2
)

// Old changes are deleted, and a reply holds a limited number, so a replica that was unreachable
// sees a gap.
const (
	changesKept = 5
	changesTold = 8
)

// versions counts the changes of each thing. A later state has a higher version.
type versions struct {
	generation [users]int // of the user's key
	user       [users]int
	account    [accounts]int
	plan       [plans]int
}

// raise makes v at least as high as w.
func (v *versions) raise(w versions) {
	higher := func(v, w []int) {
		for i := range v {
			v[i] = max(v[i], w[i])
		}
	}
	higher(v.generation[:], w.generation[:])
	higher(v.user[:], w.user[:])
	higher(v.account[:], w.account[:])
	higher(v.plan[:], w.plan[:])
}

// facts is what look-ups read, with its epoch.
type facts struct {
	versions
	epoch     lease.Epoch
	accountOf [users]int
	planOf    [accounts]int
}

// key is the generation-th key of a user. Its creation revokes the one before.
type key struct{ user, generation int }

func (k key) String() string { return fmt.Sprintf("key %d of user %d", k.generation, k.user) }

func (k key) digest() (d apikey.Digest) {
	copy(d[:], fmt.Sprintf("%d.%d.", k.user, k.generation))
	return d
}

func keyOf(d apikey.Digest) key {
	parts := strings.SplitN(string(d[:]), ".", 3)
	user, _ := strconv.Atoi(parts[0])
	generation, _ := strconv.Atoi(parts[1])
	return key{user, generation}
}

// answer is what a key resolves to.
type answer struct {
	user, account, plan                      int
	userVersion, accountVersion, planVersion int
}

var (
	errUnknown = errors.New("no such key")
	errRevoked = errors.New("the key has ended")
)

// find looks a key up, as store.DB.ResolveKey does.
func (f *facts) find(k key) (cache.Found[answer], error) {
	none := cache.Found[answer]{Origin: lease.Origin{Epoch: f.epoch}}
	switch {
	case k.generation > f.generation[k.user]:
		return none, errUnknown
	case k.generation < f.generation[k.user]:
		return none, errRevoked
	}
	a := f.accountOf[k.user]
	p := f.planOf[a]
	return cache.Found[answer]{
		Value:  answer{k.user, a, p, f.user[k.user], f.account[a], f.plan[p]},
		Origin: lease.Origin{Epoch: f.epoch, User: fmt.Sprint("u", k.user), Account: fmt.Sprint("a", a), Plan: fmt.Sprint("p", p)},
	}, nil
}

// The changes. Each returns the names that it touches.

func (f *facts) regenerate(u int) []string {
	f.generation[u]++
	f.user[u]++
	return []string{fmt.Sprint("user:u", u)}
}

func (f *facts) move(u, a int) []string {
	f.accountOf[u] = a
	f.user[u]++
	return []string{fmt.Sprint("user:u", u)}
}

func (f *facts) downgrade(a, p int) []string {
	f.planOf[a] = p
	f.account[a]++
	return []string{fmt.Sprint("account:a", a)}
}

func (f *facts) edit(p int) []string {
	f.plan[p]++
	return []string{fmt.Sprint("plan:p", p)}
}

func (f *facts) everything() []string {
	for u := range f.user {
		f.generation[u]++
		f.user[u]++
	}
	for a := range f.account {
		f.account[a]++
	}
	return []string{"*"}
}

// database models the PostgreSQL of package store: facts, a feed of changes, a list of replicas.
// Each method is one instant.
type database struct {
	mu      sync.Mutex
	now     facts
	changes []lease.Change // oldest first; never empty
	acked   map[string]lease.Epoch
	flushed map[string]lease.Epoch // the part of acked that survives a crash
	made    int                    // replicas so far

	// readOnly says that a renewal does not write, as on SQLite.
	readOnly bool

	// old is the last state of the old primary after a failover. It still answers reads.
	old *facts
}

func newDatabase(readOnly bool) *database {
	return &database{
		readOnly: readOnly,
		changes:  []lease.Change{{Position: lease.Position{ID: "first"}}},
		acked:    map[string]lease.Epoch{},
		flushed:  map[string]lease.Epoch{},
	}
}

// state returns the current state.
func (db *database) state() facts {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.now
}

// commit makes a change and returns its epoch. It skips numbers now and then.
func (db *database) commit(change func(*facts) []string) lease.Epoch {
	db.mu.Lock()
	defer db.mu.Unlock()
	what := change(&db.now)
	db.now.epoch += 1 + db.now.epoch%3/2
	db.flush()
	position := lease.Position{Epoch: db.now.epoch, ID: fmt.Sprint("change", db.now.epoch)}
	db.changes = append(db.changes, lease.Change{Position: position, What: what})
	return db.now.epoch
}

func (db *database) prune() {
	db.mu.Lock()
	defer db.mu.Unlock()
	db.changes = slices.Clone(db.changes[max(0, len(db.changes)-changesKept):])
}

// failOver makes another server the primary. It has everything committed so far; so has the old
// one, and nothing later.
func (db *database) failOver() {
	db.mu.Lock()
	defer db.mu.Unlock()
	old := db.now
	db.old = &old
}

// find reads on the primary, or on the old one.
func (db *database) find(k key, old bool) (cache.Found[answer], error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	if old && db.old != nil {
		return db.old.find(k)
	}
	return db.now.find(k)
}

func (db *database) register() string {
	db.mu.Lock()
	defer db.mu.Unlock()
	db.made++
	id := fmt.Sprint("replica", db.made)
	db.acked[id] = -1
	db.flush()
	return id
}

// updates is the reading half of a renewal.
func (db *database) updates(at lease.Position) lease.Updates {
	db.mu.Lock()
	defer db.mu.Unlock()
	last := db.changes[len(db.changes)-1]
	updates := lease.Updates{Newest: last.Position, Oldest: db.changes[0].Epoch, Known: db.knows(at)}
	for _, c := range db.changes {
		if at.ID != "" && c.Epoch > at.Epoch && len(updates.Changes) < changesTold {
			updates.Changes = append(updates.Changes, c)
		}
	}
	return updates
}

func (db *database) knows(at lease.Position) bool {
	return slices.ContainsFunc(db.changes, func(c lease.Change) bool { return c.Position == at })
}

// seen is the writing half of a renewal: the snapshot is older than the written row. The call may
// have been abandoned long ago.
func (db *database) seen(id string, at lease.Position) error {
	db.mu.Lock()
	defer db.mu.Unlock()
	if _, listed := db.acked[id]; !listed {
		return lease.ErrFenced
	}
	if db.readOnly {
		return nil
	}
	if db.knows(at) {
		db.note(id, at.Epoch)
	}
	db.flush()
	return nil
}

// note never goes back: a replica recorded as further behind than it is would be fenced while it
// has a lease.
func (db *database) note(id string, epoch lease.Epoch) {
	db.acked[id] = max(db.acked[id], epoch) // rule 9: never back
}

// flush is part of every commit that waits for the disk: it also flushes earlier commits that did
// not wait.
func (db *database) flush() { db.flushed = maps.Clone(db.acked) }

// crash discards data that was not on the disk. Everything else is back at once.
func (db *database) crash() {
	db.mu.Lock()
	defer db.mu.Unlock()
	db.acked = maps.Clone(db.flushed)
}

func (db *database) ack(id string, at lease.Position, durably bool) error {
	db.mu.Lock()
	defer db.mu.Unlock()
	if _, listed := db.acked[id]; !listed || !db.knows(at) {
		return lease.ErrFenced
	}
	db.note(id, at.Epoch)
	if durably {
		db.flush()
	}
	return nil
}

func (db *database) leave(id string) {
	db.mu.Lock()
	defer db.mu.Unlock()
	delete(db.acked, id)
	db.flush()
}

// roster returns the list in a fixed order.
func (db *database) roster() lease.Roll {
	db.mu.Lock()
	defer db.mu.Unlock()
	roll := lease.Roll{Newest: db.now.epoch}
	for _, id := range slices.Sorted(maps.Keys(db.acked)) {
		roll.Members = append(roll.Members, lease.Member{ID: id, Acked: db.acked[id], Life: life})
	}
	return roll
}

func (db *database) fence(epoch lease.Epoch, ids []string) {
	db.mu.Lock()
	defer db.mu.Unlock()
	for _, id := range ids {
		if db.acked[id] < epoch { // rule 9: the acknowledged
			delete(db.acked, id)
		}
	}
	db.flush()
}

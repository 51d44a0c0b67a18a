package cache_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/store/cache"
	"github.com/keyporter/keyporter/store/lease"
)

// database is a model of a database: the states of some keys, the feed of their changes, and a list
// with one replica on it. As a [lease.Registry] it is strict: a call that no replica may make fails
// the test.
type database struct {
	failf func(format string, values ...any)
	life  time.Duration                  // of the lease
	keys  map[apikey.Digest]lease.Origin // digest → what it rests on, without the epoch
	pause func()                         // before and after each look at the database; none if nil

	mu   sync.Mutex
	feed []lease.Change // oldest first
	// digest → its states, oldest first; a key without states never exists
	states  map[apikey.Digest][]state
	commits []mark
	down    error // the error of all calls; nil if the database is up

	// The replica, as far as the database knows.
	id       string // on the list; "" if not registered
	ids      int
	calling  bool
	told     lease.Epoch // the newest epoch sent to it
	returned time.Time   // when its last call returned
	sent     time.Time   // when its last renewal was sent
	until    time.Time   // the end of its lease
	applied  []mark
}

// state is the state of a key from an epoch on.
type state struct {
	since  lease.Epoch
	exists bool
}

// mark says when an epoch was reached.
type mark struct {
	epoch lease.Epoch
	at    time.Time
}

// before returns the epoch that was reached before a moment.
func before(marks []mark, at time.Time) lease.Epoch {
	for _, m := range slices.Backward(marks) {
		if m.at.Before(at) {
			return m.epoch
		}
	}
	return 0
}

func newDatabase(failf func(string, ...any)) *database {
	db := &database{failf: failf, life: lease.DefaultLife, keys: map[apikey.Digest]lease.Origin{}, states: map[apikey.Digest][]state{}}
	db.commit(true)
	return db
}

// touches reports whether a change of these names is one that o rests on.
func touches(what []string, o lease.Origin) bool {
	return slices.ContainsFunc(what, func(thing string) bool {
		switch kind, name, _ := strings.Cut(thing, ":"); kind {
		case "user":
			return name == o.User
		case "account":
			return name == o.Account
		case "plan":
			return name == o.Plan
		}
		return thing != lease.Added
	})
}

// commit makes the next epoch. From then on the keys that the change touches exist, or do not. A
// change without names adds the keys that do not exist.
func (db *database) commit(exist bool, what ...string) lease.Epoch {
	db.mu.Lock()
	defer db.mu.Unlock()
	epoch := db.newest() + 3 // epochs may have gaps
	if len(what) == 0 {
		what = []string{lease.Added}
	}
	db.feed = append(db.feed, lease.Change{Position: lease.Position{Epoch: epoch, ID: fmt.Sprint("change_", epoch)}, What: what})
	db.commits = append(db.commits, mark{epoch, time.Now()})
	for d, origin := range db.keys {
		all := db.states[d]
		created := what[0] == lease.Added && exist && (len(all) == 0 || !all[len(all)-1].exists)
		if created || touches(what, origin) {
			db.states[d] = append(all, state{epoch, exist})
		}
	}
	return epoch
}

func (db *database) newest() lease.Epoch {
	if len(db.feed) == 0 {
		return 0
	}
	return db.feed[len(db.feed)-1].Epoch
}

// look returns the current state of a key, and the origin of that answer.
func (db *database) look(d apikey.Digest) (state, lease.Origin) {
	db.mu.Lock()
	defer db.mu.Unlock()
	origin := db.keys[d]
	origin.Epoch = db.newest()
	if all := db.states[d]; len(all) > 0 {
		return all[len(all)-1], origin
	}
	return state{}, origin
}

// from returns the states of a key at an epoch and at all later ones.
func (db *database) from(d apikey.Digest, epoch lease.Epoch) []state {
	db.mu.Lock()
	defer db.mu.Unlock()
	all := append([]state{{}}, db.states[d]...)
	for len(all) > 1 && all[1].since <= epoch {
		all = all[1:]
	}
	return all
}

// appliedNow returns the epoch that the replica claims to have applied.
func (db *database) appliedNow() lease.Epoch {
	db.mu.Lock()
	defer db.mu.Unlock()
	if len(db.applied) == 0 {
		return 0
	}
	return db.applied[len(db.applied)-1].epoch
}

// since returns the oldest epoch that an answer may have now, in virtual time. It covers the
// changes that the replica had applied when it was asked, or before this moment, and the changes
// older than a lease.
func (db *database) since(asked lease.Epoch) lease.Epoch {
	db.mu.Lock()
	defer db.mu.Unlock()
	now := time.Now()
	return max(asked, before(db.applied, now), before(db.commits, now.Add(-db.life)))
}

// fail makes every call of the replica fail, or none if err is nil.
func (db *database) fail(err error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	db.down = err
}

// fence takes the replica off the list, unless it has a lease.
func (db *database) fence() {
	db.mu.Lock()
	defer db.mu.Unlock()
	if !time.Now().Before(db.until) {
		db.id = ""
	}
}

// called begins a call of the replica, which makes one at a time. The returned function ends it.
func (db *database) called() func() {
	db.mu.Lock()
	if db.calling {
		db.failf("two calls at once")
	}
	db.calling = true
	db.mu.Unlock()
	if db.pause != nil {
		db.pause()
	}
	db.mu.Lock()
	return func() {
		db.mu.Unlock()
		if db.pause != nil {
			db.pause()
		}
		db.mu.Lock()
		db.calling, db.returned = false, time.Now()
		db.mu.Unlock()
	}
}

// known returns the error of a call of a replica.
func (db *database) known(id string) error {
	if db.down == nil && db.id != id {
		return lease.ErrFenced
	}
	return db.down
}

func (db *database) Register(_ context.Context) (string, error) {
	defer db.called()()
	if db.down != nil {
		return "", db.down
	}
	if db.id != "" {
		db.failf("registered while on the list")
	}
	db.ids++
	db.id, db.told = fmt.Sprint("replica_", db.ids), 0
	return db.id, nil
}

func (db *database) Renew(_ context.Context, id string, at lease.Position) (lease.Updates, error) {
	sent := time.Now()
	defer db.called()()
	if err := db.known(id); err != nil {
		return lease.Updates{}, err
	}
	updates := db.updates(at)
	db.sent, db.told = sent, updates.Newest.Epoch
	if updates.Newest == at {
		db.until = sent.Add(db.life)
	}
	return updates, nil
}

func (db *database) Updates(_ context.Context, at lease.Position) (lease.Updates, error) {
	defer db.called()()
	if db.down != nil {
		return lease.Updates{}, db.down
	}
	updates := db.updates(at)
	db.sent, db.told = time.Time{}, updates.Newest.Epoch // no lease follows from it
	return updates, nil
}

func (db *database) updates(at lease.Position) lease.Updates {
	next := slices.IndexFunc(db.feed, func(c lease.Change) bool { return c.Epoch > at.Epoch })
	if next < 0 {
		next = len(db.feed)
	}
	began := at == lease.Position{}
	if !began && (next == 0 || db.feed[next-1].Position != at) {
		db.failf("asked for what is new since %v, which is no position", at)
	}
	updates := lease.Updates{Newest: db.feed[len(db.feed)-1].Position, Oldest: db.feed[0].Epoch, Known: !began}
	if !began {
		updates.Changes = slices.Clone(db.feed[next:])
	}
	return updates
}

func (db *database) Ack(_ context.Context, id string, at lease.Position, _ bool) error {
	db.mu.Lock()
	if at.Epoch != db.told {
		db.failf("acknowledged %d after being told of %d", at.Epoch, db.told)
	}
	db.applied = append(db.applied, mark{at.Epoch, time.Now()})
	db.mu.Unlock()
	defer db.called()()
	if err := db.known(id); err != nil {
		return err
	}
	if !db.sent.IsZero() {
		db.until = db.sent.Add(db.life)
	}
	return nil
}

func (db *database) Leave(_ context.Context, id string) error {
	defer db.called()()
	if err := db.known(id); err != nil {
		return err
	}
	db.id = ""
	return nil
}

// lease returns a lease of this database that nothing renews.
func (db *database) lease() *lease.Lease {
	start := time.Now() // in a bubble the lease's clock stands still with the bubble's
	return lease.New(lease.Config{
		Registry: db, Life: db.life,
		Clock: func() time.Duration { return time.Since(start) },
		Log:   slog.New(slog.DiscardHandler),
	})
}

// keep runs a lease until the returned function is called.
func keep(l *lease.Lease) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { l.Run(ctx) })
	return func() {
		cancel()
		running.Wait()
	}
}

// held returns a lease of this database that is held until the end of the test.
func (db *database) held(t testing.TB) *lease.Lease {
	l := db.lease()
	t.Cleanup(keep(l))
	if err := l.Hold(t.Context()); err != nil {
		t.Fatal(err)
	}
	return l
}

// version is the value of a key: the epoch of its last change, so that each change makes another
// value.
type version struct {
	key     apikey.Digest
	since   lease.Epoch
	expires time.Time // never if zero
}

// answer returns the result of a read that looks at the database now.
func (db *database) answer(d apikey.Digest, expires time.Time) (cache.Found[version], error) {
	is, origin := db.look(d)
	if !is.exists || !expires.IsZero() && !time.Now().Before(expires) {
		// with more than the epoch, which alone counts
		return cache.Found[version]{Origin: origin}, errUnknown
	}
	return cache.Found[version]{Value: version{d, is.since, expires}, Origin: origin, Expires: expires}, nil
}

// wrong says what is wrong with an answer about d that is used now, and must not be older than an
// epoch.
func (db *database) wrong(d apikey.Digest, expires time.Time, v version, err error, since lease.Epoch) string {
	expired := !expires.IsZero() && !time.Now().Before(expires)
	states := db.from(d, since)
	switch {
	case err == nil && v.key != d:
		return "the value of another key"
	case err == nil && expired:
		return "a value was used after its expiry"
	case err == nil && !slices.Contains(states, state{v.since, true}):
		return fmt.Sprintf("a value of epoch %d was used at %d, when there were %v", v.since, since, states)
	case err != nil && v != version{}:
		return fmt.Sprintf("a value beside the error %v", err)
	case err == errUnknown && !expired && !slices.ContainsFunc(states, func(s state) bool { return !s.exists }):
		return fmt.Sprintf("a negative answer was used at %d, when there were %v", since, states)
	}
	return ""
}

package lease_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/nowait"
	"github.com/keyporter/keyporter/store/cache"
	"github.com/keyporter/keyporter/store/lease"
)

// near is a lease.Registry without a network: the model of the database, with faults set by the
// test.
type near struct {
	t  *testing.T
	db *database

	mu       sync.Mutex
	id       string           // the last one
	calls    []string         // in order
	fail     map[string]error // call → its error
	accepted []string
}

func (n *near) call(name, id string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if name == "register" {
		n.id = id
	}
	if id != n.id {
		n.t.Errorf("%s by %s, which is not %s", name, id, n.id)
	}
	n.calls = append(n.calls, name)
	return n.fail[name]
}

func (n *near) Register(context.Context) (string, error) {
	id := n.db.register()
	return id, n.call("register", id)
}

func (n *near) Renew(_ context.Context, id string, at lease.Position) (lease.Updates, error) {
	if err := n.call("renew", id); err != nil {
		return lease.Updates{}, err
	}
	updates := n.db.updates(at)
	updates.Accepted = n.accept()
	return updates, n.db.seen(id, at)
}

func (n *near) Updates(_ context.Context, at lease.Position) (lease.Updates, error) {
	if err := n.call("updates", n.id); err != nil {
		return lease.Updates{}, err
	}
	updates := n.db.updates(at)
	updates.Accepted = n.accept()
	return updates, nil
}

func (n *near) Ack(_ context.Context, id string, at lease.Position, durably bool) error {
	name := "ack"
	if durably {
		name = "durable ack"
	}
	if err := n.call(name, id); err != nil {
		return err
	}
	return n.db.ack(id, at, durably)
}

func (n *near) Leave(_ context.Context, id string) error {
	n.db.leave(id)
	return n.call("leave", id)
}

// set makes calls fail with err, or succeed if it is nil.
func (n *near) set(name string, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.fail[name] = err
}

// accept adds ids to the accepted histories, and returns all of them.
func (n *near) accept(ids ...string) []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.accepted = append(n.accepted, ids...)
	return slices.Clone(n.accepted)
}

// held is a running lease with its environment.
type held struct {
	*lease.Lease
	registry *near
	db       *database
	metrics  *prometheus.Registry
	clock    time.Duration // how far the clock of the machine has jumped
	end      func()        // stops it and waits
}

// hold runs a lease until it is held.
func hold(t *testing.T) *held {
	db := newDatabase(false)
	h := &held{registry: &near{t: t, db: db, fail: map[string]error{}}, db: db, metrics: prometheus.NewPedanticRegistry()}
	began := time.Now()
	h.Lease = lease.New(lease.Config{
		Registry: h.registry, Life: life, Metrics: h.metrics, Log: slog.New(slog.DiscardHandler),
		Clock: func() time.Duration { return time.Since(began) + h.clock },
	})
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() { h.Run(ctx) })
	h.end = func() { cancel(); done.Wait() }
	t.Cleanup(h.end)
	synctest.Wait()
	if !h.Held() {
		t.Fatal("no lease to begin with:", h.Problem())
	}
	return h
}

// look makes the lease look at the database at once.
func (h *held) look() {
	h.Notify(0)
	synctest.Wait()
}

// follow makes changes, and makes the lease follow each.
func (h *held) follow(n int) {
	for range n {
		h.db.commit(func(f *facts) []string { return f.regenerate(0) })
		h.look()
	}
}

// stamp returns the stamp of an answer about user 1 that is read now.
func (h *held) stamp() lease.Stamp {
	return h.Read().Stamp(lease.Origin{Epoch: h.db.state().epoch, User: "u1", Account: "a0", Plan: "p0"})
}

func (h *held) flushes(t *testing.T, cause string) float64 {
	t.Helper()
	families, err := h.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == "keyporter_lease_flushes_total" && m.GetLabel()[0].GetValue() == cause {
				return m.GetCounter().GetValue()
			}
		}
	}
	t.Fatalf("no flushes are counted by %q", cause)
	return 0
}

// rewrite gives the model another history.
func (db *database) rewrite(history ...lease.Position) {
	db.mu.Lock()
	defer db.mu.Unlock()
	db.changes = nil
	for _, p := range history {
		db.changes = append(db.changes, lease.Change{Position: p})
	}
	db.now.epoch = history[len(history)-1].Epoch
}

// A database that has gone back, as after the restore of a backup, is refused at once, regardless
// of the number of changes since. Only a later acceptance by an operator ends the refusal.
func TestTheHistoryOfTheDatabase(t *testing.T) {
	first, other := lease.Position{ID: "first"}, func(e lease.Epoch) lease.Position { return lease.Position{Epoch: e, ID: "other"} }
	for name, history := range map[string][]lease.Position{
		"its last change is another one":        {first, {Epoch: 1, ID: "change1"}, other(2)},
		"it has gone back":                      {first, {Epoch: 1, ID: "change1"}},
		"it has gone back, and is ahead again":  {first, {Epoch: 1, ID: "change1"}, other(2), other(3), other(5)},
		"it left out the number, and is ahead":  {first, {Epoch: 1, ID: "change1"}, other(3)},
		"it is another one from the very start": {other(0)},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := hold(t)
				h.registry.accept("known before")
				h.follow(2)
				before := h.stamp()
				if at := h.db.state().epoch; at != 2 || !h.Fresh(&before) {
					t.Fatalf("at %d, not 2, or a new answer is not fresh", at)
				}
				h.db.rewrite(history...)
				h.look()
				if h.Held() || !errors.Is(h.Problem(), lease.ErrRewritten) || h.Fresh(&before) {
					t.Errorf("held: %v, by %v; what was read before is fresh: %v", h.Held(), h.Problem(), h.Fresh(&before))
				}
				time.Sleep(10 * life)
				if h.Held() {
					t.Error("accepted by an id that was known before")
				}
				h.registry.accept("new")
				time.Sleep(life)
				if after := h.stamp(); !h.Held() || h.Problem() != nil || h.Fresh(&before) || !h.Fresh(&after) {
					t.Errorf("accepted; but held: %v, by %v; old and new answers are fresh: %v, %v",
						h.Held(), h.Problem(), h.Fresh(&before), h.Fresh(&after))
				}
				if n := h.flushes(t, "accepted"); n != 1 {
					t.Errorf("flushed %v times as it was accepted", n)
				}
			})
		})
	}
}

// A replica that waits for an operator is fenced when others make changes. It registers again, and
// continues to report what the operator has to do.
func TestAReplicaThatIsTakenOffTheListStillTellsThatTheHistoryIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := hold(t)
		h.registry.set("updates", lease.ErrRewritten)
		h.registry.set("renew", lease.ErrRewritten)
		h.look()
		h.registry.set("updates", lease.ErrFenced)
		h.registry.set("renew", lease.ErrFenced)
		time.Sleep(3 * life)
		if h.Held() || !errors.Is(h.Problem(), lease.ErrRewritten) {
			t.Errorf("held: %v, by %v, want that the history was rewritten", h.Held(), h.Problem())
		}
		h.registry.set("updates", nil)
		h.registry.set("renew", nil)
		time.Sleep(3 * life)
		if !h.Held() || h.Problem() != nil {
			t.Errorf("held: %v, by %v, though all is well again", h.Held(), h.Problem())
		}
	})
}

// A registry that sees the file replaced reports it itself.
func TestARegistryMayRefuseTheDatabase(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := hold(t)
		h.registry.set("updates", fmt.Errorf("replaced: %w", lease.ErrRewritten))
		h.look()
		if h.Held() {
			t.Error("held on a database that was replaced")
		}
	})
}

// If a replica cannot follow changes one by one, it forgets everything and continues.
func TestAReplicaForgetsWhatItCannotFollow(t *testing.T) {
	for _, row := range []struct {
		name  string
		do    func(h *held)
		cause string
	}{
		{"a change touches everything", func(h *held) { h.db.commit((*facts).everything) }, "everything"},
		{"a change touches what this version does not know", func(h *held) {
			h.db.commit(func(*facts) []string { return []string{"user:u5", "quota:q"} })
		}, "everything"},
		{"there are too many changes", func(h *held) {
			for range changesTold + 1 {
				h.db.commit(func(f *facts) []string { return f.regenerate(0) })
			}
		}, "gap"},
		{"the changes were deleted before it followed them", func(h *held) {
			for range changesKept {
				h.db.commit(func(f *facts) []string { return f.regenerate(0) })
			}
			h.db.prune()
		}, "gap"},
		{"it was taken off the list", func(h *held) { h.db.leave("replica1") }, "registered"},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := hold(t)
				h.follow(1)
				before, late := h.stamp(), h.Read()
				flushed := h.flushes(t, row.cause)
				row.do(h)
				time.Sleep(life / 2) // a renewal, and another one after a failure
				if n := h.flushes(t, row.cause) - flushed; n != 1 {
					t.Errorf("flushed %v times by %q", n, row.cause)
				}
				straddling := late.Stamp(lease.Origin{Epoch: h.db.state().epoch, User: "u1"})
				if h.Fresh(&before) || h.Fresh(&straddling) {
					t.Error("what was read before is fresh, or what was being read")
				}
				if after := h.stamp(); !h.Held() || !h.Fresh(&after) {
					t.Errorf("held: %v, by %v; a new answer is fresh: %v", h.Held(), h.Problem(), h.Fresh(&after))
				}
				roll := h.db.roster()
				if len(roll.Members) != 1 || roll.Members[0].Acked != roll.Newest {
					t.Errorf("the list is %+v", roll)
				}
			})
		})
	}
}

// A change makes exactly the answers that it touches be read again. "There is no such key" rests on
// everything.
func TestAChangeTouchesWhatItNames(t *testing.T) {
	origins := map[string]lease.Origin{
		"user":    {User: "u0", Account: "a1", Plan: "p1"},
		"account": {User: "u1", Account: "a0", Plan: "p1"},
		"plan":    {User: "u1", Account: "a1", Plan: "p0"},
		"nobody":  {},
	}
	for what, gone := range map[string][]string{
		"user:u0": {"nobody", "user"}, "account:a0": {"account", "nobody"}, "plan:p0": {"nobody", "plan"}, "": {"nobody"},
		"added": {"nobody"}, "added user:u0": {"nobody", "user"},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := hold(t)
				stamps := map[string]lease.Stamp{}
				for name, origin := range origins {
					stamps[name] = h.Read().Stamp(origin)
				}
				h.db.commit(func(*facts) []string { return strings.Fields(what) })
				h.look()
				var stale []string
				for name, s := range stamps {
					if !h.Fresh(&s) {
						stale = append(stale, name)
					}
				}
				if slices.Sort(stale); !slices.Equal(stale, gone) {
					t.Errorf("%q touches %v, not %v", what, stale, gone)
				}
			})
		})
	}
}

// A connection to an old primary may outlive the failover. Its answers are too old to be judged by
// a replica that has forgotten everything.
func TestAnAnswerFromAnOldPrimaryIsNotFresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := hold(t)
		h.follow(1)
		h.db.commit((*facts).everything)
		h.look()
		if s := h.Read().Stamp(lease.Origin{Epoch: 1, User: "u1", Account: "a0", Plan: "p0"}); h.Fresh(&s) {
			t.Error("an answer of the state before is fresh")
		}
	})
}

// No barrier waits for a replica that is off the list, so the replica answers nothing.
func TestLeaving(t *testing.T) {
	for _, problem := range []error{nil, errLost} {
		synctest.Test(t, func(t *testing.T) {
			h := hold(t)
			h.registry.set("leave", problem)
			h.end()
			if h.Held() || h.Left() > 0 {
				t.Error("it has left, and holds a lease")
			}
			if calls := h.registry.calls; calls[len(calls)-1] != "leave" {
				t.Errorf("it ended with %v", calls)
			}
			time.Sleep(10 * life)
			if h.Held() {
				t.Error("it has a lease again")
			}
		})
	}
}

// A lease counts from before its renewal was sent. It ends if the database does not answer, and
// comes back to waiting callers at once when the database answers again.
func TestHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := hold(t)
		h.registry.set("renew", errLost)
		time.Sleep(life - time.Nanosecond)
		if !h.Held() {
			t.Error("lost before its time")
		}
		time.Sleep(time.Nanosecond)
		if h.Held() {
			t.Error("held after its time")
		}
		ctx, cancel := context.WithTimeout(t.Context(), life)
		defer cancel()
		if err := h.Hold(ctx); !errors.Is(err, lease.ErrNotHeld) || !errors.Is(err, errLost) {
			t.Errorf("the error is %v; want that there is no lease, and why", err)
		}
		began := time.Now()
		time.AfterFunc(life, func() { h.registry.set("renew", nil) })
		if err := h.Hold(t.Context()); err != nil || !h.Held() {
			t.Errorf("held: %v; %v", h.Held(), err)
		}
		if took := time.Since(began); took > life+life/32 {
			t.Errorf("it took %v to notice that the database is back", took-life)
		}
	})
}

// Without an acknowledgement on the list the replica may be fenced, so its lease is not extended.
func TestNoAcknowledgementNoLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := hold(t)
		time.Sleep(life / 8)
		h.registry.set("ack", errLost)
		left := h.Left()
		h.follow(1)
		if h.Left() > left {
			t.Error("it was extended")
		}
		if !errors.Is(h.Problem(), errLost) {
			t.Errorf("the problem is %v", h.Problem())
		}
	})
}

// A machine that was suspended for an hour wakes up without a lease, and gets one when it asks.
func TestASuspendedMachineHasNoLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := hold(t)
		h.clock += time.Hour
		if h.Held() {
			t.Error("a lease of an hour ago is held")
		}
		if err := h.Hold(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// TestHintsDoNotBlock never blocks the listener of announcements. A hint about a known epoch causes
// no call.
func TestHintsDoNotBlock(t *testing.T) {
	l := lease.New(lease.Config{Life: life})
	for epoch := range lease.Epoch(1000) {
		l.Notify(epoch)
	}
	synctest.Test(t, func(t *testing.T) {
		h := hold(t)
		h.follow(1)
		before := len(h.registry.calls)
		h.Notify(1)
		synctest.Wait()
		if after := len(h.registry.calls); after != before {
			t.Errorf("%v, for what was known", h.registry.calls[before:after])
		}
	})
}

// Every series exists from the start.
func TestMetricsAreThereAtZero(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	lease.New(lease.Config{Metrics: registry})
	for name, want := range map[string]int{
		"keyporter_lease_renewal_seconds": 1, "keyporter_lease_renewals_total": 2, "keyporter_lease_fences_total": 1,
		"keyporter_lease_flushes_total": 6, "keyporter_lease_left_seconds": 1, "keyporter_epoch": 1, "keyporter_epoch_lag": 1,
	} {
		if n, err := testutil.GatherAndCount(registry, name); n != want || err != nil {
			t.Errorf("%s: %d series, not %d (%v)", name, n, want, err)
		}
	}
	if problems, err := testutil.GatherAndLint(registry); err != nil || len(problems) > 0 {
		t.Error(problems, err)
	}
}

// An answer that was being read during a change is not used: not by its reader, not by callers that
// waited for it, and not later.
func TestALateAnswerIsNotUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := hold(t)
		h.db.commit(func(f *facts) []string { return f.regenerate(0) })
		h.look()
		old := key{user: 0, generation: 1}
		metrics := prometheus.NewPedanticRegistry()
		c := cache.New(cache.Config[apikey.Digest, answer]{
			Find: func(context.Context, apikey.Digest) (cache.Found[answer], error) {
				found, err := h.db.find(old, false)
				time.Sleep(100 * time.Millisecond)
				return found, err
			},
			Lease: h.Lease, Name: "keys", Metrics: metrics,
			Negative: func(err error) bool { return errors.Is(err, errRevoked) },
		})
		var callers sync.WaitGroup
		ask := func() {
			callers.Go(func() {
				if _, err := c.Find(t.Context(), old.digest()); !errors.Is(err, errRevoked) {
					t.Errorf("a key that has ended: %v", err)
				}
			})
		}
		ask() // reads before the change
		time.Sleep(50 * time.Millisecond)
		h.db.commit(func(f *facts) []string { return f.regenerate(0) })
		h.look()
		ask() // joins that read
		callers.Wait()
		if err := testutil.GatherAndCompare(metrics, strings.NewReader(`
			# HELP keyporter_cache_discarded_fills_total Answers that were not kept, since what they rest on had changed while they were read.
			# TYPE keyporter_cache_discarded_fills_total counter
			keyporter_cache_discarded_fills_total{cache="keys"} 1
			`), "keyporter_cache_discarded_fills_total"); err != nil {
			t.Error(err)
		}
	})
}

// A caller that may not wait learns at once that there is no lease.
func TestHoldWithoutWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := hold(t)
		ctx := nowait.Context(t.Context())
		if err := h.Hold(ctx); err != nil {
			t.Errorf("with a lease: %v", err)
		}
		h.registry.set("renew", errors.New("down"))
		time.Sleep(2 * life)
		began := time.Now()
		within, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if err := h.Hold(within); err != nowait.ErrWouldWait || time.Since(began) != 0 {
			t.Errorf("without one: %v after %v", err, time.Since(began))
		}
	})
}

package storetest

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyporter/keyporter/internal/parts/partstest"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/feed"
	"github.com/keyporter/keyporter/store/lease"
)

// Replica is a process that answers from memory, with a lease in a real database.
type Replica struct {
	*lease.Lease
	Life time.Duration
	Log  *partstest.Buffer
	End  func() // stops it and waits

	lease.Registry
	ID       atomic.Pointer[string]
	Sent     atomic.Int64 // when the last successful renewal was sent
	Good     atomic.Int64 // successful renewals
	Bad      atomic.Int64 // failed renewals
	Hinted   atomic.Int64 // the newest epoch that was announced
	Hints    atomic.Int64
	Looks    atomic.Int64
	Longer   atomic.Int64 // how often the lease was held for longer than its life
	Gate     sync.RWMutex // held to silence the replica
	Position atomic.Int64
}

// Register implements [lease.Registry].
func (r *Replica) Register(ctx context.Context) (string, error) {
	id, err := r.Registry.Register(ctx)
	if err == nil {
		r.ID.Store(&id)
	}
	return id, err
}

// Renew implements [lease.Registry].
func (r *Replica) Renew(ctx context.Context, id string, at lease.Position) (lease.Updates, error) {
	r.Gate.RLock()
	defer r.Gate.RUnlock()
	r.Position.Store(int64(at.Epoch))
	sent := lease.BootClock()
	updates, err := r.Registry.Renew(ctx, id, at)
	if err != nil {
		r.Bad.Add(1)
		return updates, err
	}
	r.Sent.Store(int64(sent))
	r.Good.Add(1)
	return updates, nil
}

// Updates implements [lease.Registry].
func (r *Replica) Updates(ctx context.Context, at lease.Position) (lease.Updates, error) {
	r.Gate.RLock()
	defer r.Gate.RUnlock()
	return r.Registry.Updates(ctx, at)
}

// Ack implements [lease.Registry].
func (r *Replica) Ack(ctx context.Context, id string, at lease.Position, durably bool) error {
	r.Gate.RLock()
	defer r.Gate.RUnlock()
	return r.Registry.Ack(ctx, id, at, durably)
}

// watch checks continuously that the lease is not held for longer than its life, counted from
// before the last renewal was sent.
func (r *Replica) watch(ctx context.Context) {
	for ctx.Err() == nil {
		now := lease.BootClock()
		if r.Held() && int64(now) >= r.Sent.Load()+int64(r.Life) {
			r.Longer.Add(1)
		}
		r.Looks.Add(1)
		time.Sleep(500 * time.Microsecond)
	}
}

// StartReplica starts a replica that ends with the test. At its end it reports if its lease was
// ever held for too long.
func StartReplica(t *testing.T, db *store.DB, life time.Duration) *Replica {
	t.Helper()
	r := &Replica{Life: life, Log: &partstest.Buffer{}}
	log := slog.New(slog.NewTextHandler(r.Log, nil))
	registry, err := feed.NewRegistry(db, feed.Replica{Name: "test", Life: life, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	r.Registry = registry
	r.Lease = lease.New(lease.Config{Registry: r, Life: life, Log: log})
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() { r.Run(ctx) })
	all.Go(func() {
		registry.Watch(ctx, func(epoch lease.Epoch) {
			r.Hints.Add(1)
			r.Hinted.Store(max(r.Hinted.Load(), int64(epoch)))
			r.Notify(epoch)
		})
	})
	all.Go(func() { r.watch(ctx) })
	r.End = sync.OnceFunc(func() {
		cancel()
		all.Wait()
		registry.Close()
		if n := r.Longer.Load(); n > 0 {
			t.Errorf("the lease was held for longer than its life at %d of %d looks", n, r.Looks.Load())
		}
		if t.Failed() {
			t.Logf("the replica said:\n%s", r.Log.String())
		}
	})
	t.Cleanup(r.End)
	return r
}

// AwaitLease waits until the lease is held, and returns how long it took.
func (r *Replica) AwaitLease(t *testing.T) time.Duration {
	t.Helper()
	return partstest.Eventually(t, "the lease", r.Held)
}

// NotHeldFor checks that the lease is not held for some time.
func (r *Replica) NotHeldFor(t *testing.T, d time.Duration, why string) {
	t.Helper()
	for begun := time.Now(); time.Since(begun) < d; time.Sleep(time.Millisecond) {
		if r.Held() {
			t.Errorf("the lease is held: %s", why)
			return
		}
	}
}

// Package lease keeps caches from answering by what is no longer true. It has two sides. A [Lease] is
// a replica's permission to answer from memory: it lasts a few seconds and is renewed by telling the
// database how far the replica has followed the change feed. A [Barrier] is for whoever takes something
// away: it waits until every replica has followed that far, or until its permission has certainly
// ended. No two clocks are compared; only their speed must agree within 5 %.
package lease

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// DefaultLife is how long a lease lasts where nothing else is said.
const DefaultLife = 3 * time.Second

// The ways in which a lease ends or is not given.
var (
	// ErrNotHeld is returned when nothing may be answered, since no lease could be had in time.
	ErrNotHeld = errors.New("no lease")
	// ErrFenced is returned by a [Registry] that does not know the replica any more.
	ErrFenced = errors.New("this replica was silent for too long and was taken off the list")
	// ErrRewritten says that the database has gone back in its history: a restored backup, or a
	// standby that lacked the last changes.
	ErrRewritten = errors.New("the history of the database was rewritten, as by a restored backup or a standby that lacked changes: what was revoked may live again")
	// ErrUnrecorded says that changes are not recorded, so that nobody can follow them.
	ErrUnrecorded = errors.New("changes are not recorded")
	// errNotAccepted is ErrRewritten where an operator can accept it.
	errNotAccepted = fmt.Errorf("%w; look at the keys, then run `keyporter replicas accept-history`", ErrRewritten)
)

// Registry is the database as a replica with a lease sees it.
type Registry interface {
	// Register adds a replica that has applied nothing and returns its id. It is committed, durably,
	// when Register returns.
	Register(ctx context.Context) (id string, err error)
	// Renew tells where the replica stands and returns what is new. What is on the list never goes back,
	// even if a call that was given up arrives late: who is thought to have followed less than it has
	// would be taken off the list while it has a lease. It fails on a database that cannot
	// commit, with [ErrFenced] where the replica is not on the list, with [ErrRewritten] where the
	// database is not the one it was, and with [ErrUnrecorded] where it does not record changes.
	Renew(ctx context.Context, id string, at Position) (News, error)
	// News returns what is new since a position, like Renew, but proves and promises nothing: it is for
	// following a change at once, between two renewals.
	News(ctx context.Context, at Position) (News, error)
	// Ack tells that the replica has applied everything up to a position; durably, or so that a crash of
	// the database may lose it; the list does not go back here either. It fails with [ErrFenced] where the replica is not on the list, or the
	// position is none of the database's history.
	Ack(ctx context.Context, id string, at Position, durably bool) error
	// Leave takes the replica off the list.
	Leave(ctx context.Context, id string) error
}

// News is what is new in the database, all from one snapshot that was taken after the call began.
type News struct {
	Newest Position // the newest change
	Oldest Epoch    // the oldest change that is kept
	Known  bool     // the position of the replica is part of the history
	// Changes are those after the replica's position, oldest first; the newest are missing if there are
	// too many.
	Changes []Change
	// Accepted names the rewritten histories that an operator has accepted.
	Accepted []string
}

// Config says how a [Lease] is kept. Only Registry is required.
type Config struct {
	Registry Registry
	// Life is how long a lease lasts, counted from before its renewal was sent; DefaultLife if 0. It
	// is renewed every quarter of that.
	Life time.Duration
	// Clock is a clock that runs on while the machine is suspended; [BootClock] if nil.
	Clock   func() time.Duration
	Log     *slog.Logger          // slog.Default() if nil
	Metrics prometheus.Registerer // none if nil
}

// Lease is the permission of one replica. It is safe for concurrent use. Until [Lease.Run] has got it,
// it is not held.
type Lease struct {
	config  Config
	metrics *metrics
	view    atomic.Pointer[view]
	until   atomic.Int64 // on config.Clock: may answer before it
	newest  atomic.Int64 // the newest epoch that was heard of
	hints   chan struct{}
	problem atomic.Pointer[error] // why the last renewal failed; nil if it did not

	mu       sync.Mutex
	extended chan struct{} // closed at the next renewal

	// What follows belongs to the goroutine of Run.
	id       string   // on the list; "" if not
	at       Position // where the replica stands
	acked    Position // where the list says it stands, at least
	accepted []string
	renewed  time.Duration // when the last renewal was sent, on config.Clock
	lost     bool          // and it was said
	refused  bool          // and it was said that the history was rewritten
	// unrecorded: changes were not recorded at the last renewal, nor may they have been since.
	unrecorded, told bool // and it was said
}

// New returns a Lease. It panics when its metrics are registered already.
func New(c Config) *Lease {
	if c.Life <= 0 {
		c.Life = DefaultLife
	}
	if c.Clock == nil {
		c.Clock = BootClock
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	l := &Lease{config: c, hints: make(chan struct{}, 1), extended: make(chan struct{})}
	l.until.Store(int64(c.Clock())) // over already
	l.view.Store(newView(0))
	l.metrics = newMetrics(c.Metrics, l)
	return l
}

// Period is the time between two renewals. Life is four of them.
func Period(life time.Duration) time.Duration { return life / 4 }

// Left is how long the lease lasts; negative since it was lost.
func (l *Lease) Left() time.Duration { return time.Duration(l.until.Load()) - l.config.Clock() }

// Held reports whether the replica may answer. The clock is read first: who sees a lease that was
// extended after that sees the changes that were applied before.
func (l *Lease) Held() bool {
	now := l.config.Clock()
	return int64(now) < l.until.Load()
}

// Problem is why the last renewal failed; nil if it did not.
func (l *Lease) Problem() error {
	if p := l.problem.Load(); p != nil {
		return *p
	}
	return nil
}

// Hold returns when the lease is held, which is at once in good times. Else it asks for a renewal and
// waits for it: the error is [ErrNotHeld].
func (l *Lease) Hold(ctx context.Context) error {
	for !l.Held() {
		l.mu.Lock()
		extended := l.extended
		l.mu.Unlock()
		if l.Held() {
			break
		}
		l.Hint(0)
		select {
		case <-extended:
		case <-ctx.Done():
			if problem := l.Problem(); problem != nil {
				return fmt.Errorf("%w: %w", ErrNotHeld, problem)
			}
			return fmt.Errorf("%w: %w", ErrNotHeld, context.Cause(ctx))
		}
	}
	return nil
}

// Read begins a read of the database, which must be sent after it.
func (l *Lease) Read() Reading { return Reading{l.view.Load()} }

// Fresh reports whether an answer still holds, as far as the replica knows. It may be used where Fresh
// is true and, before, [Lease.Held] was.
func (l *Lease) Fresh(s *Stamp) bool { return l.view.Load().fresh(s) }

// Hint says that there may be news, up to an epoch if one is known. It never blocks.
func (l *Lease) Hint(epoch Epoch) {
	if epoch != 0 && epoch <= Epoch(l.view.Load().applied.Load()) {
		return
	}
	l.heard(epoch)
	select {
	case l.hints <- struct{}{}:
	default:
	}
}

// heard notes the newest epoch that was heard of, for the metric alone. Two hints at once leave the
// higher one.
func (l *Lease) heard(epoch Epoch) {
	for old := l.newest.Load(); int64(epoch) > old; old = l.newest.Load() {
		if l.newest.CompareAndSwap(old, int64(epoch)) {
			return
		}
	}
}

// Run keeps the lease until ctx ends, and then leaves the list. Nothing may be answered after that.
func (l *Lease) Run(ctx context.Context) {
	for due := true; ctx.Err() == nil; {
		began := time.Now()
		err := l.step(ctx, due)
		l.report(ctx, err)
		l.metrics.stepped(due, err, time.Since(began))
		due = l.pause(ctx, err)
	}
	l.leave()
}

// pause waits until the next renewal is due, or until there is news to follow before that. After a
// failure nothing ends it: a database that is down is not asked without a break.
func (l *Lease) pause(ctx context.Context, failed error) (due bool) {
	wait, hints := l.renewed+Period(l.config.Life)-l.config.Clock(), l.hints
	if failed != nil {
		wait, hints = Period(l.config.Life)/8, nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-hints:
		return !l.Held() || l.renewed+Period(l.config.Life) <= l.config.Clock()
	case <-timer.C:
	case <-ctx.Done():
	}
	return true
}

// step renews the lease where that is due, or else only follows the news.
func (l *Lease) step(ctx context.Context, due bool) error {
	if err := l.register(ctx); err != nil {
		return err
	}
	if due {
		return l.renew(ctx)
	}
	news, err := l.config.Registry.News(ctx, l.at)
	return l.take(ctx, news, err, false)
}

// renew tells the database where this replica stands, follows the news, and extends the lease. It
// counts from before the call was sent: what the database has not told by then was not committed by
// then. And what it has told is on the list as applied, durably, before the lease is longer: so a replica
// is never taken off the list while it has a lease, nor where the database crashes in between.
func (l *Lease) renew(ctx context.Context) error {
	sent := l.config.Clock()
	news, err := l.config.Registry.Renew(ctx, l.id, l.at)
	if err := l.take(ctx, news, err, true); err != nil {
		return err
	}
	l.renewed = sent
	l.newest.Store(0) // a hint that was no epoch of ours is forgotten
	l.extend(sent + l.config.Life)
	return nil
}

// take follows the news and acknowledges them, and what could not be acknowledged before.
func (l *Lease) take(ctx context.Context, news News, err error, durably bool) error {
	if err == nil {
		err = l.follow(news)
	}
	if err == nil && l.acked != l.at {
		if err = l.config.Registry.Ack(ctx, l.id, l.at, durably); err == nil {
			l.acked = l.at
		}
	}
	switch {
	case errors.Is(err, ErrFenced):
		l.fenced()
	case errors.Is(err, ErrRewritten):
		l.drop()
		if !l.refused {
			l.forget(causeRewritten)
		}
	case errors.Is(err, ErrUnrecorded):
		l.drop()
		l.unrecorded = true
	}
	if err != nil {
		return fmt.Errorf("renewing the lease: %w", err)
	}
	return nil
}

// register puts this replica on the list, with an empty memory, unless it is there.
func (l *Lease) register(ctx context.Context) error {
	if l.id != "" {
		return nil
	}
	id, err := l.config.Registry.Register(ctx)
	if err != nil {
		return fmt.Errorf("registering this replica: %w", err)
	}
	l.id, l.acked = id, Position{}
	l.forget(causeRegistered)
	return nil
}

// fenced gives up the lease and the place on the list. What is cached goes at the next registration.
func (l *Lease) fenced() {
	l.drop()
	l.id = ""
	l.metrics.fences.Inc()
}

// follow applies the news, or refuses a history that is not the one it has followed so far.
func (l *Lease) follow(news News) error {
	switch {
	case l.at == Position{}: // begins
		l.jump(news, causeRegistered)
	case news.Known && whole(news):
		for _, change := range news.Changes {
			l.apply(change)
		}
	case news.Known || l.at.Epoch < news.Oldest:
		l.config.Log.Warn("changes are too many to follow one by one, or were deleted: all cached entries are dropped",
			"from", l.at.Epoch, "to", news.Newest.Epoch)
		l.jump(news, causeGap)
	case newlyAccepted(news.Accepted, l.accepted):
		l.config.Log.Warn("the rewritten history was accepted: all cached entries are dropped",
			"from", l.at.Epoch, "to", news.Newest.Epoch)
		l.jump(news, causeAccepted)
	default:
		return errNotAccepted
	}
	if l.unrecorded {
		l.unrecorded = false
		l.jump(news, causeUnrecorded)
	}
	l.accepted = news.Accepted
	return nil
}

// whole reports whether the changes reach up to the newest one.
func whole(news News) bool {
	n := len(news.Changes)
	return n == 0 || news.Changes[n-1].Position == news.Newest
}

// newlyAccepted reports whether an operator has accepted a history since this replica last looked. One
// that it knew may have been accepted before the history was rewritten.
func newlyAccepted(accepted, known []string) bool {
	old := map[string]bool{}
	for _, id := range known {
		old[id] = true
	}
	for _, id := range accepted {
		if !old[id] {
			return true
		}
	}
	return false
}

// jump forgets everything and goes on from the newest change.
func (l *Lease) jump(news News, cause string) {
	l.at = news.Newest
	l.newest.Store(0)
	l.forget(cause)
}

// apply makes every answer that a change touches unusable.
func (l *Lease) apply(change Change) {
	v := l.view.Load()
	l.at = change.Position
	for _, what := range change.What {
		if !v.touch(what, change.Epoch) {
			l.forget(causeEverything)
			return
		}
	}
	v.applied.Store(int64(change.Epoch))
}

// forget makes every answer that was read so far, or whose read has begun, unusable.
func (l *Lease) forget(cause string) {
	l.view.Store(newView(l.at.Epoch))
	l.metrics.flushes.WithLabelValues(cause).Inc()
}

// extend makes the lease longer, and wakes those who wait for it.
func (l *Lease) extend(until time.Duration) {
	l.until.Store(int64(until))
	l.mu.Lock()
	close(l.extended)
	l.extended = make(chan struct{})
	l.mu.Unlock()
}

// drop gives the lease up.
func (l *Lease) drop() {
	if l.Held() {
		l.until.Store(int64(l.config.Clock()))
	}
}

// leave takes this replica off the list, so that nobody waits for it.
func (l *Lease) leave() {
	l.drop()
	if l.id == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), min(l.config.Life, time.Second))
	defer cancel()
	if err := l.config.Registry.Leave(ctx, l.id); err != nil {
		l.config.Log.Warn("leaving the list of replicas failed: the next change waits for this one's lease to end", "error", err)
	}
}

// report tells the operator when the lease is lost, why, and when it is back.
func (l *Lease) report(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	if err == nil {
		l.problem.Store(nil)
		if l.lost {
			l.config.Log.Info("the lease is back: checks are answered again")
		}
		l.lost, l.refused, l.told = false, false, false
		return
	}
	if errors.Is(err, ErrFenced) {
		if !l.refused { // an operator has to accept the history first: what mends itself does not hide that
			l.problem.Store(&err)
		}
		l.config.Log.Warn("this replica was taken off the list after a silence: it drops what it has cached, and registers again", "error", err)
		return
	}
	l.problem.Store(&err)
	refused, unrecorded := errors.Is(err, ErrRewritten), errors.Is(err, ErrUnrecorded)
	if !l.Held() && (!l.lost || refused && !l.refused || unrecorded && !l.told) {
		l.lost, l.refused, l.told = true, refused, unrecorded
		l.config.Log.Error("there is no lease: every check is answered with 503 until it is renewed", "error", err)
	}
}

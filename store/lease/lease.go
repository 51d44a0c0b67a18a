// Package lease keeps caches from answering from an outdated state. It has two sides. A [Lease] is
// a replica's permission to answer from memory. It lasts a few seconds; each renewal tells the
// database how far the replica has followed the change feed. A [Barrier] serves callers that revoke
// something: it waits until every replica has followed that far, or until its lease has certainly
// ended. The protocol compares no two clocks; only their speeds must agree within 5 %.
//
// A comment such as "rule 6: lease" marks a line that tests break, to see that the rule is needed.
package lease

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyporter/keyporter/nowait"
)

// DefaultLife is the TTL of a lease unless [Config] sets another one.
const DefaultLife = 3 * time.Second

// The errors of a lease that ended or could not be renewed.
var (
	// ErrNotHeld is returned when no lease could be obtained in time, so nothing may be answered.
	ErrNotHeld = errors.New("no lease")
	// ErrFenced is returned by a [Registry] that no longer lists the replica.
	ErrFenced = errors.New("this replica was silent for too long and was taken off the list")
	// ErrRewritten says that the database has gone back in its history: a backup was restored, or a
	// standby without the last changes was promoted.
	ErrRewritten = errors.New("the history of the database was rewritten, as by a restored backup or a standby that lacked changes: what was revoked may live again")
	// ErrUnrecorded says that changes are not recorded, so no replica can follow them.
	ErrUnrecorded = errors.New("changes are not recorded")
	// errNotAccepted is ErrRewritten in a case that an operator can resolve.
	errNotAccepted = fmt.Errorf("%w; look at the keys, then run `keyporter replicas accept-history`", ErrRewritten)
)

// Registry is the database as a replica with a lease sees it.
type Registry interface {
	// Register adds a replica that has applied nothing and returns its id. The row is durably
	// committed when Register returns.
	Register(ctx context.Context) (id string, err error)
	// Renew records the replica's position and returns what is new. The recorded position never
	// goes back, even if an abandoned call arrives late: a replica recorded as further behind than
	// it is could be fenced while it has a lease. Renew fails on a database that cannot commit,
	// with [ErrFenced] if the replica is not on the list, with [ErrRewritten] if the database is
	// not the one it was, and with [ErrUnrecorded] if the database does not record changes.
	Renew(ctx context.Context, id string, at Position) (Updates, error)
	// Feed returns what is new since a position, like Renew, but proves and promises nothing. It
	// serves to follow a change at once, between two renewals.
	Updates(ctx context.Context, at Position) (Updates, error)
	// Ack records that the replica has applied everything up to a position. Unless durably is set,
	// a crash of the database may lose the record. The recorded position never goes back here
	// either. Ack fails with [ErrFenced] if the replica is not on the list, or if the position is
	// not in the database's history.
	Ack(ctx context.Context, id string, at Position, durably bool) error
	// Leave takes the replica off the list.
	Leave(ctx context.Context, id string) error
}

// Feed is what is new in the database, all from one snapshot that was taken after the call began.
type Updates struct {
	Newest Position // the newest change
	Oldest Epoch    // the oldest change that is kept
	Known  bool     // the replica's position is part of the history
	// Changes lists the changes after the replica's position, oldest first. If there are too many,
	// the newest are missing.
	Changes []Change
	// Accepted lists the ids of the rewritten histories that an operator has accepted.
	Accepted []string
}

// Config configures a [Lease]. Only Registry is required.
type Config struct {
	Registry Registry
	// Life is the TTL of the lease, counted from before its renewal was sent; DefaultLife if 0. The
	// lease is renewed every quarter of it.
	Life time.Duration
	// Clock is a clock that keeps running while the machine is suspended; [BootClock] if nil.
	Clock func() time.Duration
	// OnImported is told of each import of keys of other systems, by its number, and with "" that
	// anything may have changed. The replica acknowledges the change after OnImported has returned.
	// It must not block. Nil: nobody is told.
	OnImported func(number string)
	Log        *slog.Logger          // slog.Default() if nil
	Metrics    prometheus.Registerer // none if nil
}

// Lease is the permission of one replica. It is safe for concurrent use. It is not held until
// [Lease.Run] has obtained it.
type Lease struct {
	config  Config
	metrics *metrics
	view    atomic.Pointer[view]
	until   atomic.Int64 // on config.Clock; the replica may answer before it
	newest  atomic.Int64 // the newest epoch that was announced
	hints   chan struct{}
	problem atomic.Pointer[error] // why the last renewal failed; nil after a success

	mu       sync.Mutex
	extended chan struct{} // closed at the next renewal

	// The following fields belong to the goroutine of Run.
	id       string   // on the list; "" if not registered
	at       Position // the replica's position
	acked    Position // the position on the list, at least
	accepted []string
	renewed  time.Duration // when the last renewal was sent, on config.Clock
	lost     bool          // the loss of the lease was logged
	refused  bool          // a rewritten history was logged
	// unrecorded: changes were unrecorded at the last renewal, and may have been since.
	unrecorded, told bool // told: it was logged
}

// New returns a Lease. It panics if its metrics are already registered.
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
	if c.OnImported == nil {
		c.OnImported = func(string) {}
	}
	l := &Lease{config: c, hints: make(chan struct{}, 1), extended: make(chan struct{})}
	l.until.Store(int64(c.Clock())) // expired from the start
	l.view.Store(newView(0))
	l.metrics = newMetrics(c.Metrics, l)
	return l
}

// Period is the time between two renewals: a quarter of life.
func Period(life time.Duration) time.Duration { return life / 4 }

// Left returns how long the lease still lasts, negative after its end.
func (l *Lease) Left() time.Duration { return time.Duration(l.until.Load()) - l.config.Clock() }

// Held reports whether the replica may answer. It reads the clock first: a caller that sees a later
// extension of the lease also sees the changes applied before it.
func (l *Lease) Held() bool {
	now := l.config.Clock()
	return int64(now) < l.until.Load() // rule 1: its end
}

// Problem returns the error of the last renewal, nil if it succeeded.
func (l *Lease) Problem() error {
	if p := l.problem.Load(); p != nil {
		return *p
	}
	return nil
}

// Hold returns once the lease is held, usually at once. Otherwise it asks for a renewal and waits
// for it. The error is [ErrNotHeld].
func (l *Lease) Hold(ctx context.Context) error {
	for !l.Held() { // rule 6: lease
		if err := nowait.Err(ctx); err != nil {
			return err
		}
		l.mu.Lock()
		extended := l.extended
		l.mu.Unlock()
		if l.Held() {
			break
		}
		l.Notify(0)
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

// Read begins a read of the database. The query must be sent after this call.
func (l *Lease) Read() Reading { return Reading{l.view.Load()} }

// Fresh reports whether an answer is still valid, as far as the replica knows. The answer may be
// used if Fresh is true and [Lease.Held] was true before that.
func (l *Lease) Fresh(s *Stamp) bool { return l.view.Load().fresh(s) } // rule 4: fresh

// Notify announces that there may be updates, up to an epoch if it is not 0. It never blocks.
func (l *Lease) Notify(epoch Epoch) {
	if epoch != 0 && epoch <= Epoch(l.view.Load().applied.Load()) {
		return
	}
	l.noteAnnounced(epoch)
	select {
	case l.hints <- struct{}{}:
	default:
	}
}

// noteAnnounced records the newest announced epoch, for the metric alone. Of two concurrent hints
// the higher one stays.
func (l *Lease) noteAnnounced(epoch Epoch) {
	for old := l.newest.Load(); int64(epoch) > old; old = l.newest.Load() {
		if l.newest.CompareAndSwap(old, int64(epoch)) {
			return
		}
	}
}

// Run keeps the lease until ctx ends, then takes the replica off the list. Nothing may be answered
// after that.
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

// pause waits until the next renewal is due, or until there are updates to follow before that.
// After a failure it ignores hints, so that a database that is down is not asked without a break.
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

// step renews the lease if due, and only follows the updates otherwise.
func (l *Lease) step(ctx context.Context, due bool) error {
	if err := l.register(ctx); err != nil {
		return err
	}
	if due {
		return l.renew(ctx)
	}
	updates, err := l.config.Registry.Updates(ctx, l.at)
	return l.take(ctx, updates, err, false)
}

// renew records this replica's position in the database, follows the updates, and extends the
// lease. The TTL counts from before the call was sent: a change that the answer lacks was not
// committed by then. The list durably records the changes in the answer as applied before the lease
// is extended. So a replica is never fenced while it has a lease, even if the database crashes in
// between.
func (l *Lease) renew(ctx context.Context) error {
	sent := l.config.Clock()
	updates, err := l.config.Registry.Renew(ctx, l.id, l.at) // rule 2: apply first
	if err := l.take(ctx, updates, err, true); err != nil {  // rule 2: durably
		return err
	}
	l.renewed = sent
	l.newest.Store(0)              // forget a hint that was no epoch of ours
	l.extend(sent + l.config.Life) // rule 1: from before sending
	return nil
}

// take follows the updates, and acknowledges them together with everything not yet acknowledged.
func (l *Lease) take(ctx context.Context, updates Updates, err error, durably bool) error {
	if err == nil { // rule 2: apply, then acknowledge
		err = l.follow(updates)
	}
	if err == nil && l.acked != l.at { // rule 2: acknowledge first
		if err = l.config.Registry.Ack(ctx, l.id, l.at, durably); err == nil { // rule 2: retry
			l.acked = l.at
		}
	}
	switch {
	case errors.Is(err, ErrFenced):
		l.fenced() // rule 9: fenced
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

// register puts this replica on the list, with an empty memory, unless it is already there.
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

// fenced drops the lease and the place on the list. The next registration drops the cached entries.
func (l *Lease) fenced() {
	l.drop()
	l.id = ""
	l.metrics.fences.Inc()
}

// follow applies the updates, or refuses a history other than the one followed so far.
func (l *Lease) follow(updates Updates) error {
	switch {
	case l.at == Position{}: // the start
		l.jump(updates, causeRegistered)
	case updates.Known && whole(updates): // rule 7: gap
		for _, change := range updates.Changes {
			l.apply(change)
		}
	case updates.Known || l.at.Epoch < updates.Oldest:
		l.config.Log.Warn("changes are too many to follow one by one, or were deleted: all cached entries are dropped",
			"from", l.at.Epoch, "to", updates.Newest.Epoch)
		l.jump(updates, causeGap)
	case newlyAccepted(updates.Accepted, l.accepted):
		l.config.Log.Warn("the rewritten history was accepted: all cached entries are dropped",
			"from", l.at.Epoch, "to", updates.Newest.Epoch)
		l.jump(updates, causeAccepted)
	default:
		return errNotAccepted
	}
	if l.unrecorded {
		l.unrecorded = false
		l.jump(updates, causeUnrecorded)
	}
	l.accepted = updates.Accepted
	return nil
}

// whole reports whether the changes reach up to the newest one.
func whole(updates Updates) bool {
	n := len(updates.Changes)
	return n == 0 || updates.Changes[n-1].Position == updates.Newest // rule 7: too many
}

// newlyAccepted reports whether an operator has accepted a history since this replica last looked.
// An acceptance that the replica already knew may be older than the rewrite.
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

// jump forgets everything and continues from the newest change.
func (l *Lease) jump(updates Updates, cause string) {
	l.at = updates.Newest
	l.newest.Store(0)
	l.forget(cause) // rule 7: forget
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
		if number, ok := strings.CutPrefix(what, Imported+":"); ok {
			l.config.OnImported(number)
		}
	}
	v.applied.Store(int64(change.Epoch))
}

// forget makes every answer unusable that was read so far, or whose read has begun.
func (l *Lease) forget(cause string) {
	l.view.Store(newView(l.at.Epoch))
	l.config.OnImported("")
	l.metrics.flushes.WithLabelValues(cause).Inc()
}

// extend prolongs the lease and wakes the callers that wait for it.
func (l *Lease) extend(until time.Duration) {
	l.until.Store(int64(until))
	l.mu.Lock()
	close(l.extended)
	l.extended = make(chan struct{})
	l.mu.Unlock()
}

// drop ends the lease now.
func (l *Lease) drop() {
	if l.Held() {
		l.until.Store(int64(l.config.Clock()))
	}
}

// leave takes this replica off the list, so that no barrier waits for it.
func (l *Lease) leave() {
	l.drop() // rule 9: leave
	if l.id == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), min(l.config.Life, time.Second))
	defer cancel()
	if err := l.config.Registry.Leave(ctx, l.id); err != nil {
		l.config.Log.Warn("leaving the list of replicas failed: the next change waits for this one's lease to end", "error", err)
	}
}

// report logs when the lease is lost, why, and when it is back.
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
		// a problem that mends itself must not hide a history that an operator has to accept
		if !l.refused {
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

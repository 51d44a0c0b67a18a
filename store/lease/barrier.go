package lease

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Margin is the fraction by which the clocks of two machines may differ in speed.
const Margin = 0.05

// ErrUnconfirmed is returned when a barrier ended before it was certain that no replica answers
// from the old state.
var ErrUnconfirmed = errors.New("not confirmed on every replica")

// Roster is the database as a [Barrier] sees it.
type Roster interface {
	// Roster returns the newest epoch and all replicas on the list, from one snapshot.
	Roster(ctx context.Context) (Roll, error)
	// Fence takes those of the given replicas off the list that have not applied the epoch. It may
	// only be called once their leases have certainly ended.
	Fence(ctx context.Context, epoch Epoch, ids []string) error
}

// Roll is the list of replicas at one moment.
type Roll struct {
	Newest  Epoch
	Members []Member
}

// Member is a replica on the list.
type Member struct {
	ID    string
	Acked Epoch         // the replica has applied everything up to this
	Life  time.Duration // the TTL of its lease
}

// Confirmation says that a change is enforced on all Total replicas. Acknowledged replicas have
// applied it. The leases of Expired replicas have ended, and these replicas answer nothing before
// they apply the change.
type Confirmation struct {
	Total, Acknowledged, Expired int
	Took                         time.Duration
}

// Barrier waits until no replica can answer from the old state. It is safe for concurrent use.
type Barrier struct {
	Roster Roster
	// Retry is the maximum time between two looks at the list; 25 ms if 0. The first looks follow
	// sooner.
	Retry time.Duration
}

// firstLook is the time between the first two looks at the list.
const firstLook = 500 * time.Microsecond

// Wait returns once everything committed up to an epoch is enforced on every replica. It takes as
// long as the slowest replica needs to follow, and at most 1.05 × the TTL of a silent replica's
// lease. The error is [ErrUnconfirmed] if ctx ends before that.
//
// A replica that registers after the first look has an empty memory and reads what is committed by
// then, so Wait ignores it. A replica that leaves the list no longer has a lease. A list older than
// the change comes from a server that is no longer the primary, and proves nothing.
func (b *Barrier) Wait(ctx context.Context, committed Epoch) (Confirmation, error) {
	began := time.Now()
	first, err := b.first(ctx, committed)
	if err != nil {
		return Confirmation{}, err
	}
	seen := time.Now() // after the commit, by the clock that measures the leases
	open := map[string]time.Duration{}
	for _, m := range first.Members {
		open[m.ID] = m.Life
	}
	c := Confirmation{Total: len(open)}
	c.Acknowledged += strikeAcked(open, first)
	for len(open) > 0 { // rule 8: wait
		if time.Since(seen) >= longest(open) { // rule 8: the silent
			c.Expired = len(open)
			b.fence(ctx, first.Newest, open)
			break
		}
		if err := sleep(ctx, min(b.pause(time.Since(seen)), longest(open)-time.Since(seen))); err != nil {
			c.Took = time.Since(began)
			return c, err
		}
		if roll, err := b.again(ctx, longest(open)-time.Since(seen)); err == nil && roll.Newest >= first.Newest {
			c.Acknowledged += strikeAcked(open, Roll{first.Newest, roll.Members})
			c.Total -= gone(open, roll)
		}
	}
	c.Took = time.Since(began)
	return c, nil
}

// first looks at the list until an answer includes the change.
func (b *Barrier) first(ctx context.Context, committed Epoch) (Roll, error) {
	for {
		roll, err := b.Roster.Roster(ctx)
		if err == nil && roll.Newest < committed {
			err = errors.New("the server that answers lacks the change")
		}
		if err == nil {
			return roll, nil
		}
		if ended := sleep(ctx, b.retry()); ended != nil {
			return Roll{}, fmt.Errorf("%w: %w", ended, err)
		}
	}
}

// again looks at the list once more. It gives up when the leases have ended, so that an unreachable
// database delays no caller further.
func (b *Barrier) again(ctx context.Context, left time.Duration) (Roll, error) {
	ctx, cancel := context.WithTimeout(ctx, left)
	defer cancel()
	return b.Roster.Roster(ctx)
}

// pause returns the time until the next look: a quarter of the time waited so far, within bounds.
func (b *Barrier) pause(waited time.Duration) time.Duration {
	return min(max(waited/4, firstLook), b.retry())
}

func (b *Barrier) retry() time.Duration {
	if b.Retry > 0 {
		return b.Retry
	}
	return 25 * time.Millisecond
}

// strikeAcked removes from open the replicas that have applied the newest change, and returns their
// number.
func strikeAcked(open map[string]time.Duration, roll Roll) (n int) {
	for _, m := range roll.Members {
		if _, ok := open[m.ID]; ok && m.Acked >= roll.Newest { // rule 8: the newest change
			delete(open, m.ID)
			n++
		}
	}
	return n
}

// gone removes from open the replicas that are no longer on the list, and returns their number.
func gone(open map[string]time.Duration, roll Roll) (n int) {
	listed := map[string]bool{}
	for _, m := range roll.Members {
		listed[m.ID] = true
	}
	for id := range open {
		if !listed[id] {
			delete(open, id)
			n++
		}
	}
	return n
}

// longest returns the time after which all leases in open have certainly ended.
func longest(open map[string]time.Duration) (most time.Duration) {
	for _, life := range open {
		most = max(most, life)
	}
	return time.Duration(float64(most) * (1 + Margin))
}

// fenceTime is the time limit for fencing.
const fenceTime = 250 * time.Millisecond

// fence takes the silent replicas off the list, so that the next change does not wait for them. If
// it fails, the next barrier fences them.
func (b *Barrier) fence(ctx context.Context, epoch Epoch, open map[string]time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, fenceTime)
	defer cancel()
	var ids []string
	for id := range open {
		ids = append(ids, id)
	}
	_ = b.Roster.Fence(ctx, epoch, ids)
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrUnconfirmed, context.Cause(ctx))
	}
}

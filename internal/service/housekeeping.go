package service

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/keyporter/keyporter/internal/config"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
	"github.com/keyporter/keyporter/store/feed"
	"github.com/keyporter/keyporter/store/lease"
	"github.com/keyporter/keyporter/store/ledger"
	"github.com/keyporter/keyporter/store/outbox"
	"github.com/keyporter/keyporter/store/requests"
)

// Times between two rounds of housekeeping.
const (
	tidyInterval = 10 * time.Minute
	rollInterval = time.Minute
)

// housekeeper deletes expired rows, and removes dead replicas from the list before a caller has to
// wait for them. Every replica has one; all of its work can be repeated.
type housekeeper struct {
	db         *store.DB
	sessions   *directory.Sessions
	feed       *feed.Feed
	ledger     *ledger.Ledger
	saved      *requests.Log
	outbox     *outbox.Outbox
	lease      *lease.Lease
	ready      *readiness
	unreported bool          // refund charges without a reported outcome
	retention  time.Duration // of the request log; see deletesAfter
	log        *slog.Logger
}

func newHousekeeper(c config.Config, db *store.DB, lease *lease.Lease, ready *readiness, log *slog.Logger) *housekeeper {
	return &housekeeper{
		db: db, sessions: directory.NewSessions(db), feed: feed.New(db), ledger: ledger.New(db), saved: requests.New(db), outbox: outbox.New(db),
		lease: lease, ready: ready, unreported: c.RefundUnreported, retention: deletesAfter(c.RequestLogRetention), log: log,
	}
}

// run does the housekeeping until ctx ends.
func (h *housekeeper) run(ctx context.Context) {
	for round := 0; ctx.Err() == nil; round++ {
		// Without a lease, for example if the standby is unreachable, a roll call would hang and
		// keep its connection.
		if h.lease.Hold(ctx) != nil {
			return
		}
		h.checkRecording(ctx)
		if err := h.callRoll(ctx, round == 0); err != nil && ctx.Err() == nil {
			h.log.Warn("replicas that have died could not be looked for: changes may wait until their leases have ended; it is tried again in a minute", "error", err)
		}
		if round%int(tidyInterval/rollInterval) == 0 {
			if err := h.tidy(ctx); err != nil && ctx.Err() == nil {
				h.log.Warn("old records of changes could not be deleted: it is tried again in ten minutes", "error", err)
			}
			h.refundUnreported(ctx)
			h.tidyRequests(ctx)
			h.tidyEvents(ctx)
		}
		h.rest(ctx, rollInterval+rand.N(rollInterval/4)) // jitter: not all replicas at once
	}
}

// rest waits for the next round. While changes are not recorded, it keeps checking, so that /readyz
// reports a repair soon.
func (h *housekeeper) rest(ctx context.Context, pause time.Duration) {
	over, again := time.NewTimer(pause), time.NewTicker(recordingInterval)
	defer over.Stop()
	defer again.Stop()
	for {
		select {
		case <-again.C:
			if h.ready.unrecorded.Load() != nil {
				_ = h.lookAtRecording(ctx) // each round logs it
			}
		case <-over.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// recordingInterval is how often rest checks whether changes are recorded again.
const recordingInterval = 2 * time.Second

// deletesAfter returns the age at which a replica deletes requests. A replica that keeps none, with
// a retention of 0, must not delete those of others.
func deletesAfter(retention time.Duration) time.Duration {
	return cmp.Or(retention, config.MaxRetention)
}

// tidy deletes old records, but none of requests.
func (h *housekeeper) tidy(ctx context.Context) error {
	if err := h.feed.Tidy(ctx); err != nil {
		return err
	}
	if err := h.sessions.Tidy(ctx); err != nil {
		return err
	}
	return h.ledger.Tidy(ctx)
}

// tidyRequests deletes expired requests.
func (h *housekeeper) tidyRequests(ctx context.Context) {
	if err := h.saved.Tidy(ctx, h.retention); err != nil && ctx.Err() == nil {
		h.log.Warn("old requests could not be deleted: it is tried again in ten minutes", "error", err)
	}
}

// tidyEvents deletes old events.
func (h *housekeeper) tidyEvents(ctx context.Context) {
	if err := h.outbox.Tidy(ctx); err != nil && ctx.Err() == nil {
		h.log.Warn("old events could not be deleted: it is tried again in ten minutes", "error", err)
	}
}

// refundUnreported applies --unreported.
func (h *housekeeper) refundUnreported(ctx context.Context) {
	if !h.unreported {
		return
	}
	credits, err := h.ledger.RefundUnreported(ctx)
	if err != nil && ctx.Err() == nil {
		h.log.Warn("unreported charges of last month could not be refunded: the next attempt is in ten minutes", "error", err)
	}
	if credits > 0 {
		h.log.Info("unreported charges of last month were refunded", "credits", credits)
	}
}

// checkRecording logs that changes are not recorded. Without the change feed there is no lease
// either; the audit alone can be missing.
func (h *housekeeper) checkRecording(ctx context.Context) {
	if err := h.lookAtRecording(ctx); err != nil {
		h.log.Error("no changes can be made", "error", err)
	}
}

// lookAtRecording sets for /readyz whether changes are recorded, and returns why they are not.
// While the database does not answer, the state stays the same.
func (h *housekeeper) lookAtRecording(ctx context.Context) error {
	err := h.db.Recorded(ctx)
	switch {
	case err == nil:
		h.ready.unrecorded.Store(nil)
	case errors.Is(err, store.ErrUnrecorded):
		why := err.Error()
		h.ready.unrecorded.Store(&why)
		return err
	}
	return nil
}

// callRoll calls the roll if a replica may have died, or always.
func (h *housekeeper) callRoll(ctx context.Context, always bool) error {
	replicas, _, err := h.feed.Replicas(ctx)
	if err != nil {
		return err
	}
	for _, r := range replicas {
		always = always || !r.Live()
	}
	if !always || len(replicas) == 0 {
		return nil
	}
	c, err := h.feed.RollCall(ctx)
	if c.Expired > 0 {
		h.log.Warn("replicas that were silent, as after a crash, were taken off the list: no change waits for them any more", "count", c.Expired)
	}
	return err
}

package service

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/keyporter/keyporter/internal/config"
	"github.com/keyporter/keyporter/ratelimit"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/requests"
)

// rateLog keeps the requests that this replica counts over a restart.
type rateLog struct {
	counts *ratelimit.Memory
	saved  *requests.Log
	now    func(context.Context) (time.Time, error) // by the clock of the database
	log    *slog.Logger
}

// restoreTime bounds how long a start waits for the rate logs.
const restoreTime = 5 * time.Second

// newRateLog returns nil if Valkey counts the requests.
func newRateLog(c config.Config, db *store.DB, limiter *ratelimit.Shared, log *slog.Logger) *rateLog {
	if c.Redis != "" {
		return nil
	}
	return &rateLog{counts: limiter.Local(), saved: requests.New(db), now: db.Now, log: log}
}

// restore takes over the rate logs of stopped replicas, so that a restart starts no new window.
func (l *rateLog) restore(ctx context.Context) {
	if l == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, restoreTime)
	defer cancel()
	pieces, now, err := l.saved.TakeRateLogs(ctx)
	for _, piece := range pieces {
		err = errors.Join(err, l.counts.Restore(now, piece))
	}
	if err != nil {
		l.log.Warn("rate logs of replicas that have stopped could not be read: their users begin a new window", "error", err)
	}
}

// save saves the rate log for the next start.
func (l *rateLog) save(ctx context.Context) {
	if l == nil {
		return
	}
	err := l.counts.Save(func() (time.Time, error) { return l.now(ctx) },
		func(piece []byte) error { return l.saved.SaveRateLog(ctx, piece) })
	if err != nil {
		l.log.Warn("the rate log could not be saved: its users begin a new window at the next start", "error", err)
	}
}

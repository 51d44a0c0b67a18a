package service

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
	"github.com/keyporter/keyporter/store/lease"
)

// startup reports what the start of a service waits for, in the log and on /readyz.
type startup struct {
	ready *readiness
	log   *slog.Logger
}

// waits reports what the start waits for, and why; without a reason the wait is over.
func (s *startup) waits(what string, why error) {
	if why == nil {
		s.ready.waitsFor("")
		s.log.Info(what)
		return
	}
	s.ready.waitsFor(fmt.Sprintf("%s: %v", what, why))
	s.log.Warn(what, "reason", why)
}

// firstLease waits for the first lease without a limit, so that a service that reports ready has
// one. It fails on errors that waiting cannot repair.
func (s *startup) firstLease(ctx context.Context, lease *lease.Lease) error {
	const what = "waiting for the first lease"
	defer s.ready.waitsFor("")
	for told := time.Duration(0); ; told += firstLeaseTime {
		waiting, cancel := context.WithTimeout(ctx, firstLeaseTime)
		err := lease.Hold(waiting)
		cancel()
		switch {
		case err == nil || ctx.Err() != nil:
			return nil
		case store.IsMistake(err):
			return err
		case told%firstLeaseNotice == 0:
			s.waits(what, err)
		default:
			s.ready.waitsFor(fmt.Sprintf("%s: %v", what, err))
		}
	}
}

// firstLeaseTime is the time after which the start reports that it waits for a lease, and why. It
// repeats the report every firstLeaseNotice.
const (
	firstLeaseTime   = 2 * time.Second
	firstLeaseNotice = 30 * time.Second
)

// firstConnections waits without a limit until keys can be looked up and the connections that
// requests need are open.
func (s *startup) firstConnections(ctx context.Context, c connections) {
	limited, cancel := context.WithTimeout(ctx, firstLeaseTime)
	defer cancel()
	err := c.await(limited)
	if err == nil || ctx.Err() != nil {
		return
	}
	s.log.Error("not ready: no key can be looked up; waiting until one can", "error", err)
	if c.await(ctx) == nil {
		s.log.Info("keys can be looked up")
	}
}

// connections are those of the database that look-ups need.
type connections struct {
	db  *store.DB
	try func(context.Context) error // looks up a key that does not exist
}

func newConnections(db *store.DB) connections { return connections{db, directory.NewLookups(db).Try} }

// await opens them and waits until a look-up succeeds.
func (c connections) await(ctx context.Context) error { return c.db.AwaitConnections(ctx, c.try) }

// keep keeps them open until ctx ends.
func (c connections) keep(ctx context.Context) { c.db.Keep(ctx, c.try) }

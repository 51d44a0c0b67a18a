package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/keyporter/keyporter/credits"
	"github.com/keyporter/keyporter/envoy"
	"github.com/keyporter/keyporter/portal/requestlog"
	"github.com/keyporter/keyporter/ratelimit"
	"github.com/keyporter/keyporter/store/feed"
	"github.com/keyporter/keyporter/store/lease"
)

// stopTime bounds a stop after the drain delay: requests still in flight then are cut off.
const stopTime = 10 * time.Second

// service is a replica. [Run] makes all of it before it starts any of it.
type service struct {
	log     *slog.Logger
	ready   *readiness
	startup *startup

	rooms
	registry    *feed.Registry
	lease       *lease.Lease
	health      *health
	housekeeper *housekeeper
	replicas    *replicaCount
	limiter     *ratelimit.Shared
	rateLog     *rateLog // nil: Valkey keeps the requests over a restart
	credits     *credits.Allocator
	requests    *requestlog.Log // nil: no requests are kept for the page
	logWatch    *logWatch       // nil: the upstream settles
	tokens      *Tokens         // nil: tokens are not accepted
	reloader    *reloader       // nil: files are read only once

	listeners  *listeners
	running    *errgroup.Group // serves the listeners; its context ends when one fails
	drainDelay time.Duration
	grpc       *envoy.Server
	page       *http.Server // nil on a replica that only decides
	settle     *http.Server // nil if no upstream settles
	ops        *http.Server // runs already
}

// run serves until ctx ends or a listener fails. It then stops in phases: the health checks fail,
// no new requests are accepted, requests in flight complete; the credits are released; the lease is
// released. When it returns, nothing uses the database any more.
func (s *service) run(ctx context.Context) error {
	leased, charging, recording := newPhase(ctx), newPhase(ctx), newPhase(ctx)
	defer endAll(leased, charging, recording)

	leased.run(func(ctx context.Context) { s.registry.Watch(ctx, s.lease.Notify) },
		s.lease.Run, s.keep, s.health.follow, tuneGC, s.housekeeper.run)
	charging.run(s.credits.Run)
	if s.requests != nil {
		recording.run(s.requests.Run)
	}
	if err := s.startup.firstLease(ctx, s.lease); err != nil {
		return err
	}
	s.startup.firstConnections(ctx, s.rooms)
	s.replicas.refresh(ctx) // before the first request: other replicas may be alive
	leased.run(s.replicas.follow, s.limiter.Run, s.logWatch.follow, s.tokens.run, s.reloader.run)
	s.serve()
	s.ready.ready.Store(ctx.Err() == nil)
	s.log.Info("serving", "grpc", addrOf(s.listeners.grpc), "page", addrOf(s.listeners.page),
		"settle", addrOf(s.listeners.settle), "ops", addrOf(s.listeners.ops))

	<-ctx.Done()
	err := s.stop(context.Cause(ctx))
	charging.end() // while this replica is still listed
	recording.end()
	s.rateLog.save() // concurrently: a silent database must not take the time that credits need
	charging.wait()
	leased.end()
	if failed := s.running.Wait(); failed != nil {
		err = failed
	}
	if err != nil {
		return served{err}
	}
	return nil
}

// serve starts all listeners except the operators' one, which is already running.
func (s *service) serve() {
	s.running.Go(func() error { return s.grpc.Serve(s.listeners.grpc) })
	if s.page != nil {
		s.running.Go(func() error { return serveHTTP(s.page, s.listeners.page) })
	}
	if s.settle != nil {
		s.running.Go(func() error { return serveHTTP(s.settle, s.listeners.settle) })
	}
}

// stop ends all servers after the requests in flight.
func (s *service) stop(why error) error {
	s.ready.ready.Store(false)
	s.log.Info("stopping", "why", why)
	ctx, cancel := context.WithTimeout(context.Background(), s.drainDelay+stopTime)
	defer cancel()
	err := s.grpc.Shutdown(ctx)
	if s.page != nil {
		err = errors.Join(err, s.page.Shutdown(ctx))
	}
	if s.settle != nil {
		err = errors.Join(err, s.settle.Shutdown(ctx))
	}
	if err = errors.Join(err, s.ops.Shutdown(ctx)); err != nil {
		return fmt.Errorf("stopping: %w", err)
	}
	s.log.Info("stopped")
	return nil
}

// phase is a group of tasks that run until it ends. The end of the service's own context does not
// end them: requests in flight still need them.
type phase struct {
	ctx   context.Context
	end   context.CancelFunc // asks all tasks to end
	tasks sync.WaitGroup
}

func newPhase(ctx context.Context) *phase {
	p := &phase{}
	p.ctx, p.end = context.WithCancel(context.WithoutCancel(ctx))
	return p
}

// run starts tasks. Each runs until its context ends.
func (p *phase) run(tasks ...func(context.Context)) {
	for _, task := range tasks {
		p.tasks.Go(func() { task(p.ctx) })
	}
}

// wait waits until all tasks have ended.
func (p *phase) wait() { p.tasks.Wait() }

// endAll ends phases together, and waits for all their tasks.
func endAll(phases ...*phase) {
	for _, p := range phases {
		p.end()
	}
	for _, p := range phases {
		p.wait()
	}
}

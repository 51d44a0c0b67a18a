package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/keyporter/keyporter/portal/requestlog"
)

// stopTime bounds a stop after the drain delay: requests still in flight then are cut off.
const stopTime = 10 * time.Second

// service is a replica. [Run] makes all of it before it starts any of it, except for the operators'
// listener.
type service struct {
	log         *slog.Logger
	ready       *readiness
	startup     *startup
	connections connections
	replica     *replica
	logins      *logins
	meters      *meters
	requestLog  *requestlog.Log // nil: no requests are kept for the page
	webhooks    *webhooks       // nil: there are none
	servers     *servers
	ports       tlsPorts
	drainDelay  time.Duration

	health      *health
	housekeeper *housekeeper
	logWatch    *logWatch // nil: the upstream settles
	reloader    *reloader // nil: files are read only once
}

// run serves until ctx ends or a listener fails, and then stops. When it returns, nothing uses the
// database any more.
func (s *service) run(ctx context.Context) error {
	p := newPhases(ctx)
	defer p.endAll()
	p.leased.run(s.replica.watch, s.replica.lease.Run, s.replica.caches.known.Run, s.connections.keep, s.health.follow, tuneGC, s.housekeeper.run)
	p.charging.run(s.meters.credits.Run)
	if s.requestLog != nil {
		p.recording.run(s.requestLog.Run)
	}
	if err := s.startup.firstLease(ctx, s.replica.lease); err != nil {
		return err
	}
	s.startup.firstConnections(ctx, s.connections)
	s.meters.replicas.refresh(ctx) // before the first request: other replicas may be alive
	p.leased.run(s.meters.replicas.follow, s.meters.limiter.Run, s.logWatch.follow, s.logins.tokens.run, s.reloader.run, s.webhooks.run, s.webhooks.follow)
	p.leased.run(func(ctx context.Context) { s.ports.run(ctx, s.servers.grpc.Retire) })
	s.meters.rateLog.restore(p.leased.ctx) // last, since it takes the logs away: from here on a stop saves them
	s.servers.serve()
	s.ready.ready.Store(ctx.Err() == nil)
	listeners := s.servers.listeners
	s.log.Info("serving", "grpc", addrOf(listeners.grpc), "page", addrOf(listeners.page), "settle", addrOf(listeners.settle), "admin", addrOf(listeners.admin), "ops", addrOf(listeners.ops))

	<-ctx.Done()
	return s.stop(context.Cause(ctx), p)
}

// stop ends the service in the order in which its parts need one another. The health checks fail
// and requests in flight complete; then the credits are released, while this replica is still
// listed; then the lease.
func (s *service) stop(why error, p *phases) error {
	err := s.drain(why)
	p.charging.end()
	p.recording.end()
	saving, cancel := context.WithTimeout(context.Background(), stopTime)
	defer cancel()
	s.meters.rateLog.save(saving) // concurrently: a silent database must not take the time that credits need
	p.charging.wait()
	p.leased.end()
	if failed := s.servers.running.Wait(); failed != nil {
		err = failed
	}
	if err != nil {
		return served{err}
	}
	return nil
}

// drain ends all servers after the requests in flight.
func (s *service) drain(why error) error {
	s.ready.ready.Store(false)
	s.log.Info("stopping", "why", why)
	ctx, cancel := context.WithTimeout(context.Background(), s.drainDelay+stopTime)
	defer cancel()
	if err := s.servers.shutdown(ctx); err != nil {
		return fmt.Errorf("stopping: %w", err)
	}
	s.log.Info("stopped")
	return nil
}

// served is the error of a service that was ready. Such a service has already stopped in good
// order.
type served struct{ error }

func (e served) Unwrap() error { return e.error }

// EndedEarly returns nil for a start that a signal has ended: its error is that of an interrupted
// wait, not of the service.
func EndedEarly(ctx context.Context, err error, log *slog.Logger) error {
	if ready := (served{}); err == nil || ctx.Err() == nil || errors.As(err, &ready) {
		return err
	}
	log.Info("the service was stopped before it was ready", "why", context.Cause(ctx), "error", err)
	return nil
}

// phases are the tasks of a service, by the phase of a stop that ends them.
type phases struct {
	leased    *phase // what needs the lease, or renews it
	charging  *phase // reports of credits
	recording *phase // requests for the page
}

func newPhases(ctx context.Context) *phases {
	return &phases{newPhase(ctx), newPhase(ctx), newPhase(ctx)}
}

// endAll ends all phases together, and waits for all their tasks.
func (p *phases) endAll() {
	all := []*phase{p.leased, p.charging, p.recording}
	for _, one := range all {
		one.end()
	}
	for _, one := range all {
		one.wait()
	}
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

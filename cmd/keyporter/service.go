package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/keyporter/keyporter/credits"
	"github.com/keyporter/keyporter/envoy"
	"github.com/keyporter/keyporter/portal/requestlog"
	"github.com/keyporter/keyporter/ratelimit"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/lease"
)

// stopTime bounds a stop after the drain delay: requests still in flight then are cut off.
const stopTime = 10 * time.Second

// service holds the listeners and their servers.
type service struct {
	log        *slog.Logger
	db         *store.DB
	drainDelay time.Duration
	leaseLife  time.Duration
	ready      readiness
	running    *errgroup.Group // its context ends when a listener fails
	lease      *lease.Lease
	registry   *store.Registry
	credits    *credits.Allocator
	keepsLog   bool // save the rate log over a restart
	unreported bool // refund charges without a reported outcome
	replicas   *replicaCount
	limiter    *ratelimit.Shared
	requests   *requestlog.Log // nil: no requests are kept for the page
	retention  time.Duration   // of the request log
	routes     *routesInfo
	reloader   *reloader // nil: files are read only once
	logWatch   *logWatch // nil: the upstream settles
	tokens     *tokens   // nil: tokens are not accepted
	hangups    <-chan os.Signal

	grpc   *envoy.Server
	page   *http.Server
	settle *http.Server
	ops    *http.Server

	// pageListener is nil on a replica that only decides; settleListener is nil if no upstream
	// settles.
	grpcListener, pageListener, settleListener, opsListener net.Listener
}

// run serves until ctx ends or a listener fails. It then stops in order: the health checks fail, no
// new requests are accepted, requests in flight complete, and the credits and then the lease are
// released.
func (s *service) run(ctx context.Context) error {
	leased, giveUp := context.WithCancel(context.WithoutCancel(ctx))
	defer giveUp()
	s.running.Go(func() error { s.registry.Watch(leased, s.lease.Hint); return nil })
	s.running.Go(func() error { s.lease.Run(leased); return nil })
	s.running.Go(func() error { s.db.Keep(leased); return nil })
	s.running.Go(func() error { s.followHealth(leased); return nil })
	s.running.Go(func() error { tuneGC(leased); return nil })
	s.running.Go(func() error { s.housekeeping(leased); return nil })
	metered, settle := context.WithCancel(context.WithoutCancel(ctx))
	settled := make(chan struct{})
	s.running.Go(func() error { defer close(settled); s.credits.Run(metered); return nil })
	if s.requests != nil {
		s.running.Go(func() error { s.requests.Run(metered); return nil })
	}
	if err := s.firstLease(ctx); err != nil {
		giveUp()
		settle()
		s.close() // before the database closes: running goroutines still use it
		return err
	}
	s.firstConnections(ctx)
	s.replicas.refresh(ctx) // before the first request: other replicas may be alive
	s.running.Go(func() error { s.replicas.follow(leased); return nil })
	s.running.Go(func() error { s.limiter.Run(leased); return nil })
	if s.logWatch != nil {
		s.running.Go(func() error { s.logWatch.follow(leased); return nil })
	}
	s.running.Go(func() error { s.tokens.run(leased); return nil })
	if s.reloader != nil {
		s.running.Go(func() error { s.reloader.run(leased, s.hangups); return nil })
	}
	s.serve()
	s.running.Go(func() error {
		<-ctx.Done()
		defer giveUp()
		err := s.stop(context.Cause(ctx))
		settle() // while this replica is still listed
		if s.keepsLog {
			s.saveLog() // concurrently: a silent database must not take the time that credits need
		}
		<-settled
		return err
	})
	s.ready.ready.Store(ctx.Err() == nil)
	s.log.Info("serving", "grpc", addrOf(s.grpcListener), "page", addrOf(s.pageListener),
		"settle", addrOf(s.settleListener), "ops", addrOf(s.opsListener))
	if err := s.running.Wait(); err != nil {
		return served{err}
	}
	return nil
}

// serve starts all listeners except the operators' one, which is already running.
func (s *service) serve() {
	s.running.Go(func() error { return s.grpc.Serve(s.grpcListener) })
	if s.pageListener != nil {
		s.running.Go(func() error { return serveHTTP(s.page, s.pageListener) })
	}
	if s.settleListener != nil {
		s.running.Go(func() error { return serveHTTP(s.settle, s.settleListener) })
	}
}

// addrOf returns the address of l, or "off" if it is nil.
func addrOf(l net.Listener) string {
	if l == nil {
		return "off"
	}
	return l.Addr().String()
}

// opening reports in the log and on /readyz what the start waits for.
func (s *service) opening(what string, why error) {
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
func (s *service) firstLease(ctx context.Context) error {
	const what = "waiting for the first lease"
	defer s.ready.waitsFor("")
	for told := time.Duration(0); ; told += firstLeaseTime {
		waiting, cancel := context.WithTimeout(ctx, firstLeaseTime)
		err := s.lease.Hold(waiting)
		cancel()
		switch {
		case err == nil || ctx.Err() != nil:
			return nil
		case store.IsMistake(err):
			return err
		case told%firstLeaseNotice == 0:
			s.opening(what, err)
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
func (s *service) firstConnections(ctx context.Context) {
	limited, cancel := context.WithTimeout(ctx, firstLeaseTime)
	defer cancel()
	err := s.db.AwaitConnections(limited)
	if err == nil || ctx.Err() != nil {
		return
	}
	s.log.Error("not ready: no key can be looked up; waiting until one can", "error", err)
	if s.db.AwaitConnections(ctx) == nil {
		s.log.Info("keys can be looked up")
	}
}

// unhealthyAfter is how long a replica may lack a lease before the health checks fail. Envoy treats
// our 503 as an answer, so it does not try another replica after one.
const unhealthyAfter = time.Second

// followHealth updates the health checks: they need a lease and working look-ups of keys. In an
// outage of the database both fail at the same time; until then, cached keys are answered.
func (s *service) followHealth(ctx context.Context) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	serving, crowded := true, false
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		left, connections := s.lease.Left(), s.db.Connections()
		s.ready.setLease(left > 0, s.lease.Problem())
		s.ready.setConnections(connections)
		if now := connections.Refused != nil; now != crowded {
			crowded = now
			s.logCrowded(connections)
		}
		leased, found := left > -unhealthyAfter, connections.Failing < s.leaseLife+unhealthyAfter
		if now := leased && found; now != serving {
			serving = now
			s.grpc.SetServing(serving)
			s.tellHealth(leased, found, connections.Problem)
		}
	}
}

// tellHealth logs the new state of the health checks.
func (s *service) tellHealth(leased, found bool, problem error) {
	switch {
	case leased && found:
		s.log.Info("health checks pass again")
	case !leased:
		s.log.Warn("health checks fail, so that Envoy asks other replicas: this one has no lease", "error", s.lease.Problem())
	default:
		s.log.Warn("health checks fail, so that Envoy asks other replicas: this one cannot look up keys", "error", problem)
	}
}

func (s *service) logCrowded(c store.Connections) {
	if c.Refused == nil {
		s.log.Info("the database grants as many connections as this replica may open, or has not refused one again")
		return
	}
	s.log.Warn("the database grants fewer connections than this replica may open, which goes on with those: raise the limit of its role "+
		"or of the server, or lower --database-connections", "granted", c.Granted, "wanted", c.Most, "error", c.Refused)
}

// Times between two rounds of housekeeping.
const (
	tidyInterval = 10 * time.Minute
	rollInterval = time.Minute
)

// housekeeping deletes expired rows, and removes dead replicas from the list before a caller has to
// wait for them. Every replica does it; all of it can be repeated.
func (s *service) housekeeping(ctx context.Context) {
	for round := 0; ctx.Err() == nil; round++ {
		// Without a lease, for example if the standby is unreachable, a roll call would hang and
		// keep its connection.
		if s.lease.Hold(ctx) != nil {
			return
		}
		s.checkRecording(ctx)
		if err := s.callRoll(ctx, round == 0); err != nil && ctx.Err() == nil {
			s.log.Warn("replicas that have died could not be looked for: changes may wait until their leases have ended; it is tried again in a minute", "error", err)
		}
		if round%int(tidyInterval/rollInterval) == 0 {
			if err := s.db.Tidy(ctx); err != nil && ctx.Err() == nil {
				s.log.Warn("old records of changes could not be deleted: it is tried again in ten minutes", "error", err)
			}
			s.refundUnreported(ctx)
			s.tidyRequests(ctx)
		}
		s.rest(ctx, rollInterval+rand.N(rollInterval/4)) // jitter: not all replicas at once
	}
}

// rest waits for the next round. While changes are not recorded, it keeps checking, so that /readyz
// reports a repair soon.
func (s *service) rest(ctx context.Context, pause time.Duration) {
	over, again := time.NewTimer(pause), time.NewTicker(recordingInterval)
	defer over.Stop()
	defer again.Stop()
	for {
		select {
		case <-again.C:
			if s.ready.unrecorded.Load() != nil {
				_ = s.lookAtRecording(ctx) // each round logs it
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

// maxRetention bounds the retention of requests.
const maxRetention = 10 * 365 * 24 * time.Hour

// deletesAfter returns the age at which a replica deletes requests. A replica that keeps none, with
// a retention of 0, must not delete those of others.
func deletesAfter(retention time.Duration) time.Duration { return cmp.Or(retention, maxRetention) }

// tidyRequests deletes expired requests.
func (s *service) tidyRequests(ctx context.Context) {
	if err := s.db.TidyRequests(ctx, s.retention); err != nil && ctx.Err() == nil {
		s.log.Warn("old requests could not be deleted: it is tried again in ten minutes", "error", err)
	}
}

// refundUnreported applies --unreported.
func (s *service) refundUnreported(ctx context.Context) {
	if !s.unreported {
		return
	}
	credits, err := s.db.RefundUnreported(ctx)
	if err != nil && ctx.Err() == nil {
		s.log.Warn("credits of requests whose end no access log has told could not be given back: it is tried again in ten minutes", "error", err)
	}
	if credits > 0 {
		s.log.Info("credits of last month were given back, since no access log has told how their requests ended", "credits", credits)
	}
}

// checkRecording logs that changes are not recorded. Without the change feed there is no lease
// either; the audit alone can be missing.
func (s *service) checkRecording(ctx context.Context) {
	if err := s.lookAtRecording(ctx); err != nil {
		s.log.Error("no changes can be made", "error", err)
	}
}

// lookAtRecording sets for /readyz whether changes are recorded, and returns why they are not.
// While the database does not answer, the state stays the same.
func (s *service) lookAtRecording(ctx context.Context) error {
	err := s.db.Recorded(ctx)
	switch {
	case err == nil:
		s.ready.unrecorded.Store(nil)
	case errors.Is(err, store.ErrUnrecorded):
		why := err.Error()
		s.ready.unrecorded.Store(&why)
		return err
	}
	return nil
}

// callRoll calls the roll if a replica may have died, or always.
func (s *service) callRoll(ctx context.Context, always bool) error {
	replicas, _, err := s.db.Replicas(ctx)
	if err != nil {
		return err
	}
	for _, r := range replicas {
		always = always || !r.Live()
	}
	if !always || len(replicas) == 0 {
		return nil
	}
	c, err := s.db.RollCall(ctx)
	if c.Expired > 0 {
		s.log.Warn("replicas that were silent, as after a crash, were taken off the list: no change waits for them any more", "count", c.Expired)
	}
	return err
}

// restoreLog takes over the rate logs of stopped replicas, so that a restart starts no new window.
func (s *service) restoreLog(ctx context.Context) {
	pieces, now, err := s.db.TakeRateLogs(ctx)
	for _, piece := range pieces {
		err = errors.Join(err, s.limiter.Local().Restore(now, piece))
	}
	if err != nil {
		s.log.Warn("rate logs of replicas that have stopped could not be read: their users begin a new window", "error", err)
	}
}

// saveLog saves the rate log for the next start.
func (s *service) saveLog() {
	ctx, cancel := context.WithTimeout(context.Background(), stopTime)
	defer cancel()
	err := s.limiter.Local().Save(func() (time.Time, error) { return s.db.Now(ctx) },
		func(piece []byte) error { return s.db.SaveRateLog(ctx, piece) })
	if err != nil {
		s.log.Warn("the rate log could not be saved: its users begin a new window at the next start", "error", err)
	}
}

func (s *service) stop(why error) error {
	s.ready.ready.Store(false)
	s.log.Info("stopping", "why", why)
	ctx, cancel := context.WithTimeout(context.Background(), s.drainDelay+stopTime)
	defer cancel()
	err := s.grpc.Shutdown(ctx)
	if s.pageListener != nil {
		err = errors.Join(err, s.page.Shutdown(ctx))
	}
	if s.settleListener != nil {
		err = errors.Join(err, s.settle.Shutdown(ctx))
	}
	if err = errors.Join(err, s.ops.Shutdown(ctx)); err != nil {
		return fmt.Errorf("stopping: %w", err)
	}
	s.log.Info("stopped")
	return nil
}

func (s *service) listen(c config) (err error) {
	if s.grpcListener, err = listen("grpc", c.ListenGRPC); err != nil {
		return err
	}
	if s.opsListener, err = listen("ops", c.ListenOps); err != nil {
		return err
	}
	if c.ListenHTTP != "off" {
		if s.pageListener, err = listen("http", c.ListenHTTP); err != nil {
			return err
		}
	}
	if c.settles() {
		s.settleListener, err = listen("settle", c.ListenSettle)
	}
	return err
}

// close closes what is still open after an early return, so that no socket and no goroutine leaks.
func (s *service) close() {
	if s.ops != nil {
		s.ops.Close()
	}
	for _, l := range []net.Listener{s.grpcListener, s.pageListener, s.settleListener, s.opsListener} {
		if l != nil {
			l.Close()
		}
	}
	s.running.Wait() // run has returned this error, or it comes from closing
}

// listen opens a listener. It removes a Unix socket left by a killed process, but not one that is
// being served.
func listen(name, address string) (net.Listener, error) {
	network := "tcp"
	if path, ok := strings.CutPrefix(address, "unix://"); ok {
		network, address = "unix", path
		if err := removeStaleSocket(path); err != nil {
			return nil, fmt.Errorf("--listen-%s: %w", name, err)
		}
	}
	l, err := net.Listen(network, address)
	if err != nil {
		return nil, fmt.Errorf("--listen-%s: %w: choose another address, or end the program that has it", name, err)
	}
	if network == "unix" {
		// The folder controls access to the socket; Envoy may run as another user in its group.
		if err := os.Chmod(address, 0o660); err != nil {
			l.Close()
			return nil, fmt.Errorf("--listen-%s: %w", name, err)
		}
	}
	return l, nil
}

func removeStaleSocket(path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return nil // nothing to remove, or net.Listen reports the problem
	}
	if info.Mode()&os.ModeSocket == 0 {
		return fmt.Errorf("%s is there and is no socket", path)
	}
	if conn, err := net.Dial("unix", path); err == nil {
		conn.Close()
		return fmt.Errorf("another process serves %s", path)
	}
	return os.Remove(path)
}

// newHTTPServer bounds the resources of slow or hostile clients. A regeneration can take as long as
// the lease of a silent replica. Messages of the server itself are logged as warnings.
func newHTTPServer(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      time.Minute,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
	}
}

// newGuestServer is newHTTPServer for a listener that has other clients than Envoy.
func newGuestServer(h http.Handler, log *slog.Logger) *http.Server {
	server := newHTTPServer(h, log)
	server.ConnState = newGuests(maxGuests).note
	return server
}

func serveHTTP(server *http.Server, l net.Listener) error {
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Package service is the running service: Run makes its objects in order, starts and stops them.
// Only this package knows all the parts; each of them declares the small interfaces that it needs.
// The command serve and the demo call it.
package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/bearer"
	"github.com/keyporter/keyporter/credits"
	"github.com/keyporter/keyporter/envoy"
	"github.com/keyporter/keyporter/internal/config"
	"github.com/keyporter/keyporter/internal/operations"
	"github.com/keyporter/keyporter/meter"
	"github.com/keyporter/keyporter/meter/settle"
	"github.com/keyporter/keyporter/ratelimit"
	"github.com/keyporter/keyporter/receipt"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
	"github.com/keyporter/keyporter/store/feed"
	"github.com/keyporter/keyporter/store/lease"
	"github.com/keyporter/keyporter/store/ledger"
)

// Config is what a service runs with.
type Config struct {
	Settings config.Config
	Reload   func() (config.Config, error) // reads the settings once more; nil: files are read only once
	Hangups  <-chan os.Signal              // each signal requests a reload
	Logs     io.Writer
}

// Run is the map of the service: it makes every object, in order, and connects them. It returns
// when ctx has ended and everything has stopped in good order.
func Run(ctx context.Context, with Config) error {
	c := with.Settings
	seen := c.FileStates() // changes during the start are reread
	log := NewLogger(c, with.Logs)
	// in containers, read permission for others is usual
	for _, loose := range c.LooseFiles(config.OthersWrite) {
		log.Warn("a file with a secret is open to others: " + loose)
	}
	metrics := newMetrics()
	token, err := config.UnlessEnded(ctx, c.GRPCToken)
	if err != nil {
		return err
	}
	settleToken := &liveToken{}
	if err := errors.Join(settleToken.read(func() (bearer.Token, error) { return config.UnlessEnded(ctx, c.SettleToken) }), c.CheckJWTFile()); err != nil {
		return err
	}

	// The listeners come first, so that a taken port is reported before the database is touched.
	running, ctx := errgroup.WithContext(ctx)
	defer running.Wait() // run has returned this error, or it comes from closing
	listeners, err := openListeners(c)
	defer listeners.close()
	if err != nil {
		return err
	}
	// During a migration, /readyz already answers that the service is starting.
	ready := &readiness{}
	handler := newOps(metrics, ready)
	if c.Pprof {
		handler = withPprof(ctx, handler)
	}
	ops := newGuestServer(handler, log)
	running.Go(func() error { return serveHTTP(ops, listeners.ops) })
	defer ops.Close()

	waiting := &startup{ready: ready, log: log}
	db, err := store.Open(ctx, store.Config{
		URL: c.Database, Create: c.Migrate, Migrate: c.Migrate, Connections: c.DatabaseConnections,
		Service: true, Patience: -1, Notice: waiting.waits, Metrics: metrics,
	})
	if err != nil {
		return err
	}
	defer db.Close()
	in := roomsOf(db)
	formats, err := operations.ReadFormats(ctx, db, apikey.FormatConfig{Prefix: c.KeyPrefix, AcceptUntagged: c.AcceptUntagged})
	if err != nil {
		return err
	}

	// Credits and the registry know each other: a report names the replica, and a block that is
	// recalled is noticed with the changes. No report is made before the registry runs.
	var registry *feed.Registry
	allocator := credits.New(credits.Config{
		Ledger: in.ledger, Replica: func() string { return registry.ID() }, Clock: lease.BootClock, Log: log, Metrics: metrics,
	})
	registry, err = feed.NewRegistry(db, feed.Replica{
		Routes: c.RoutesHash(),
		Name:   hostName(), Address: c.Advertised(hostName()), Version: BuildVersion().Version, Life: c.Lease, Log: log,
		Recall: allocator.OnRecall,
	})
	if err != nil {
		return err
	}
	defer registry.Close()
	held := lease.New(lease.Config{Registry: registry, Life: c.Lease, Log: log, Metrics: metrics})
	caches := newCaches(in.lookups, held, c.CacheSize, metrics)
	defer caches.close()
	tokens, err := NewTokens(c, log, metrics)
	if err != nil {
		return err
	}
	defer tokens.Close()
	deciding := &authz.Sessions{Format: formats.Sessions, Find: caches.sessions.Find, InsecureCookies: c.InsecureCookies}
	tokens.Accept(deciding, caches.subjects.Find)
	// The page reads the store without a cache, because users look at it right after a change.
	onPage := &authz.Sessions{Format: formats.Sessions, Find: in.lookups.FindSession, InsecureCookies: c.InsecureCookies}
	tokens.Accept(onPage, in.lookups.FindSubject)

	replicas := newReplicaCount(&replicaCount{ask: in.feed.LiveReplicas, log: log, shared: c.Redis != "", meant: c.RateLimitShare}, metrics)
	limiter, err := newLimiter(c, replicas, log, metrics)
	if err != nil {
		return err
	}
	defer limiter.Close()
	limiter.Connect(ctx)
	kept := newRateLog(c, in, limiter, log)
	kept.restore(ctx)
	signer, err := newSigner(ctx, in.ledger)
	if err != nil {
		return err
	}
	metering := meter.New(meter.Config{Limiter: limiter, Credits: allocator, Signer: signer})
	authorizer := authz.New(authz.Config{
		Routes: c.Routes, Keys: formats.Keys, FindKey: caches.keys.Find, Meter: metering, Sessions: deciding, LoginURL: c.LoginRedirect(),
		PassPreflight: rate.NewLimiter(rate.Limit(c.UpstreamPreflights), c.UpstreamPreflights).Allow,
	})
	requests := newRequestLog(in.saved, c.RequestLogRetention, log, metrics)
	grpc := envoy.NewServer(envoy.Config{
		Authorize: authorizer.Authorize, Void: metering.Void, OnComplete: completed(metering, requests), Token: token, Codec: c.Codec, Timeout: c.CheckTimeout, DrainDelay: orNone(c.DrainDelay),
		Cause: causeOf, Causes: causeNames(), Log: log.With("replica", hostName()), Metrics: metrics,
	})

	page, err := newPageServer(ctx, c, pageParts{
		rooms: in, formats: formats, sessions: onPage, metering: metering, log: log, metrics: metrics,
		newKeys: directory.Rate{N: c.NewKeysPerHour, Per: time.Hour},
	})
	if err != nil {
		return err
	}
	settling := newSettleServer(c, settleToken, signer, metering, log)
	routes := newRoutesInfo(metrics, c.RoutesHash())
	s := &service{
		log: log, ready: ready, startup: waiting,
		rooms: in, registry: registry, lease: held,
		health: &health{lease: held, life: c.Lease, db: db, ready: ready, setServing: grpc.SetServing, log: log},
		housekeeper: &housekeeper{
			rooms: in, lease: held, ready: ready, unreported: c.RefundUnreported, retention: deletesAfter(c.RequestLogRetention), log: log,
		},
		replicas: replicas, limiter: limiter, rateLog: kept, credits: allocator, requests: requests, tokens: tokens,
		logWatch: newLogWatch(c, logWatch{unreported: grpc.Unreported, replicas: replicas.count, ready: ready, log: log}, metrics),
		reloader: newReloader(reloader{
			load: with.Reload, asked: with.Hangups, current: reloadable{config: c}, seen: seen, log: log,
			take: func(ctx context.Context, fresh reloadable) {
				authorizer.SetRoutes(fresh.config.Routes)
				grpc.SetToken(fresh.grpcToken)
				settleToken.set(fresh.settleToken)
				routes.set(fresh.config.RoutesHash())
				registry.SetRoutes(ctx, fresh.config.RoutesHash())
			},
		}, metrics),
		listeners: &listeners, running: running, drainDelay: c.DrainDelay,
		grpc: grpc, page: page, settle: settling, ops: ops,
	}
	return s.run(ctx)
}

// newSigner returns the signer of charges, with the secrets that the migrations made.
func newSigner(ctx context.Context, charges *ledger.Ledger) (*receipt.Signer, error) {
	upstream, log, err := charges.ChargeSecrets(ctx)
	if err != nil {
		return nil, err
	}
	return receipt.NewSigner(receipt.Secrets{ID: upstream, Receipt: log})
}

// newLimiter returns the counter of requests; with --redis all replicas count together.
func newLimiter(c config.Config, replicas *replicaCount, log *slog.Logger, registry *prometheus.Registry) (*ratelimit.Shared, error) {
	shared := ratelimit.SharedConfig{Replicas: replicas.count, Strict: c.RateLimitStrict, Log: log, Metrics: registry}
	if c.Redis != "" {
		valkey, err := ratelimit.NewValkey(c.Redis)
		if err != nil {
			return nil, fmt.Errorf("--redis: %w", err)
		}
		shared.Valkey = valkey
	}
	return ratelimit.NewShared(shared), nil
}

// newSettleServer returns the server of the settle port, or nil if upstreams do not settle.
func newSettleServer(c config.Config, token *liveToken, signer *receipt.Signer, metering *meter.Meter, log *slog.Logger) *http.Server {
	if !c.Settles() {
		return nil
	}
	return newGuestServer(settle.New(settle.Config{
		Opens: token.opens, Parse: signer.ParseID, Settle: metering.Settle, Log: log,
	}), log)
}

// orNone maps 0, which asks the server for its default, to no delay.
func orNone(d time.Duration) time.Duration {
	if d == 0 {
		return -1
	}
	return d
}

// hostName returns the name of this machine or pod, for the list of replicas.
func hostName() string {
	name, err := os.Hostname()
	if err != nil {
		return "unknown"
	}
	return name
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

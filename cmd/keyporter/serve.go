package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/bearer"
	"github.com/keyporter/keyporter/credits"
	"github.com/keyporter/keyporter/envoy"
	"github.com/keyporter/keyporter/meter"
	"github.com/keyporter/keyporter/meter/settle"
	"github.com/keyporter/keyporter/ratelimit"
	"github.com/keyporter/keyporter/receipt"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/cache"
	"github.com/keyporter/keyporter/store/lease"
)

// runServe is the map of the service: it makes every object, in order, and connects them. It
// returns when ctx has ended and everything has stopped in good order.
func runServe(ctx context.Context, c config, logs io.Writer) error {
	log := newLogger(c, logs)
	// in containers, read permission for others is usual
	for _, loose := range c.looseFiles(othersWrite) {
		log.Warn("a file with a secret is open to others: " + loose)
	}
	registry := newRegistry()
	token, err := unlessEnded(ctx, c.grpcToken)
	if err != nil {
		return err
	}
	settleToken := &liveToken{}
	if err := errors.Join(settleToken.read(func() (bearer.Token, error) { return unlessEnded(ctx, c.settleToken) }), c.checkJWTFile()); err != nil {
		return err
	}

	// The listeners come first, so that a taken port is reported before the database is touched.
	s := &service{log: log, drainDelay: c.DrainDelay, leaseLife: c.Lease, unreported: c.RefundUnreported, hangups: c.hangups}
	s.running, ctx = errgroup.WithContext(ctx)
	defer s.close()
	if err := s.listen(c); err != nil {
		return err
	}
	// During a migration, /readyz already answers that the service is starting.
	s.ops = newGuestServer(newOps(registry, &s.ready), log)
	s.running.Go(func() error { return serveHTTP(s.ops, s.opsListener) })

	db, err := store.Open(ctx, store.Config{
		URL: c.Database, Create: c.Migrate, Migrate: c.Migrate, Connections: c.DatabaseConnections,
		Service: true, Patience: -1, Notice: s.opening, Metrics: registry,
	})
	if err != nil {
		return err
	}
	defer db.Close()
	keys, sessions, err := formats(ctx, c, db)
	if err != nil {
		return err
	}

	s.db = db
	s.credits = credits.New(credits.Config{
		Ledger: db, Replica: func() string { return s.registry.ID() }, Clock: lease.BootClock, Log: log, Metrics: registry,
	})
	s.registry, err = db.Registry(store.Replica{
		Routes: c.routesHash(),
		Name:   hostName(), Address: c.advertised(), Version: buildVersion().Version, Life: c.Lease, Log: log,
		Recall: s.credits.OnRecall,
	})
	if err != nil {
		return err
	}
	defer s.registry.Close()
	s.lease = lease.New(lease.Config{Registry: s.registry, Life: c.Lease, Log: log, Metrics: registry})
	keyCache := cache.New(cache.Config[apikey.Digest, authz.Principal]{
		Name: "keys", Find: resolveKey(db), Negative: isNo, Lease: s.lease, Size: c.CacheSize, Metrics: registry,
	})
	defer keyCache.Close()
	sessionCache := cache.New(cache.Config[apikey.Digest, authz.Principal]{
		Name: "sessions", Find: resolveSession(db), Negative: isNo, Lease: s.lease, Size: c.CacheSize, Metrics: registry,
	})
	defer sessionCache.Close()
	subjectCache := cache.New(cache.Config[string, authz.Principal]{
		Name: "subjects", Find: resolveSubject(db), Negative: isNo, Lease: s.lease, Size: c.CacheSize, Metrics: registry,
	})
	defer subjectCache.Close()
	deciding := &authz.Sessions{Format: sessions, Find: sessionCache.Find, InsecureCookies: c.InsecureCookies}
	// The page reads the store without a cache, because users look at it right after a change.
	onPage := &authz.Sessions{Format: sessions, Find: db.FindSession, InsecureCookies: c.InsecureCookies}
	if s.tokens, err = newTokens(c, log, registry); err != nil {
		return err
	}
	defer s.tokens.close()
	s.tokens.accept(deciding, subjectCache.Find)
	s.tokens.accept(onPage, db.FindSubject)
	s.replicas = newReplicaCount(&replicaCount{ask: db.LiveReplicas, log: log, shared: c.Redis != "", meant: c.RateLimitShare}, registry)
	if s.limiter, err = newLimiter(c, s.replicas, log, registry); err != nil {
		return err
	}
	defer s.limiter.Close()
	s.limiter.Connect(ctx)
	if s.keepsLog = c.Redis == ""; s.keepsLog {
		s.restoreLog(ctx)
	}
	signer, err := newSigner(ctx, db)
	if err != nil {
		return err
	}
	metering := meter.New(meter.Config{Limiter: s.limiter, Credits: s.credits, Signer: signer})
	authorizer := authz.New(authz.Config{
		Routes: c.Routes, Keys: keys, FindKey: keyCache.Find, Meter: metering, Sessions: deciding, LoginURL: c.loginURL(),
		PassPreflight: rate.NewLimiter(rate.Limit(c.UpstreamPreflights), c.UpstreamPreflights).Allow,
	})

	s.retention = deletesAfter(c.RequestLogRetention)
	if c.RequestLogRetention > 0 {
		s.requests = newRequestLog(db, c.RequestLogRetention, log, registry)
	}
	s.grpc = envoy.NewServer(envoy.Config{
		Authorize: authorizer.Authorize, Void: metering.Void, Settle: s.settled(metering), Token: token, Codec: c.Codec, Timeout: c.CheckTimeout, DrainDelay: orNone(c.DrainDelay),
		Cause: causeOf, Causes: causeNames(), Log: log.With("replica", hostName()), Metrics: registry,
	})
	if !c.settles() {
		s.logWatch = newLogWatch(logWatch{untold: s.grpc.Untold, replicas: s.replicas.count, ready: &s.ready, log: log}, registry)
	}
	if s.pageListener != nil {
		page, err := newPage(ctx, c, pageParts{
			db: db, keys: keys, sessions: onPage, metering: metering, log: log, metrics: registry,
			newKeys: store.Pace{N: c.NewKeysPerHour, Per: time.Hour},
		})
		if err != nil {
			return err
		}
		s.page = newHTTPServer(page, log)
	}
	if s.settleListener != nil {
		s.settle = newGuestServer(settle.New(settle.Config{
			Opens: settleToken.opens, Parse: signer.ParseID, Settle: metering.Settle, Log: log,
		}), log)
	}
	s.routes = newRoutesInfo(registry, c.routesHash())
	if c.again != nil {
		s.reloader = newReloader(c.again, reloadable{config: c}, log, registry)
		s.reloader.take = func(ctx context.Context, fresh reloadable) {
			authorizer.SetRoutes(fresh.config.Routes)
			s.grpc.SetToken(fresh.grpcToken)
			settleToken.set(fresh.settleToken)
			s.routes.set(fresh.config.routesHash())
			s.registry.SetRoutes(ctx, fresh.config.routesHash())
		}
	}
	return s.run(ctx)
}

func resolveKey(db *store.DB) func(context.Context, apikey.Digest) (cache.Found[authz.Principal], error) {
	return func(ctx context.Context, d apikey.Digest) (found cache.Found[authz.Principal], err error) {
		found.Value, found.Origin, err = db.ResolveKey(ctx, d)
		return found, err
	}
}

func resolveSession(db *store.DB) func(context.Context, apikey.Digest) (cache.Found[authz.Principal], error) {
	return func(ctx context.Context, d apikey.Digest) (found cache.Found[authz.Principal], err error) {
		found.Value, found.Origin, found.Expires, err = db.ResolveSession(ctx, d)
		return found, err
	}
}

func resolveSubject(db *store.DB) func(context.Context, string) (cache.Found[authz.Principal], error) {
	return func(ctx context.Context, subject string) (found cache.Found[authz.Principal], err error) {
		found.Value, found.Origin, err = db.ResolveSubject(ctx, subject)
		return found, err
	}
}

// newSigner returns the signer of charges, with the secrets that the migrations made.
func newSigner(ctx context.Context, db *store.DB) (*receipt.Signer, error) {
	upstream, log, err := db.ChargeSecrets(ctx)
	if err != nil {
		return nil, err
	}
	return receipt.NewSigner(receipt.Secrets{ID: upstream, Receipt: log})
}

// newLimiter returns the counter of requests; with --redis all replicas count together.
func newLimiter(c config, replicas *replicaCount, log *slog.Logger, registry *prometheus.Registry) (*ratelimit.Shared, error) {
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

// isNo reports whether the error of a look-up is a definite answer, which may be cached for a
// moment.
func isNo(err error) bool {
	return errors.Is(err, authz.ErrUnknown) || errors.Is(err, authz.ErrRevoked)
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

func newLogger(c config, w io.Writer) *slog.Logger {
	options := &slog.HandlerOptions{Level: c.LogLevel}
	var handler slog.Handler = slog.NewJSONHandler(w, options)
	if c.LogFormat == "text" {
		handler = slog.NewTextHandler(w, options)
	}
	return slog.New(newCalmHandler(handler))
}

func newRegistry() *prometheus.Registry {
	v := buildVersion()
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "keyporter_build_info",
		Help:        "1; the labels say what was built.",
		ConstLabels: prometheus.Labels{"version": v.Version, "commit": v.Commit, "go": v.Go},
	})
	info.Set(1)
	registry := prometheus.NewRegistry()
	registry.MustRegister(info, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return registry
}

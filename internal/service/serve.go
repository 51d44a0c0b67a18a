// Package service is the running service: Run makes its parts in order, starts and stops them. Only
// this package knows all the parts; each of them declares the small interfaces that it needs. The
// command serve and the demo call it.
package service

import (
	"context"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/internal/config"
	"github.com/keyporter/keyporter/internal/operations"
	"github.com/keyporter/keyporter/internal/tlsport"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/requests"
)

// Config is what a service runs with.
type Config struct {
	Settings config.Config
	Reload   func() (config.Config, error) // reads the settings once more; nil: files are read only once
	Hangups  <-chan os.Signal              // each signal requests a reload
	Logs     io.Writer
}

// process is what a service has before it opens its database.
type process struct {
	with      Config
	seen      []fs.FileInfo // the state of the files of the configuration, before they were read
	log       *slog.Logger
	metrics   *prometheus.Registry
	tokens    portTokens
	ports     tlsPorts
	listeners *listeners
	running   *errgroup.Group // serves the listeners; its context ends when one fails
	ready     *readiness
	ops       *http.Server // runs already
	startup   *startup
}

// Run is the map of the service: together with serve, it makes every part, in the order in which
// they need one another. It returns when ctx has ended and everything has stopped in good order.
func Run(ctx context.Context, with Config) error {
	c := with.Settings
	seen := c.FileStates() // changes during the start are reread
	log, metrics := NewLogger(c, with.Logs), newMetrics()
	// in containers, read permission for others is usual
	for _, loose := range c.LooseFiles(config.OthersWrite) {
		log.Warn("a file with a secret is open to others: " + loose)
	}
	tokens, err := readPortTokens(ctx, c)
	if err != nil {
		return err
	}

	ports, err := newTLSPorts(c, log, metrics)
	if err != nil {
		return err
	}

	// The listeners come first, so that a taken port is reported before the database is touched.
	running, ctx := errgroup.WithContext(ctx)
	defer running.Wait() // serve has returned this error, or it comes from closing
	listeners, err := openListeners(c, log)
	defer listeners.close()
	if err != nil {
		return err
	}
	listeners.secure(ports.over)
	// During a migration, /readyz already answers that the service is starting.
	ready := &readiness{}
	ops := newOpsServer(ctx, c, ready, log, metrics)
	if ports["ops"] != nil {
		tlsport.Prepare(ops)
	}
	running.Go(func() error { return serveHTTP(ops, listeners.ops) })
	defer ops.Close()

	startup := &startup{ready: ready, log: log}
	db, err := store.Open(ctx, store.Config{
		URL: c.Database, Create: c.Migrate, Migrate: c.Migrate, Connections: c.DatabaseConnections,
		Service: true, Patience: -1, Notice: startup.waits, Metrics: metrics,
	})
	if err != nil {
		return err
	}
	defer db.Close()
	p := &process{with, seen, log, metrics, tokens, ports, &listeners, running, ready, ops, startup}
	return p.serve(ctx, db)
}

// serve makes the parts that need the database, and runs them all until ctx ends.
func (p *process) serve(ctx context.Context, db *store.DB) error {
	c, log, metrics := p.with.Settings, p.log, p.metrics
	formats, err := operations.ReadFormats(ctx, db, apikey.FormatConfig{Prefix: c.KeyPrefix})
	if err != nil {
		return err
	}
	replica, err := newReplica(c, db, log, metrics)
	if err != nil {
		return err
	}
	defer replica.close()
	logins, err := newLogins(c, formats.Sessions, db, replica.caches, log, metrics)
	if err != nil {
		return err
	}
	defer logins.close()
	meters, err := newMeters(ctx, c, db, replica, log, metrics)
	if err != nil {
		return err
	}
	defer meters.close()
	authorizer := newAuthorizer(c, formats.Keys, replica.caches, logins, meters)
	requestLog := newRequestLog(requests.New(db), c.RequestLogRetention, log, metrics)
	grpc := newGRPCServer(c, p.tokens.grpc, authorizer, meters, requestLog, log, metrics)
	page, err := newPageServer(ctx, c, pageParts{db: db, formats: formats, sessions: logins.onPage, metering: meters.meter, log: log, metrics: metrics})
	if err != nil {
		return err
	}
	servers := &servers{listeners: p.listeners, running: p.running, grpc: grpc, page: page, settle: newSettleServer(c, p.tokens.settle, meters, log),
		admin: newAdminServer(c, p.tokens.admin, db, authorizer, meters, log, metrics), ops: p.ops}
	webhooks, err := newWebhooks(ctx, c, db, log, metrics)
	if err != nil {
		return err
	}
	reloaded := &reloaded{authorizer, grpc, p.tokens.settle, newRoutesInfo(metrics, c.RoutesHash()), replica}
	p.ports.prepare(servers)
	s := &service{
		log: log, ports: p.ports, ready: p.ready, startup: p.startup, connections: newConnections(db),
		replica: replica, logins: logins, meters: meters, requestLog: requestLog, webhooks: webhooks, servers: servers, drainDelay: c.DrainDelay,
		health:      &health{lease: replica.lease, life: c.Lease, db: db, ready: p.ready, setServing: grpc.SetServing, log: log},
		housekeeper: newHousekeeper(c, db, replica.lease, p.ready, log),
		logWatch:    newLogWatch(c, logWatch{unreported: grpc.Unreported, replicas: meters.replicas.count, ready: p.ready, log: log}, metrics),
		reloader: newReloader(reloader{
			load: p.with.Reload, asked: p.with.Hangups, current: reloadable{config: c}, seen: p.seen, log: log, take: reloaded.take, takeAdmin: p.tokens.admin.set,
		}, metrics),
	}
	return s.run(ctx)
}

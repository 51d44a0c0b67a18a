package service

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/bearer"
	"github.com/keyporter/keyporter/envoy"
	"github.com/keyporter/keyporter/internal/config"
	"github.com/keyporter/keyporter/internal/tlsport"
	"github.com/keyporter/keyporter/meter/settle"
	"github.com/keyporter/keyporter/portal/requestlog"
)

// servers answers on the listeners of the service.
type servers struct {
	listeners *listeners
	running   *errgroup.Group // serves the listeners
	grpc      *envoy.Server
	page      *http.Server // nil on a replica that only decides
	settle    *http.Server // nil if no upstream settles
	admin     *http.Server // nil without the operators' API
	ops       *http.Server // runs already
}

// serve starts all but the operators' one.
func (s *servers) serve() {
	s.running.Go(func() error { return s.grpc.Serve(s.listeners.grpc) })
	if s.page != nil {
		s.running.Go(func() error { return serveHTTP(s.page, s.listeners.page) })
	}
	if s.settle != nil {
		s.running.Go(func() error { return serveHTTP(s.settle, s.listeners.settle) })
	}
	if s.admin != nil {
		s.running.Go(func() error { return serveHTTP(s.admin, s.listeners.admin) })
	}
}

// prepare makes the HTTP servers end the connections of callers that are not accepted any more.
func (p tlsPorts) prepare(s *servers) {
	for name, server := range map[string]*http.Server{"http": s.page, "settle": s.settle, "admin": s.admin} {
		if server != nil && p[name] != nil {
			tlsport.Prepare(server)
		}
	}
}

// shutdown accepts no new requests and waits for those in flight, until ctx ends.
func (s *servers) shutdown(ctx context.Context) error {
	err := s.grpc.Shutdown(ctx)
	for _, server := range []*http.Server{s.page, s.settle, s.admin, s.ops} {
		if server != nil {
			err = errors.Join(err, server.Shutdown(ctx))
		}
	}
	return err
}

func newAuthorizer(c config.Config, keys *apikey.Format, cached *caches, logins *logins, meters *meters) *authz.Authorizer {
	return authz.New(authz.Config{
		Routes: c.Routes, Keys: keys, FindKey: cached.keys.Find, FindImported: cached.imported.Find, Meter: meters.meter, Sessions: logins.deciding, LoginURL: c.LoginRedirect(),
		PassPreflight: rate.NewLimiter(rate.Limit(c.UpstreamPreflights), c.UpstreamPreflights).Allow,
	})
}

// newGRPCServer returns the server for Envoy's checks and access log.
func newGRPCServer(c config.Config, token bearer.Token, authorizer *authz.Authorizer, meters *meters, requests *requestlog.Log, log *slog.Logger, metrics prometheus.Registerer) *envoy.Server {
	return envoy.NewServer(envoy.Config{
		Authorize: authorizer.Authorize, Void: meters.meter.Void, OnComplete: completed(meters.meter, requests), Mask: authorizer.Masked,
		Token: token, Codec: c.Codec, Selection: c.Selection, Transport: c.Transport, Timeout: c.CheckTimeout, DrainDelay: orNone(c.DrainDelay),
		Cause: causeOf, Causes: causeNames(), Log: log.With("replica", hostName()), Metrics: metrics,
	})
}

// newSettleServer returns the server of the settle port, or nil if upstreams do not settle.
func newSettleServer(c config.Config, token *liveToken, meters *meters, log *slog.Logger) *http.Server {
	if !c.Settles() {
		return nil
	}
	return newGuestServer(settle.New(settle.Config{
		Opens: token.opens, Parse: meters.signer.ParseID, Settle: meters.meter.Settle, Log: log,
	}), newGuests(maxGuests), log)
}

// orNone maps 0, which asks the server for its default, to no delay.
func orNone(d time.Duration) time.Duration {
	if d == 0 {
		return -1
	}
	return d
}

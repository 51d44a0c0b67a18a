package service

import (
	"context"
	"errors"
	"net/http"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/bearer"
	"github.com/keyporter/keyporter/envoy"
	"github.com/keyporter/keyporter/internal/config"
	"github.com/keyporter/keyporter/internal/tlsport"
)

// portTokens are the tokens that callers of the ports send.
type portTokens struct {
	grpc   bearer.Token
	settle *liveToken
	admin  *liveNamed
}

// readPortTokens also reports a file with keys of the web app's tokens that cannot be used.
func readPortTokens(ctx context.Context, c config.Config) (portTokens, error) {
	grpc, err := config.UnlessEnded(ctx, c.GRPCToken)
	if err != nil {
		return portTokens{}, err
	}
	settle := &liveToken{}
	err = settle.read(func() (bearer.Token, error) { return config.UnlessEnded(ctx, c.SettleToken) })
	named, err2 := config.UnlessEnded(ctx, c.AdminTokens)
	admin := &liveNamed{}
	admin.set(named)
	return portTokens{grpc, settle, admin}, errors.Join(err, err2, c.CheckJWTFile())
}

// reloaded are the parts that a running service changes when its files change.
type reloaded struct {
	authorizer  *authz.Authorizer
	grpc        *envoy.Server
	settleToken *liveToken
	routes      *routesInfo
	replica     *replica
}

// take enforces the new values for all requests that begin afterwards.
func (r *reloaded) take(ctx context.Context, fresh reloadable) {
	r.replica.follow(&fresh.config)
	r.authorizer.SetRoutes(fresh.config.Routes)
	r.grpc.SetToken(fresh.grpcToken)
	r.settleToken.set(fresh.settleToken)
	r.routes.set(fresh.config.RoutesHash())
	r.replica.registry.SetRoutes(ctx, fresh.config.RoutesHash())
}

// liveToken is a token that can be replaced while it is in use. The zero liveToken accepts no
// caller.
type liveToken struct{ token atomic.Pointer[bearer.Token] }

func (l *liveToken) set(token bearer.Token) { l.token.Store(&token) }

// read sets the token to the result of from, unless that fails.
func (l *liveToken) read(from func() (bearer.Token, error)) error {
	token, err := from()
	if err == nil {
		l.set(token)
	}
	return err
}

func (l *liveToken) opens(authorization []string) bool {
	token := l.token.Load()
	return token != nil && token.Opens(authorization)
}

// liveNamed are named tokens that can be replaced while they are in use.
type liveNamed struct{ named atomic.Pointer[bearer.Named] }

func (l *liveNamed) set(named bearer.Named) { l.named.Store(&named) }

// caller returns the caller of a request: the one of its token, or, if it sends none, of its
// certificate.
func (l *liveNamed) caller(r *http.Request) (bearer.Caller, bool) {
	if token := r.Header.Values("Authorization"); len(token) > 0 {
		return l.named.Load().Caller(token)
	}
	return l.named.Load().Certified(tlsport.NamesOfCaller(r))
}

// routesInfo is a metric with the hash of the enforced route table.
type routesInfo struct{ gauge *prometheus.GaugeVec }

func newRoutesInfo(metrics prometheus.Registerer, hash string) *routesInfo {
	i := &routesInfo{prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "keyporter_route_table_info", Help: "1, with the hash of the enforced route table. Replicas with one hash decide alike.",
	}, []string{"hash"})}
	metrics.MustRegister(i.gauge)
	i.set(hash)
	return i
}

func (i *routesInfo) set(hash string) {
	i.gauge.Reset()
	i.gauge.WithLabelValues(hash).Set(1)
}

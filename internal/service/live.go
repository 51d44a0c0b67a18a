package service

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyporter/keyporter/bearer"
)

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

// routesInfo is a metric with the hash of the enforced route table.
type routesInfo struct{ gauge *prometheus.GaugeVec }

func newRoutesInfo(metrics prometheus.Registerer, hash string) *routesInfo {
	i := &routesInfo{prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "keyporter_route_table_info", Help: "1, with the hash of the route table that is in force. Replicas with one hash decide alike.",
	}, []string{"hash"})}
	metrics.MustRegister(i.gauge)
	i.set(hash)
	return i
}

func (i *routesInfo) set(hash string) {
	i.gauge.Reset()
	i.gauge.WithLabelValues(hash).Set(1)
}

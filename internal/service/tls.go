package service

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyporter/keyporter/envoy"
	"github.com/keyporter/keyporter/internal/config"
	"github.com/keyporter/keyporter/internal/tlsport"
)

// How long a caller whose certificate is not accepted any more may keep its connection. Only
// grpc-go cannot ask one caller to go; its connections end by their age.
const (
	withdrawnGrace     = 30 * time.Second
	withdrawnGraceGRPC = 6 * time.Minute
)

// tlsPorts are the ports with TLS, by name.
type tlsPorts map[string]*tlsport.Port

// newTLSPorts reads the files of all open ports with TLS.
func newTLSPorts(c config.Config, log *slog.Logger, metrics prometheus.Registerer) (tlsPorts, error) {
	refused := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "keyporter_tls_refused_connections_total", Help: "Connections to a port with TLS that ended before or in the handshake, by cause.",
	}, []string{"port", "cause"})
	reloads := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "keyporter_tls_reloads_total", Help: "Reloads of the TLS files of a port, by what became of them.",
	}, []string{"port", "result"})
	metrics.MustRegister(refused, reloads)
	ports := tlsPorts{}
	for _, name := range c.OpenTLSPorts() {
		for _, cause := range tlsport.Causes() {
			refused.WithLabelValues(name, string(cause))
		}
		taken, failed := reloads.WithLabelValues(name, reloadTaken), reloads.WithLabelValues(name, reloadRefused)
		port, err := tlsport.New(tlsport.Config{
			Name: name, Files: *c.TLS[name], MinVersion: c.TLSMinVersion, Protocols: []string{protocolOf(name)}, MustAgree: name == "grpc",
			Grace: graceOf(name, c.Transport), Log: log,
			Refused: func(cause tlsport.Cause) { refused.WithLabelValues(name, string(cause)).Inc() },
			Reloaded: func(ok bool) {
				if ok {
					taken.Inc()
				} else {
					failed.Inc()
				}
			},
		})
		if err != nil {
			return nil, err
		}
		ports[name] = port
		metrics.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "keyporter_tls_certificate_expiry_seconds", ConstLabels: prometheus.Labels{"port": name},
			Help: "When the certificate of a port, or one between it and its authority, expires, in Unix time.",
		}, func() float64 { return float64(port.Expires().Unix()) }))
	}
	return ports, nil
}

// protocolOf returns the protocol of a port, in terms of ALPN.
func protocolOf(name string) string {
	if name == "grpc" {
		return "h2"
	}
	return "http/1.1"
}

func graceOf(name string, t envoy.Transport) time.Duration {
	if name == "grpc" && t == envoy.GRPCTransport {
		return withdrawnGraceGRPC
	}
	return withdrawnGrace
}

// over puts TLS over a listener, if its port has TLS.
func (p tlsPorts) over(name string, l net.Listener) net.Listener {
	if port := p[name]; port != nil && l != nil {
		return port.Listener(l)
	}
	return l
}

// run rereads the files of all ports until ctx ends. HTTP servers end the connections of callers
// that are not accepted any more by themselves: see [tlsport.Prepare].
func (p tlsPorts) run(ctx context.Context, retire func(which func(net.Conn) bool)) {
	var running sync.WaitGroup
	defer running.Wait()
	for name, port := range p {
		running.Go(func() {
			port.Run(ctx, func() {
				if name == "grpc" {
					retire(tlsport.Withdrawn)
				}
			})
		})
	}
}

package service

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/keyporter/keyporter/internal/config"
)

// logWatch warns when charges are made but Envoy's access log does not report how their requests
// end: decisions stay right, but no credit is refunded.
type logWatch struct {
	unreported func() (since time.Duration, entries bool) // see [envoy.Server.Unreported]
	replicas   func() int
	ready      *readiness
	log        *slog.Logger
	gauge      prometheus.Gauge
	missing    bool
}

// newLogWatch returns nil if upstreams settle.
func newLogWatch(c config.Config, w logWatch, metrics prometheus.Registerer) *logWatch {
	if c.Settles() {
		return nil
	}
	w.gauge = promauto.With(metrics).NewGauge(prometheus.GaugeOpts{
		Name: "keyporter_accesslog_missing",
		Help: "1 while charges are made and no entry of Envoy's access log names one, so that no credit comes back.",
	})
	return &w
}

const (
	logWatchInterval = time.Second
	// The wait for an entry of the only replica. Envoy reports a completion within a second or two.
	missingAfter = time.Minute // mutation: impatience
	// The wait for an entry of each of several replicas, times their number: an Envoy sends its
	// entries to one of them at a time, for twenty seconds. That makes 15 turns per replica in this
	// time: a replica gets none once in three million such times.
	missingAmongOthers = 5 * time.Minute
)

// follow checks at each interval until ctx ends.
func (w *logWatch) follow(ctx context.Context) {
	if w == nil {
		return
	}
	tick := time.NewTicker(logWatchInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			w.look()
		case <-ctx.Done():
			return
		}
	}
}

func (w *logWatch) look() {
	since, entries := w.unreported()
	switch missing := since >= w.patience(); {
	case missing && !w.missing:
		what := noAccessLog
		if entries {
			what = noChargeInLog
		}
		// JSON would show a duration as a number of nanoseconds
		w.log.Warn(what, "charges_since", since.Round(time.Second).String())
		w.ready.unreported.Store(&what)
		w.gauge.Set(1)
		w.missing = true
	case since == 0 && w.missing:
		w.log.Info("Envoy's access log reports how requests end: credits come back from now on")
		w.ready.unreported.Store(nil)
		w.gauge.Set(0)
		w.missing = false
	}
}

// The advice, which /readyz shows as well.
const (
	noAccessLog = "no access log of Envoy's reports how requests end, so no credit comes back when the upstream fails: " +
		"add to Envoy's configuration what `keyporter envoy --part access-log` prints"
	noChargeInLog = "the entries of Envoy's access log name no charge, so no credit comes back when the upstream fails: " +
		"they are of other requests; add what `keyporter envoy --part access-log` prints to the connection manager that has Keyporter's filter"
)

func (w *logWatch) patience() time.Duration {
	if n := w.replicas(); n > 1 {
		return time.Duration(n) * missingAmongOthers
	}
	return missingAfter
}

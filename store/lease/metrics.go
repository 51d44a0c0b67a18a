package lease

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// The causes for which a replica forgets everything it has cached.
const (
	causeRegistered = "registered" // the start, or a registration after a fence
	causeGap        = "gap"        // the feed does not reach back far enough
	causeEverything = "everything" // a change that touches everything, such as TRUNCATE
	causeRewritten  = "rewritten"  // the database has gone back in its history
	causeAccepted   = "accepted"   // an operator has accepted a rewritten history
	causeUnrecorded = "unrecorded" // changes may have gone unrecorded
)

type metrics struct {
	seconds  prometheus.Histogram
	renewals *prometheus.CounterVec
	fences   prometheus.Counter
	flushes  *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer, l *Lease) *metrics {
	m := &metrics{
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "keyporter_lease_renewal_seconds", Help: "How long renewals of the lease took.",
			Buckets: []float64{0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5},
		}),
		renewals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "keyporter_lease_renewals_total", Help: "Renewals of the lease, by result.",
		}, []string{"result"}),
		fences: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "keyporter_lease_fences_total", Help: "How often this replica was taken off the list after a silence.",
		}),
		flushes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "keyporter_lease_flushes_total", Help: "How often everything cached was dropped, by cause.",
		}, []string{"cause"}),
	}
	for _, result := range []string{"ok", "error"} {
		m.renewals.WithLabelValues(result)
	}
	for _, cause := range []string{causeRegistered, causeGap, causeEverything, causeRewritten, causeAccepted, causeUnrecorded} {
		m.flushes.WithLabelValues(cause)
	}
	if r != nil {
		r.MustRegister(m.seconds, m.renewals, m.fences, m.flushes,
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{
				Name: "keyporter_lease_left_seconds", Help: "How long this replica may answer from memory; negative since it may not.",
			}, func() float64 { return l.Left().Seconds() }),
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{
				Name: "keyporter_epoch", Help: "The change up to which this replica has followed the database.",
			}, func() float64 { return float64(l.view.Load().applied.Load()) }),
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{
				Name: "keyporter_epoch_lag", Help: "Changes that this replica was notified of and has not applied.",
			}, func() float64 { return float64(max(0, l.newest.Load()-l.view.Load().applied.Load())) }))
	}
	return m
}

// stepped counts a renewal. A step that only followed the updates counts only if it failed.
func (m *metrics) stepped(due bool, err error, took time.Duration) {
	if !due && err == nil {
		return
	}
	m.seconds.Observe(took.Seconds())
	result := "ok"
	if err != nil && !errors.Is(err, ErrFenced) {
		result = "error"
	}
	m.renewals.WithLabelValues(result).Inc()
}

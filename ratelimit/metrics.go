package ratelimit

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the metrics of a [Shared].
type metrics struct {
	seconds prometheus.Histogram
	errors  prometheus.Counter
}

// newMetrics returns the metrics, registered with r if it is not nil. divided is the divisor of
// limits; up reports whether Valkey counts, and is nil without Valkey.
func newMetrics(r prometheus.Registerer, divided func() int, up func() bool) *metrics {
	m := &metrics{
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "keyporter_ratelimit_valkey_seconds", Help: "How long questions to Valkey took, answered or not.",
			Buckets: []float64{0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1},
		}),
		errors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "keyporter_ratelimit_valkey_errors_total", Help: "Questions to Valkey that it did not answer in time, or had forgotten too much to answer.",
		}),
	}
	if r == nil {
		return m
	}
	r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "keyporter_ratelimit_divided_by", Help: "By how much this replica divides rate limits: 1 where they hold over all replicas, else their number.",
	}, func() float64 { return float64(divided()) }))
	if up != nil {
		r.MustRegister(m.seconds, m.errors, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "keyporter_ratelimit_valkey_up", Help: "1 while Valkey counts, 0 while this replica counts alone.",
		}, func() float64 {
			if up() {
				return 1
			}
			return 0
		}))
	}
	return m
}

// asked records a question to Valkey.
func (m *metrics) asked(took time.Duration, err error) {
	m.seconds.Observe(took.Seconds())
	if err != nil {
		m.errors.Inc()
	}
}

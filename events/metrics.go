package events

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyporter/keyporter/store/outbox"
)

// Registerer registers metrics.
type Registerer = prometheus.Registerer

// metrics are the figures of the replica that delivers; the other replicas have none.
type metrics struct {
	attempts                      *prometheus.CounterVec
	pending, aside, lag, disabled *prometheus.GaugeVec
}

func newMetrics(r Registerer) (*metrics, error) {
	gauge := func(name, help string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, []string{"endpoint"})
	}
	m := &metrics{
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "keyporter_events_attempts_total", Help: "Attempts to deliver events, by endpoint and result: delivered, failed, aside (given up), gone (the endpoint is disabled).",
		}, []string{"endpoint", "result"}),
		pending:  gauge("keyporter_events_pending", "Events that wait to be delivered, by endpoint; from the replica that delivers."),
		aside:    gauge("keyporter_events_aside", "Events that were put aside after a day of attempts, by endpoint; from the replica that delivers."),
		lag:      gauge("keyporter_events_lag_seconds", "Age of the oldest event that waits to be delivered, by endpoint; from the replica that delivers."),
		disabled: gauge("keyporter_events_endpoint_disabled", "1 if the endpoint has answered 410 Gone and is disabled; from the replica that delivers."),
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.attempts, m.pending, m.aside, m.lag, m.disabled} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) count(endpoint string, out outbox.Outcome) {
	result := "failed"
	switch {
	case out.Gone:
		result = "gone"
	case out.State != outbox.Pending:
		result = string(out.State)
	}
	m.attempts.WithLabelValues(endpoint, result).Inc()
}

// expect makes the counters of an endpoint begin at 0.
func (m *metrics) expect(endpoint string) {
	for _, result := range []string{"delivered", "failed", "aside", "gone"} {
		m.attempts.WithLabelValues(endpoint, result)
	}
}

func (m *metrics) set(all []outbox.Status) {
	m.forget()
	for _, s := range all {
		if !s.Known {
			continue // a name of another time: the labels stay bounded by the configuration
		}
		m.pending.WithLabelValues(s.Name).Set(float64(s.Pending))
		m.aside.WithLabelValues(s.Name).Set(float64(s.Aside))
		m.lag.WithLabelValues(s.Name).Set(s.Lag.Seconds())
		disabled := 0.0
		if s.Disabled {
			disabled = 1
		}
		m.disabled.WithLabelValues(s.Name).Set(disabled)
	}
}

// forget drops the figures, since another replica may have them now.
func (m *metrics) forget() {
	for _, gauge := range []*prometheus.GaugeVec{m.pending, m.aside, m.lag, m.disabled} {
		gauge.Reset()
	}
}

package envoy

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/envoy/transport"
	"github.com/keyporter/keyporter/usage"
)

// metrics are the server's metrics. No label holds a key, a name, a path or the text of an error.
type metrics struct {
	decisions []prometheus.Counter // reason → its counter
	seconds   prometheus.Histogram
	errors    map[string]*failures // by cause
	panics    prometheus.Counter
	strangers prometheus.Counter
	others    prometheus.Counter
	peers     map[transport.Cause]prometheus.Counter // that were hung up on

	entries    map[string]prometheus.Counter // of the access log, by result
	logStreams prometheus.Gauge
}

// The results of entries of the access log, in addition to the names of [usage.Failures] and
// "none".
const (
	entryNoCharge  = "no_charge"   // the request was refused, so nothing was charged
	entryNoKey     = "no_key"      // it had nobody's key
	entryNotTheEnd = "not_the_end" // the request goes on
	entryNotHTTP   = "not_http"
	entryMalformed = "malformed"
	entryPanicked  = "panicked"
)

// The causes of undecided Checks, in addition to Config.Causes: the caller hung up, as many Checks
// wait as may, the deadline passed, anything else.
const (
	causeCanceled = "canceled"
	causeWaiting  = "too_many_wait"
	causeDeadline = "deadline"
	causeOther    = "other"
)

// failures are the undecided Checks of one cause.
type failures struct {
	name  string
	count prometheus.Counter
	lines logLimiter
}

// cause returns the failures of a name, or those of causeOther if the name is unknown.
func (m *metrics) cause(name string) *failures {
	if known := m.errors[name]; known != nil {
		return known
	}
	return m.errors[causeOther]
}

// newMetrics creates every series at once, so that each reads 0 before its first event.
func newMetrics(r prometheus.Registerer, causes []string) *metrics {
	with := promauto.With(r)
	m := &metrics{
		seconds: with.NewHistogram(prometheus.HistogramOpts{
			Name:    "keyporter_check_seconds",
			Help:    "How long a Check took, from its headers (--transport fast) or its decoding (grpc) to the decision.",
			Buckets: []float64{.00001, .000025, .00005, .0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .15, .25, .5},
		}),
		errors: map[string]*failures{},
		panics: with.NewCounter(prometheus.CounterOpts{
			Name: "keyporter_check_panics_total",
			Help: "Checks that panicked and were answered 503.",
		}),
		strangers: with.NewCounter(prometheus.CounterOpts{
			Name: "keyporter_grpc_unauthenticated_total",
			Help: "gRPC calls refused for want of the token.",
		}),
	}
	m.others = with.NewCounter(prometheus.CounterOpts{
		Name: "keyporter_grpc_other_calls_total",
		Help: "Calls of other methods than those of Envoy and of health checks, which the transport hands over to grpc-go.",
	})
	m.addPeers(with)
	m.addAccessLog(with)
	decisions := with.NewCounterVec(prometheus.CounterOpts{
		Name: "keyporter_decisions_total",
		Help: "Decisions answered, by reason.",
	}, []string{"reason"})
	for _, reason := range authz.Reasons() {
		m.decisions = append(m.decisions, decisions.WithLabelValues(reason.String()))
	}
	failed := with.NewCounterVec(prometheus.CounterOpts{
		Name: "keyporter_check_errors_total",
		Help: "Checks that could not be decided and were answered 503, by cause.",
	}, []string{"cause"})
	for _, cause := range append([]string{causeCanceled, causeWaiting, causeDeadline, causeOther}, causes...) {
		m.errors[cause] = &failures{name: cause, count: failed.WithLabelValues(cause)}
	}
	return m
}

func (m *metrics) addAccessLog(with promauto.Factory) {
	entries := with.NewCounterVec(prometheus.CounterOpts{
		Name: "keyporter_accesslog_entries_total",
		Help: "Entries of Envoy's access log, by how the request failed (none: it did not) or why the entry was left out.",
	}, []string{"result"})
	m.logStreams = with.NewGauge(prometheus.GaugeOpts{
		Name: "keyporter_accesslog_streams",
		Help: "Open streams of Envoy's access log: one for each worker thread of each Envoy.",
	})
	results := []string{usage.NoFailure.String(), entryNoCharge, entryNoKey, entryNotTheEnd, entryNotHTTP, entryMalformed, entryPanicked}
	for _, failure := range usage.Failures() {
		results = append(results, failure.String())
	}
	m.entries = map[string]prometheus.Counter{}
	for _, result := range results {
		m.entries[result] = entries.WithLabelValues(result)
	}
}

// causeStranger adds to the causes of the transport: a caller without the token has opened too many
// connections, or sent too much.
const causeStranger transport.Cause = "stranger"

func (m *metrics) addPeers(with promauto.Factory) {
	ended := with.NewCounterVec(prometheus.CounterOpts{
		Name: "keyporter_grpc_refused_peers_total",
		Help: "Connections to the gRPC port that were ended for what their peer did, by cause.",
	}, []string{"cause"})
	m.peers = map[transport.Cause]prometheus.Counter{}
	for _, cause := range append(transport.Causes(), causeStranger) {
		m.peers[cause] = ended.WithLabelValues(string(cause))
	}
}

// addTransport registers the present numbers of the transport.
func addTransport(r prometheus.Registerer, stats func() transport.Stats) {
	with := promauto.With(r)
	with.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "keyporter_grpc_connections",
		Help: "Open connections to the gRPC port: one for each worker thread of each Envoy, and those of probes.",
	}, func() float64 { return float64(stats().Connections) })
	with.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "keyporter_grpc_calls",
		Help: "Open calls on the gRPC port, streams of access logs included.",
	}, func() float64 { return float64(stats().Calls) })
}

func (m *metrics) decided(reason authz.Reason, took time.Duration) {
	if int(reason) >= len(m.decisions) {
		reason = authz.Undecided
	}
	m.decisions[reason].Inc()
	m.seconds.Observe(took.Seconds())
}

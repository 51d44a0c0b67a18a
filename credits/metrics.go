package credits

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/keyporter/keyporter/credits/ledger"
	"github.com/keyporter/keyporter/usage"
)

// metrics are the metrics of credits. No label holds a name.
type metrics struct {
	reports     *prometheus.CounterVec // by result
	seconds     prometheus.Histogram
	blocks      prometheus.Counter
	charged     prometheus.Counter
	void        prometheus.Counter
	withOutcome prometheus.Counter
	refunded    *prometheus.CounterVec // by cause
	recalls     *prometheus.CounterVec // by side: asked, answered
	dropped     prometheus.Counter
	forged      prometheus.Counter
}

func newMetrics(r prometheus.Registerer, outstanding func() int64) *metrics {
	with := promauto.With(r)
	m := &metrics{
		reports: with.NewCounterVec(prometheus.CounterOpts{
			Name: "keyporter_credits_reports_total",
			Help: "Reports to the ledger, each one transaction, by result.",
		}, []string{"result"}),
		seconds: with.NewHistogram(prometheus.HistogramOpts{
			Name:    "keyporter_credits_report_seconds",
			Help:    "How long a report to the ledger took.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5},
		}),
		blocks: with.NewCounter(prometheus.CounterOpts{
			Name: "keyporter_credits_blocks_total",
			Help: "Blocks of credits that were taken from a pool or made larger.",
		}),
		charged: with.NewCounter(prometheus.CounterOpts{
			Name: "keyporter_credits_charged_total",
			Help: "Credits that this replica has charged for requests.",
		}),
		void: with.NewCounter(prometheus.CounterOpts{
			Name: "keyporter_credits_void_total",
			Help: "Of these, credits of requests that were not let pass in the end.",
		}),
		withOutcome: with.NewCounter(prometheus.CounterOpts{
			Name: "keyporter_credits_reported_total",
			Help: "Credits of requests whose outcome this replica has reported to the ledger, each request once, whoever charged for it. Over all replicas, charged less void less reported is what nobody has reported.",
		}),
		refunded: with.NewCounterVec(prometheus.CounterOpts{
			Name: "keyporter_credits_refunded_total",
			Help: "Credits that were given back, by cause.",
		}, []string{"cause"}),
		recalls: with.NewCounterVec(prometheus.CounterOpts{
			Name: "keyporter_credits_recalls_total",
			Help: "Pools of which this replica has asked the others for what they do not use, and those in which it has answered such a question.",
		}, []string{"side"}),
		dropped: with.NewCounter(prometheus.CounterOpts{
			Name: "keyporter_credits_dropped_total",
			Help: "Ends of requests that were not taken note of, since too many waited for the ledger.",
		}),
	}
	m.forged = with.NewCounter(prometheus.CounterOpts{
		Name: "keyporter_credits_forged_total",
		Help: "Ends of requests that named a charge which was not signed for the access log.",
	})
	with.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "keyporter_credits_outstanding",
		Help: "Credits that this replica holds or has not reported as used: what a crash would cost the users.",
	}, func() float64 { return float64(outstanding()) })
	m.begin()
	return m
}

// begin creates every series, so that each reads 0 before its first event.
func (m *metrics) begin() {
	for _, result := range []string{"done", "failed"} {
		m.reports.WithLabelValues(result)
	}
	causes := []string{ledger.CauseListed, ledger.CauseSettled, ledger.CauseVoid}
	for _, failure := range usage.Failures() {
		causes = append(causes, failure.String())
	}
	for _, cause := range causes {
		m.refunded.WithLabelValues(cause)
	}
	for _, side := range []string{"asked", "answered"} {
		m.recalls.WithLabelValues(side)
	}
}

// reported records one report.
func (m *metrics) reported(r *ledger.Report, result *ledger.Result, err error, took time.Duration) {
	m.seconds.Observe(took.Seconds())
	if err != nil {
		m.reports.WithLabelValues("failed").Inc()
		return
	}
	m.reports.WithLabelValues("done").Inc()
	m.withOutcome.Add(float64(result.Reported))
	for i, grant := range result.Grants {
		ask := r.Asks[i]
		if grant.Taken > ask.Keep {
			m.blocks.Inc()
		}
		if grant.Taken < ask.Keep+ask.Need && grant.Elsewhere > 0 {
			m.recalls.WithLabelValues("asked").Inc()
		}
	}
	for _, refund := range result.Refunds {
		m.refunded.WithLabelValues(refund.Cause).Add(float64(refund.Credits))
	}
}

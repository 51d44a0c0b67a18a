package cache

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// result is how a look-up ended. Every look-up has exactly one.
type result int

const (
	absent   result = iota // not ended yet
	hit                    // a value from memory
	negative               // a negative answer from memory
	miss                   // an answer from a read of its own
	shared                 // an answer from a read that was already running
	busy                   // ErrBusy
	stale                  // ErrStale
	unleased               // lease.ErrNotHeld
	failed                 // the read failed, or the caller gave up on it
	resultCount
)

var resultLabels = [resultCount]string{
	absent: "", hit: "hit", negative: "negative", miss: "miss", shared: "shared", busy: "busy", stale: "stale",
	unleased: "no_lease", failed: "error",
}

type metrics struct {
	lookups   [resultCount]prometheus.Counter // result → its counter
	discarded prometheus.Counter
	seconds   prometheus.Histogram
}

// newMetrics creates every series at once, so that each exists, as 0, before its first event.
func newMetrics(r prometheus.Registerer, name string, entries func() int) *metrics {
	with, m := promauto.With(r), &metrics{}
	labels := prometheus.Labels{"cache": name}
	lookups := with.NewCounterVec(prometheus.CounterOpts{
		Name:        "keyporter_cache_lookups_total",
		Help:        "Look-ups, by result.",
		ConstLabels: labels,
	}, []string{"result"})
	for result := hit; result < resultCount; result++ {
		m.lookups[result] = lookups.WithLabelValues(resultLabels[result])
	}
	m.discarded = with.NewCounter(prometheus.CounterOpts{
		Name:        "keyporter_cache_discarded_fills_total",
		Help:        "Answers that were not kept, since what they rest on had changed while they were read.",
		ConstLabels: labels,
	})
	m.seconds = with.NewHistogram(prometheus.HistogramOpts{
		Name:        "keyporter_cache_fill_seconds",
		Help:        "How long a read for the cache took, failed ones included.",
		ConstLabels: labels,
		Buckets:     []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1},
	})
	with.NewGaugeFunc(prometheus.GaugeOpts{
		Name:        "keyporter_cache_entries",
		Help:        "Values and negative answers in memory, including those that may not be used any more.",
		ConstLabels: labels,
	}, func() float64 { return float64(entries()) })
	return m
}

func (m *metrics) count(r result) { m.lookups[r].Inc() }

package admin

import "github.com/prometheus/client_golang/prometheus"

// metrics counts the requests. Its labels are bounded: the operations of the table, and none for
// requests without one; and the classes of statuses.
type metrics struct{ requests *prometheus.CounterVec }

// noneAtAll is the label of requests that reach no operation.
const noneAtAll = "none"

var classes = []string{"2xx", "4xx", "5xx"}

func newMetrics(table []operation, registry prometheus.Registerer) *metrics {
	m := &metrics{prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "keyporter_admin_requests_total",
		Help: "Requests to the operators' API, by operation and class of the status.",
	}, []string{"operation", "class"})}
	ids := []string{noneAtAll}
	for _, o := range table {
		ids = append(ids, o.id)
	}
	for _, id := range ids {
		for _, class := range classes {
			m.requests.WithLabelValues(id, class)
		}
	}
	if registry != nil {
		registry.MustRegister(m.requests)
	}
	return m
}

func (m *metrics) count(o *operation, status int) {
	id := noneAtAll
	if o != nil {
		id = o.id
	}
	m.requests.WithLabelValues(id, classes[min(max(status/100, 3), 5)-3]).Inc()
}

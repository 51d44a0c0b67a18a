package main

import (
	"fmt"
	"io"
	"net/http"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// readiness says whether this process should be sent requests. It is not lost when the database is
// away for a while: cached keys are still answered while the lease lasts, and the rest gets a 503 that
// says so. The text tells whether there is a lease.
type readiness struct {
	ready atomic.Bool
	waits atomic.Pointer[string] // what the start waits for; nil: nothing in particular
	lost  atomic.Pointer[string] // why there is no lease; nil while there is one

	unrecorded atomic.Pointer[string] // why changes are not made; nil while they are recorded

	untold atomic.Pointer[string] // why no credit comes back; nil while Envoy tells how requests end
}

func (r *readiness) setLease(held bool, problem error) {
	if held {
		r.lost.Store(nil)
		return
	}
	why := "not renewed yet"
	if problem != nil {
		why = problem.Error()
	}
	r.lost.Store(&why)
}

// waitsFor notes what the start waits for; "" for nothing.
func (r *readiness) waitsFor(what string) {
	if what == "" {
		r.waits.Store(nil)
		return
	}
	r.waits.Store(&what)
}

// newOps returns the operators' listener: /metrics, /healthz (the process lives) and /readyz (it is
// started, with a lease, and not stopping).
func newOps(registry *prometheus.Registry, ready *readiness) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "ok\n")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !ready.ready.Load() {
			text := "starting or stopping"
			if what := ready.waits.Load(); what != nil {
				text = "starting: " + *what
			}
			http.Error(w, text, http.StatusServiceUnavailable)
			return
		}
		io.WriteString(w, "ready\n")
		if why := ready.lost.Load(); why != nil {
			fmt.Fprintf(w, "no lease, so checks are answered with 503: %s\n", *why)
		}
		if why := ready.unrecorded.Load(); why != nil {
			fmt.Fprintf(w, "no changes can be made: %s\n", *why)
		}
		if why := ready.untold.Load(); why != nil {
			fmt.Fprintln(w, *why)
		}
	})
	return mux
}

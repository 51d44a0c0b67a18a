package service

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/keyporter/keyporter/internal/config"
	"github.com/keyporter/keyporter/store"
)

// readiness is whether this process should receive requests. A short outage of the database does
// not end it: cached keys are still answered while the lease lasts, and all other requests get a
// 503 that explains it. The text reports whether there is a lease.
type readiness struct {
	ready atomic.Bool
	waits atomic.Pointer[string] // what the start waits for; nil: nothing
	lost  atomic.Pointer[string] // why there is no lease; nil while there is one

	unrecorded atomic.Pointer[string] // why changes are rejected; nil while they are recorded

	unfound atomic.Pointer[string] // why no key can be looked up; nil while keys can
	crowded atomic.Pointer[string] // why there are fewer database connections than configured

	unreported atomic.Pointer[string] // why no credit is refunded; nil while Envoy reports completions
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

// waitsFor sets what the start waits for; "" for nothing.
func (r *readiness) waitsFor(what string) {
	if what == "" {
		r.waits.Store(nil)
		return
	}
	r.waits.Store(&what)
}

// starts explains in one line why the service is not ready.
func (r *readiness) starts() string {
	if what := r.waits.Load(); what != nil {
		return "starting: " + oneLine(*what) + "\n"
	}
	return "starting or stopping\n"
}

// setConnections sets the state of the database connections.
func (r *readiness) setConnections(c store.Connections) {
	var unfound, crowded *string
	if c.Problem != nil {
		why := "no key can be looked up, so checks of those that are not in memory are answered with 503: " + oneLine(c.Problem.Error())
		unfound = &why
	}
	if c.Refused != nil {
		why := fmt.Sprintf("the database grants %d of the %d connections that --database-connections allows: %s", c.Granted, c.Most, oneLine(c.Refused.Error()))
		crowded = &why
	}
	r.unfound.Store(unfound)
	r.crowded.Store(crowded)
}

func oneLine(text string) string { return strings.ReplaceAll(text, "\n", "; ") }

// newOpsServer returns the server of the operators' listener. Profiles end with ctx.
func newOpsServer(ctx context.Context, c config.Config, ready *readiness, log *slog.Logger, metrics *prometheus.Registry) *http.Server {
	handler := newOps(metrics, ready)
	if c.Pprof {
		handler = withPprof(ctx, handler)
	}
	return newGuestServer(handler, newGuests(maxGuests), log)
}

// newOps returns the handler of the operators' listener: /metrics, /healthz (the process is alive)
// and /readyz (it has started and is not stopping; its text reports the lease).
func newOps(registry *prometheus.Registry, ready *readiness) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "ok\n")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		if ready.ready.Load() {
			io.WriteString(w, "ready\n")
		} else {
			w.WriteHeader(http.StatusServiceUnavailable)
			io.WriteString(w, ready.starts())
		}
		if why := ready.lost.Load(); why != nil {
			fmt.Fprintf(w, "no lease, so checks are answered with 503: %s\n", oneLine(*why))
		}
		if why := ready.unrecorded.Load(); why != nil {
			fmt.Fprintf(w, "no changes can be made: %s\n", oneLine(*why))
		}
		for _, problem := range []*atomic.Pointer[string]{&ready.unfound, &ready.crowded, &ready.unreported} {
			if why := problem.Load(); why != nil {
				fmt.Fprintln(w, *why)
			}
		}
	})
	return mux
}

// AskReady requests /readyz from the operators' listener of a service with this configuration, and
// returns its text: a service without a lease is ready, but its text reports that.
func AskReady(ctx context.Context, c config.Config) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	scheme, secure, err := readyTLS(c)
	if err != nil {
		return "", err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+c.ListenOps+"/readyz", nil)
	if err != nil {
		return "", err
	}
	response, err := (&http.Transport{TLSClientConfig: secure, DisableKeepAlives: true}).RoundTrip(request) // no proxy
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return "", errors.New(response.Status)
	}
	answer, err := io.ReadAll(io.LimitReader(response.Body, 4<<10))
	return string(answer), err
}

// readyTLS returns how to reach the operators' listener. The question holds no secret and the answer
// is about the own process, whose certificate need not be for the address that it listens on: it is
// not verified. Where callers must show a certificate, that is the port's own.
func readyTLS(c config.Config) (scheme string, _ *tls.Config, _ error) {
	files := c.TLS["ops"]
	if !files.On() {
		return "http", nil, nil
	}
	secure := &tls.Config{InsecureSkipVerify: true}
	if files.ClientCA != "" {
		own, err := tls.LoadX509KeyPair(files.Cert, files.Key)
		if err != nil {
			return "", nil, err
		}
		secure.Certificates = []tls.Certificate{own}
	}
	return "https", secure, nil
}

func newMetrics() *prometheus.Registry {
	v := BuildVersion()
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "keyporter_build_info",
		Help:        "1; the labels say what was built.",
		ConstLabels: prometheus.Labels{"version": v.Version, "commit": v.Commit, "go": v.Go},
	})
	info.Set(1)
	registry := prometheus.NewRegistry()
	registry.MustRegister(info, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return registry
}

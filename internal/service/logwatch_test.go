package service

import (
	"context"
	"log/slog"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyporter/keyporter/internal/config"
	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// If no Envoy reports completions, an operator is warned once after a minute, on /readyz, which
// stays 200, and in a metric, until one does. With several replicas each waits longer, because an
// Envoy reports to one at a time.
func TestAMissingAccessLogIsTold(t *testing.T) {
	for _, row := range []struct {
		name     string
		replicas int
		entries  bool
		after    time.Duration
		says     string
	}{
		{"alone", 1, false, time.Minute, "--part access-log"},
		{"entries without our metadata", 1, true, time.Minute, "of other requests"},
		{"three replicas", 3, false, 15 * time.Minute, "--part access-log"},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				var told atomic.Bool
				var logs partstest.Buffer
				registry := prometheus.NewRegistry()
				ready := &readiness{}
				ready.ready.Store(true)
				w := newLogWatch(config.Config{}, logWatch{
					unreported: func() (time.Duration, bool) {
						if told.Load() {
							return 0, false
						}
						return time.Since(began), row.entries
					},
					replicas: func() int { return row.replicas }, ready: ready, log: slog.New(slog.NewJSONHandler(&logs, nil)),
				}, registry)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				go w.follow(ctx)
				expect := func(missing bool) {
					t.Helper()
					synctest.Wait()
					answer := httptest.NewRecorder()
					newOps(registry, ready).ServeHTTP(answer, httptest.NewRequest("GET", "/readyz", nil))
					if text := answer.Body.String(); answer.Code != 200 || strings.Contains(text, row.says) != missing || !missing && text != "ready\n" {
						t.Errorf("/readyz: %d %q, missing: %v", answer.Code, text, missing)
					}
					families, err := registry.Gather()
					if err != nil || len(families) != 1 || (families[0].GetMetric()[0].GetGauge().GetValue() == 1) != missing {
						t.Errorf("the metric is %v, %v", families, err)
					}
				}
				time.Sleep(row.after - logWatchInterval)
				expect(false)
				time.Sleep(2 * time.Hour)
				expect(true)
				if lines := strings.Count(logs.String(), "\n"); lines != 1 || !strings.Contains(logs.String(), `"level":"WARN"`) || !strings.Contains(logs.String(), `"charges_since":"`) || !strings.Contains(logs.String(), row.says) {
					t.Errorf("%d lines were logged, want one:\n%s", lines, logs.String())
				}
				told.Store(true)
				time.Sleep(time.Hour)
				expect(false)
				if lines := strings.Count(logs.String(), "\n"); lines != 2 || !strings.Contains(logs.String(), `"level":"INFO"`) {
					t.Errorf("%d lines were logged, want one more:\n%s", lines, logs.String())
				}
			})
		})
	}
}

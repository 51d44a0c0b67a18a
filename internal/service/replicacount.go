package service

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// replicaCount counts the live replicas. Rate limits are divided by it unless Valkey counts for all
// replicas.
type replicaCount struct {
	ask           func(context.Context) (int, error) // counts the live replicas
	log           *slog.Logger
	shared, meant bool // Valkey counts for all replicas; an operator wants them divided
	live          atomic.Int64

	// Only the goroutine of follow uses the fields below.
	logged int       // the count logged last; initially one
	since  time.Time // when the count began to differ; zero: it does not
}

func newReplicaCount(r *replicaCount, metrics prometheus.Registerer) *replicaCount {
	meant := promauto.With(metrics).NewGauge(prometheus.GaugeOpts{
		Name: "keyporter_ratelimit_share_meant",
		Help: "1 where --rate-limit-share says that replicas are meant to divide rate limits.",
	})
	if r.meant {
		meant.Set(1)
	}
	r.logged = 1
	return r
}

// count returns the latest known number of live replicas, at least one.
func (r *replicaCount) count() int { return int(max(1, r.live.Load())) }

// Times for looking at the list of replicas.
const (
	countInterval = time.Second
	countTimeout  = time.Second
	// lasting is how long another number must last before it is logged: in a rolling update, the
	// old and the new replica are both alive for a moment.
	lasting = 30 * time.Second
)

// follow refreshes the count until ctx ends.
func (r *replicaCount) follow(ctx context.Context) {
	tick := time.NewTicker(countInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			r.refresh(ctx)
			r.note(time.Now())
		case <-ctx.Done():
			return
		}
	}
}

// refresh counts the replicas once. While the database is unreachable, the count stays the same.
func (r *replicaCount) refresh(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, countTimeout)
	defer cancel()
	// on an error, the lease reports that the database is unreachable
	if live, err := r.ask(ctx); err == nil {
		r.live.Store(int64(live))
	}
}

// note logs a lasting change of the number that divides the limits.
func (r *replicaCount) note(at time.Time) {
	now := r.count()
	switch {
	case r.shared || now == r.logged:
		r.since = time.Time{}
		return
	case r.since.IsZero():
		r.since = at
	}
	if at.Sub(r.since) < lasting {
		return
	}
	r.logged, r.since = now, time.Time{}
	level, text := slog.LevelWarn, "each replica admits its share of every rate limit, and may refuse early: set --redis and they count together, "+
		"or --rate-limit-share if that is meant"
	if r.meant {
		level, text = slog.LevelInfo, "each replica admits its share of every rate limit"
	}
	if now == 1 {
		level, text = slog.LevelInfo, "rate limits are exact: there is one replica"
	}
	r.log.Log(context.Background(), level, text, "replicas", now)
}

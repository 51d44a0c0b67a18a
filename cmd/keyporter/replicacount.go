package main

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// replicaCount knows how many replicas are alive, by which rate limits are divided where nobody counts for
// all of them.
type replicaCount struct {
	ask           func(context.Context) (int, error) // counts those that live
	log           *slog.Logger
	shared, meant bool // Valkey counts for all; an operator has said that a share is meant
	live          atomic.Int64

	// What follows belongs to the goroutine of follow.
	told  int       // what the log has said last; one at first
	since time.Time // when another number was first seen; zero: it is that one
}

func newReplicaCount(r *replicaCount, metrics prometheus.Registerer) *replicaCount {
	meant := promauto.With(metrics).NewGauge(prometheus.GaugeOpts{
		Name: "keyporter_ratelimit_share_meant",
		Help: "1 where --rate-limit-share says that replicas are meant to divide rate limits.",
	})
	if r.meant {
		meant.Set(1)
	}
	r.told = 1
	return r
}

// count returns how many replicas were alive when that was last seen, at least one.
func (r *replicaCount) count() int { return int(max(1, r.live.Load())) }

// The times of a look at the list of replicas.
const (
	countInterval = time.Second
	countTimeout  = time.Second
	// lasting is how long another number is seen before the log tells: while replicas are replaced
	// one after the other, the old one and the new one are both alive for a moment.
	lasting = 30 * time.Second
)

// follow looks at the list again and again until ctx ends.
func (r *replicaCount) follow(ctx context.Context) {
	tick := time.NewTicker(countInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			r.refresh(ctx)
			r.tell(time.Now())
		case <-ctx.Done():
			return
		}
	}
}

// refresh looks at the list once. Without the database the count stays what it was.
func (r *replicaCount) refresh(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, countTimeout)
	defer cancel()
	if live, err := r.ask(ctx); err == nil { // else the lease reports that the database is unreachable
		r.live.Store(int64(live))
	}
}

// tell says by how many replicas limits are divided when that has changed and lasts.
func (r *replicaCount) tell(at time.Time) {
	now := r.count()
	switch {
	case r.shared || now == r.told:
		r.since = time.Time{}
		return
	case r.since.IsZero():
		r.since = at
	}
	if at.Sub(r.since) < lasting {
		return
	}
	r.told, r.since = now, time.Time{}
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

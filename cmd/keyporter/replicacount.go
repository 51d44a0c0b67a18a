package main

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/keyporter/keyporter/store"
)

// replicaCount knows how many replicas are alive, by which rate limits are divided where nobody counts for
// all of them.
type replicaCount struct {
	db            *store.DB
	log           *slog.Logger
	shared, meant bool // Valkey counts for all; an operator has said that a share is meant
	live          atomic.Int64
}

// count returns how many replicas were alive when that was last seen, at least one.
func (r *replicaCount) count() int { return int(max(1, r.live.Load())) }

// The times of a look at the list of replicas.
const (
	countInterval = time.Second
	countTimeout  = time.Second
)

// follow looks at the list again and again until ctx ends.
func (r *replicaCount) follow(ctx context.Context) {
	tick := time.NewTicker(countInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			r.refresh(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// refresh looks at the list once. Without the database the count stays what it was.
func (r *replicaCount) refresh(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, countTimeout)
	defer cancel()
	live, err := r.db.LiveReplicas(ctx)
	if err != nil {
		return // the lease tells that the database is away
	}
	before := r.count()
	r.live.Store(int64(live))
	if now := r.count(); now != before && !r.shared {
		r.tell(now)
	}
}

func (r *replicaCount) tell(now int) {
	level, text := slog.LevelWarn, "each replica admits its share of every rate limit, and may refuse early: with --redis they count together"
	if r.meant {
		level = slog.LevelInfo
	}
	if now == 1 {
		level, text = slog.LevelInfo, "rate limits are exact: there is one replica"
	}
	r.log.Log(context.Background(), level, text, "replicas", now)
}

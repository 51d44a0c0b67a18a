package service

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyporter/keyporter/credits"
	"github.com/keyporter/keyporter/internal/config"
	"github.com/keyporter/keyporter/meter"
	"github.com/keyporter/keyporter/ratelimit"
	"github.com/keyporter/keyporter/receipt"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/feed"
	"github.com/keyporter/keyporter/store/lease"
	"github.com/keyporter/keyporter/store/ledger"
)

// meters counts the requests and the credits of users.
type meters struct {
	credits  *credits.Allocator
	replicas *replicaCount
	limiter  *ratelimit.Shared
	rateLog  *rateLog // nil: Valkey keeps the requests over a restart
	signer   *receipt.Signer
	meter    *meter.Meter
}

func newMeters(ctx context.Context, c config.Config, db *store.DB, replica *replica, log *slog.Logger, metrics *prometheus.Registry) (*meters, error) {
	charges := ledger.New(db)
	signer, err := newSigner(ctx, charges)
	if err != nil {
		return nil, err
	}
	allocator := credits.New(credits.Config{
		Ledger: charges, Replica: replica.registry.ID, Recalls: replica.recalls, Clock: lease.BootClock, Log: log, Metrics: metrics,
	})
	replicas := newReplicaCount(&replicaCount{ask: feed.New(db).LiveReplicas, log: log, shared: c.Redis != "", meant: c.RateLimitShare}, metrics)
	limiter, err := newLimiter(c, replicas, log, metrics)
	if err != nil {
		return nil, err
	}
	limiter.Connect(ctx)
	kept := newRateLog(c, db, limiter, log)
	joined := meter.New(meter.Config{Limiter: limiter, Credits: allocator, Signer: signer})
	return &meters{allocator, replicas, limiter, kept, signer, joined}, nil
}

func (m *meters) close() { m.limiter.Close() }

// newSigner returns the signer of charges, with the secrets that the migrations made.
func newSigner(ctx context.Context, charges *ledger.Ledger) (*receipt.Signer, error) {
	upstream, log, err := charges.ChargeSecrets(ctx)
	if err != nil {
		return nil, err
	}
	return receipt.NewSigner(receipt.Secrets{ID: upstream, Receipt: log})
}

// newLimiter returns the counter of requests; with --redis all replicas count together.
func newLimiter(c config.Config, replicas *replicaCount, log *slog.Logger, registry *prometheus.Registry) (*ratelimit.Shared, error) {
	shared := ratelimit.SharedConfig{Replicas: replicas.count, Strict: c.RateLimitStrict, Log: log, Metrics: registry}
	if c.Redis != "" {
		valkey, err := ratelimit.NewValkey(c.Redis)
		if err != nil {
			return nil, fmt.Errorf("--redis: %w", err)
		}
		shared.Valkey = valkey
	}
	return ratelimit.NewShared(shared), nil
}

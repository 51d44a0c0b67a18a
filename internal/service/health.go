package service

import (
	"context"
	"log/slog"
	"time"

	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/lease"
)

// unhealthyAfter is how long a replica may lack a lease before the health checks fail. Envoy treats
// our 503 as an answer, so it does not try another replica after one.
const unhealthyAfter = time.Second

// health keeps the health checks, /readyz and the log up to date.
type health struct {
	lease      *lease.Lease
	life       time.Duration // of the lease
	db         *store.DB
	ready      *readiness
	setServing func(bool) // sets the state of the health checks
	log        *slog.Logger
}

// follow updates the health checks: they need a lease and working look-ups of keys. In an outage of
// the database both fail at the same time; until then, cached keys are answered.
func (h *health) follow(ctx context.Context) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	serving, crowded := true, false
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		left, connections := h.lease.Left(), h.db.Connections()
		h.ready.setLease(left > 0, h.lease.Problem())
		h.ready.setConnections(connections)
		if now := connections.Refused != nil; now != crowded {
			crowded = now
			h.logCrowded(connections)
		}
		leased, found := left > -unhealthyAfter, connections.Failing < h.life+unhealthyAfter
		if now := leased && found; now != serving {
			serving = now
			h.setServing(serving)
			h.note(leased, found, connections.Problem)
		}
	}
}

// note logs the new state of the health checks.
func (h *health) note(leased, found bool, problem error) {
	switch {
	case leased && found:
		h.log.Info("health checks pass again")
	case !leased:
		h.log.Warn("health checks fail, so that Envoy asks other replicas: this one has no lease", "error", h.lease.Problem())
	default:
		h.log.Warn("health checks fail, so that Envoy asks other replicas: this one cannot look up keys", "error", problem)
	}
}

func (h *health) logCrowded(c store.Connections) {
	if c.Refused == nil {
		h.log.Info("the database grants as many connections as this replica may open, or has not refused one again")
		return
	}
	h.log.Warn("the database grants fewer connections than this replica may open, which goes on with those: raise the limit of its role "+
		"or of the server, or lower --database-connections", "granted", c.Granted, "wanted", c.Most, "error", c.Refused)
}

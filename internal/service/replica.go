package service

import (
	"context"
	"log/slog"
	"os"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/credits"
	"github.com/keyporter/keyporter/internal/config"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/cache"
	"github.com/keyporter/keyporter/store/directory"
	"github.com/keyporter/keyporter/store/feed"
	"github.com/keyporter/keyporter/store/lease"
)

// replica is this process as one of several: its entry on their list, its lease, the answers that
// it gives from memory under the lease, and the recalls of credits that it hears of.
type replica struct {
	recalls  credits.Recalls
	registry *feed.Registry
	lease    *lease.Lease
	caches   *caches
}

func newReplica(c config.Config, db *store.DB, log *slog.Logger, metrics prometheus.Registerer) (*replica, error) {
	recalls := credits.NewRecalls()
	registry, err := feed.NewRegistry(db, feed.Replica{
		Routes: c.RoutesHash(), Name: hostName(), Address: c.Advertised(hostName()), Version: BuildVersion().Version,
		Life: c.Lease, Log: log, Recall: recalls.Announce,
	})
	if err != nil {
		return nil, err
	}
	lookups := directory.NewLookups(db)
	// Guesses at imported keys occupy a third of the connections for look-ups, if the list of these
	// keys cannot tell.
	known := cache.NewKnown(cache.KnownConfig{
		Read: lookups.EachImported, Unknown: authz.ErrUnknown, Turns: store.DivideConnections(c.DatabaseConnections).Lookups() / 3, Log: log, Metrics: metrics,
	})
	held := lease.New(lease.Config{Registry: registry, Life: c.Lease, OnImported: known.Announce, Log: log, Metrics: metrics})
	r := &replica{recalls, registry, held, newCaches(lookups, known, held, c.CacheSize, metrics)}
	r.follow(&c)
	return r, nil
}

// follow lists the imported keys, if the route table has formats for them.
func (r *replica) follow(c *config.Config) {
	if len(c.KeyFormats) > 0 {
		r.caches.known.Want()
	}
}

func (r *replica) close() {
	r.caches.close()
	r.registry.Close()
}

// watch follows the changes in the database until ctx ends.
func (r *replica) watch(ctx context.Context) { r.registry.Watch(ctx, r.lease.Notify) }

// hostName returns the name of this machine or pod, for the list of replicas.
func hostName() string {
	name, err := os.Hostname()
	if err != nil {
		return "unknown"
	}
	return name
}

package service

import (
	"context"
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/store/cache"
	"github.com/keyporter/keyporter/store/directory"
	"github.com/keyporter/keyporter/store/lease"
)

// caches answer look-ups from memory under the lease.
type caches struct {
	keys, sessions, imported *cache.Cache[apikey.Digest, authz.Principal]
	subjects                 *cache.Cache[string, authz.Principal]
	known                    *cache.Known // of the imported keys
}

func newCaches(lookups *directory.Lookups, known *cache.Known, lease *lease.Lease, size int, metrics prometheus.Registerer) *caches {
	return &caches{
		known: known,
		keys: cache.New(cache.Config[apikey.Digest, authz.Principal]{
			Name: "keys", Find: resolveKey(lookups), Negative: isNo, Lease: lease, Size: size, Metrics: metrics,
		}),
		imported: cache.New(cache.Config[apikey.Digest, authz.Principal]{
			Name: "imported", Find: resolveImported(lookups), Negative: isNo, Lease: lease, Size: size, Metrics: metrics,
			Admit: func(ctx context.Context, d apikey.Digest) (func(), error) { return known.Admit(ctx, directory.Mark(d)) },
		}),
		sessions: cache.New(cache.Config[apikey.Digest, authz.Principal]{
			Name: "sessions", Find: resolveSession(lookups), Negative: isNo, Lease: lease, Size: size, Metrics: metrics,
		}),
		subjects: cache.New(cache.Config[string, authz.Principal]{
			Name: "subjects", Find: resolveSubject(lookups), Negative: isNo, Lease: lease, Size: size, Metrics: metrics,
		}),
	}
}

func (c *caches) close() {
	c.subjects.Close()
	c.sessions.Close()
	c.imported.Close()
	c.keys.Close()
}

func resolveKey(lookups *directory.Lookups) func(context.Context, apikey.Digest) (cache.Found[authz.Principal], error) {
	return func(ctx context.Context, d apikey.Digest) (found cache.Found[authz.Principal], err error) {
		found.Value, found.Origin, err = lookups.ResolveKey(ctx, d)
		return found, err
	}
}

func resolveImported(lookups *directory.Lookups) func(context.Context, apikey.Digest) (cache.Found[authz.Principal], error) {
	return func(ctx context.Context, d apikey.Digest) (found cache.Found[authz.Principal], err error) {
		found.Value, found.Origin, err = lookups.ResolveImported(ctx, d)
		return found, err
	}
}

func resolveSession(lookups *directory.Lookups) func(context.Context, apikey.Digest) (cache.Found[authz.Principal], error) {
	return func(ctx context.Context, d apikey.Digest) (found cache.Found[authz.Principal], err error) {
		found.Value, found.Origin, found.Expires, err = lookups.ResolveSession(ctx, d)
		return found, err
	}
}

func resolveSubject(lookups *directory.Lookups) func(context.Context, string) (cache.Found[authz.Principal], error) {
	return func(ctx context.Context, subject string) (found cache.Found[authz.Principal], err error) {
		found.Value, found.Origin, err = lookups.ResolveSubject(ctx, subject)
		return found, err
	}
}

// isNo reports whether the error of a look-up is a definite answer, which may be cached for a
// moment.
func isNo(err error) bool {
	return errors.Is(err, authz.ErrUnknown) || errors.Is(err, authz.ErrRevoked)
}

package cache_test

import (
	"context"
	"log/slog"
	"testing"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/store/cache"
	"github.com/keyporter/keyporter/store/lease"
)

var ada = authz.Principal{KeyID: "key_1", User: "ada", Account: "acme", Plan: "pro", UserActive: true, AccountActive: true, APIAccess: true}

func warm(tb testing.TB) *cache.Cache[apikey.Digest, authz.Principal] {
	registry := newDatabase(tb.Errorf)
	origin := lease.Origin{Epoch: registry.newest(), User: ada.User, Account: ada.Account, Plan: ada.Plan}
	l := lease.New(lease.Config{Registry: registry, Log: slog.New(slog.DiscardHandler)}) // on the clock of the machine
	tb.Cleanup(keep(l))
	c := cache.New(cache.Config[apikey.Digest, authz.Principal]{
		Lease: l,
		Find: func(context.Context, apikey.Digest) (cache.Found[authz.Principal], error) {
			return cache.Found[authz.Principal]{Value: ada, Origin: origin}, nil
		},
	})
	tb.Cleanup(c.Close)
	if got, err := c.Find(tb.Context(), apikey.Digest{1}); err != nil || got != ada {
		tb.Fatal(got, err)
	}
	return c
}

// A hit allocates nothing.
func TestAHitAllocatesNothing(t *testing.T) {
	c, ctx := warm(t), t.Context()
	if n := testing.AllocsPerRun(1000, func() { c.Find(ctx, apikey.Digest{1}) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkHit(b *testing.B) {
	c, ctx := warm(b), b.Context()
	b.ReportAllocs()
	for b.Loop() {
		c.Find(ctx, apikey.Digest{1})
	}
}

func BenchmarkHitParallel(b *testing.B) {
	c, ctx := warm(b), b.Context()
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			c.Find(ctx, apikey.Digest{1})
		}
	})
}

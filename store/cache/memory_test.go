package cache_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"runtime"
	"testing"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/store/cache"
	"github.com/keyporter/keyporter/store/lease"
)

// The memory of a cached key, of a user with an account of their own.
func TestMemoryOfACachedKey(t *testing.T) {
	const keys = 50_000
	registry := newDatabase(t.Errorf)
	l := lease.New(lease.Config{Registry: registry, Log: slog.New(slog.DiscardHandler)})
	t.Cleanup(keep(l))
	c := cache.New(cache.Config[apikey.Digest, authz.Principal]{Lease: l, Size: keys, Find: func(_ context.Context, d apikey.Digest) (cache.Found[authz.Principal], error) {
		n := binary.LittleEndian.Uint64(d[:])
		p := authz.Principal{
			KeyID: fmt.Sprintf("key_%016x", n), User: fmt.Sprint("user-", n), Account: fmt.Sprint("account-", n), Plan: "pro",
			UserActive: true, AccountActive: true, APIAccess: true,
		}
		return cache.Found[authz.Principal]{Value: p, Origin: lease.Origin{Epoch: registry.newest(), User: p.User, Account: p.Account, Plan: p.Plan}}, nil
	}})
	t.Cleanup(c.Close)
	before := heap()
	for n := range uint64(keys) {
		var d apikey.Digest
		binary.LittleEndian.PutUint64(d[:], n)
		if _, err := c.Find(t.Context(), d); err != nil {
			t.Fatal(err)
		}
	}
	each := (heap() - before) / keys
	t.Logf("a cached key takes %d bytes", each)
	if each > 512 {
		t.Error("that is more than 512")
	}
	runtime.KeepAlive(c)
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

package meter_test

import (
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/credits"
	"github.com/keyporter/keyporter/credits/ledgertest"
	"github.com/keyporter/keyporter/internal/parts/partstest"
	"github.com/keyporter/keyporter/meter"
	"github.com/keyporter/keyporter/ratelimit"
	"github.com/keyporter/keyporter/receipt"
	"github.com/keyporter/keyporter/usage"
)

// signer signs with secrets of its own.
func signer(t testing.TB) *receipt.Signer {
	t.Helper()
	secret := make([]byte, receipt.MinSecret)
	s, err := receipt.NewSigner(receipt.Secrets{ID: [][]byte{secret}, Receipt: [][]byte{secret}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// populations are the users in the benchmarks: many at 60 a minute, or one on a big plan.
var populations = []struct {
	name  string
	users int
	rate  usage.Limit
}{{"200,000 users at 60 a minute", 200_000, 60}, {"one user without a rate limit", 1, usage.Unlimited}, {"one user at 10,000 a minute", 1, 10_000}}

// BenchmarkTake measures a whole charge: the credit, the rate log, the signed names.
func BenchmarkTake(b *testing.B) {
	for _, population := range populations {
		b.Run("in memory/"+population.name, func(b *testing.B) {
			benchmarkTake(b, population.users, population.rate, ratelimit.NewMemory(nil))
		})
		b.Run("in Valkey/"+population.name, func(b *testing.B) {
			valkey, err := ratelimit.NewValkey("redis://" + partstest.Valkey(b).Addr())
			if err != nil {
				b.Fatal(err)
			}
			shared := ratelimit.NewShared(ratelimit.SharedConfig{Valkey: valkey})
			defer shared.Close()
			shared.Connect(b.Context())
			benchmarkTake(b, population.users, population.rate, shared)
		})
	}
}

func benchmarkTake(b *testing.B, users int, rate usage.Limit, limiter meter.Limiter) {
	bank := ledgertest.New(1 << 40)
	bank.Unaudited = true
	held, _ := bank.Start(b, nil) // stopped after the measurement
	m := meter.New(meter.Config{Limiter: limiter, Credits: held, Signer: signer(b)})
	principals := make([]*authz.Principal, users)
	for i := range principals {
		principals[i] = principal(fmt.Sprint("user", i), "acme", usage.PoolUser, usage.Unlimited)
		principals[i].RateLimit = rate
	}
	partstest.Eventually(b, "the month is known", func() bool {
		_, result := held.TrySpend(spenderOf(principals[0]), 1)
		return result == credits.Spent
	})
	for _, p := range principals {
		held.TrySpend(spenderOf(p), 1)
	}
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for i := uint64(time.Now().UnixNano()); pb.Next(); i++ {
			p := principals[(i*2654435761)%uint64(users)]
			if _, _, err := m.Take(b.Context(), authz.Use{Principal: *p, Request: strconv.FormatUint(i, 36), CallerTimeout: 250 * time.Millisecond, Cost: 1}); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// A user with 60 requests in the last minute, and with credits, needs bounded memory.
func TestMemoryOfAnActiveUser(t *testing.T) {
	const users = 4_000
	bank := ledgertest.New(1 << 40)
	bank.Unaudited = true
	held, stop := bank.Start(t, nil)
	defer stop()
	var now atomic.Int64
	limiter := ratelimit.NewMemory(func() time.Duration { return time.Duration(now.Load()) })
	before := heap()
	for range 60 {
		now.Add(int64(time.Second))
		for i := range users {
			id := strconv.FormatInt(now.Load()+int64(i), 36)
			limiter.Admit(t.Context(), ratelimit.Attempt{
				User: fmt.Sprint("user", i), ID: id, Limit: 60, Window: time.Minute, CallerTimeout: 250 * time.Millisecond,
				Charge: ratelimit.ChargeRef{Name: id + strings.Repeat("-", 100), Number: 1},
			})
		}
	}
	log := heap() - before
	before = heap()
	for i := range users {
		p := &credits.Spender{User: fmt.Sprint("user", i), Account: "acme", Limit: usage.Unlimited}
		if _, result := held.TrySpend(p, 1); result != credits.Spent {
			if _, result, err := held.Spend(t.Context(), p, 1); result != credits.Spent {
				t.Fatal(result, err)
			}
		}
	}
	wallets := heap() - before
	t.Logf("an active user takes %d bytes for the rate log with the names of the last requests, %d for the credits", log/users, wallets/users)
	if log/users > 2048 || wallets/users > 1024 {
		t.Error("that is too much")
	}
	runtime.KeepAlive(limiter)
	runtime.KeepAlive(held)
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

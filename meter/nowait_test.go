package meter_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/credits/ledgertest"
	"github.com/keyporter/keyporter/meter"
	"github.com/keyporter/keyporter/nowait"
	"github.com/keyporter/keyporter/ratelimit"
	"github.com/keyporter/keyporter/usage"
)

// limiter is a log in memory with faults. One that is named waits, as if it asked Valkey.
type limiter struct {
	*ratelimit.Memory
	named  bool
	admits int    // the number of calls of Admit
	fault  string // of the next call of Admit: "", "error" or "panic"
	stands bool   // credits were reserved when it panicked
}

func (l *limiter) Named() bool { return l.named }

func (l *limiter) Admit(ctx context.Context, a ratelimit.Attempt) (ratelimit.Verdict, error) {
	l.admits++
	fault := l.fault
	l.fault = ""
	switch fault {
	case "error":
		return ratelimit.Verdict{}, errors.New("the limiter fails")
	case "panic":
		l.stands = a.Charge.Number != 0
		panic("the limiter panics")
	}
	if l.named && nowait.Err(ctx) != nil {
		return ratelimit.Verdict{}, nowait.ErrWouldWait
	}
	return l.Memory.Admit(ctx, a)
}

// Where the ledger or Valkey has to be asked, a Take that may not wait asks nobody, counts nothing
// and reserves nothing, so that no name of a charge gets known either.
func TestATakeThatMayNotWait(t *testing.T) {
	for name, test := range map[string]struct{ named, stocked bool }{
		"only the ledger knows": {false, false}, "the limiter waits": {true, true}, "both": {true, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := ledgertest.New(1000)
				c, _ := b.Start(t, nil)
				synctest.Wait()
				ada := principal("ada", "acme", usage.PoolUser, 1000)
				ada.RateLimit = 60
				used := int64(0)
				if test.stocked {
					used++
					pay(t.Context(), c, ada, 1)
					time.Sleep(2 * time.Second) // it is reported, and the rest is in stock
				}
				l := &limiter{Memory: ratelimit.NewMemory(nil), named: test.named}
				m := meter.New(meter.Config{Limiter: l, Credits: c, Signer: signer(t)})
				take := authz.Use{Principal: *ada, Request: "r", Cost: 1}
				reports, began := b.Reports(), time.Now()
				charge, reason, err := m.Take(nowait.Context(t.Context()), take)
				synctest.Wait()
				if charge != (usage.Charge{}) || reason != authz.Undecided || err != nowait.ErrWouldWait || time.Since(began) != 0 {
					t.Errorf("%+v, %v, %v after %v", charge, reason, err, time.Since(began))
				}
				if l.admits != 0 || l.Users() != 0 || b.Reports() != reports {
					t.Errorf("the limiter was asked %d times, the log has %d users, the ledger was asked %d times", l.admits, l.Users(), b.Reports()-reports)
				}
				charge, reason, err = m.Take(nowait.Repetition(t.Context()), take)
				if reason != authz.Allowed || err != nil || charge.Credits.Used != used+1 || charge.Rate.Remaining != 59 {
					t.Errorf("repeated: %+v, %v, %v", charge, reason, err)
				}
			})
		})
	}
}

// A Take that may not wait decides from memory: it allows and charges, or refuses.
func TestATakeThatNeedNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := ledgertest.New(1000)
		m, _, _ := charged(t, b, 1)
		ada := principal("ada", "acme", usage.PoolUser, 1000)
		ada.RateLimit = 1
		for _, want := range []authz.Reason{authz.Allowed, authz.RateLimited} {
			if _, reason, err := m.Take(nowait.Context(t.Context()), authz.Use{Principal: *ada, Cost: 1}); reason != want || err != nil {
				t.Errorf("%v, %v, want %v", reason, err, want)
			}
		}
	})
}

// A request over the rate limit is refused without waiting, also if only the ledger knows the
// user's credits. Otherwise each refusal of a flood would wait in a goroutine of its own.
func TestARefusalByTheRateLimitNeedNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := ledgertest.New(1000)
		c, _ := b.Start(t, nil)
		synctest.Wait()
		m := meter.New(meter.Config{Limiter: ratelimit.NewMemory(nil), Credits: c, Signer: signer(t)})
		eve := principal("eve", "acme", usage.PoolUser, 1000)
		eve.RateLimit = 0
		reports := b.Reports()
		charge, reason, err := m.Take(nowait.Context(t.Context()), authz.Use{Principal: *eve, Request: "r", Cost: 1})
		synctest.Wait()
		if reason != authz.RateLimited || err != nil || charge.ID != "" || b.Reports() != reports {
			t.Errorf("%+v, %v, %v; the ledger was asked %d times", charge, reason, err, b.Reports()-reports)
		}
	})
}

// checks sends Checks as the server does, and keeps those that were allowed.
type checks struct {
	t       *testing.T
	meter   *meter.Meter
	limiter *limiter
	allowed map[string]int64 // request → cost
	stands  int64            // credits that a panic left charged
	counts  map[string]int   // outcome → how often
}

// check is one Check, tried without waiting and then repeated. An answer that comes late, or not at
// all, is voided.
func (c *checks) check(key string, u authz.Use) {
	defer func() {
		if recover() != nil {
			c.counts["panic"]++
			if c.limiter.stands {
				c.stands += u.Cost
			}
		}
	}()
	charge, reason, err := c.meter.Take(nowait.Context(c.t.Context()), u)
	if errors.Is(err, nowait.ErrWouldWait) {
		c.counts["repeated"]++
		if charge != (usage.Charge{}) {
			c.t.Errorf("a charge before it was repeated: %+v", charge)
		}
		ctx, cancel := context.WithTimeout(nowait.Repetition(c.t.Context()), rand.N(300*time.Millisecond))
		defer cancel()
		if charge, reason, err = c.meter.Take(ctx, u); err == nil {
			err = ctx.Err()
		}
	}
	switch {
	case err != nil || rand.N(8) == 0:
		c.counts["undecided"]++
		c.meter.Void(charge)
	case reason == authz.Allowed:
		c.counts["allowed"]++
		c.allowed[key] = u.Cost
	default:
		c.counts[reason.String()]++
	}
}

// Whatever fails at whichever step, a request that is first tried without waiting is charged once
// if it is allowed, and not otherwise. After a panic of the limiter, a fault of the program, the
// reserved credit stays charged.
func TestNothingIsChargedTwice(t *testing.T) {
	total := map[string]int{}
	for range 60 {
		synctest.Test(t, func(t *testing.T) {
			b := ledgertest.New(usage.Limit(20 + rand.N(200)))
			b.Delay = func() time.Duration { return rand.N(100 * time.Millisecond) }
			var down atomic.Bool
			b.Fails = down.Load
			credits, stop := b.Start(t, nil)
			synctest.Wait()
			l := &limiter{Memory: ratelimit.NewMemory(nil), named: rand.N(2) == 0}
			c := checks{t, meter.New(meter.Config{Limiter: l, Credits: credits, Signer: signer(t)}), l, map[string]int64{}, 0, total}
			ada := principal("ada", "acme", usage.PoolUser, b.Plan)
			ada.RateLimit, ada.RateWindow = usage.Limit(10+rand.N(100)), 24*time.Hour
			for i := range 80 {
				key := fmt.Sprint("request ", i)
				patience := []time.Duration{250 * time.Millisecond, 6 * time.Second, 10 * time.Second}[rand.N(3)]
				u := authz.Use{Principal: *ada, Request: key, CallerTimeout: patience, Cost: 1 + rand.Int64N(3)}
				again := rand.N(3)
				if rand.N(3) == 0 {
					u.Request, again = "", 0
				}
				for n := range 1 + again {
					if n > 0 && rand.N(3) == 0 {
						time.Sleep(rand.N(patience / 2)) // the connection breaks only then
					}
					down.Store(rand.N(4) == 0)
					l.fault = []string{"", "", "", "", "error", "panic"}[rand.N(6)]
					c.check(key, u)
					l.fault = ""
				}
				if rand.N(10) == 0 {
					time.Sleep(rand.N(20 * time.Second)) // credits that are not used are given back
				}
			}
			down.Store(false)
			stop()
			c.compare(b, ada)
		})
		if t.Failed() {
			return
		}
	}
	t.Logf("%v", total)
}

// compare compares the books with the allowed Checks.
func (c *checks) compare(b *ledgertest.Ledger, p *authz.Principal) {
	c.t.Helper()
	var want, used int64
	for _, cost := range c.allowed {
		want += cost
	}
	for pool, balance := range b.Pools {
		if pool.Kind == usage.PoolUser {
			used += balance.Used - balance.Refunded
		}
	}
	v, _ := c.limiter.Peek(c.t.Context(), ratelimit.Attempt{User: p.User, Limit: p.RateLimit, Window: p.RateWindow})
	if used != want+c.stands || v.Used != int64(len(c.allowed)) {
		c.t.Errorf("%d credits are charged, want %d and %d after panics; the log counts %d requests, want %d", used, want, c.stands, v.Used, len(c.allowed))
	}
	b.MustBalance(c.t)
}

package kubernetes_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// load is what clients do while replicas come and go: steady sends requests, turned replaces its
// key again and again, and thrifty spends its last credits.
type load struct {
	s       *stack
	front   string
	credits int // of thrifty, all in all

	asked, failed    atomic.Int64 // requests of all, and those that nobody decided
	passed           atomic.Int64 // requests of steady that passed
	replaced, oldKey atomic.Int64 // keys of turned, and refused requests with an old one
	sold             atomic.Int64 // requests of thrifty that passed
	refused          atomic.Int64 // requests of thrifty that found no credit

	stop    context.CancelFunc
	callers sync.WaitGroup
}

// startLoad returns once requests pass.
func startLoad(s *stack, front string) *load {
	s.t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	l := &load{s: s, front: front, stop: stop}
	s.t.Cleanup(func() { stop(); l.callers.Wait() })
	unlimited := []string{"--rate-limit", "unlimited", "--credits", "unlimited"}
	steady, turned := s.user("steady", unlimited...), s.user("turned", unlimited...)
	thrifty := s.user("thrifty", "--rate-limit", "unlimited", "--credits", "0")
	for range 3 {
		l.loop(ctx, func() { l.request(steady) })
		l.loop(ctx, func() { l.spend(thrifty) })
	}
	l.loop(ctx, func() { turned = l.replace(turned) })
	l.goesOn(s.t)
	return l
}

func (l *load) loop(ctx context.Context, again func()) {
	l.callers.Go(func() {
		for ctx.Err() == nil {
			again()
			time.Sleep(5 * time.Millisecond)
		}
	})
}

// ask sends a request with a key, and returns the status, which must be one of those wanted; 0: it
// failed, with 503 or without an answer.
func (l *load) ask(key string, wanted ...int) int {
	l.asked.Add(1)
	response, body, err := send(l.front, "GET", "/v1/a", "X-API-Key: "+key)
	if err != nil || response.StatusCode == 503 {
		l.failed.Add(1)
		return 0
	}
	if !slices.Contains(wanted, response.StatusCode) {
		l.s.t.Errorf("%d %s, want %d", response.StatusCode, body, wanted)
	}
	return response.StatusCode
}

func (l *load) request(key string) {
	if l.ask(key, 200) == 200 {
		l.passed.Add(1)
	}
}

func (l *load) spend(key string) {
	switch l.ask(key, 200, 429) {
	case 200:
		l.sold.Add(1)
	case 429:
		l.refused.Add(1)
	}
}

// replace uses a key, so that replicas know it, and replaces it: when the command has returned, no
// replica accepts the old one.
func (l *load) replace(key string) (fresh string) {
	for range 6 {
		l.ask(key, 200)
	}
	var made struct {
		Key       string
		Confirmed bool
	}
	l.s.decode(l.s.command("key", "regenerate", "turned", "--output", "json"), &made)
	if !made.Confirmed {
		l.s.t.Error("a new key is not confirmed")
	}
	for range 9 {
		if l.ask(key, 401) == 401 {
			l.oldKey.Add(1)
		}
	}
	l.replaced.Add(1)
	return made.Key
}

// sell gives thrifty some credits, which the replicas begin to sell.
func (l *load) sell(t *testing.T) {
	t.Helper()
	const some = 60
	before := l.sold.Load()
	l.credits += some
	l.s.command("credits", "grant", "thrifty", fmt.Sprint(some))
	eventually(t, "credits are sold", func() error {
		if l.sold.Load() < before+some/4 {
			return errors.New("too few")
		}
		return nil
	})
}

// goesOn waits until requests pass, a key was used and replaced, old ones are refused, and some are
// out of credits.
func (l *load) goesOn(t *testing.T) {
	t.Helper()
	passed, replaced, oldKey, refused := l.passed.Load(), l.replaced.Load(), l.oldKey.Load(), l.refused.Load()
	eventually(t, "requests pass, and keys are replaced", func() error {
		l.mustNotOversell(t)
		if l.passed.Load() < passed+100 || l.replaced.Load() < replaced+2 || l.oldKey.Load() < oldKey+9 || l.refused.Load() < refused+20 {
			return fmt.Errorf("%d, %d, %d, %d", l.passed.Load()-passed, l.replaced.Load()-replaced, l.oldKey.Load()-oldKey, l.refused.Load()-refused)
		}
		return nil
	})
}

// end ends the load. Nothing was oversold.
func (l *load) end(t *testing.T) {
	t.Helper()
	l.stop()
	l.callers.Wait()
	l.s.command("ledger", "verify")
	t.Logf("%d of %d requests failed; %d keys replaced, %d refused requests with an old one; %d credits sold of %d, %d requests without a credit",
		l.failed.Load(), l.asked.Load(), l.replaced.Load(), l.oldKey.Load(), l.sold.Load(), l.credits, l.refused.Load())
	l.mustNotOversell(t)
}

func (l *load) mustNotOversell(t *testing.T) {
	t.Helper()
	if sold := int(l.sold.Load()); sold > l.credits {
		t.Fatalf("%d credits were sold of %d", sold, l.credits)
	}
}

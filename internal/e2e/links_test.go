package e2e_test

import (
	"context"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// link is a network between one replica and PostgreSQL. Beside the faults of a proxy it loses
// notifications.
type link struct {
	*partstest.Proxy
	target string
	loss   atomic.Int64 // percentage of notifications that get lost
	lost   atomic.Int64 // notifications lost so far
}

// startLink starts a link to a server, without faults at first.
func startLink(t testing.TB, target string) *link {
	t.Helper()
	l := &link{target: target}
	l.Proxy = partstest.StartProxy(t, partstest.ProxyConfig{To: target, Filter: func(from io.Reader, up bool) io.Reader {
		if up {
			return from
		}
		return partstest.WithoutNotifications(from, l.loses)
	}})
	return l
}

// loses decides whether a notification gets lost.
func (l *link) loses() bool {
	lost := rand.Int64N(100) < l.loss.Load()
	if lost {
		l.lost.Add(1)
	}
	return lost
}

// through returns the URL of a database through the link.
func (l *link) through(database string) string {
	return strings.Replace(database, l.target, l.Addr(), 1)
}

// cut holds everything back, like a network that drops all packets.
func (l *link) cut() {
	l.Up.Hold.Store(true)
	l.Down.Hold.Store(true)
}

// heal ends every fault, and delivers data that was held back.
func (l *link) heal() {
	l.Heal()
	l.loss.Store(0)
}

// linkFaults are the faults of a link, with random parameters from r.
var linkFaults = map[string]func(l *link, r *rand.Rand){
	"none":      func(*link, *rand.Rand) {},
	"latency":   func(l *link, r *rand.Rand) { l.Up.Delay.Store(millis(r, 60)); l.Down.Delay.Store(millis(r, 60)) },
	"blackhole": func(l *link, _ *rand.Rand) { l.cut() },
	"reset":     func(l *link, _ *rand.Rand) { l.Break() },
	"refused":   func(l *link, _ *rand.Rand) { l.Refuse.Store(true); l.Break() },
	// Half-open: data of the other direction still arrives.
	"silent server":  func(l *link, _ *rand.Rand) { l.Down.Hold.Store(true) },
	"silent replica": func(l *link, _ *rand.Rand) { l.Up.Hold.Store(true) },
	"lossy":          func(l *link, r *rand.Rand) { l.loss.Store(1 + r.Int64N(50)) },
}

func millis(r *rand.Rand, most int64) int64 { return r.Int64N(most * int64(time.Millisecond)) }

// misbehave applies one fault after the other until ctx ends, and counts them. Each fault, and each
// pause between two, lasts at most longest. Half of the faults end with the loss of the data held
// back, the others with its late delivery.
func (l *link) misbehave(ctx context.Context, seed uint64, longest time.Duration, faults *counts) {
	r := rand.New(rand.NewPCG(seed, 0))
	names := sortedKeys(linkFaults)
	pause := func() {
		select {
		case <-time.After(time.Duration(r.Int64N(int64(longest)))):
		case <-ctx.Done():
		}
	}
	for ctx.Err() == nil {
		name := names[r.IntN(len(names))]
		linkFaults[name](l, r)
		faults.add(name)
		pause()
		if r.IntN(2) == 0 {
			l.Break()
		}
		l.heal()
		pause()
	}
}

// counts counts things by name.
type counts struct {
	mu sync.Mutex
	n  map[string]int
}

func (c *counts) add(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = map[string]int{}
	}
	c.n[name]++
}

func (c *counts) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []string
	for _, name := range sortedKeys(c.n) {
		all = append(all, fmt.Sprintf("%s %d", name, c.n[name]))
	}
	return strings.Join(all, ", ")
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/bench/load"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
	"github.com/keyporter/keyporter/usage"
)

// database asks once for each of many uncached keys, with a small and a large database, beside the
// same statement from this program.
func (g *growth) database(ctx context.Context) ([]*finding, error) {
	labels := counts(g.plan.database)
	missP50 := newFinding("keys in the database, not in memory: p50 alone", "µs", atMost(1.3), labels...)
	missP99 := newFinding("the same, p99", "µs", atMost(1.3), labels...)
	ownP50 := newFinding("the statement alone, from SQLite: p50", "µs", goal{}, labels...)
	ownP99 := newFinding("the same, p99", "µs", goal{}, labels...)
	extra := newFinding("p99 of the Check less p99 of the statement", "µs", below(1000), labels...)
	extra.apart = true
	var sources []*missSource
	for _, n := range g.plan.database {
		source, err := g.missSource(ctx, n)
		if err != nil {
			return nil, err
		}
		defer source.db.Close()
		sources = append(sources, source)
	}
	err := inTurn(ctx, g.plan.rounds, len(sources), func(ctx context.Context, i int) error {
		miss, err := g.ask(ctx, sources[i])
		if err != nil {
			return err
		}
		own, err := sources[i].statements(ctx, len(miss.Latencies))
		if err != nil {
			return err
		}
		add := func(f *finding, value float64) { f.steps[i].samples = append(f.steps[i].samples, value) }
		add(ownP50, micros(load.Quantile(own, 0.5)))
		add(ownP99, micros(load.Quantile(own, 0.99)))
		add(missP50, micros(miss.Quantile(0.5)))
		add(missP99, micros(miss.Quantile(0.99)))
		add(extra, micros(miss.Quantile(0.99)-load.Quantile(own, 0.99)))
		_, err = g.rest(ctx, sources[i].server)
		return err
	})
	return []*finding{missP50, missP99, ownP50, ownP99, extra}, err
}

// missSource is a database and a server that has read none of its keys.
type missSource struct {
	server *server
	db     *store.DB
	format *apikey.Format
	keys   []string // keys not asked for yet, in random order: the rows of neighbours are adjacent
}

func (g *growth) missSource(ctx context.Context, users int) (*missSource, error) {
	file, keys, err := g.crowded(ctx, users, "unlimited")
	if err != nil {
		return nil, err
	}
	rand.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
	m := &missSource{keys: keys}
	if m.format, err = formatOf(ctx, sqlite+file); err != nil {
		return nil, err
	}
	if m.server, err = g.serve(ctx, sqlite+file); err != nil {
		return nil, err
	}
	m.db, err = store.Open(ctx, store.Config{URL: sqlite + file})
	return m, err
}

// ask asks once for each of some keys, one after another, as many as in the plan or slightly more.
func (g *growth) ask(ctx context.Context, m *missSource) (all load.Result, err error) {
	config := g.asking(m.server, m.keys)
	config.Connections, config.Streams = 1, 1
	err = with(ctx, config, func(c *load.Checks) error {
		for len(all.Latencies) < g.plan.misses {
			result, err := c.Ask(ctx, 20*time.Millisecond)
			if err != nil {
				return err
			}
			all.Latencies = append(all.Latencies, result.Latencies...)
		}
		return nil
	})
	if err == nil && len(all.Latencies) > len(m.keys) {
		err = fmt.Errorf("asking once with each key: there are only %d", len(m.keys))
	}
	slices.Sort(all.Latencies)
	return all, err
}

// statements returns the duration of the look-up of each of the next keys, shortest first. It takes
// the keys that ask has just used, and removes them from the source.
func (m *missSource) statements(ctx context.Context, some int) ([]time.Duration, error) {
	var all []time.Duration
	for _, key := range m.keys[:some] {
		token, err := m.format.Parse(key)
		if err != nil {
			return nil, err
		}
		start := time.Now()
		if _, _, err := directory.NewLookups(m.db).ResolveKey(ctx, token.Digest()); err != nil {
			return nil, err
		}
		all = append(all, time.Since(start))
	}
	m.keys = m.keys[some:]
	slices.Sort(all)
	return all, nil
}

// half loads Keyporter and the empty server at half of each one's maximum, and at half of the empty
// server's.
func (g *growth) half(ctx context.Context) ([]*finding, error) {
	empty, err := g.start(ctx, "empty gRPC server", nil, g.emptyBinary)
	if err != nil {
		return nil, err
	}
	keyporter, err := g.serveCopy(ctx, g.base(), 0)
	if err != nil {
		return nil, err
	}
	servers := []*server{empty, keyporter}
	full, err := g.fullRates(ctx, servers)
	if err != nil {
		return nil, err
	}
	found, err := g.atRates(ctx, "each at half of its own rate", servers, []float64{full[0] / 2, full[1] / 2})
	if err != nil {
		return nil, err
	}
	same, err := g.atRates(ctx, "both at half of the empty one's rate", servers, []float64{full[0] / 2, full[0] / 2})
	if err != nil {
		return nil, err
	}
	seconds, err := keyporter.metric(ctx, `go_gc_duration_seconds{quantile="1"}`)
	pause := newFinding("longest pause of Keyporter's collector meanwhile", "µs", goal{}, "")
	pause.steps[0].samples = []float64{seconds * 1e6}
	return append(append(found, same...), pause), err
}

// fullRates returns the Checks per second that each server answers when it is kept busy.
func (g *growth) fullRates(ctx context.Context, servers []*server) ([]float64, error) {
	samples := make([][]float64, len(servers))
	err := inTurn(ctx, g.plan.rounds, len(servers), func(ctx context.Context, i int) error {
		rate, err := g.fullRate(ctx, servers[i])
		samples[i] = append(samples[i], rate)
		return err
	})
	var rates []float64
	for _, s := range samples {
		middle, _ := median(s)
		rates = append(rates, middle)
	}
	return rates, err
}

func (g *growth) fullRate(ctx context.Context, s *server) (rate float64, err error) {
	err = with(ctx, g.asking(s, g.keys), func(c *load.Checks) error {
		if _, err := c.Ask(ctx, g.plan.warm); err != nil {
			return err
		}
		result, err := c.Ask(ctx, g.plan.load)
		rate = result.PerSecond()
		return err
	})
	return rate, err
}

// atRates measures latencies at a steady rate.
func (g *growth) atRates(ctx context.Context, what string, servers []*server, rates []float64) ([]*finding, error) {
	var labels []string
	for i, s := range servers {
		labels = append(labels, fmt.Sprintf("%s at %.0fk/s", s.name, rates[i]/1000))
	}
	quantiles := []float64{0.5, 0.99, 0.999}
	found := []*finding{
		newFinding(what+": p50", "µs", goal{}, labels...),
		newFinding(what+": p99", "µs", goal{}, labels...),
		newFinding(what+": p99.9", "µs", atMost(2), labels...),
	}
	err := inTurn(ctx, g.plan.rounds, len(servers), func(ctx context.Context, i int) error {
		config := g.asking(servers[i], g.keys)
		config.Rate = rates[i]
		return with(ctx, config, func(c *load.Checks) error {
			if _, err := c.Ask(ctx, g.plan.warm); err != nil {
				return err
			}
			result, err := c.Ask(ctx, g.plan.half)
			for j, q := range quantiles {
				found[j].steps[i].samples = append(found[j].steps[i].samples, micros(result.Quantile(q)))
			}
			return err
		})
	})
	return found, err
}

// planChange changes a plan whose keys are all cached, and measures users on another plan.
func (g *growth) planChange(ctx context.Context) ([]*finding, error) {
	most := slices.Max(g.plan.cached)
	file, keys, err := g.crowded(ctx, most, "unlimited")
	if err != nil {
		return nil, err
	}
	s, err := g.serve(ctx, sqlite+file, "--cache-size", fmt.Sprint(2*most+1000))
	if err != nil {
		return nil, err
	}
	db, err := store.Open(ctx, store.Config{URL: sqlite + file})
	if err != nil {
		return nil, err
	}
	defer db.Close()
	if err := g.warmUp(ctx, s, keys); err != nil {
		return nil, err
	}
	full, err := g.fullRate(ctx, s)
	if err != nil {
		return nil, err
	}
	const seconds = "a second without"
	quiet := newFinding(fmt.Sprintf("a changed plan of %s keys in memory, nobody asks with them: p99 of others", count(most)), "µs", within(0.2), seconds, "the second of the change")
	busy := newFinding("the same, and they go on asking", "µs", within(0.2), seconds, "the second of the change")
	for round := range g.plan.rounds {
		if _, err := g.rest(ctx, s); err != nil {
			return nil, err
		}
		if err := g.aroundChange(ctx, s, db, quiet, round, full/4, nil); err != nil {
			return nil, err
		}
		if err := g.warmUp(ctx, s, keys); err != nil {
			return nil, err
		}
		if err := g.aroundChange(ctx, s, db, busy, round, full/4, keys); err != nil {
			return nil, err
		}
	}
	return []*finding{quiet, busy}, nil
}

// aroundChange sends Checks at a steady rate with keys that a change does not touch, in one period
// without the change and in one with the change in the middle. Touched keys, if any, are sent at
// the same rate.
func (g *growth) aroundChange(ctx context.Context, s *server, db *store.DB, f *finding, round int, rate float64, touched []string) error {
	others := g.asking(s, g.keys)
	others.Rate = rate
	all, running := errgroup.WithContext(ctx)
	done, stop := context.WithCancel(running)
	if len(touched) > 0 {
		config := g.asking(s, touched)
		config.Rate = rate
		all.Go(func() error { return askUntil(running, done, config) })
	}
	all.Go(func() error {
		defer stop()
		return with(running, others, func(c *load.Checks) error {
			for i, change := range []bool{false, true} {
				if _, err := c.Ask(running, g.plan.warm); err != nil {
					return err
				}
				p99, err := g.p99Around(running, c, db, round, change)
				if err != nil {
					return err
				}
				f.steps[i].samples = append(f.steps[i].samples, p99)
			}
			return nil
		})
	})
	return all.Wait()
}

// askUntil sends Checks until done ends.
func askUntil(ctx, done context.Context, config load.ChecksConfig) error {
	return with(ctx, config, func(c *load.Checks) error {
		for done.Err() == nil {
			if _, err := c.Ask(ctx, 100*time.Millisecond); err != nil {
				return err
			}
		}
		return nil
	})
}

// p99Around returns the p99 over a second; if change is true, the plan changes in the middle.
func (g *growth) p99Around(ctx context.Context, c *load.Checks, db *store.DB, round int, change bool) (float64, error) {
	second := g.plan.half / 3
	changed := make(chan error, 1)
	time.AfterFunc(second/2, func() {
		if !change {
			changed <- nil
			return
		}
		credits := usage.Limit(1_000_000_000 + round)
		_, _, err := directory.New(db).SetPlan(ctx, "crowd", directory.PlanChange{Credits: &credits}, "")
		changed <- err
	})
	result, err := c.Ask(ctx, second)
	if err := <-changed; err != nil {
		return 0, fmt.Errorf("changing a plan: %w", err)
	}
	return micros(result.Quantile(0.99)), err
}

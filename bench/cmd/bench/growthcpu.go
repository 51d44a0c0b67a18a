package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/keyporter/keyporter/bench/load"
)

// tenth is the tolerated change of a figure during growth.
const tenth = 0.1

// cpuByStep measures the CPU time per Check, with one server for each step.
func (g *growth) cpuByStep(ctx context.Context, f *finding, servers []*server, configs []load.ChecksConfig) error {
	return inTurn(ctx, g.plan.rounds, len(f.steps), func(ctx context.Context, i int) error {
		micros, err := g.cpuOf(ctx, servers[i], configs[i])
		f.steps[i].samples = append(f.steps[i].samples, micros)
		return err
	})
}

// cache measures servers with growing numbers of keys in memory: with a few of the keys, and with
// all in turn.
func (g *growth) cache(ctx context.Context) ([]*finding, error) {
	labels := counts(g.plan.cached)
	few := newFinding("keys in memory, 16 asked: CPU for a Check", "µs", within(tenth), labels...)
	all := newFinding("keys in memory, all asked in turn: CPU for a Check, reports included", "µs", within(tenth), labels...)
	memory := newFinding("memory for each key beyond the first "+labels[0]+", with the credits of its user", "bytes", below(512+512), labels[1:]...)
	memory.apart = true
	file, keys, err := g.crowded(ctx, slices.Max(g.plan.cached), "unlimited")
	if err != nil {
		return nil, err
	}
	var servers []*server
	var fewConfigs, allConfigs []load.ChecksConfig
	for i, n := range g.plan.cached {
		s, err := g.serveCopy(ctx, file, n)
		if err != nil {
			return nil, err
		}
		if err := g.warmUp(ctx, s, keys[:n]); err != nil {
			return nil, err
		}
		if err := g.released(ctx, s); err != nil {
			return nil, err
		}
		servers = append(servers, s)
		fewConfigs, allConfigs = append(fewConfigs, g.asking(s, g.keys)), append(allConfigs, g.asking(s, keys[:n]))
		if i == 0 {
			continue
		}
		bytes, err := g.memoryOf(ctx, servers[0], s, n-g.plan.cached[0])
		if err != nil {
			return nil, err
		}
		memory.steps[i-1].samples = []float64{bytes}
	}
	if err := g.cpuByStep(ctx, few, servers, fewConfigs); err != nil {
		return nil, err
	}
	return []*finding{few, all, memory}, g.cpuByStep(ctx, all, servers, allConfigs)
}

// memoryOf returns the additional memory in use of large compared with small, per key.
func (g *growth) memoryOf(ctx context.Context, small, large *server, keys int) (bytes float64, err error) {
	for _, s := range []*server{small, large} {
		live, err := g.live(ctx, s)
		if err != nil {
			return 0, err
		}
		bytes = live - bytes
	}
	return bytes / float64(keys), nil
}

// live returns the memory in use after the latest garbage collection, in bytes, derived from the
// size at which the next collection is due and from the GOGC setting. It first sends Checks with a
// few keys until two collections have run.
func (g *growth) live(ctx context.Context, s *server) (bytes float64, err error) {
	if _, err := g.rest(ctx, s); err != nil {
		return 0, err
	}
	const collections = "go_gc_duration_seconds_count"
	first, err := s.metric(ctx, collections)
	if err != nil {
		return 0, err
	}
	err = with(ctx, g.asking(s, g.keys), func(c *load.Checks) error {
		for {
			if _, err := c.Ask(ctx, g.plan.load); err != nil {
				return err
			}
			now, err := s.metric(ctx, collections)
			if err != nil || now >= first+2 {
				return err
			}
		}
	})
	if err != nil {
		return 0, err
	}
	next, err := s.metric(ctx, "go_memstats_next_gc_bytes")
	if err != nil {
		return 0, err
	}
	percent, err := s.metric(ctx, "go_gc_gogc_percent")
	return next / (1 + percent/100), err
}

// routes measures servers with growing numbers of rules with a path that a rule in the middle
// matches.
func (g *growth) routes(ctx context.Context) ([]*finding, error) {
	f := newFinding("route rules: CPU for a Check", "µs", within(tenth), counts(g.plan.rules)...)
	var servers []*server
	var configs []load.ChecksConfig
	for _, n := range g.plan.rules {
		file := filepath.Join(g.dir, fmt.Sprintf("routes-%d.yaml", n))
		if err := os.WriteFile(file, routeTable(n), 0o600); err != nil {
			return nil, fmt.Errorf("writing a route table: %w", err)
		}
		s, err := g.serveCopy(ctx, g.base(), 0, "--config", file)
		if err != nil {
			return nil, err
		}
		config := g.asking(s, g.keys)
		config.Checks = func() ([]*load.Check, error) {
			check, err := load.NewCheck(routePath(n/2)+"/items?limit=20", g.keys[0])
			return []*load.Check{check}, err
		}
		servers, configs = append(servers, s), append(configs, config)
	}
	return []*finding{f}, g.cpuByStep(ctx, f, servers, configs)
}

// routeTable returns a configuration with the given number of rules.
func routeTable(rules int) []byte {
	var file strings.Builder
	file.WriteString("routes:\n")
	for i := range rules {
		fmt.Fprintf(&file, "  - {paths: %q, kind: api_key}\n", routePath(i)+"/*")
	}
	return []byte(file.String())
}

// routePath returns a path of the same length for all rules, so that only their number differs.
func routePath(rule int) string { return fmt.Sprintf("/api/v1/resource-%05d", rule) }

// connections measures with growing numbers of connections, and the same total of concurrent
// Checks.
func (g *growth) connections(ctx context.Context) ([]*finding, error) {
	keyporter, err := g.serveCopy(ctx, g.base(), 0)
	if err != nil {
		return nil, err
	}
	empty, err := g.start(ctx, "empty gRPC server", nil, g.emptyBinary)
	if err != nil {
		return nil, err
	}
	var found []*finding
	for _, c := range []struct {
		server *server
		goal   goal
	}{{keyporter, within(tenth)}, {empty, goal{}}} {
		f := newFinding("connections, "+c.server.name+": CPU for a Check", "µs", c.goal, counts(g.plan.connections)...)
		var servers []*server
		var configs []load.ChecksConfig
		for _, n := range g.plan.connections {
			config := g.asking(c.server, g.keys)
			config.Connections, config.Streams = n, max(2, g.plan.streams/n)
			servers, configs = append(servers, c.server), append(configs, config)
		}
		if err := g.cpuByStep(ctx, f, servers, configs); err != nil {
			return nil, err
		}
		found = append(found, f)
	}
	return found, nil
}

// fewActive is how many of the active users are asked: enough that none of them reaches the limit.
const fewActive = 128

// active measures growing numbers of users with a rate limit, each with a log of the last minute:
// with all users in turn, and with a few of them while all have a log. In the first case the usage
// of all must be reported, in the second only that of a few.
func (g *growth) active(ctx context.Context) ([]*finding, error) {
	labels := counts(g.plan.active)
	few := newFinding(fmt.Sprintf("users active in a minute, %d of them asked: CPU for a Check", fewActive), "µs", within(tenth), labels...)
	all := newFinding("users active in a minute, all asked in turn: CPU for a Check, reports included", "µs", within(tenth), labels...)
	file, keys, err := g.crowded(ctx, slices.Max(g.plan.active), "10000")
	if err != nil {
		return nil, err
	}
	var servers []*server
	for _, n := range g.plan.active {
		s, err := g.serveCopy(ctx, file, n)
		if err != nil {
			return nil, err
		}
		servers = append(servers, s)
	}
	err = inTurn(ctx, g.plan.rounds, len(servers), func(ctx context.Context, i int) error {
		s, own := servers[i], keys[:g.plan.active[i]]
		if err := g.warmUp(ctx, s, own); err != nil {
			return err
		}
		if err := g.released(ctx, s); err != nil {
			return err
		}
		micros, err := g.cpuOf(ctx, s, g.asking(s, own[:min(fewActive, len(own))]))
		if err != nil {
			return err
		}
		few.steps[i].samples = append(few.steps[i].samples, micros)
		micros, err = g.cpuOf(ctx, s, g.asking(s, own))
		all.steps[i].samples = append(all.steps[i].samples, micros)
		return err
	})
	return []*finding{few, all}, err
}

package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/keyporter/keyporter/bench/load"
	"github.com/keyporter/keyporter/internal/parts"
)

// idleBound is the bound for a server without load: milliseconds of CPU in ten seconds.
const idleBound = 100

// starting measures a start, and an idle server.
func (g *growth) starting(ctx context.Context) ([]*finding, error) {
	ready := newFinding("from start to ready", "ms", below(300), "")
	size := newFinding("the binary", "MB", below(40), "")
	resident := newFinding("resident memory at start", "MB", below(40), "")
	idle := newFinding(fmt.Sprintf("CPU in %v of idleness", g.plan.idle), "ms", below(idleBound), "")
	info, err := os.Stat(g.binary)
	if err != nil {
		return nil, err
	}
	size.steps[0].samples = []float64{float64(info.Size()) / 1e6}
	file, err := g.copyOf(g.base())
	if err != nil {
		return nil, err
	}
	for range g.plan.starts {
		s, took, err := g.timeStart(ctx, file)
		if err != nil {
			return nil, err
		}
		bytes, err := memory(s.pid, memoryNow)
		if err != nil {
			return nil, err
		}
		ready.steps[0].samples = append(ready.steps[0].samples, micros(took)/1000)
		resident.steps[0].samples = append(resident.steps[0].samples, bytes/1e6)
		used, err := g.idleness(ctx, s)
		if err != nil {
			return nil, err
		}
		idle.steps[0].samples = append(idle.steps[0].samples, micros(used)/1000)
		g.processes[len(g.processes)-1].Kill()
	}
	return []*finding{ready, size, resident, idle}, nil
}

// timeStart starts Keyporter and returns the time until it was ready.
func (g *growth) timeStart(ctx context.Context, file string) (*server, time.Duration, error) {
	checks, err := parts.FreeAddr()
	if err != nil {
		return nil, 0, err
	}
	ops, err := parts.FreeAddr()
	if err != nil {
		return nil, 0, err
	}
	args := []string{"serve", "--database", sqlite + file, "--listen-http", "off", "--listen-grpc", checks, "--listen-ops", ops}
	began := time.Now()
	process, err := parts.Start(parts.Command{Path: g.binary, Args: args, Env: environment(), Dir: g.dir})
	if err != nil {
		return nil, 0, err
	}
	g.processes = append(g.processes, process)
	s := &server{name: "keyporter", pid: process.PID(), grpc: checks, ops: ops}
	err = s.ready(ctx, process)
	return s, time.Since(began), err
}

// idleness returns the CPU time of a server without requests.
func (g *growth) idleness(ctx context.Context, s *server) (time.Duration, error) {
	if _, err := g.rest(ctx, s); err != nil {
		return 0, err
	}
	before, err := cpuTime(s.pid)
	if err != nil {
		return 0, err
	}
	select {
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-time.After(g.plan.idle):
	}
	after, err := cpuTime(s.pid)
	return after - before, err
}

// replicas is the number of replicas that share a Valkey.
const replicas = 3

// valkey measures three replicas that count in a Valkey, on PostgreSQL, beside three empty servers.
func (g *growth) valkey(ctx context.Context) ([]*finding, error) {
	database, err := g.newDatabase(ctx, true)
	if err != nil {
		return nil, err
	}
	defer g.postgres.Kill()
	people, err := populate(ctx, g.binary, database, g.plan.users)
	if err != nil {
		return nil, err
	}
	memory, err := parts.StartValkey(ctx, parts.ValkeyConfig{})
	if err != nil {
		return nil, err
	}
	g.processes = append(g.processes, memory.Process)
	var empty, keyporter []*server
	for range replicas {
		e, err := g.start(ctx, "empty gRPC server", nil, g.emptyBinary)
		if err != nil {
			return nil, err
		}
		k, err := g.serve(ctx, database, "--redis", "redis://"+memory.Addr())
		if err != nil {
			return nil, err
		}
		empty, keyporter = append(empty, e), append(keyporter, k)
	}
	return g.compareReplicas(ctx, empty, keyporter, people.keys, memory.PID())
}

// compareReplicas measures two sets of servers in turn.
func (g *growth) compareReplicas(ctx context.Context, empty, keyporter []*server, keys []string, valkey int) ([]*finding, error) {
	each := fmt.Sprintf("%d × ", replicas)
	work := newFinding(each+"replicas with Valkey: answers for a second of their CPU", "", atLeast(1), each+"empty", each+"keyporter")
	beside := newFinding("CPU of Valkey for a Check meanwhile", "µs", goal{}, "")
	late := newFinding("Checks of a thousand that Valkey did not answer in time", "", goal{}, "")
	sets := [][]*server{empty, keyporter}
	err := inTurn(ctx, g.plan.rounds, len(sets), func(ctx context.Context, i int) error {
		r, err := g.askSet(ctx, sets[i], keys, valkey, i == 1)
		if err != nil {
			return err
		}
		work.steps[i].samples = append(work.steps[i].samples, r.answers/r.cpu.Seconds())
		if i == 1 {
			beside.steps[0].samples = append(beside.steps[0].samples, micros(r.valkey)/r.answers)
			late.steps[0].samples = append(late.steps[0].samples, 1000*r.late/r.answers)
		}
		return nil
	})
	return []*finding{work, beside, late}, err
}

// setResult is the result of a set of servers under load.
type setResult struct {
	answers     float64
	cpu, valkey time.Duration
	late        float64 // requests that Valkey did not answer in time
}

// askSet keeps all servers of a set busy at once.
func (g *growth) askSet(ctx context.Context, set []*server, keys []string, valkey int, counted bool) (r setResult, err error) {
	if _, err := g.askAll(ctx, set, keys, g.plan.warm); err != nil {
		return r, err
	}
	before, err := usedBySet(ctx, set, valkey, counted)
	if err != nil {
		return r, err
	}
	answers, err := g.askAll(ctx, set, keys, g.plan.load)
	if err != nil {
		return r, err
	}
	after, err := usedBySet(ctx, set, valkey, counted)
	if err == nil && answers == 0 {
		err = errNoAnswers
	}
	return setResult{float64(answers), after.cpu - before.cpu, after.valkey - before.valkey, after.late - before.late}, err
}

func (g *growth) askAll(ctx context.Context, set []*server, keys []string, duration time.Duration) (answers int, err error) {
	results := make([]load.Result, len(set))
	all, running := errgroup.WithContext(ctx)
	for i, s := range set {
		config := g.asking(s, keys)
		config.Connections, config.Streams = 2, 21 // all three together: about as many as elsewhere
		all.Go(func() error {
			return with(running, config, func(c *load.Checks) (err error) {
				results[i], err = c.Ask(running, duration)
				return err
			})
		})
	}
	err = all.Wait()
	for _, r := range results {
		answers += len(r.Latencies)
	}
	return answers, err
}

// usedBySet returns the resources that all servers have used so far. Only those of Keyporter count
// the requests that Valkey did not answer.
func usedBySet(ctx context.Context, set []*server, valkey int, counted bool) (r setResult, err error) {
	for _, s := range set {
		used, err := cpuTime(s.pid)
		if err != nil {
			return r, err
		}
		r.cpu += used
		if !counted {
			continue
		}
		late, err := s.metric(ctx, "keyporter_ratelimit_valkey_errors_total")
		if err != nil {
			return r, err
		}
		r.late += late
	}
	r.valkey, err = cpuTime(valkey)
	return r, err
}

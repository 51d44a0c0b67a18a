package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keyporter/keyporter/bench/load"
	"github.com/keyporter/keyporter/internal/parts"
)

// growthPlan is the range of each growth, and the way to measure it.
type growthPlan struct {
	rounds      int
	warm, load  time.Duration // of one round
	cached      []int         // keys in memory
	rules       []int         // of the route table
	connections []int
	streams     int           // on all connections together
	active      []int         // users, asked in turn
	database    []int         // keys
	misses      int           // in one round
	users       int           // in the small population
	rest        time.Duration // without work of a server that is done
	half        time.Duration // of load at a steady rate, per round
	idle        time.Duration
	starts      int
}

var (
	longGrowth = growthPlan{
		rounds: 3, warm: 300 * time.Millisecond, load: 1500 * time.Millisecond, rest: 1200 * time.Millisecond, half: 3 * time.Second, idle: 10 * time.Second, starts: 5,
		cached: upTo(100_000), rules: []int{10, 1000, 10_000}, connections: []int{1, 4, 16, 64}, streams: 128,
		active: upTo(100_000), database: []int{10_000, 1_000_000}, misses: 1000, users: 64,
	}
	shortGrowth = growthPlan{
		rounds: 1, warm: 20 * time.Millisecond, load: 50 * time.Millisecond, rest: 50 * time.Millisecond, half: 100 * time.Millisecond, idle: 50 * time.Millisecond, starts: 1,
		cached: []int{10, 100}, rules: []int{10, 100}, connections: []int{1, 4}, streams: 16,
		active: []int{10, 100}, database: []int{1000, 2000}, misses: 20, users: 8,
	}
)

// upTo returns 1,000, 10,000, and so on, and most itself.
func upTo(most int) []int {
	var steps []int
	for n := 1000; n < most; n *= 10 {
		steps = append(steps, n)
	}
	return append(steps, most)
}

// growth measures the effects of growth.
type growth struct {
	*lab
	plan     growthPlan
	progress func(string, ...any)
	data     string   // folder of the databases
	files    []string // copies that this scene made
	copies   int      // copies that all scenes made
}

// scene measures one kind of growth. It starts the programs that it needs.
type scene struct {
	name    string
	measure func(*growth, context.Context) ([]*finding, error)
}

var scenes = []scene{
	{"cache", (*growth).cache},
	{"routes", (*growth).routes},
	{"connections", (*growth).connections},
	{"active", (*growth).active},
	{"database", (*growth).database},
	{"half", (*growth).half},
	{"start", (*growth).starting},
	{"valkey", (*growth).valkey},
	{"plan", (*growth).planChange},
}

func sceneNames() string {
	var names []string
	for _, s := range scenes {
		names = append(names, s.name)
	}
	return strings.Join(names, ", ")
}

// runGrowth runs the scenes selected by --only, and prints their findings.
func runGrowth(ctx context.Context, o options, stdout io.Writer, progress func(string, ...any)) error {
	l, err := buildLab(ctx, o)
	if err != nil {
		return err
	}
	defer l.stop()
	g := &growth{lab: l, plan: o.growth, progress: progress}
	if g.data, err = os.MkdirTemp(memoryFolder(), "keyporter-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(g.data)
	if g.population, err = populate(ctx, l.binary, sqlite+g.base(), g.plan.users); err != nil {
		return err
	}
	var findings []*finding
	for _, s := range scenes {
		if !strings.Contains(s.name, o.only) {
			continue
		}
		progress("%s", s.name)
		found, err := g.alone(ctx, s)
		if err != nil {
			return fmt.Errorf("measuring %s: %w", s.name, err)
		}
		for _, f := range found {
			progress("  %s", strings.Join(f.cells(), " | "))
		}
		findings = append(findings, found...)
	}
	return g.report(o, findings, stdout)
}

func (g *growth) report(o options, findings []*finding, stdout io.Writer) error {
	if o.json != "" {
		if err := writeFindings(o.json, findings, g.machine); err != nil {
			return err
		}
	}
	table := renderFindings(findings, g.machine)
	if _, err := io.WriteString(stdout, table); err != nil {
		return err
	}
	if o.write == "" {
		return nil
	}
	return writeTable(o.write, growthMarkers, table)
}

// alone measures a scene and stops all its programs, so that the next one has the machine for
// itself.
func (g *growth) alone(ctx context.Context, s scene) ([]*finding, error) {
	before := len(g.processes)
	found, err := s.measure(g, ctx)
	if err != nil {
		err = errors.Join(err, ended(g.processes[before:]))
	}
	for _, p := range slices.Backward(g.processes[before:]) {
		p.Kill()
	}
	g.processes = g.processes[:before]
	for _, file := range g.files {
		for _, suffix := range []string{"", "-wal", "-shm"} {
			_ = os.Remove(file + suffix) // the whole folder is removed at the end
		}
	}
	g.files = nil
	return found, err
}

// memoryFolder returns a folder in memory with room for the databases, or "" for the default. The
// speed of a disk is not under measurement, but would disturb all figures.
func memoryFolder() string {
	const folder, room = "/dev/shm", 4 << 30
	var system unix.Statfs_t
	if err := unix.Statfs(folder, &system); err != nil || uint64(system.Bavail)*uint64(system.Bsize) < room {
		return ""
	}
	return folder
}

// ended reports the programs that have ended by themselves.
func ended(processes []*parts.Process) error {
	var errs []error
	for _, p := range processes {
		select {
		case <-p.Done():
			errs = append(errs, fmt.Errorf("a program has ended: %w\n%s", p.Wait(), p.Output()))
		default:
		}
	}
	return errors.Join(errs...)
}

// base returns a database with the small population; the scenes use copies of it.
func (g *growth) base() string { return filepath.Join(g.data, "base.db") }

// copyOf copies a database that no process has open, and returns the new file.
func (g *growth) copyOf(file string) (string, error) {
	g.copies++
	path := filepath.Join(g.data, fmt.Sprintf("%d.db", g.copies))
	g.files = append(g.files, path)
	from, err := os.Open(file)
	if err != nil {
		return "", fmt.Errorf("copying a database: %w", err)
	}
	defer from.Close()
	to, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return "", fmt.Errorf("copying a database: %w", err)
	}
	if _, err := io.Copy(to, from); err != nil {
		to.Close()
		return "", fmt.Errorf("copying a database: %w", err)
	}
	return path, to.Close()
}

// crowded returns a database with the given number of additional users, and their keys.
func (g *growth) crowded(ctx context.Context, users int, rateLimit string) (file string, keys []string, err error) {
	g.progress("  adding %s users", count(users))
	if file, err = g.copyOf(g.base()); err != nil {
		return "", nil, err
	}
	_, err = output(ctx, g.binary, "plan", "set", "crowd", "--rate-limit", rateLimit, "--rate-window", "1m", "--credits", "unlimited",
		"--database", sqlite+file)
	if err != nil {
		return "", nil, err
	}
	keys, err = crowd(ctx, sqlite+file, "crowd", users)
	return file, keys, err
}

// serve starts Keyporter on a database, with long time-outs, so that a slow disk ends no run: the
// first credits of a user in a month, and the lease, may take longer than a Check usually waits.
func (g *growth) serve(ctx context.Context, database string, flags ...string) (*server, error) {
	args := append([]string{"serve", "--database", database, "--listen-http", "off", "--check-timeout", "3s", "--lease", "30s"}, flags...)
	s, err := g.start(ctx, "keyporter", nil, g.binary, args...)
	if err != nil {
		return nil, err
	}
	return s, s.ready(ctx, g.processes[len(g.processes)-1])
}

// ready returns once the server reports ready.
func (s *server) ready(ctx context.Context, process *parts.Process) error {
	for {
		if _, err := s.get(ctx, "/readyz"); err == nil {
			return nil
		}
		select {
		case <-process.Done():
			return fmt.Errorf("starting %s: it ended\n%s", s.name, process.Output())
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
}

// serveCopy starts Keyporter on its own copy of a database, with a cache for the given number of
// keys.
func (g *growth) serveCopy(ctx context.Context, file string, cached int, flags ...string) (*server, error) {
	file, err := g.copyOf(file)
	if err != nil {
		return nil, err
	}
	return g.serve(ctx, sqlite+file, append(flags, "--cache-size", strconv.Itoa(cached+cached/10+1000))...)
}

const openPath = "/api/v1/brands?limit=20"

// asking returns a load with these keys, which are all admitted.
func (g *growth) asking(s *server, keys []string) load.ChecksConfig {
	return load.ChecksConfig{
		Addr: s.grpc, Answer: load.Allow, Keys: keys,
		Checks: func() ([]*load.Check, error) {
			check, err := load.NewCheck(openPath, keys[0])
			return []*load.Check{check}, err
		},
	}
}

// with connects a load, passes it to use and disconnects it.
func with(ctx context.Context, config load.ChecksConfig, use func(*load.Checks) error) error {
	r := row{dial: func(ctx context.Context, _ bool) (asker, error) { return load.DialChecks(ctx, config) }}
	return r.with(ctx, false, func(a asker) error { return use(a.(*load.Checks)) })
}

// cpuOf returns the CPU time of a server per Check under load, including the work afterwards: the
// server reports credits a second later, which with many users takes longer than the load.
func (g *growth) cpuOf(ctx context.Context, s *server, config load.ChecksConfig) (micros float64, err error) {
	err = with(ctx, config, func(c *load.Checks) error {
		if _, err := c.Ask(ctx, g.plan.warm); err != nil {
			return err
		}
		if _, err := g.rest(ctx, s); err != nil {
			return err
		}
		before, err := cpuTime(s.pid)
		if err != nil {
			return err
		}
		result, err := c.Ask(ctx, g.plan.load)
		if err != nil {
			return err
		}
		during, err := cpuTime(s.pid)
		if err != nil {
			return err
		}
		afterwards, err := g.rest(ctx, s)
		if err == nil && len(result.Latencies) == 0 {
			err = errNoAnswers
		}
		micros = float64(during-before+afterwards) / float64(time.Microsecond) / float64(len(result.Latencies))
		return err
	})
	return micros, err
}

// restPatience is the maximum time until a server is idle: it may have to report a million users,
// in a fifth of its time.
const restPatience = 30 * time.Minute

// rest returns once the server has nothing left to do: it has used almost no CPU in a period longer
// than the interval between its reports. It returns the CPU time until then, without the constant
// use of an idle server.
func (g *growth) rest(ctx context.Context, s *server) (cpu time.Duration, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, restPatience, fmt.Errorf("%s did not come to rest in %v", s.name, restPatience))
	defer cancel()
	start, err := cpuTime(s.pid)
	before := start
	for whiles := time.Duration(1); err == nil; whiles++ {
		select {
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		case <-time.After(g.plan.rest):
		}
		var now time.Duration
		now, err = cpuTime(s.pid)
		if idle := now - before; idle <= max(tick, g.plan.rest/25) {
			return now - start - whiles*idle, err
		}
		before = now
	}
	return 0, err
}

// warmUp asks for all keys until they are in memory and valid.
func (g *growth) warmUp(ctx context.Context, s *server, keys []string) error {
	g.progress("  reading %s keys into memory", count(len(keys)))
	return s.readKeys(ctx, g.asking(s, keys))
}

// released returns once a server without requests holds no credits any more: it releases them after
// a while, which for many users takes as long as the load.
func (g *growth) released(ctx context.Context, s *server) error {
	ctx, cancel := context.WithTimeoutCause(ctx, restPatience, fmt.Errorf("%s held credits for %v", s.name, restPatience))
	defer cancel()
	for {
		held, err := s.metric(ctx, "keyporter_credits_outstanding")
		if err != nil || held == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(g.plan.rest):
		}
	}
}

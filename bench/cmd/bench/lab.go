package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/keyporter/keyporter/internal/parts"
)

// server is a running program under measurement.
type server struct {
	name string
	pid  int
	grpc string // address for Checks
	ops  string // address of /metrics
}

// lab is everything that runs during a bench.
type lab struct {
	dir         string // removed at the end
	binary      string // Keyporter
	emptyBinary string
	processes   []*parts.Process
	postgres    *parts.Postgres // nil: an embedded database
	keyporter   *server
	empty       *server  // with all settings at their defaults
	sameGC      *server  // the same, but collecting garbage as rarely as Keyporter
	opa         *server  // nil: not measured
	peas        *server  // nil: not measured
	cleanups    []func() // stop everything else that was started
	envoy       *server
	fronts      map[string]string // name → Envoy's address
	population                    // of Keyporter's database
	crowd       []string          // keys of many users at 60 requests a minute
	imported    []string          // keys of another system, of users like those of the population
	machine     string            // one line about the machine and the versions
}

// startLab builds and starts everything. On an error it leaves nothing behind.
func startLab(ctx context.Context, options options) (_ *lab, err error) {
	if err := options.findPrograms(); err != nil {
		return nil, err // before the builds
	}
	l, err := buildLab(ctx, options)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			l.stop()
		}
	}()
	if err := l.startEmpty(ctx); err != nil {
		return nil, err
	}
	if err := l.startKeyporter(ctx, options.plan, options.profile != ""); err != nil {
		return nil, err
	}
	if options.opa != "" {
		if err := l.startOPA(ctx, options.opa, l.keys); err != nil {
			return nil, err
		}
	}
	if options.peas != "" {
		if err := l.startPEAS(ctx, options.peas, l.keys[0]); err != nil {
			return nil, err
		}
	}
	return l, l.startEnvoy(ctx)
}

// buildLab builds the programs and starts none. On an error it leaves nothing behind.
func buildLab(ctx context.Context, options options) (_ *lab, err error) {
	dir, err := os.MkdirTemp("", "keyporter-bench-")
	if err != nil {
		return nil, err
	}
	l := &lab{dir: dir, fronts: map[string]string{}}
	defer func() {
		if err != nil {
			l.stop()
		}
	}()
	if err := l.buildEmpty(ctx); err != nil {
		return nil, err
	}
	origin := options.keyporter
	if l.binary = options.keyporter; l.binary == "" {
		if l.binary, origin, err = l.buildKeyporter(ctx); err != nil {
			return nil, err
		}
	}
	l.machine, err = describeMachine(ctx, origin)
	return l, err
}

// stop kills all programs and removes their files. None of them needs a graceful end.
func (l *lab) stop() {
	for _, p := range slices.Backward(l.processes) {
		p.Kill()
	}
	for _, end := range l.cleanups {
		end()
	}
	_ = os.RemoveAll(l.dir) // a folder for temporary files
}

// folder returns the folder of a module, in the source that this program was started from.
func folder(ctx context.Context, module string) (string, error) {
	dir, err := output(ctx, "go", "list", "-m", "-f", "{{.Dir}}", module)
	return strings.TrimSpace(dir), err
}

// build builds a program of the module in dir, with that module's own go.mod.
func (l *lab) build(ctx context.Context, dir, program string, flags ...string) (binary string, err error) {
	binary = filepath.Join(l.dir, filepath.Base(program))
	_, err = output(ctx, "go", slices.Concat([]string{"build", "-C", dir, "-o", binary}, flags, []string{program})...)
	return binary, err
}

func (l *lab) buildKeyporter(ctx context.Context) (binary, origin string, err error) {
	checkout, err := folder(ctx, "github.com/keyporter/keyporter")
	if err != nil {
		return "", "", err
	}
	binary, err = l.build(ctx, checkout, "./cmd/keyporter", "-trimpath", "-ldflags=-s -w") // like `make build`
	return binary, revision(ctx, checkout), err
}

// commandGrace is the time for a command to end on request.
const commandGrace = 5 * time.Second

// output runs a command and returns its output.
func output(ctx context.Context, name string, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	command := exec.CommandContext(ctx, name, args...)
	command.Env, command.Stdout, command.Stderr = environment(), &stdout, &stderr
	// lets a build end its compilers
	command.Cancel = func() error { return command.Process.Signal(os.Interrupt) }
	command.WaitDelay = commandGrace
	if err := command.Run(); err != nil {
		return "", fmt.Errorf("running %s %s: %w\n%s", filepath.Base(name), strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// environment returns this program's environment without variables that would change the settings
// of measured programs.
func environment() []string {
	const transport = "KEYPORTER_TRANSPORT" // the only setting that a caller chooses
	return slices.DeleteFunc(os.Environ(), func(entry string) bool {
		name, _, _ := strings.Cut(entry, "=")
		return strings.HasPrefix(name, "KEYPORTER_") && name != transport || slices.Contains([]string{"GOGC", "GOMEMLIMIT", "GOMAXPROCS", "GODEBUG"}, name)
	})
}

func (l *lab) buildEmpty(ctx context.Context) error {
	dir, err := folder(ctx, "github.com/keyporter/keyporter/bench")
	if err != nil {
		return err
	}
	l.emptyBinary, err = l.build(ctx, dir, "./cmd/empty")
	return err
}

func (l *lab) startEmpty(ctx context.Context) (err error) {
	if l.empty, err = l.start(ctx, "empty gRPC server", nil, l.emptyBinary); err != nil {
		return err
	}
	l.sameGC, err = l.start(ctx, "the same, GOGC="+seldom, []string{"GOGC=" + seldom}, l.emptyBinary)
	return err
}

// seldom is a GOGC value that makes the empty server collect about as rarely as Keyporter, which
// collects after 64 MiB of garbage: for a heap below 4 MiB the runtime assumes 4 MiB.
const seldom = "1600"

func (l *lab) startKeyporter(ctx context.Context, p plan, profiled bool) error {
	database, err := l.newDatabase(ctx, p.postgres)
	if err != nil {
		return err
	}
	if l.population, err = populate(ctx, l.binary, database, p.users); err != nil {
		return err
	}
	if p.crowd > 0 {
		if l.crowd, err = crowd(ctx, database, "crowd", p.crowd); err != nil {
			return err
		}
	}
	config := filepath.Join(l.dir, "keyporter.yaml")
	if err := os.WriteFile(config, []byte(keyFormats), 0o600); err != nil {
		return err
	}
	if l.imported, err = importKeys(ctx, l.binary, l.dir, config, database, p.users); err != nil {
		return err
	}
	args := []string{"serve", "--config", config, "--database", database, "--listen-http", "off", "--cache-size", strconv.Itoa(2*p.crowd + 1000)}
	if profiled {
		args = append(args, "--pprof")
	}
	l.keyporter, err = l.start(ctx, "keyporter", nil, l.binary, args...)
	return err
}

// newDatabase returns the URL of an empty database: embedded in Keyporter's process, or in a
// separate PostgreSQL.
func (l *lab) newDatabase(ctx context.Context, beside bool) (string, error) {
	if !beside {
		return sqlite + filepath.Join(l.dir, "keyporter.db"), nil
	}
	postgres, err := parts.StartPostgres(ctx, parts.PostgresConfig{})
	if err != nil {
		return "", err
	}
	l.postgres, l.cleanups = postgres, append(l.cleanups, postgres.Kill)
	const name = "bench"
	return postgres.URL(name), postgres.CreateDatabase(ctx, name)
}

// start starts an authorizer of ours: Keyporter or the empty server.
func (l *lab) start(ctx context.Context, name string, env []string, binary string, args ...string) (*server, error) {
	return l.launch(ctx, name, binary, func(checks, ops string) ([]string, []string) {
		return append(args, "--listen-grpc", checks, "--listen-ops", ops), env
	})
}

// launch starts an authorizer on two free ports, one for Checks and one for its metrics, with the
// arguments and the environment that arguments returns for these addresses, and waits until it is
// ready.
func (l *lab) launch(ctx context.Context, name, binary string, arguments func(checks, ops string) (args, env []string)) (*server, error) {
	checks, err := parts.FreeAddr()
	if err != nil {
		return nil, err
	}
	ops, err := parts.FreeAddr()
	if err != nil {
		return nil, err
	}
	args, env := arguments(checks, ops)
	process, err := parts.Start(parts.Command{Path: binary, Args: args, Env: append(environment(), env...), Dir: l.dir})
	if err != nil {
		return nil, err
	}
	l.processes = append(l.processes, process)
	s := &server{name: name, pid: process.PID(), grpc: checks, ops: ops}
	return s, s.await(ctx, process)
}

const startTime = 30 * time.Second

// await returns once the server serves its metrics and accepts connections for Checks.
func (s *server) await(ctx context.Context, process *parts.Process) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	for {
		_, err := s.mallocs(ctx)
		if err == nil {
			err = s.accepts(ctx)
		}
		if err == nil {
			return nil
		}
		select {
		case <-process.Done():
			return fmt.Errorf("starting %s: it ended\n%s", s.name, process.Output())
		case <-ctx.Done():
			return fmt.Errorf("starting %s: %w\n%s", s.name, errors.Join(ctx.Err(), err), process.Output())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// accepts returns nil if the server accepts connections for Checks.
func (s *server) accepts(ctx context.Context) error {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", s.grpc)
	if err != nil {
		return err
	}
	return conn.Close()
}

// Listeners of Envoy, in addition to those with the name of an authorizer.
const (
	withoutLog = "keyporter, without the access log"
	ownFilter  = "Envoy's filter api_key_auth"
)

func (l *lab) startEnvoy(ctx context.Context) error {
	fronts := map[string]envoyFront{
		l.empty.name:     {Authorizer: l.empty.grpc, Log: true},
		l.keyporter.name: {Authorizer: l.keyporter.grpc, Log: true},
		withoutLog:       {Authorizer: l.keyporter.grpc},
		ownFilter:        {Keys: l.keys},
	}
	var all []envoyFront
	for name, front := range fronts {
		var err error
		if front.Listen, err = parts.FreeAddr(); err != nil {
			return err
		}
		l.fronts[name] = front.Listen
		all = append(all, front)
	}
	l.envoy = &server{name: "Envoy"}
	return l.runEnvoy(ctx, all)
}

// runEnvoy starts an Envoy with one worker and these listeners, as l.envoy.
func (l *lab) runEnvoy(ctx context.Context, fronts []envoyFront) error {
	bootstrap, err := envoyBootstrap(fronts)
	if err != nil {
		return err
	}
	envoy, err := parts.StartEnvoy(ctx, parts.EnvoyConfig{Bootstrap: bootstrap, Concurrency: 1})
	if err != nil {
		return err
	}
	l.processes = append(l.processes, envoy.Process)
	l.envoy.pid = envoy.PID()
	return nil
}

// forged is a well-formed key that was never issued: its tag is wrong.
var forged = "wh_" + strings.Repeat("0123456789abcdef", 3)

// allowed is the name of the hit path in the table.
const allowed = "allow, key in the cache"

// rows returns the measured rows in the order of the table.
func (l *lab) rows() []*row {
	const open, none = "/api/v1/brands?limit=20", "/nowhere"
	yes := question{server: l.keyporter, answer: allowed, path: open, keys: l.keys, status: http.StatusOK}
	no := func(answer, path, key string, status int, code string) question {
		return question{server: l.keyporter, answer: answer, path: path, keys: []string{key}, status: status, code: code}
	}
	refusals := []question{
		no("401, forged key", open, forged, http.StatusUnauthorized, "unauthorized"),
		no("401, unknown key, repeated", open, l.poor[unknown], http.StatusUnauthorized, "unauthorized"),
		no("401, guess at an imported key", open, guess, http.StatusUnauthorized, "unauthorized"),
		no("403, plan without API access", open, l.poor["refused"], http.StatusForbidden, "api_access_required"),
		no("404, no route", none, l.keys[0], http.StatusNotFound, "not_found"),
		no("429, rate limit", open, l.poor["limited"], http.StatusTooManyRequests, "rate_limited"),
		no("429, credits used up", open, l.poor["exhausted"], http.StatusTooManyRequests, "credits_exhausted"),
	}
	var rows []*row
	straight := func(q question) {
		rows = append(rows, &row{
			way: "straight", server: q.server.name, answer: q.answer, yardstick: q.server == l.empty, authorizer: q.server, database: l.postgres,
			dial: q.dialStraight,
		})
	}
	straight(question{server: l.empty, answer: "allow", path: open, keys: l.keys, status: http.StatusOK})
	straight(question{server: l.sameGC, answer: "allow", path: open, keys: l.keys, status: http.StatusOK})
	straight(yes)
	if len(l.crowd) > 0 {
		many := yes
		many.answer, many.keys = fmt.Sprintf("allow, %d users at 60 a minute", len(l.crowd)), l.crowd
		straight(many)
		rows[len(rows)-1].first = many.readAll
		// reporting their credits takes long, and would add to the cost of the other rows
		return rows
	}
	ofAnotherSystem := yes
	ofAnotherSystem.answer, ofAnotherSystem.keys = "allow, imported key in the cache", l.imported
	straight(ofAnotherSystem)
	for _, q := range refusals {
		straight(q)
	}
	if l.opa != nil {
		q := question{server: l.opa, path: open, joined: true}
		q.answer, q.keys, q.status = "allow, key in its policy", l.keys, http.StatusOK
		straight(q)
		q.answer, q.keys, q.status = "403, forged key", []string{forged}, http.StatusForbidden
		straight(q)
	}
	if l.peas != nil {
		q := question{server: l.peas, path: "/v1/" + peasApp, joined: true}
		q.answer, q.keys, q.status = "allow, key in memory", l.keys[:1], http.StatusOK
		straight(q)
		q.answer, q.keys, q.status = "401, forged key", []string{forged}, http.StatusUnauthorized
		straight(q)
	}
	through := func(front string, q question) {
		rows = append(rows, &row{
			way: "through Envoy", server: front, answer: q.answer, yardstick: q.server == l.empty, authorizer: q.server, envoy: l.envoy, database: l.postgres,
			dial: func(ctx context.Context, alone bool) (asker, error) { return q.dialEnvoy(ctx, l.fronts[front], alone) },
		})
	}
	through(l.empty.name, question{server: l.empty, answer: "allow", path: open, keys: l.keys, status: http.StatusOK})
	through(l.keyporter.name, yes)
	through(withoutLog, yes)
	for _, q := range refusals[:2] {
		through(l.keyporter.name, q)
	}
	through(ownFilter, question{answer: "allow", path: open, keys: l.keys, status: http.StatusOK})
	return rows
}

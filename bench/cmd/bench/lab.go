package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/keyporter/keyporter/internal/parts"
)

// server is a running program that is measured.
type server struct {
	name string
	pid  int
	grpc string // where it answers Checks
	ops  string // where it serves /metrics
}

// lab is everything that runs during a bench.
type lab struct {
	dir       string // removed at the end
	processes []*parts.Process
	keyporter *server
	empty     *server
	envoy     *server
	fronts    map[*server]string // authorizer → where Envoy listens that asks it
	keys      []string           // of active users
	unknown   string             // a key that was made here and is in the database no longer
	profile   string             // where Keyporter serves profiles, if it was built to
	machine   string             // one line about what all this runs on
}

// startLab builds and starts everything. On an error nothing stays.
func startLab(ctx context.Context, options options) (_ *lab, err error) {
	if _, err := parts.FindEnvoy(); err != nil {
		return nil, err // now, and not after the builds
	}
	dir, err := os.MkdirTemp("", "keyporter-bench-")
	if err != nil {
		return nil, err
	}
	l := &lab{dir: dir, fronts: map[*server]string{}}
	defer func() {
		if err != nil {
			l.stop()
		}
	}()
	if err := l.startEmpty(ctx); err != nil {
		return nil, err
	}
	binary, origin := options.keyporter, options.keyporter
	if binary == "" {
		if binary, origin, err = l.buildKeyporter(ctx, options.profile != ""); err != nil {
			return nil, err
		}
	}
	if err := l.startKeyporter(ctx, binary, options.plan.users); err != nil {
		return nil, err
	}
	if err := l.startEnvoy(ctx); err != nil {
		return nil, err
	}
	l.machine, err = describeMachine(ctx, origin)
	return l, err
}

// stop ends all programs and removes their files. Nothing in them is worth an orderly end.
func (l *lab) stop() {
	for _, p := range slices.Backward(l.processes) {
		p.Kill()
	}
	_ = os.RemoveAll(l.dir) // a folder for temporary files
}

// folder returns where a module is, whose source this program was started from.
func folder(ctx context.Context, module string) (string, error) {
	dir, err := output(ctx, "go", "list", "-m", "-f", "{{.Dir}}", module)
	return strings.TrimSpace(dir), err
}

// build builds a program of the module in dir, as that module's own go.mod says.
func (l *lab) build(ctx context.Context, dir, program string, flags ...string) (binary string, err error) {
	binary = filepath.Join(l.dir, filepath.Base(program))
	_, err = output(ctx, "go", slices.Concat([]string{"build", "-C", dir, "-o", binary}, flags, []string{program})...)
	return binary, err
}

func (l *lab) buildKeyporter(ctx context.Context, profiled bool) (binary, origin string, err error) {
	checkout, err := folder(ctx, "github.com/keyporter/keyporter")
	if err != nil {
		return "", "", err
	}
	var flags []string
	if profiled {
		flags = []string{"-tags", "profile"}
	}
	binary, err = l.build(ctx, checkout, "./cmd/keyporter", flags...)
	return binary, revision(ctx, checkout), err
}

// commandGrace is how long a command may take to end when asked to.
const commandGrace = 5 * time.Second

// output runs a command and returns what it printed.
func output(ctx context.Context, name string, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	command := exec.CommandContext(ctx, name, args...)
	command.Env, command.Stdout, command.Stderr = environment(), &stdout, &stderr
	command.Cancel = func() error { return command.Process.Signal(os.Interrupt) } // so that a build ends its compilers
	command.WaitDelay = commandGrace
	if err := command.Run(); err != nil {
		return "", fmt.Errorf("running %s %s: %w\n%s", filepath.Base(name), strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// environment is this program's own, without what would change the settings of what is measured.
func environment() []string {
	return slices.DeleteFunc(os.Environ(), func(entry string) bool {
		name, _, _ := strings.Cut(entry, "=")
		return strings.HasPrefix(name, "KEYPORTER_") || slices.Contains([]string{"GOGC", "GOMEMLIMIT", "GOMAXPROCS", "GODEBUG"}, name)
	})
}

func (l *lab) startEmpty(ctx context.Context) error {
	dir, err := folder(ctx, "github.com/keyporter/keyporter/bench")
	if err != nil {
		return err
	}
	binary, err := l.build(ctx, dir, "./cmd/empty")
	if err != nil {
		return err
	}
	l.empty, err = l.start(ctx, "empty gRPC server", nil, binary)
	return err
}

func (l *lab) startKeyporter(ctx context.Context, binary string, users int) error {
	database := "sqlite://" + filepath.Join(l.dir, "keyporter.db")
	if err := l.populate(ctx, binary, database, users); err != nil {
		return err
	}
	var err error
	if l.profile, err = parts.FreeAddr(); err != nil {
		return err
	}
	l.keyporter, err = l.start(ctx, "keyporter", []string{"PPROF_LISTEN=" + l.profile}, binary, "serve", "--database", database, "--listen-http", "off")
	return err
}

// start starts an authorizer on free ports and waits for its metrics.
func (l *lab) start(ctx context.Context, name string, env []string, binary string, args ...string) (*server, error) {
	checks, err := parts.FreeAddr()
	if err != nil {
		return nil, err
	}
	ops, err := parts.FreeAddr()
	if err != nil {
		return nil, err
	}
	args = append(args, "--listen-grpc", checks, "--listen-ops", ops)
	process, err := parts.Start(parts.Command{Path: binary, Args: args, Env: append(environment(), env...), Dir: l.dir})
	if err != nil {
		return nil, err
	}
	l.processes = append(l.processes, process)
	s := &server{name: name, pid: process.PID(), grpc: checks, ops: ops}
	return s, s.await(ctx, process)
}

const startTime = 30 * time.Second

// await returns when the server serves its metrics, which it does last.
func (s *server) await(ctx context.Context, process *parts.Process) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	for {
		_, err := s.mallocs(ctx)
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

// populate makes a database with users on a plan whose limits are not reached, and one key that it no longer
// holds.
func (l *lab) populate(ctx context.Context, binary, database string, users int) error {
	keyporter := func(args ...string) (string, error) {
		return output(ctx, binary, append(args, "--database", database, "--output", "json")...)
	}
	createKey := func(user string) (string, error) {
		if _, err := keyporter("user", "set", user, "--account", "bench"); err != nil {
			return "", err
		}
		out, err := keyporter("key", "create", user)
		if err != nil {
			return "", err
		}
		var made struct{ Key string }
		err = json.Unmarshal([]byte(out), &made)
		return made.Key, err
	}
	for _, command := range []string{
		"migrate",
		"plan set bench --api-access=true --rate-limit 10000 --rate-window 1s --credits 1000000000000",
		"account set bench --plan bench --kind organization",
	} {
		if _, err := keyporter(strings.Fields(command)...); err != nil {
			return err
		}
	}
	for i := range users {
		key, err := createKey(fmt.Sprintf("user-%d", i))
		if err != nil {
			return err
		}
		l.keys = append(l.keys, key)
	}
	var err error
	if l.unknown, err = createKey("gone"); err != nil {
		return err
	}
	_, err = keyporter("user", "delete", "gone")
	return err
}

func (l *lab) startEnvoy(ctx context.Context) error {
	var authorizers []envoyFront
	for _, s := range []*server{l.empty, l.keyporter} {
		front, err := parts.FreeAddr()
		if err != nil {
			return err
		}
		l.fronts[s] = front
		authorizers = append(authorizers, envoyFront{Listen: front, Authorizer: s.grpc})
	}
	bootstrap, err := envoyBootstrap(authorizers)
	if err != nil {
		return err
	}
	envoy, err := parts.StartEnvoy(ctx, parts.EnvoyConfig{Bootstrap: bootstrap, Concurrency: 1})
	if err != nil {
		return err
	}
	l.processes = append(l.processes, envoy.Process)
	l.envoy = &server{name: "Envoy", pid: envoy.PID()}
	return nil
}

// forged is a key of the right shape that nobody has made: its tag is wrong.
var forged = "wh_" + strings.Repeat("0123456789abcdef", 3)

// rows returns what is measured, in the order of the table.
func (l *lab) rows() []*row {
	const open, none = "/api/v1/brands?limit=20", "/nowhere"
	kinds := []question{
		{server: l.empty, answer: "allow", path: open, keys: l.keys, status: http.StatusOK},
		{server: l.keyporter, answer: "allow, key in the cache", path: open, keys: l.keys, status: http.StatusOK},
		{server: l.keyporter, answer: "401, forged key", path: open, keys: []string{forged}, status: http.StatusUnauthorized, code: "unauthorized"},
		{server: l.keyporter, answer: "401, unknown key, repeated", path: open, keys: []string{l.unknown}, status: http.StatusUnauthorized, code: "unauthorized"},
		{server: l.keyporter, answer: "404, no route", path: none, keys: l.keys, status: http.StatusNotFound, code: "not_found"},
	}
	var rows []*row
	for _, q := range kinds {
		rows = append(rows, &row{
			way: "straight", server: q.server.name, answer: q.answer, yardstick: q.server == l.empty,
			authorizer: q.server, dial: q.dialStraight,
		})
	}
	for _, q := range kinds {
		rows = append(rows, &row{
			way: "through Envoy", server: q.server.name, answer: q.answer, yardstick: q.server == l.empty,
			authorizer: q.server, envoy: l.envoy,
			dial: func(ctx context.Context, alone bool) (asker, error) {
				return q.dialEnvoy(ctx, l.fronts[q.server], alone)
			},
		})
	}
	return rows
}

// Package alerts_test evaluates the recommended alerts against real replicas. It is a module of its
// own because it needs Prometheus's query engine.
package alerts_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/promql"
	"go.yaml.in/yaml/v4"

	"github.com/keyporter/keyporter/bearer"
	"github.com/keyporter/keyporter/envoy"
	"github.com/keyporter/keyporter/internal/parts"
	"github.com/keyporter/keyporter/internal/parts/partstest"
)

func TestMain(m *testing.M) { partstest.Main(m) }

// rule is a rule of the file.
type rule struct {
	Alert       string
	Expr        string
	For         time.Duration
	Labels      map[string]string
	Annotations map[string]string
}

func rules(t *testing.T) []rule {
	t.Helper()
	text, err := os.ReadFile("rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ Groups []struct{ Rules []rule } }
	if err := yaml.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	if len(file.Groups) != 1 || len(file.Groups[0].Rules) < 10 {
		t.Fatalf("the file has %d groups", len(file.Groups))
	}
	return file.Groups[0].Rules
}

// site is two replicas on PostgreSQL under load, with or without a Valkey.
type site struct {
	t        *testing.T
	program  string
	dir      string
	postgres *parts.Postgres
	replicas []*replica
	redis    string
	key      string
}

type replica struct {
	grpc, ops, config string
	process           *parts.Process
}

const token = "the-token-of-this-site"

const table = "routes:\n  - {paths: /v1/a, kind: api_key}\n"

func newSite(t *testing.T, redis string, replicas int) *site {
	t.Helper()
	s := &site{t: t, dir: t.TempDir(), redis: redis, postgres: partstest.StartPostgres(t, parts.PostgresConfig{})}
	s.program = filepath.Join(s.dir, "keyporter")
	if out, err := exec.Command("go", "build", "-C", "..", "-ldflags=-s -w", "-o", s.program, "./cmd/keyporter").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := s.postgres.CreateDatabase(t.Context(), "keys"); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(s.dir, "token"), token)
	for range replicas {
		r := &replica{grpc: address(t), ops: address(t)}
		r.config = filepath.Join(s.dir, r.grpc+".yaml")
		write(t, r.config, table)
		s.replicas = append(s.replicas, r)
		s.start(r)
	}
	s.run("plan", "set", "pro", "--credits", "1000000", "--rate-limit", "unlimited")
	s.run("account", "set", "ann", "--plan", "pro")
	s.run("user", "set", "ann", "--account", "ann")
	var made struct{ Key string }
	if err := json.Unmarshal([]byte(s.run("key", "create", "ann", "--output", "json")), &made); err != nil {
		t.Fatal(err)
	}
	s.key = made.Key
	return s
}

func (s *site) start(r *replica) {
	s.t.Helper()
	args := []string{"serve", "--database", s.postgres.URL("keys"), "--config", r.config, "--listen-grpc", r.grpc, "--listen-http", "off",
		"--listen-ops", r.ops, "--drain-delay", "500ms", "--lease", "1s", "--check-timeout", "2s", "--grpc-token-file", filepath.Join(s.dir, "token")}
	if s.redis != "" {
		args = append(args, "--redis", s.redis)
	}
	process, err := parts.Start(parts.Command{Path: s.program, Args: args})
	if err != nil {
		s.t.Fatal(err)
	}
	r.process = process
	s.t.Cleanup(process.Kill)
	partstest.EventuallyNil(s.t, "the replica is ready", func() error {
		response, err := http.Get("http://" + r.ops + "/readyz")
		if err != nil {
			return fmt.Errorf("%w\n%s", err, process.Output())
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("%s\n%s", response.Status, process.Output())
		}
		return nil
	})
}

func (s *site) run(args ...string) string {
	s.t.Helper()
	command := exec.Command(s.program, append(args, "--database", s.postgres.URL("keys"))...)
	var problems strings.Builder
	command.Stderr = &problems
	out, err := command.Output()
	if err != nil {
		s.t.Fatalf("keyporter %v: %v\n%s", args, err, &problems)
	}
	return string(out)
}

// until waits until the metrics of a replica contain a text.
func (s *site) until(r *replica, text string) {
	s.t.Helper()
	partstest.EventuallyNil(s.t, "the metrics show "+text, func() error {
		response, err := http.Get("http://" + r.ops + "/metrics")
		if err != nil {
			return err
		}
		defer response.Body.Close()
		seen, err := io.ReadAll(response.Body)
		if err == nil && !strings.Contains(string(seen), text) {
			err = errors.New(string(seen))
		}
		return err
	})
}

// watch scrapes the replicas under load during an event, and then for a while in the resulting
// steady state: at least until each of the given counters of the first replica has risen once more.
func (s *site) watch(happens func(), rising ...string) *timeline {
	s.t.Helper()
	l := newTimeline()
	ops := make([]string, 0, len(s.replicas))
	for _, r := range s.replicas {
		ops = append(ops, r.ops)
	}
	ctx, stop := context.WithCancel(s.t.Context())
	defer stop()
	for _, r := range s.replicas {
		go s.load(ctx, r, token)
	}
	happened, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for ; ctx.Err() == nil && !l.watched(s.t, ops[0], rising); time.Sleep(200 * time.Millisecond) {
			l.scrape(s.t, time.Now(), ops...)
			select {
			case <-happened:
				l.steady()
			default:
			}
		}
	}()
	if happens != nil {
		happens()
	}
	close(happened)
	select {
	case <-done:
	case <-time.After(time.Minute):
		s.t.Errorf("one of %v does not rise", rising)
		stop()
		<-done
	}
	return l
}

// load sends a replica at most about 200 Checks a second.
func (s *site) load(ctx context.Context, r *replica, token string) {
	sent, err := bearer.Parse(token)
	if err != nil {
		s.t.Error(err)
		return
	}
	client, err := envoy.NewClient(r.grpc, sent)
	if err != nil {
		s.t.Error(err)
		return
	}
	defer client.Close()
	for ctx.Err() == nil {
		asking, cancel := context.WithTimeout(ctx, 3*time.Second)
		// the metrics show the result
		client.Ask(asking, envoy.Question{Method: "GET", Path: "/v1/a"}, s.key)
		cancel()
		time.Sleep(5 * time.Millisecond)
	}
}

// write writes a file atomically, so that readers never see half of it.
func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func address(t *testing.T) string {
	t.Helper()
	free, err := parts.FreeAddr()
	if err != nil {
		t.Fatal(err)
	}
	return free
}

// expect requires exactly the wanted alerts to fire on a timeline.
func expect(t *testing.T, what string, l *timeline, want ...string) {
	t.Helper()
	engine := promql.NewEngine(promql.EngineOpts{MaxSamples: 1e7, Timeout: time.Minute})
	var fired []string
	for _, r := range rules(t) {
		if l.fired(t, engine, r.Expr, r.For) {
			fired = append(fired, r.Alert)
		}
	}
	slices.Sort(fired)
	slices.Sort(want)
	if !slices.Equal(fired, want) {
		t.Errorf("%s: %v fire, want %v", what, fired, want)
	}
}

// unseen changes scraped samples to states that the tests cannot bring about in a short time: a
// panic; an Envoy that reports nothing for a minute; several replicas without Valkey, intended or
// not.
func unseen(t *testing.T, calm *timeline) {
	for _, c := range []struct {
		what   string
		change map[string]float64 // metric → its last value; NaN: absent
		want   []string
	}{
		{"a panic", map[string]float64{"keyporter_check_panics_total": 1}, []string{"KeyporterPanics"}},
		{"no access log", map[string]float64{"keyporter_accesslog_missing": 1}, []string{"KeyporterRefundsDoNotCome"}},
		{"divided limits", map[string]float64{"keyporter_ratelimit_divided_by": 2, "keyporter_ratelimit_valkey_up": stale}, []string{"KeyporterLimitsDivided"}},
		{"divided limits that are meant", map[string]float64{
			"keyporter_ratelimit_divided_by": 2, "keyporter_ratelimit_valkey_up": stale, "keyporter_ratelimit_share_meant": 1,
		}, nil},
	} {
		l := calm.copy()
		for name, n := range c.change {
			l.set(t, name, n)
		}
		l.rests(10 * time.Minute)
		expect(t, c.what, l, c.want...)
	}
}

// No alert fires if no action is needed: in a quiet hour, during a rolling restart of the replicas,
// a failover of PostgreSQL, and a restart of Valkey. Each alert fires in its fault, if that lasts.
// Real replicas provide the data; only its continuation for a quarter of an hour is computed.
func TestAlerts(t *testing.T) {
	partstest.Slow(t)
	valkey, err := parts.StartValkey(t.Context(), parts.ValkeyConfig{})
	partstest.Require(t, err)
	t.Cleanup(valkey.Kill)
	s := newSite(t, "redis://"+valkey.Addr(), 2)
	s.watch(nil) // everything is cached and connected

	quiet := s.watch(nil)
	quiet.goesOn(time.Minute)
	unseen(t, quiet)
	quiet.goesOn(time.Hour)
	expect(t, "a quiet hour", quiet)
	connected := func() {
		for _, r := range s.replicas {
			s.until(r, "keyporter_ratelimit_valkey_up 1")
		}
	}
	rolling := s.watch(func() {
		for _, r := range s.replicas {
			r.process.Stop()
			s.start(r)
		}
		connected()
	})
	rolling.rests(10 * time.Minute)
	expect(t, "a rolling restart", rolling)
	failover := s.watch(func() {
		s.postgres.Kill()
		s.until(s.replicas[0], leaseLeft+" -1")
		if err := s.postgres.Restart(t.Context()); err != nil {
			t.Error(err)
		}
	})
	failover.rests(10 * time.Minute)
	expect(t, "a fail-over of PostgreSQL", failover)
	restarted := s.watch(func() {
		valkey.Pause()
		s.until(s.replicas[0], "keyporter_ratelimit_valkey_up 0")
		valkey.Resume()
		connected()
	})
	restarted.rests(10 * time.Minute)
	expect(t, "Valkey is away for a moment", restarted)

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go s.load(ctx, s.replicas[0], "some-token-that-is-wrong")
	strangers := s.watch(nil, "keyporter_grpc_unauthenticated_total")
	stop()
	strangers.goesOn(20 * time.Minute)
	expect(t, "an Envoy with an old token", strangers, "KeyporterStrangers")

	files := s.watch(func() {
		write(t, s.replicas[0].config, "nonsense: 1\n")
		write(t, s.replicas[1].config, table+"  - {paths: /v1/b, kind: api_key}\n")
		s.until(s.replicas[0], `keyporter_config_reloads_total{result="refused"} 1`)
		s.until(s.replicas[1], `keyporter_config_reloads_total{result="taken"} 1`)
	})
	files.goesOn(20 * time.Minute)
	expect(t, "a file that is wrong, and another table", files, "KeyporterReloadRefused", "KeyporterTablesDiffer")
	write(t, s.replicas[0].config, table)
	write(t, s.replicas[1].config, table)
	down := s.watch(s.replicas[1].process.Kill)
	down.goesOn(10 * time.Minute)
	expect(t, "a replica is gone", down, "KeyporterDown")
	s.replicas = s.replicas[:1]
	valkey.Kill()
	away := s.watch(func() { s.until(s.replicas[0], "keyporter_ratelimit_valkey_up 0") })
	away.goesOn(10 * time.Minute)
	expect(t, "Valkey is gone", away, "KeyporterValkeyAway")
	s.postgres.Kill()
	gone := s.watch(func() { s.until(s.replicas[0], leaseLeft+" -1") },
		`keyporter_credits_reports_total{result="failed"}`, `keyporter_check_errors_total{cause="no_lease"}`)
	gone.goesOn(10 * time.Minute)
	expect(t, "PostgreSQL is gone too", gone, "KeyporterValkeyAway", "KeyporterNoLease", "KeyporterUndecided", "KeyporterCreditsNotReported")
}

package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/keyporter/keyporter/internal/parts"
	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// PostgreSQL is stopped, crashes and loses its connections repeatedly while keys are replaced: no
// old key is admitted, and no live one ever gets a 401.
func TestNoRestartOfPostgreSQLKeepsAnOldKeyAlive(t *testing.T) {
	t.Parallel()
	server := partstest.StartPostgres(t, parts.PostgresConfig{})
	if err := server.CreateDatabase(t.Context(), "keys"); err != nil {
		t.Fatal(err)
	}
	c := startCampaign(t, keyporter(t), server, server.URL("keys"), 2, shortLease)
	c.perReplica, c.mayFail = 40, true
	steady := c.s.user("steady", "pro")
	users := c.enrol(either(8, 16))
	watch := c.watch(steady)
	var restarts, crashes, kills int
	c.during(users, shortLease/3, func() { // an unreachable database fails at once
		cached := func() bool { return c.old.n[denied].Load() > 0 && c.live.n[allowed].Load() > 0 }
		began := time.Now()
		for (restarts+crashes < either(5, 100) || !cached() && time.Since(began) < 2*time.Minute) && !t.Failed() {
			// On a busy machine a replica may need longer for a lease, so the pauses grow.
			pause := 2 * shortLease
			if !cached() {
				pause += time.Since(began) / 4
			}
			time.Sleep(rand.N(pause))
			switch rand.IntN(4) {
			case 0:
				restarts++
			case 1:
				crashes++
				server.Kill()
				time.Sleep(rand.N(2 * shortLease))
			default:
				kills++
				// Each connection with a random probability, except the one that runs this.
				server.SQL(context.Background(), "keys", fmt.Sprintf(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity
					WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND random() < %f`, rand.Float64()))
				continue
			}
			if err := server.Restart(context.Background()); err != nil {
				t.Error(err)
				return
			}
		}
	})
	c.judge()
	t.Logf("%d restarts, %d crashes, connections cut %d times; %s", restarts, crashes, kills, watch())
	if n := c.old.n[other].Load() + c.live.n[other].Load(); n > 0 {
		t.Errorf("%d requests were not answered, want none", n)
	}
	if c.old.n[denied].Load() == 0 {
		t.Error("no old key was refused, so the test proves nothing")
	}
	for i, checker := range c.checkers {
		partstest.EventuallyNil(t, fmt.Sprintf("replica %d answers again", i), func() error { return is(200)(checker.key(steady)) })
	}
}

// is returns a check that wants one status.
func is(want int) func(int, error) error {
	return func(status int, err error) error {
		if err == nil && status != want {
			err = fmt.Errorf("%d, want %d", status, want)
		}
		return err
	}
}

// watch asks all replicas for a live key without a pause, which must never get a 401. The returned
// function ends that and reports for how long the replicas gave no answer.
func (c *campaign) watch(live string) func() string {
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var without, longest, watched atomic.Int64
	var status answers
	for _, checker := range c.checkers {
		wg.Go(func() {
			last, began := time.Now(), time.Time{} // began: start of the time without an answer
			for {
				select {
				case <-stop:
					return
				case <-time.After(5 * time.Millisecond):
				}
				code, err := checker.key(live)
				status.add(code, err)
				if err != nil || code != 200 && code != 503 {
					c.t.Errorf("a live key: %d, %v, want 200, or 503", code, err)
				}
				now := time.Now()
				watched.Add(int64(now.Sub(last)))
				if code == 200 {
					began = time.Time{}
				} else {
					without.Add(int64(now.Sub(last)))
					if began.IsZero() {
						began = last
					}
					if most := int64(now.Sub(began)); most > longest.Load() {
						longest.Store(most)
					}
				}
				last = now
			}
		})
	}
	return func() string {
		close(stop)
		wg.Wait()
		return fmt.Sprintf("a live key was asked for %v: %v of %v replica time were 503, at most %v at a time", &status,
			time.Duration(without.Load()).Round(10*time.Millisecond), time.Duration(watched.Load()).Round(10*time.Millisecond),
			time.Duration(longest.Load()).Round(10*time.Millisecond))
	}
}

// While PostgreSQL is down, cached keys are answered until the lease ends, and then nothing. A
// second later the gRPC health checks send Envoy elsewhere. The replica stays up, reports the
// reason, and recovers.
func TestALeaseOutlastsAShortOutage(t *testing.T) {
	t.Parallel()
	const lease = 4 * time.Second
	server := partstest.StartPostgres(t, parts.PostgresConfig{})
	if err := server.CreateDatabase(t.Context(), "keys"); err != nil {
		t.Fatal(err)
	}
	s := start(t, stackConfig{database: server.URL("keys"), noEnvoy: true, flags: []string{"--lease", lease.String()}})
	r, checker := s.replicas[0], newChecker(t, s.replicas[0])
	key := s.user("ann", "pro")
	ask := func(want int) func() error {
		return func() error { return is(want)(checker.key(key)) }
	}
	partstest.EventuallyNil(t, "the key is cached", ask(200))
	partstest.EventuallyNil(t, "it is healthy", func() error { return health(t, r, healthpb.HealthCheckResponse_SERVING) })

	server.Kill()
	down := time.Now()
	since := func() time.Duration { return time.Since(down).Round(10 * time.Millisecond) }
	hits := time.Duration(0)
	partstest.EventuallyNil(t, "the lease ends", func() error {
		asked := since()
		status, err := checker.key(key)
		if status == 200 {
			hits = asked
		}
		if err != nil || status != 200 && status != 503 {
			t.Errorf("%d, %v, want 200 until the lease ends, then 503", status, err)
		}
		return is(503)(status, err)
	})
	partstest.EventuallyNil(t, "the health check fails", func() error { return health(t, r, healthpb.HealthCheckResponse_NOT_SERVING) })
	unhealthy := since()
	text := readyz(t, r)
	if !strings.Contains(text, "no lease") {
		t.Errorf("/readyz says %q, want that there is no lease", text)
	}
	for range 20 {
		if err := ask(503)(); err != nil {
			t.Errorf("without a lease: %v", err)
		}
	}

	tellsWhy(t, r, "no_lease")
	for operation, want := range map[string]bool{"lease": true, "change": false, "list": false} {
		if n := r.number(t, `keyporter_store_errors_total{operation="`+operation+`"}`); (n > 0) != want {
			t.Errorf("%v calls for %s have failed, want some: %v", n, operation, want)
		}
	}

	down = time.Now()
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	partstest.EventuallyNil(t, "it answers again", ask(200))
	back := since()
	partstest.EventuallyNil(t, "it is healthy", func() error { return health(t, r, healthpb.HealthCheckResponse_SERVING) })
	partstest.EventuallyNil(t, "the log tells, as good news, that it is back", func() error {
		return logged(r, `"level":"INFO","msg":"health checks pass again`)
	})
	t.Logf("lease %v, PostgreSQL killed: hits for %v, then 503; health NOT_SERVING after %v; /readyz 200 %q; after the restart hits in %v, SERVING in %v",
		lease, hits, unhealthy, text, back, since())
	// A renewal is due after a quarter of the lease. On a busy machine it may be late by seconds.
	if hits < lease/4 || hits > lease {
		t.Errorf("hits for %v, want as long as the lease of %v less at most a quarter", hits, lease)
	}
	justReady(t, r)
}

// logged returns nil if a replica's log contains a text.
func logged(r *replica, text string) error {
	if !strings.Contains(r.process.Output(), text) {
		return errors.New("not yet")
	}
	return nil
}

// tellsWhy requires undecided Checks with one cause, in metrics and log, and none with an unknown
// cause.
func tellsWhy(t testing.TB, r *replica, cause string) {
	t.Helper()
	if n := r.number(t, `keyporter_check_errors_total{cause="`+cause+`"}`); n == 0 {
		t.Errorf("no Check was counted as not decided by %s", cause)
	}
	if n := r.number(t, `keyporter_check_errors_total{cause="other"}`); n > 0 {
		t.Errorf("%v Checks were not decided by something that has no name", n)
	}
	host, _ := os.Hostname()
	for _, want := range []string{`"cause":"` + cause + `"`, `"route":"/api/v1/brands`, `"replica":"` + host + `"`} {
		if !strings.Contains(r.process.Output(), want) {
			t.Errorf("the log of undecided Checks does not say %s", want)
		}
	}
}

// health returns nil if a replica's health, as Envoy's health check sees it, is the wanted one.
func health(t testing.TB, r *replica, want healthpb.HealthCheckResponse_ServingStatus) error {
	t.Helper()
	conn, err := grpc.NewClient(r.grpc, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	answer, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{Service: "envoy.service.auth.v3.Authorization"})
	if err != nil {
		return err
	}
	if answer.GetStatus() != want {
		return errors.New(answer.GetStatus().String())
	}
	return nil
}

// A restored backup makes a replaced key live again: nothing is answered until an operator accepts
// it.
func TestARewrittenHistoryIsRefusedUntilItIsAccepted(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "keyporter-e2e-history-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil { // PostgreSQL may run as another user
		t.Fatal(err)
	}
	config := parts.PostgresConfig{Dir: dir}
	server := partstest.StartPostgres(t, config)
	if err := server.CreateDatabase(t.Context(), "keys"); err != nil {
		t.Fatal(err)
	}
	s := start(t, stackConfig{database: server.URL("keys"), noEnvoy: true, replicas: 2, flags: []string{"--lease", "1s"}})
	var checkers []*checker
	for _, r := range s.replicas {
		checkers = append(checkers, newChecker(t, r))
	}
	expect := func(when, key string, want int) {
		t.Helper()
		for i, c := range checkers {
			partstest.EventuallyNil(t, fmt.Sprintf("%s: replica %d answers %d", when, i, want), func() error { return is(want)(c.key(key)) })
		}
	}
	restart := func(between ...string) {
		t.Helper()
		server.Kill()
		if out, err := exec.Command(between[0], between[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", between, err, out)
		}
		if err := server.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	old := s.user("ann", "pro")
	expect("before", old, 200)
	data, backup := filepath.Join(dir, "data"), filepath.Join(dir, "backup")
	restart("cp", "-a", data, backup)
	expect("after a backup", old, 200)
	fresh := s.key("regenerate", "ann")
	for range 3 { // other changes soon bring the restored history as far as the lost one
		fresh = s.key("regenerate", "ann")
	}
	expect("replaced", old, 401)
	expect("replaced", fresh, 200)

	// It takes longer than a lease, so that the replicas have already logged the outage.
	restart("sh", "-c", fmt.Sprintf("rm -r %[1]s && mv %[2]s %[1]s && sleep 2", data, backup))
	for _, r := range s.replicas {
		partstest.EventuallyNil(t, "the replica says what happened", func() error {
			if !strings.Contains(r.process.Output(), "run `keyporter replicas accept-history`") {
				return errors.New("not yet")
			}
			return nil
		})
	}
	refused := 0
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); refused++ {
		for i, c := range checkers {
			for _, key := range []string{old, fresh} {
				if status, err := c.key(key); err != nil || status != 503 {
					t.Fatalf("replica %d: %d, %v, want 503 until the history is accepted", i, status, err)
				}
			}
		}
		if refused%2 == 1 {
			s.run("user", "set", fmt.Sprintf("new%d", refused), "--account", "ann")
			s.key("create", fmt.Sprintf("new%d", refused)) // overtakes the lost changes
		}
	}
	if text := readyz(t, s.replicas[0]); !strings.Contains(text, "accept-history") {
		t.Errorf("/readyz says %q, want what to do", text)
	}
	s.run("replicas", "accept-history")
	expect("accepted", old, 200)
	expect("accepted", fresh, 401)
	t.Logf("%d requests were refused until the history was accepted", refused*4)
}

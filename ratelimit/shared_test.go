package ratelimit

import (
	"bufio"
	"context"
	crand "crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/keyporter/keyporter/internal/parts"
	"github.com/keyporter/keyporter/internal/parts/partstest"
	"github.com/keyporter/keyporter/usage"
)

// share starts a replica that counts in the Valkey at an address.
func share(t testing.TB, address string, c SharedConfig) *Shared {
	t.Helper()
	if address != "" {
		c.Valkey = dial(t, address)
	}
	s := NewShared(c)
	s.Connect(t.Context())
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { s.Run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
	return s
}

// answered is an admitted request: when it was sent, and when the answer came. It was counted
// between the two.
type answered struct{ sent, came time.Duration }

// surely returns the maximum number of requests that were certainly counted in one window, at
// whatever moments between their sending and their answers.
func surely(all []answered, window time.Duration) (most int) {
	slices.SortFunc(all, func(a, b answered) int { return int(a.sent - b.sent) })
	for i, first := range all {
		n := 0
		for _, a := range all[i:] {
			if a.came < first.sent+window {
				n++
			}
			if a.sent >= first.sent+window {
				break
			}
		}
		most = max(most, n)
	}
	return most
}

// load is endless requests of one user to three replicas.
type load struct {
	began   time.Time
	mu      sync.Mutex
	all     []answered // guarded by mu
	errors  []error    // guarded by mu
	tried   atomic.Int64
	stopped chan struct{}
	wg      sync.WaitGroup
}

const (
	loadLimit  = 60
	loadWindow = time.Second
	// loadTimeout is long enough that a busy machine does not look like a slow Valkey.
	loadTimeout = 250 * time.Millisecond
)

func startLoad() *load { return &load{began: time.Now(), stopped: make(chan struct{})} }

// ask sends requests to replicas from now on.
func (l *load) ask(replicas ...*Shared) {
	for _, s := range replicas {
		for range 2 {
			l.wg.Go(func() { l.run(s) })
		}
	}
}

func (l *load) run(s *Shared) {
	for {
		select {
		case <-l.stopped:
			return
		case <-time.After(rand.N(6 * time.Millisecond)):
			l.once(s)
		}
	}
}

// once sends one request.
func (l *load) once(s *Shared) {
	sent := time.Since(l.began)
	v, err := s.Admit(context.Background(), Attempt{User: "ann", ID: crand.Text(), Limit: loadLimit, Window: loadWindow})
	came := time.Since(l.began)
	l.tried.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.errors = append(l.errors, err)
	} else if v.Admitted {
		l.all = append(l.all, answered{sent, came})
	}
}

// stop ends the load and returns the admitted requests.
func (l *load) stop() []answered {
	close(l.stopped)
	l.wg.Wait()
	return l.all
}

// Valkey is stopped, slow, restarted without its memory, and replaced by its standby, right after a
// first replica has admitted the whole limit, and from then on all three get endless requests: no
// window has more than twice the limit, no request gets an error, and one window after the return
// the limit is exact again.
func TestValkeyFailsUnderLoad(t *testing.T) {
	partstest.Slow(t)
	faults := map[string]func(t *testing.T, server, other *parts.Valkey, d *partstest.Proxy){
		"stopped, then an empty one": func(t *testing.T, server, other *parts.Valkey, d *partstest.Proxy) {
			server.Kill()
			time.Sleep(loadWindow / 4)
			d.Move(other.Addr())
		},
		"away for long, then an empty one": func(t *testing.T, server, other *parts.Valkey, d *partstest.Proxy) {
			server.Kill()
			time.Sleep(2 * loadWindow)
			d.Move(other.Addr())
		},
		"replaced by an empty one at once": func(t *testing.T, server, other *parts.Valkey, d *partstest.Proxy) {
			d.Move(other.Addr())
		},
		"emptied": func(t *testing.T, server, other *parts.Valkey, d *partstest.Proxy) {
			command(t, server.Addr(), "FLUSHALL")
		},
		"frozen": func(t *testing.T, server, other *parts.Valkey, d *partstest.Proxy) {
			server.Pause()
			time.Sleep(2 * loadWindow)
			server.Resume()
		},
		"frozen again and again": func(t *testing.T, server, other *parts.Valkey, d *partstest.Proxy) {
			for range 5 {
				server.Pause()
				time.Sleep(2 * loadTimeout)
				server.Resume()
				time.Sleep(loadTimeout)
			}
		},
		"cut off again and again": func(t *testing.T, server, other *parts.Valkey, d *partstest.Proxy) {
			for range 5 {
				d.Move("")
				time.Sleep(100 * time.Millisecond)
				d.Move(server.Addr())
				time.Sleep(200 * time.Millisecond)
			}
		},
		"replaced by its standby": func(t *testing.T, server, other *parts.Valkey, d *partstest.Proxy) {
			follow(t, other, server)
			server.Kill()
			command(t, other.Addr(), "REPLICAOF", "NO", "ONE")
			d.Move(other.Addr())
		},
		"made a standby, and its connections stay": func(t *testing.T, server, other *parts.Valkey, d *partstest.Proxy) {
			follow(t, server, other)
			d.Redirect(other.Addr())
		},
		"made a standby of its standby, and its connections stay": func(t *testing.T, server, other *parts.Valkey, d *partstest.Proxy) {
			follow(t, other, server)
			command(t, other.Addr(), "REPLICAOF", "NO", "ONE")
			follow(t, server, other)
			d.Redirect(other.Addr())
		},
	}
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server, other := partstest.Valkey(t), partstest.Valkey(t)
			d := partstest.StartProxy(t, partstest.ProxyConfig{To: server.Addr()})
			var replicas []*Shared
			for range 3 {
				replicas = append(replicas, share(t, d.Addr(), SharedConfig{
					Replicas: func() int { return 3 }, Timeout: loadTimeout, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
				}))
			}
			partstest.Eventually(t, "Valkey is known", func() bool { return replicas[0].identity.Load() != nil })
			identity := *replicas[0].identity.Load()
			for _, s := range replicas {
				partstest.Eventually(t, "the memory is not new any more", func() bool { return !s.partialHistory(loadWindow) })
			}
			l := startLoad()
			for range loadLimit {
				l.once(replicas[0])
			}
			l.ask(replicas...)
			began := time.Since(l.began)
			fault(t, server, other, d)
			for _, s := range replicas {
				partstest.Eventually(t, "it was noticed", func() bool { return testutil.ToFloat64(s.metrics.errors) > 0 || *s.identity.Load() != identity })
			}
			exact(t, replicas...)
			again, lost := time.Since(l.began), unanswered(replicas)
			time.Sleep(5 * loadWindow / 2)
			all, limit := l.stop(), loadLimit
			busy := unanswered(replicas) > lost
			if busy {
				t.Log("the machine is busy: Valkey did not answer in time after its return either")
				limit *= 2
			}
			after := slices.DeleteFunc(slices.Clone(all), func(a answered) bool { return a.sent < again })
			worstEver, worstAfter := surely(all, loadWindow), surely(after, loadWindow)
			t.Logf("%d requests, %d admitted, %d errors; the fault and what followed took %v; at most %d in a window, %d after it",
				l.tried.Load(), len(all), len(l.errors), again-began, worstEver, worstAfter)
			if worstEver > 2*loadLimit || worstAfter > limit || len(l.errors) > 0 {
				t.Errorf("at most %d in a window, want %d; %d after the return, want %d; errors: %v", worstEver, 2*loadLimit, worstAfter, limit, errors.Join(l.errors...))
			}
			if worstAfter < loadLimit*9/10 && !busy {
				t.Errorf("at most %d in a window after the return: too few", worstAfter)
			}
		})
	}
}

// unanswered is the number of the replicas' questions that Valkey has not answered in time.
func unanswered(replicas []*Shared) (n float64) {
	for _, s := range replicas {
		n += testutil.ToFloat64(s.metrics.errors)
	}
	return n
}

// A Sentinel that has promoted the standby leads there, even if nobody receives its announcement.
func TestASentinelLeadsToTheNewPrimary(t *testing.T) {
	partstest.Slow(t)
	for name, failover := range map[string]func(t *testing.T, primary *parts.Valkey, sentinel string){
		"the primary is killed": func(_ *testing.T, primary *parts.Valkey, _ string) { primary.Kill() },
		"the primary hangs":     func(_ *testing.T, primary *parts.Valkey, _ string) { primary.Pause() },
		"an operator asks for it": func(t *testing.T, _ *parts.Valkey, sentinel string) {
			client, err := dial(t, sentinel).connect()
			if err != nil {
				t.Fatal(err)
			}
			partstest.Eventually(t, "the Sentinel has looked at the standby", func() bool {
				return client.Do(t.Context(), client.B().Arbitrary("SENTINEL", "FAILOVER", "main").Build()).Error() == nil
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			primary, standby := partstest.Valkey(t), partstest.Valkey(t)
			follow(t, standby, primary)
			sentinel := startSentinel(t, primary)
			s := share(t, sentinel+"?master_set=main", SharedConfig{
				Replicas: func() int { return 3 }, Timeout: loadTimeout, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
			})
			partstest.Eventually(t, "the primary is known", func() bool { return !s.down.Load() })
			before := *s.identity.Load()
			failover(t, primary, sentinel)
			n := 0
			took := partstest.Eventually(t, "the standby is asked", func() bool {
				if v, err := s.Admit(t.Context(), Attempt{User: "ann", ID: fmt.Sprint(n), Limit: 10_000, Window: time.Minute}); err != nil || !v.Admitted {
					t.Fatalf("%+v, %v", v, err)
				}
				n++
				return !s.down.Load() && *s.identity.Load() != before
			})
			t.Logf("asked after %v", took)
			if v, err := s.Admit(t.Context(), Attempt{User: "bob", ID: "1", Limit: 10_000, Window: time.Minute}); err != nil || !v.Admitted {
				t.Errorf("after it: %+v, %v", v, err)
			}
			partstest.Eventually(t, "the new primary counts", func() bool {
				return counted(t, standby, "bob") == 1
			})
		})
	}
}

// startSentinel starts a Sentinel that watches a primary, and returns its address once it knows the
// standby.
func startSentinel(t *testing.T, primary *parts.Valkey) string {
	t.Helper()
	path, err := parts.FindValkey()
	if err != nil {
		t.Fatal(err)
	}
	port, err := parts.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(t.TempDir(), "sentinel.conf")
	text := fmt.Sprintf("bind 127.0.0.1\nport %d\nsentinel monitor main 127.0.0.1 %d 1\nsentinel down-after-milliseconds main 500\nsentinel failover-timeout main 5000\n", port, primary.Port())
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	process, err := parts.Start(parts.Command{Path: path, Args: []string{config, "--sentinel"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { process.Stop() })
	address := fmt.Sprint("127.0.0.1:", port)
	partstest.EventuallyNil(t, "the Sentinel knows the standby", func() error {
		if output := process.Output(); !strings.Contains(output, "+slave") {
			return errors.New(output)
		}
		return nil
	})
	return address
}

// follow makes a server the standby of another, and returns once it has all of the other's data.
func follow(t testing.TB, standby, primary *parts.Valkey) {
	t.Helper()
	command(t, primary.Addr(), "CONFIG", "SET", "repl-diskless-sync-delay", "0")
	command(t, standby.Addr(), "REPLICAOF", "127.0.0.1", fmt.Sprint(primary.Port()))
	partstest.EventuallyNil(t, "the standby follows", func() error {
		if state := command(t, standby.Addr(), "INFO", "replication"); !strings.Contains(state, "master_link_status:up") {
			return errors.New(state)
		}
		return nil
	})
}

// exact returns when all replicas hold limits exactly: a window after the return, and after each
// has found the server again.
func exact(t *testing.T, replicas ...*Shared) {
	t.Helper()
	for _, s := range replicas {
		partstest.Eventually(t, "limits are not divided", func() bool { return s.Divided() == 1 })
	}
}

// command sends a command to a server and returns the answer.
func command(t testing.TB, address string, words ...string) string {
	t.Helper()
	client, err := dial(t, address).connect()
	if err != nil {
		t.Fatal(err)
	}
	answer, err := client.Do(t.Context(), client.B().Arbitrary(words...).Build()).ToString()
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

// askHundred returns a function that makes 100 requests of one user with a limit of 60 an hour, and
// expects a number of them to be admitted. No two requests have the same id.
func askHundred(t *testing.T, s *Shared) func(want int) {
	requests := 0
	return func(want int) {
		t.Helper()
		admitted := 0
		for range 100 {
			requests++
			v, err := s.Admit(t.Context(), Attempt{User: "ann", ID: fmt.Sprint(requests), Limit: 60, Window: time.Hour})
			if err != nil {
				t.Fatal(err)
			}
			if v.Admitted {
				admitted++
			}
		}
		if admitted != want {
			t.Errorf("%d admitted, want %d", admitted, want)
		}
	}
}

// While Valkey is unreachable, each replica admits its share, including its earlier admissions, and
// says so. Afterwards it replays its backlog, once.
func TestWithoutValkeyEachReplicaAdmitsItsShare(t *testing.T) {
	server := partstest.Valkey(t)
	d := partstest.StartProxy(t, partstest.ProxyConfig{To: server.Addr()})
	registry := prometheus.NewRegistry()
	var logs partstest.Buffer
	s := share(t, d.Addr(), SharedConfig{
		Replicas: func() int { return 3 }, Timeout: 10 * time.Second, Metrics: registry, Log: slog.New(slog.NewTextHandler(&logs, nil)),
	})
	s.since.Store(-int64(time.Hour)) // the memory is not new
	ask := askHundred(t, s)
	for i := range 5 {
		if _, err := s.Admit(t.Context(), Attempt{User: "ann", ID: fmt.Sprint("before", i), Limit: 60, Window: time.Hour}); err != nil {
			t.Fatal(err)
		}
	}
	expectGauges(t, registry, 1, 1)
	d.Move("")
	ask(15) // of 20
	expectGauges(t, registry, 3, 0)
	partstest.Eventually(t, "it is logged", func() bool { return strings.Contains(logs.String(), "each replica admits its share") })
	// A released request leaves no entry, here and in Valkey. (Valkey was asked about the first
	// one.)
	if released, err := s.Release(t.Context(), "ann", "2"); !released || err != nil {
		t.Errorf("taken back: %v, %v", released, err)
	}
	ask(1)
	d.Move(server.Addr())
	partstest.Eventually(t, "Valkey is back", func() bool { return !s.down.Load() })
	expectGauges(t, registry, 1, 1)
	if got := counted(t, server, "ann"); got != 20 {
		t.Errorf("Valkey counts %d requests, want 20", got)
	}
	ask(40)
	if n := testutil.ToFloat64(s.metrics.errors); n < 1 {
		t.Errorf("%v errors counted", n)
	}
}

// Once Valkey was seen to answer again, questions use the connection that was looked at: none is
// lost on an older one.
func TestNoQuestionIsLostAfterTheReturn(t *testing.T) {
	server := partstest.Valkey(t)
	d := partstest.StartProxy(t, partstest.ProxyConfig{To: server.Addr()})
	s := share(t, d.Addr(), SharedConfig{Timeout: 10 * time.Second, Metrics: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler)})
	requests := 0
	ask := func() {
		t.Helper()
		requests++
		if _, err := s.Admit(t.Context(), Attempt{User: "ann", ID: fmt.Sprint(requests), Limit: 10_000, Window: time.Hour}); err != nil {
			t.Fatal(err)
		}
	}
	for range 20 {
		for range 20 {
			ask()
		}
		d.Move("")
		ask()
		d.Move(server.Addr())
		partstest.Eventually(t, "Valkey is back", func() bool { return !s.down.Load() })
		lost := testutil.ToFloat64(s.metrics.errors)
		for range 20 {
			ask()
		}
		if now := testutil.ToFloat64(s.metrics.errors); now > lost {
			t.Fatalf("%v questions lost after the return", now-lost)
		}
	}
}

// counted is the number of requests of some users that a Valkey counts.
func counted(t *testing.T, server *parts.Valkey, users ...string) (n int) {
	t.Helper()
	for _, user := range users {
		one, err := strconv.Atoi(command(t, server.Addr(), "EVAL", "return tostring(redis.call('ZCARD', KEYS[1]))", "1", logKey(user)))
		if err != nil {
			t.Fatal(err)
		}
		n += one
	}
	return n
}

func expectGauges(t *testing.T, r *prometheus.Registry, divided, up float64) {
	t.Helper()
	want := fmt.Sprintf(`
# HELP keyporter_ratelimit_divided_by By how much this replica divides rate limits: 1 where they hold over all replicas, else their number.
# TYPE keyporter_ratelimit_divided_by gauge
keyporter_ratelimit_divided_by %v
# HELP keyporter_ratelimit_valkey_up 1 while Valkey counts, 0 while this replica counts alone.
# TYPE keyporter_ratelimit_valkey_up gauge
keyporter_ratelimit_valkey_up %v
`, divided, up)
	if err := testutil.GatherAndCompare(r, strings.NewReader(want), "keyporter_ratelimit_divided_by", "keyporter_ratelimit_valkey_up"); err != nil {
		t.Error(err)
	}
}

// A strict replica does not decide without Valkey, even if it has never seen it.
func TestAStrictReplicaDoesNotDecideAlone(t *testing.T) {
	d := partstest.StartProxy(t, partstest.ProxyConfig{})
	s := share(t, d.Addr(), SharedConfig{Strict: true, Timeout: 10 * time.Second})
	attempt := Attempt{User: "ann", ID: "1", Limit: 60, Window: time.Minute}
	if v, err := s.Admit(t.Context(), attempt); !errors.Is(err, ErrDown) || v.Admitted {
		t.Errorf("without Valkey: %+v, %v", v, err)
	}
	if v, err := s.Admit(t.Context(), Attempt{User: "ann", ID: "0", Limit: usage.Unlimited, Charge: charged("some")}); err != nil || !v.Admitted {
		t.Errorf("a user without a limit, without Valkey: %+v, %v", v, err)
	}
	d.Move(partstest.Valkey(t).Addr())
	partstest.Eventually(t, "Valkey is there", func() bool { return !s.down.Load() })
	if v, err := s.Admit(t.Context(), attempt); err != nil || !v.Admitted {
		t.Errorf("with Valkey: %+v, %v", v, err)
	}
	d.Move("")
	if v, err := s.Admit(t.Context(), attempt); !errors.Is(err, ErrDown) || v.Admitted {
		t.Errorf("after it has gone: %+v, %v", v, err)
	}
}

// Several replicas without a Valkey admit their share each, at least one request, and nothing of a
// limit of 0.
func TestReplicasWithoutAValkeyAdmitTheirShare(t *testing.T) {
	for _, c := range []struct{ limit, replicas, want int }{{60, 1, 60}, {60, 3, 20}, {60, 7, 8}, {2, 3, 1}, {0, 3, 0}, {60, 0, 60}} {
		s := share(t, "", SharedConfig{Replicas: func() int { return c.replicas }})
		admitted := 0
		for i := range 100 {
			v, err := s.Admit(t.Context(), Attempt{User: "ann", ID: fmt.Sprint(i), Limit: usage.Limit(c.limit), Window: time.Minute})
			if err != nil {
				t.Fatal(err)
			}
			if v.Admitted {
				admitted++
			}
		}
		if admitted != c.want {
			t.Errorf("each of %d replicas admits %d of %d, want %d", c.replicas, admitted, c.limit, c.want)
		}
	}
}

// A released request counts nowhere, unless any replica admitted a repeated Check of it.
func TestReleaseReachesValkey(t *testing.T) {
	all, clock := replicas(t, partstest.Valkey(t), 2)
	clock.set(1000 * time.Hour)
	ask := func(s *Shared, id string) Verdict {
		v, err := s.Admit(t.Context(), Attempt{User: "ann", ID: id, Limit: 3, Window: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	ask(all[0], "1")
	ask(all[0], "2")
	ask(all[1], "2")
	for id, want := range map[string]bool{"1": true, "2": false, "never": false} {
		if released, err := all[0].Release(t.Context(), "ann", id); released != want || err != nil {
			t.Errorf("%s is taken back: %v, want %v; %v", id, released, want, err)
		}
	}
	if v := ask(all[1], "3"); v.Remaining != 1 {
		t.Errorf("%d more fit, want 1 of 3: one of two was taken back", v.Remaining)
	}
	if v := ask(all[1], "1"); v.Duplicate || v.Remaining != 0 {
		t.Errorf("a request that was taken back comes again: %+v", v)
	}
}

// A request that was counted in Valkey, with its answer lost, counts once after the replay.
func TestALostAnswerIsNotCountedTwice(t *testing.T) {
	server := partstest.Valkey(t)
	all, clock := replicas(t, server, 1)
	clock.set(1000 * time.Hour)
	s := all[0]
	a := Attempt{User: "ann", ID: "1", Limit: 60, Window: time.Minute, Charge: charged("first")}
	// The answer is discarded.
	if _, err := s.config.Valkey.Admit(10*time.Second, *s.identity.Load(), a); err != nil {
		t.Fatal(err)
	}
	s.down.Store(true)
	if v, err := s.Admit(t.Context(), a); err != nil || !v.Admitted || v.Duplicate {
		t.Errorf("alone: %+v, %v", v, err)
	}
	s.check(t.Context())
	if v, err := s.Admit(t.Context(), Attempt{User: "ann", ID: "2", Limit: 60, Window: time.Minute}); err != nil || v.Remaining != 58 {
		t.Errorf("%d more fit, want 58: %v", v.Remaining, err)
	}
	if v, err := s.Admit(t.Context(), a); err != nil || !v.Duplicate || v.Charge.Name != "first" {
		t.Errorf("again: %+v, %v", v, err)
	}
}

// A replica recognizes a duplicate of a request that it admitted alone, although Valkey does not
// know the request.
func TestARepeatedCheckAcrossTheReturnOfValkey(t *testing.T) {
	for name, age := range map[string]time.Duration{"with its memory": time.Hour, "without": 0} {
		t.Run(name, func(t *testing.T) {
			all, clock := replicas(t, partstest.Valkey(t), 1)
			clock.set(1000 * time.Hour)
			s := all[0]
			s.since.Store(-int64(age))
			s.down.Store(true)
			a := Attempt{User: "ann", ID: "1", Limit: 60, Window: time.Minute, Charge: charged("first")}
			if v, err := s.Admit(t.Context(), a); err != nil || !v.Admitted {
				t.Errorf("alone: %+v, %v", v, err)
			}
			s.check(t.Context())
			a.Charge = charged("second")
			if v, err := s.Admit(t.Context(), a); err != nil || !v.Duplicate || v.Charge != byNumber("first") {
				t.Errorf("again: %+v, %v", v, err)
			}
			if v, err := s.Admit(t.Context(), Attempt{User: "ann", ID: "2", Limit: 60, Window: time.Minute}); err != nil || v.Remaining != 58 {
				t.Errorf("%d more fit, want 58: %v", v.Remaining, err)
			}
		})
	}
}

// After the server has forgotten, the first request does not get a fresh limit, on any replica.
func TestAnEmptyServerIsNoticedByTheFirstRequest(t *testing.T) {
	server := partstest.Valkey(t)
	all, clock := replicas(t, server, 3)
	a := Attempt{User: "ann", ID: "1", Limit: 60, Window: time.Minute}
	if _, err := all[0].Admit(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	command(t, server.Addr(), "FLUSHALL")
	clock.set(1000 * time.Hour)
	for i, s := range all {
		if _, err := s.config.Valkey.Admit(10*time.Second, *s.identity.Load(), a); !errors.Is(err, errForgotten) {
			t.Errorf("replica %d: %v, want %v", i, err, errForgotten)
		}
		if v, err := s.Admit(t.Context(), Attempt{User: "bob", ID: fmt.Sprint("alone", i), Limit: 60, Window: time.Minute}); err != nil || v.Remaining != 19 {
			t.Errorf("replica %d, which decides alone: %+v, %v", i, v, err)
		}
		s.check(t.Context())
		if v, err := s.Admit(t.Context(), Attempt{User: "bob", ID: fmt.Sprint("asked", i), Limit: 60, Window: time.Minute}); err != nil || v.Remaining != 18 || s.down.Load() {
			t.Errorf("replica %d, which asks again: %+v, %v", i, v, err)
		}
	}
}

// A promoted standby may lack the last requests, so it is another memory, although it has the
// identity of the first.
func TestAPromotedStandbyIsAnotherMemory(t *testing.T) {
	partstest.Slow(t)
	primary, standby := partstest.Valkey(t), partstest.Valkey(t)
	before, _, err := dial(t, primary.Addr()).Identity(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	follow(t, standby, primary)
	command(t, standby.Addr(), "REPLICAOF", "NO", "ONE")
	v := dial(t, standby.Addr())
	if _, err := v.connect(); err != nil {
		t.Fatal(err)
	}
	a := Attempt{User: "ann", ID: "1", Limit: 60, Window: time.Minute}
	if verdict, err := v.Admit(10*time.Second, before, a); !errors.Is(err, errForgotten) {
		t.Errorf("asked before anybody has looked at it: %+v, %v; want %v", verdict, err, errForgotten)
	}
	after, _, err := v.Identity(t.Context())
	if err != nil || after == before {
		t.Errorf("the identity %s has not changed: %v", after, err)
	}
	time.Sleep(2 * time.Millisecond)
	again, age, err := v.Identity(t.Context())
	if err != nil || again != after || age < 2*time.Millisecond || age > time.Minute {
		t.Errorf("asked again: %s for %v, want %s; %v", again, age, after, err)
	}
}

// A request decided too late is released, and costs nothing, unless Valkey may have admitted it on
// another replica: then its charge stands, once.
func TestWhatMayHaveBeenRepeatedIsNotTakenBack(t *testing.T) {
	partstest.Slow(t)
	admit := func(t *testing.T, s *Shared, charge string, limit usage.Limit) Verdict {
		t.Helper()
		v, err := s.Admit(t.Context(), Attempt{User: "ann", ID: "1", Limit: limit, Window: time.Minute, Charge: charged(charge)})
		if err != nil || !v.Admitted {
			t.Fatalf("%+v, %v", v, err)
		}
		return v
	}
	for name, c := range map[string]struct {
		limit     usage.Limit
		alone     bool                                  // Valkey is unreachable at the decision
		then      func(server *parts.Valkey, s *Shared) // before the release
		takenBack bool
	}{
		"Valkey has admitted it":                        {limit: 60, takenBack: true},
		"Valkey has admitted it, and goes away":         {limit: 60, then: func(_ *parts.Valkey, s *Shared) { s.down.Store(true) }},
		"Valkey has admitted it, and is emptied":        {limit: 60, then: func(server *parts.Valkey, s *Shared) { command(t, server.Addr(), "FLUSHALL") }},
		"it was decided alone":                          {limit: 60, alone: true, takenBack: true},
		"it was decided alone, without a limit":         {limit: usage.Unlimited, alone: true, takenBack: true},
		"it was decided alone, then replayed to Valkey": {limit: 60, alone: true, then: func(_ *parts.Valkey, s *Shared) { s.check(t.Context()) }, takenBack: true},
		"Valkey remembers it without a limit":           {limit: usage.Unlimited, takenBack: true},
		"Valkey remembers it, and goes away for long":   {limit: usage.Unlimited, then: func(_ *parts.Valkey, s *Shared) { s.down.Store(true) }},
	} {
		t.Run(name, func(t *testing.T) {
			server := partstest.Valkey(t)
			all, _ := replicas(t, server, 1)
			s := all[0]
			s.down.Store(c.alone)
			admit(t, s, "first", c.limit)
			if c.then != nil {
				c.then(server, s)
			}
			released, err := s.Release(t.Context(), "ann", "1")
			if taken := released && err == nil; taken != c.takenBack {
				t.Errorf("taken back: %v, %v", released, err)
			}
			if s.down.Load() && !c.takenBack {
				if v := admit(t, s, "second", c.limit); !v.Duplicate {
					t.Errorf("repeated on the same replica, it is charged for again: %+v", v)
				}
			}
		})
	}
	t.Run("only the answer of Valkey is lost", func(t *testing.T) {
		all, _ := replicas(t, partstest.Valkey(t), 2)
		v := all[0].config.Valkey
		v.batches = newBatches(func(ctx context.Context, b *batch) ([]Verdict, error) {
			_, err := v.count(ctx, b)
			return nil, errors.Join(err, io.ErrUnexpectedEOF)
		})
		admit(t, all[0], "first", 60)
		if v := admit(t, all[1], "second", 60); !v.Duplicate {
			t.Errorf("the other replica is told %+v", v)
		}
		if released, err := all[0].Release(t.Context(), "ann", "1"); released && err == nil {
			t.Error("it is taken back, and passes on the other replica")
		}
	})
}

// A long backlog is replayed in parts. Replayed admissions are not replayed again if Valkey goes
// away in between, and none is left out.
func TestALongAbsenceIsToldInParts(t *testing.T) {
	server := partstest.Valkey(t)
	s := NewShared(SharedConfig{Valkey: dial(t, server.Addr()), Timeout: 10 * time.Second})
	s.Connect(t.Context())
	const each = 2*maxReplay + 10
	for i := range 3 * each {
		s.backlog.add(Attempt{User: []string{"ann", "bob", "eve"}[i%3], ID: fmt.Sprint(i), Window: time.Hour}, s.local.clock())
	}
	gone, leave := context.WithCancel(t.Context())
	leave()
	if err := s.replay(gone); err == nil {
		t.Error("it was told without being there")
	}
	if n := counted(t, server, "ann", "bob", "eve"); n != 0 {
		t.Errorf("%d were told without being there", n)
	}
	all := s.backlog.take()
	if err := s.add(t.Context(), takeN(all, maxReplay)); err != nil {
		t.Fatal(err)
	}
	if n := counted(t, server, "ann", "bob", "eve"); n != maxReplay {
		t.Errorf("%d were told at a time, want %d", n, maxReplay)
	}
	s.backlog.requeue(all)
	if err := s.replay(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := counted(t, server, "ann", "bob", "eve"); n != 3*each || len(s.backlog.users) > 0 {
		t.Errorf("%d were told of %d, %d users are left", n, 3*each, len(s.backlog.users))
	}
}

// A request that a replica admitted alone makes room a window after its admission, not after its
// replay; and the backlog drops requests that no longer count.
func TestWhatIsToldCountsFromWhenItWasAdmitted(t *testing.T) {
	all, serverClock := replicas(t, partstest.Valkey(t), 1)
	s := all[0]
	var c clock
	s.local.clock = c.time
	c.set(time.Hour)
	s.down.Store(true)
	ask := func(id string) Verdict {
		v, err := s.Admit(t.Context(), Attempt{User: "ann", ID: id, Limit: 60, Window: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	ask("expires")
	c.set(time.Hour + time.Minute)
	s.backlog.prune(c.time())
	if n := len(s.backlog.users); n > 0 {
		t.Errorf("%d users are kept after a window", n)
	}
	ask("1")
	c.set(time.Hour + time.Minute + 40*time.Second)
	serverClock.set(1000 * time.Hour)
	s.check(t.Context())
	if v := ask("2"); v.Remaining != 58 || v.Reset != 20*time.Second {
		t.Errorf("40 s later: %+v", v)
	}
	serverClock.set(1000*time.Hour + 20*time.Second)
	if v := ask("3"); v.Remaining != 58 {
		t.Errorf("60 s later: %+v", v)
	}
}

// One failed question does not keep a replica away from a Valkey that answers. It is logged that
// limits were divided meanwhile, but not each time.
func TestOneLostQuestionIsSoonForgiven(t *testing.T) {
	var logs partstest.Buffer
	// With a timeout that a busy machine keeps: nothing else may be lost.
	s := share(t, partstest.Valkey(t).Addr(), SharedConfig{Timeout: 10 * time.Second, Log: slog.New(slog.NewTextHandler(&logs, nil))})
	began := time.Now()
	const times = 10
	for range times {
		s.markDown(errors.New("too late"))
		partstest.Eventually(t, "Valkey is asked again", func() bool { return !s.down.Load() })
	}
	if took := time.Since(began); took > (times-1)*upInterval { // sooner than the regular look
		t.Errorf("it took %v", took)
	}
	partstest.Eventually(t, "it is logged", func() bool { return strings.Contains(logs.String(), "Valkey answers again") })
	if out := logs.String(); strings.Count(out, "Valkey does not answer: ") != 1 || strings.Count(out, "too late") != 1 {
		t.Errorf("logged: %s", out)
	}
}

// A new replica trusts a memory that is older than the window, and no younger one.
func TestANewReplicaTrustsAnOldMemory(t *testing.T) {
	server := partstest.Valkey(t)
	share(t, server.Addr(), SharedConfig{Timeout: 10 * time.Second})
	time.Sleep(50 * time.Millisecond)
	s := share(t, server.Addr(), SharedConfig{Timeout: 10 * time.Second})
	if s.partialHistory(50 * time.Millisecond) {
		t.Error("a memory of 50 ms is not trusted for a window of 50 ms")
	}
	if !s.partialHistory(time.Hour) {
		t.Error("a memory of 50 ms is trusted for a window of an hour")
	}
}

// Requests without a limit are not counted, but a repeated Check of one gets the first charge, on
// every replica.
func TestWithoutALimitAValkeyRemembersCharges(t *testing.T) {
	server := partstest.Valkey(t)
	all, clock := replicas(t, server, 2)
	clock.set(1000 * time.Hour)
	ask := func(s *Shared, charge string) Verdict {
		v, err := s.Admit(t.Context(), Attempt{User: "ann", ID: "1", Limit: usage.Unlimited, Window: time.Minute, Charge: charged(charge)})
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	if v := ask(all[0], "first"); v != (Verdict{Admitted: true}) {
		t.Errorf("the first Check: %+v", v)
	}
	for i, s := range all {
		if v := ask(s, "second"); v != (Verdict{Admitted: true, Duplicate: true, Charge: ChargeRef{Name: "first"}}) {
			t.Errorf("the second Check, replica %d: %+v", i, v)
		}
	}
	if released, err := all[0].Release(t.Context(), "ann", "1"); released || err != nil {
		t.Errorf("taken back: %v, %v", released, err)
	}
	if n := counted(t, server, "ann"); n != 0 {
		t.Errorf("Valkey counts %d requests", n)
	}
}

// A server that loads its data from disk or from its primary answers that it is loading: then each
// replica admits its share, or nothing if it is strict, and a window after its return the limit is
// exact.
func TestAServerThatIsLoading(t *testing.T) {
	partstest.Slow(t)
	server, primary := partstest.Valkey(t), partstest.Valkey(t)
	loading := func() bool { return strings.HasPrefix(inline(t, server.Addr(), "PING"), "-LOADING") }
	s := share(t, server.Addr(), SharedConfig{Replicas: func() int { return 3 }, Timeout: 10 * time.Second})
	strict := share(t, server.Addr(), SharedConfig{Strict: true, Timeout: 10 * time.Second})
	s.since.Store(-int64(time.Hour)) // the memory is not new
	ask := askHundred(t, s)
	for i := range 300 {
		inline(t, primary.Addr(), fmt.Sprintf("SET key%d %0500d", i, i))
	}
	inline(t, primary.Addr(), "CONFIG SET repl-diskless-sync-delay 0")
	inline(t, server.Addr(), "CONFIG SET loading-process-events-interval-bytes 1024 key-load-delay 50000")
	inline(t, server.Addr(), "REPLICAOF "+strings.ReplaceAll(primary.Addr(), ":", " "))
	partstest.Eventually(t, "it is loading", loading)
	ask(20)
	if v, err := strict.Admit(t.Context(), Attempt{User: "bob", ID: "1", Limit: 60, Window: time.Hour}); !errors.Is(err, ErrDown) || v.Admitted {
		t.Errorf("a strict replica: %+v, %v", v, err)
	}
	if !loading() {
		t.Fatal("the server was not loading all the time")
	}
	inline(t, server.Addr(), "CONFIG SET key-load-delay 0")
	partstest.Eventually(t, "it has loaded", func() bool { return !loading() })
	inline(t, server.Addr(), "REPLICAOF NO ONE")
	partstest.Eventually(t, "Valkey is back", func() bool { return !s.down.Load() && !strict.down.Load() })
	if v, err := strict.Admit(t.Context(), Attempt{User: "bob", ID: "1", Limit: 60, Window: time.Hour}); err != nil || !v.Admitted {
		t.Errorf("a strict replica, afterwards: %+v, %v", v, err)
	}
	ask(0)                               // the memory is another one, and new
	s.since.Store(-int64(2 * time.Hour)) // a window later
	ask(40)
}

// inline sends a line to a server as a person would, and returns the first line of its answer.
func inline(t *testing.T, address, line string) string {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "%s\r\n", line)
	answer, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return answer
}

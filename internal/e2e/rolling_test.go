package e2e_test

import (
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyporter/keyporter/internal/parts"
	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// Replicas behind Envoy crash, come back, and are replaced one after the other while keys are
// replaced. No old key is admitted, and no request with a live key fails, except those that a crash
// interrupts.
func TestReplicasAreReplacedUnderLoad(t *testing.T) {
	t.Parallel()
	partstest.Slow(t)
	c := startCampaign(t, keyporter(t), partstest.Postgres(t, 18), partstest.Database(t, 18), 2, time.Second, patient...)
	c.perReplica, c.front = 30, true
	for _, r := range c.s.replicas[1:] {
		// the shipped default: Envoy notices within two seconds
		r.flags = append(r.flags, "--drain-delay", "3s")
	}
	c.s.startEnvoyBefore(c.s.replicas[1:])
	users := c.enrol(8)
	steady := c.s.user("steady", "pro")
	partstest.EventuallyNil(t, "Envoy reaches Keyporter", func() error {
		return is(200)(c.s.get("/api/v1/brands", steady))
	})
	load := &load{t: t, s: c.s, key: steady}
	load.start(4)
	defer load.end()

	// requests failed around crashes, of those sent; failed around graceful stops
	var cut, during, roll int64
	c.during(users, time.Millisecond, func() {
		for range either(1, 10) {
			for _, r := range c.s.replicas[1:] {
				before, sent := load.failed.Load(), load.sent.Load()
				r.process.Kill()
				time.Sleep(rand.N(time.Second))
				c.s.restart(r)
				cut, during = cut+load.failed.Load()-before, during+load.sent.Load()-sent
				before = load.failed.Load()
				if err := r.process.Stop(); err != nil {
					t.Error(err)
				}
				c.s.restart(r)
				roll += load.failed.Load() - before
			}
		}
	})
	load.end()
	c.judge()
	crashes := len(c.s.replicas[1:]) * either(1, 10)
	t.Logf("%d crashes and starts, %d graceful stops and starts; %d requests with a live key through Envoy: %d of %d failed around crashes, %d around graceful stops",
		crashes, crashes, load.sent.Load(), cut, during, roll)
	// On a busy machine a decision may take longer than Envoy waits, with or without a stop.
	if roll > either(load.sent.Load()/200, 0) {
		t.Errorf("%d requests failed when replicas were replaced in order, want none", roll)
	}
	// Until its health checks notice, Envoy sometimes asks the dead replica. It retries once if
	// that replica cannot have begun the request, but may pick the same one again.
	if cut > during/10 {
		t.Errorf("%d of %d requests failed while a replica was dead or new, want at most a tenth", cut, during)
	}
	if load.refused.Load() > 0 {
		t.Errorf("a live key was refused %d times, want never", load.refused.Load())
	}
	if c.old.n[denied].Load() == 0 || c.live.n[allowed].Load() == 0 {
		t.Error("no key was cached and replaced, so the test proves nothing")
	}
}

// startEnvoyBefore starts Envoy with the printed configuration, but with the addresses of several
// replicas, like a name with several addresses.
func (s *stack) startEnvoyBefore(replicas []*replica) {
	s.t.Helper()
	s.front = address(s.t)
	endpoint := func(r *replica) string {
		host, port, _ := net.SplitHostPort(r.grpc)
		return fmt.Sprintf("{ endpoint: { address: { socket_address: { address: %q, port_value: %s } } } }", host, port)
	}
	first := endpoint(replicas[0])
	all := first
	for _, r := range replicas[1:] {
		all += ", " + endpoint(r)
	}
	bootstrap := s.run("envoy", "--authz", replicas[0].grpc, "--upstream", s.upstream.address, "--listen", s.front, "--admin", "127.0.0.1:0")
	if strings.Count(bootstrap, first) != 1 {
		s.t.Fatal("the bootstrap does not name its endpoint as expected")
	}
	s.envoy = partstest.StartEnvoy(s.t, parts.EnvoyConfig{Bootstrap: []byte(waitLonger(s.t, strings.Replace(bootstrap, first, all, 1)))})
}

// restart starts a replica that has ended, and returns once Envoy has noticed.
func (s *stack) restart(r *replica) {
	s.launch(r)
	s.await(r)
	time.Sleep(1500 * time.Millisecond) // one health check
}

// get sends a request with a key through Envoy.
func (s *stack) get(path, key string) (int, error) {
	c := &connection{address: s.front}
	defer c.close()
	a, err := c.send(request{target: path, header: []string{"x-api-key: " + key}})
	return a.status, err
}

// load sends requests with one live key through Envoy, one after the other on each connection.
type load struct {
	t                     *testing.T
	s                     *stack
	key                   string
	sent, failed, refused atomic.Int64
	over                  atomic.Bool
	wg                    sync.WaitGroup
}

func (l *load) start(connections int) {
	for range connections {
		l.wg.Go(func() {
			c := &connection{address: l.s.front}
			defer c.close()
			for !l.over.Load() {
				a, err := c.send(request{target: "/api/v1/brands", header: []string{"x-api-key: " + l.key}})
				l.sent.Add(1)
				if err != nil || a.status != 200 {
					l.failed.Add(1)
				}
				if err == nil && a.status != 200 && a.status != 503 {
					l.refused.Add(1)
				}
				time.Sleep(2 * time.Millisecond)
			}
		})
	}
}

func (l *load) end() {
	l.over.Store(true)
	l.wg.Wait()
}

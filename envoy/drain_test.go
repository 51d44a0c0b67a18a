package envoy_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/envoy"
	"github.com/keyporter/keyporter/envoy/bootstrap"
	"github.com/keyporter/keyporter/internal/parts"
	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// A replica that stops while a real Envoy sends it requests fails none of them: with the generated
// health check and the default delay, the other replica takes them all before the first is gone.
func TestDrainBehindARealEnvoy(t *testing.T) {
	partstest.Slow(t)
	var asked [2]atomic.Int64
	var servers [2]*envoy.Server
	var addrs [2]string
	for i := range servers {
		servers[i] = makeServer(envoy.Config{Timeout: 5 * time.Second, Authorize: func(ctx context.Context, r *authz.Request) (authz.Decision, error) {
			asked[i].Add(1)
			return allowAll(ctx, r)
		}})
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addrs[i] = listener.Addr().String()
		serve(t, servers[i], listener)
	}
	_, url := startEnvoyBefore(t, addrs)

	ctx, stop := context.WithCancel(t.Context())
	var load sync.WaitGroup
	defer load.Wait()
	defer stop()
	for range 4 {
		load.Go(func() {
			for ctx.Err() == nil {
				if err := getOK(url); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	partstest.Eventually(t, "both replicas are asked", func() bool { return asked[0].Load() > 100 && asked[1].Load() > 100 })
	bounded, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := servers[0].Shutdown(bounded); err != nil {
		t.Error(err)
	}
	before := asked[1].Load()
	partstest.Eventually(t, "the other replica takes all", func() bool { return asked[1].Load() > before+100 })
}

// A replica that cannot answer, and tells the health checks, gets no more calls from a real Envoy;
// when no replica can, requests still get our own 503.
func TestEnvoyAsksAReplicaThatServes(t *testing.T) {
	partstest.Slow(t)
	var servers [2]*envoy.Server
	var addrs [2]string
	var broken [2]atomic.Bool
	for i := range servers {
		servers[i] = makeServer(envoy.Config{Log: slog.New(slog.DiscardHandler), Authorize: func(ctx context.Context, r *authz.Request) (authz.Decision, error) {
			if broken[i].Load() {
				return authz.Decision{}, errors.New("no lease")
			}
			return allowAll(ctx, r)
		}})
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addrs[i] = listener.Addr().String()
		serve(t, servers[i], listener)
	}
	_, url := startEnvoyBefore(t, addrs)
	row := func(n int) bool { // n requests in a row are answered with 200
		for range n {
			if getOK(url) != nil {
				return false
			}
		}
		return true
	}
	partstest.Eventually(t, "50 requests in a row are allowed", func() bool { return row(50) })
	broken[0].Store(true)
	servers[0].SetServing(false)
	partstest.Eventually(t, "50 requests in a row are allowed", func() bool { return row(50) })
	broken[1].Store(true)
	servers[1].SetServing(false)
	partstest.Eventually(t, "a request is refused", func() bool { return !row(1) })
	// Until Envoy knows that both are unhealthy, and asks them as a last resort.
	time.Sleep(3 * time.Second)
	answer, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusServiceUnavailable || !strings.Contains(string(body), `"code":"unavailable"`) || answer.Header.Get("Retry-After") == "" {
		t.Errorf("%s %s, %v; want our 503", answer.Status, body, err)
	}
	for i := range servers {
		broken[i].Store(false)
		servers[i].SetServing(true)
	}
	partstest.Eventually(t, "50 requests in a row are allowed", func() bool { return row(50) })
}

// startEnvoyBefore starts an Envoy with the generated configuration, but for two replicas, like a
// name with two addresses, and with longer timeouts for a busy machine. It returns the URL of a
// resource as well.
func startEnvoyBefore(t *testing.T, addrs [2]string) (proxy *parts.Envoy, url string) {
	t.Helper()
	listen, err := parts.FreeAddr()
	if err != nil {
		t.Fatal(err)
	}
	config := string(printed(t, bootstrap.Config{
		Authz: addrs[0], Upstream: newWitness(t).addr(), Listen: listen, Admin: "127.0.0.1:0",
	}))
	endpoint := func(addr string) string {
		host, port, _ := net.SplitHostPort(addr)
		return fmt.Sprintf("{ endpoint: { address: { socket_address: { address: %q, port_value: %s } } } }", host, port)
	}
	const timeout = "timeout: 0.250s # Keyporter's own deadline lies inside"
	if strings.Count(config, endpoint(addrs[0])) != 1 || strings.Count(config, timeout) != 1 {
		t.Fatal("the bootstrap does not name its endpoint or how long Envoy waits as expected")
	}
	both := strings.NewReplacer(endpoint(addrs[0]), endpoint(addrs[0])+", "+endpoint(addrs[1]), timeout, "timeout: 6s").Replace(config)
	proxy = partstest.StartEnvoy(t, parts.EnvoyConfig{Bootstrap: []byte(both)})
	return proxy, "http://" + listen + "/api/v1/brands"
}

func getOK(url string) error {
	answer, err := http.Get(url)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("answered %s", answer.Status)
	}
	return nil
}

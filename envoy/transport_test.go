package envoy_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/envoy"
	"github.com/keyporter/keyporter/envoy/codec"
	"github.com/keyporter/keyporter/envoy/codec/codectest"
	"github.com/keyporter/keyporter/usage"
)

// statusOf asks about a path and returns the HTTP status of the answer, 200 for a yes.
func statusOf(t *testing.T, ctx context.Context, conn *grpc.ClientConn, path string) int {
	t.Helper()
	out, err := authv3.NewAuthorizationClient(conn).Check(ctx, codectest.Check("GET", path))
	switch {
	case err != nil:
		t.Errorf("%s: %v", path, err)
		return 0
	case out.GetStatus().GetCode() == 0:
		return 200
	}
	return int(out.GetDeniedResponse().GetStatus().GetCode())
}

// waitsFor allows every request, those for /wait after release.
func waitsFor(release <-chan struct{}, entered func()) authorizeFunc {
	waiting := waits(func(ctx context.Context, r *authz.Request) (authz.Decision, error) {
		entered()
		select {
		case <-release:
			return allowAll(ctx, r)
		case <-ctx.Done():
			return authz.Decision{}, ctx.Err()
		}
	})
	return func(ctx context.Context, r *authz.Request) (authz.Decision, error) {
		if r.Path == "/wait" {
			return waiting(ctx, r)
		}
		return allowAll(ctx, r)
	}
}

// A Check that has to wait delays no other of its connection.
func TestAWaitingCheckDelaysNoOther(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	_, conn := connect(t, envoy.Config{Timeout: time.Minute, Authorize: waitsFor(release, func() { close(entered) })})
	slow := make(chan int)
	go func() { slow <- statusOf(t, t.Context(), conn, "/wait") }()
	<-entered
	for range 10 {
		if got := statusOf(t, t.Context(), conn, "/a"); got != 200 {
			t.Errorf("meanwhile: %d, want 200", got)
		}
	}
	close(release)
	if got := <-slow; got != 200 {
		t.Errorf("in the end: %d, want 200", got)
	}
}

// A connection may have a quarter of the Checks that may wait at a time. One more is answered 503
// at once, and counted; those that need not wait are answered.
func TestAsManyChecksWaitAsMay(t *testing.T) {
	fastOnly(t)
	const conns, perConn = 4, 1024
	var entered sync.WaitGroup
	entered.Add(conns * perConn)
	release := make(chan struct{})
	registry := prometheus.NewRegistry()
	s, conn := connect(t, envoy.Config{Timeout: time.Minute, Authorize: waitsFor(release, entered.Done), Metrics: registry})
	var all sync.WaitGroup
	defer all.Wait()
	defer close(release)
	for range conns {
		one := connectTo(t, s)
		for range perConn {
			all.Go(func() { statusOf(t, t.Context(), one, "/wait") })
		}
	}
	entered.Wait()
	if got := statusOf(t, t.Context(), conn, "/wait"); got != 503 {
		t.Errorf("one more that waits: %d, want 503", got)
	}
	if got := statusOf(t, t.Context(), conn, "/a"); got != 200 {
		t.Errorf("one that does not wait: %d, want 200", got)
	}
	expectMetric(t, registry, "keyporter_check_errors_total", "too_many_wait", 1)
}

// A decision knows how long its caller waits for it, and so how long it may repeat the Check.
func TestADecisionKnowsHowLongItsCallerWaits(t *testing.T) {
	for _, transport := range []envoy.Transport{envoy.GRPCTransport, envoy.FastTransport} {
		for _, kind := range []codec.Kind{codec.Fast, codec.Generated} {
			t.Run(fmt.Sprint(transport, " ", kind), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var told time.Duration
					_, conn := connect(t, envoy.Config{Transport: transport, Codec: kind, Authorize: func(ctx context.Context, r *authz.Request) (authz.Decision, error) {
						told = r.CallerTimeout
						return allowAll(ctx, r)
					}})
					for _, want := range []time.Duration{0, 250 * time.Millisecond, 10 * time.Second, 10 * time.Minute} {
						ctx, cancel := context.WithCancel(t.Context())
						if want > 0 {
							ctx, cancel = context.WithTimeout(t.Context(), want)
						}
						if got := statusOf(t, ctx, conn, "/a"); got != 200 || told != want {
							t.Errorf("status %d; the decision got time-out %v, want %v", got, told, want)
						}
						cancel()
					}
				})
			})
		}
	}
}

// A decision that must wait ends in time, by the caller's time-out too, and a caller that leaves is
// not charged.
func TestAWaitingCheckEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var void atomic.Int64
		_, conn := connect(t, envoy.Config{Authorize: waits(func(ctx context.Context, r *authz.Request) (authz.Decision, error) {
			<-ctx.Done()
			return authz.Decision{Reason: authz.Allowed, Charge: usage.Charge{User: "ada"}}, nil
		}), Void: func(usage.Charge) { void.Add(1) }})
		for _, row := range []struct {
			name          string
			timeout, took time.Duration
		}{
			{"our own time", time.Minute, 150 * time.Millisecond},
			{"three quarters of the caller's", 100 * time.Millisecond, 75 * time.Millisecond},
		} {
			ctx, cancel := context.WithTimeout(t.Context(), row.timeout)
			began := time.Now()
			if got := statusOf(t, ctx, conn, "/a"); got != 503 {
				t.Errorf("%s: %d, want 503", row.name, got)
			}
			if took := time.Since(began); took.Round(time.Millisecond) != row.took {
				t.Errorf("%s: %v, want %v", row.name, took, row.took)
			}
			cancel()
		}
		ctx, leave := context.WithCancel(t.Context())
		go func() {
			_, _ = authv3.NewAuthorizationClient(conn).Check(ctx, codectest.Check("GET", "/a"))
		}()
		synctest.Wait()
		leave()
		synctest.Wait()
		if n := void.Load(); n != 3 {
			t.Errorf("%d of 3 charges are void", n)
		}
	})
}

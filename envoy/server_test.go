package envoy_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/bearer"
	"github.com/keyporter/keyporter/envoy"
	"github.com/keyporter/keyporter/envoy/codec"
	"github.com/keyporter/keyporter/envoy/codec/codectest"
	"github.com/keyporter/keyporter/nowait"
)

type authorizeFunc = func(context.Context, *authz.Request) (authz.Decision, error)

func allowAll(context.Context, *authz.Request) (authz.Decision, error) {
	return authz.Decision{Reason: authz.Allowed, Principal: somebody}, nil
}

// makeServer returns a server with the transport that KEYPORTER_TRANSPORT names.
func makeServer(c envoy.Config) *envoy.Server {
	if name := os.Getenv("KEYPORTER_TRANSPORT"); name != "" {
		var err error
		if c.Transport, err = envoy.ParseTransport(name); err != nil {
			panic(err)
		}
	}
	return envoy.NewServer(c)
}

// fastOnly leaves a test out if KEYPORTER_TRANSPORT names grpc-go.
func fastOnly(t *testing.T) {
	t.Helper()
	if os.Getenv("KEYPORTER_TRANSPORT") == envoy.GRPCTransport.String() {
		t.Skip("only on the fast transport")
	}
}

// waits returns an authorize that has to wait.
func waits(authorize authorizeFunc) authorizeFunc {
	return func(ctx context.Context, r *authz.Request) (authz.Decision, error) {
		if err := nowait.Err(ctx); err != nil {
			return authz.Decision{}, err
		}
		return authorize(ctx, r)
	}
}

// newServer returns a server that stops at the end of the test, together with the goroutines that
// wait for calls.
func newServer(t *testing.T, c envoy.Config) *envoy.Server {
	s := makeServer(c)
	t.Cleanup(func() {
		if err := s.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return s
}

// However Authorize fails, even with an allowing decision, the answer is a denial with 503 and no
// gRPC error, because an operator may have told Envoy to let those pass.
func TestFailureIsDenied503(t *testing.T) {
	for name, authorize := range map[string]authorizeFunc{
		"error": func(context.Context, *authz.Request) (authz.Decision, error) {
			return authz.Decision{Reason: authz.Allowed}, errors.New("store is down")
		},
		"panic":           func(context.Context, *authz.Request) (authz.Decision, error) { panic("oh") },
		"nil dereference": nil,
		"late": func(ctx context.Context, _ *authz.Request) (authz.Decision, error) {
			<-ctx.Done()
			return allowAll(ctx, nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newServer(t, envoy.Config{Authorize: authorize, Log: slog.New(slog.DiscardHandler)})
				expectUnavailable(t, s, codectest.Check("GET", "/a"))
			})
		})
	}
}

func expectUnavailable(t *testing.T, s *envoy.Server, in *authv3.CheckRequest) {
	t.Helper()
	out, err := s.Check(t.Context(), in)
	if err != nil {
		t.Fatalf("gRPC error: %v", err)
	}
	if out.GetStatus().GetCode() == 0 || out.GetDeniedResponse().GetStatus().GetCode() != 503 {
		t.Fatalf("want a denial with 503, not %v", out)
	}
}

// The deadline is ours, and lies within the caller's, so that our 503 arrives before Envoy gives
// up.
func TestDeadline(t *testing.T) {
	for _, test := range []struct {
		name                  string
		own, caller, answered time.Duration
	}{
		{"the default, without a caller's", 0, 0, 150 * time.Millisecond},
		{"Envoy's in the generated bootstrap is further", 0, 250 * time.Millisecond, 150 * time.Millisecond},
		{"Envoy's default just fits", 0, 200 * time.Millisecond, 150 * time.Millisecond},
		{"a nearer one leaves a quarter", 0, 100 * time.Millisecond, 75 * time.Millisecond},
		{"one's own", time.Second, 0, time.Second},
		{"a caller without time", 0, -time.Millisecond, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newServer(t, envoy.Config{Timeout: test.own, Log: slog.New(slog.DiscardHandler), Authorize: hang})
				ctx := t.Context()
				if test.caller != 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, test.caller)
					defer cancel()
				}
				began := time.Now()
				out, err := s.Check(ctx, codectest.Check("GET", "/a"))
				if err != nil || out.GetDeniedResponse().GetStatus().GetCode() != 503 {
					t.Errorf("answered %v, %v", out, err)
				}
				if took := time.Since(began); took != test.answered {
					t.Errorf("answered after %v, want %v", took, test.answered)
				}
			})
		})
	}
}

// hang decides nothing until its time is up.
func hang(ctx context.Context, _ *authz.Request) (authz.Decision, error) {
	<-ctx.Done()
	return authz.Decision{}, ctx.Err()
}

// A panic leaves a stack in the log and nothing of the request, not even if its value quotes it.
func TestPanicLog(t *testing.T) {
	const canary = "wh_canary"
	var logs bytes.Buffer
	registry := prometheus.NewRegistry()
	s := makeServer(envoy.Config{
		Log: slog.New(slog.NewTextHandler(&logs, nil)), Metrics: registry,
		Authorize: func(_ context.Context, r *authz.Request) (authz.Decision, error) {
			panic("cannot read " + r.APIKey[0])
		},
	})
	expectUnavailable(t, s, codectest.Check("GET", "/a", "x-api-key", canary))
	if !strings.Contains(logs.String(), "TestPanicLog") {
		t.Errorf("no stack in the log: %s", logs.String())
	}
	if strings.Contains(logs.String(), canary) {
		t.Errorf("the log quotes the request: %s", logs.String())
	}
	expectMetric(t, registry, "keyporter_check_panics_total", "", 1)
	expectMetric(t, registry, "keyporter_decisions_total", "undecided", 1)
}

// A failure of every request is logged once a second, with the number of suppressed ones.
func TestFailuresAreLoggedOncePerSecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logs bytes.Buffer
		s := newServer(t, envoy.Config{
			Log: slog.New(slog.NewTextHandler(&logs, nil)),
			Authorize: func(context.Context, *authz.Request) (authz.Decision, error) {
				return authz.Decision{}, errors.New("store is down")
			},
		})
		for range 100 {
			expectUnavailable(t, s, codectest.Check("GET", "/a"))
		}
		time.Sleep(time.Second)
		expectUnavailable(t, s, codectest.Check("GET", "/a"))
		if n := strings.Count(logs.String(), "store is down"); n != 2 {
			t.Errorf("%d lines, want 2:\n%s", n, logs.String())
		}
		if !strings.Contains(logs.String(), "suppressed=99") {
			t.Errorf("the second line does not count the others:\n%s", logs.String())
		}
	})
}

// The log entry of an undecided Check names its cause, request and rule. It leaves out the client's
// path, which may hold anything. A frequent cause does not hide another one.
func TestAnUndecidedCheckSaysWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logs bytes.Buffer
		registry := prometheus.NewRegistry()
		away := errors.New("the thing is away")
		var err error
		s := newServer(t, envoy.Config{
			Log: slog.New(slog.NewTextHandler(&logs, nil)), Metrics: registry, Causes: []string{"away"},
			Cause: func(err error) string {
				if errors.Is(err, away) {
					return "away"
				}
				return ""
			},
			Authorize: func(context.Context, *authz.Request) (authz.Decision, error) {
				return authz.Decision{Rule: &authz.Rule{Path: "/v1/*"}}, err
			},
		})
		request := codectest.Check("GET", "/v1/secret")
		request.Attributes.Request.Http.Id = "4711" + strings.Repeat("x", 1000)
		for _, err = range []error{away, away, errors.New("no idea"), fmt.Errorf("late: %w", context.DeadlineExceeded)} {
			expectUnavailable(t, s, request)
		}
		expectMetric(t, registry, "keyporter_check_errors_total", "away", 2)
		expectMetric(t, registry, "keyporter_check_errors_total", "other", 1)
		expectMetric(t, registry, "keyporter_check_errors_total", "deadline", 1)
		expectMetric(t, registry, "keyporter_check_errors_total", "canceled", 0)
		for _, want := range []string{"cause=away", "cause=other", "cause=deadline", "request=4711x", "route=/v1/*", `error="the thing is away"`} {
			if !strings.Contains(logs.String(), want) {
				t.Errorf("the log does not say %s:\n%s", want, logs.String())
			}
		}
		if strings.Contains(logs.String(), "secret") || strings.Count(logs.String(), "\n") != 3 || logs.Len() > 1000 {
			t.Errorf("want three short lines, without the path:\n%s", logs.String())
		}
	})
}

// Neither allows nor denials write a log line.
func TestDecisionsAreNotLogged(t *testing.T) {
	var logs bytes.Buffer
	for _, reason := range []authz.Reason{authz.Allowed, authz.UnknownKey} {
		s := makeServer(envoy.Config{
			Log: slog.New(slog.NewTextHandler(&logs, nil)),
			Authorize: func(context.Context, *authz.Request) (authz.Decision, error) {
				return authz.Decision{Reason: reason}, nil
			},
		})
		if _, err := s.Check(t.Context(), codectest.Check("GET", "/a")); err != nil {
			t.Fatal(err)
		}
	}
	if logs.Len() > 0 {
		t.Errorf("logged: %s", logs.String())
	}
}

// A caller that hung up has a count of its own, and is no failure to wake somebody for.
func TestCallerHungUp(t *testing.T) {
	var logs bytes.Buffer
	registry := prometheus.NewRegistry()
	s := makeServer(envoy.Config{Log: slog.New(slog.NewTextHandler(&logs, nil)), Metrics: registry, Authorize: hang})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Check(ctx, codectest.Check("GET", "/a")); err != nil {
		t.Fatal(err)
	}
	expectMetric(t, registry, "keyporter_check_errors_total", "canceled", 1)
	if logs.Len() > 0 {
		t.Errorf("logged: %s", logs.String())
	}
}

// Each reason has its series from the start, so that a rate over it misses no first event; and each
// Check is counted once, with its time.
func TestMetrics(t *testing.T) {
	registry := prometheus.NewRegistry()
	var d authz.Decision
	s := makeServer(envoy.Config{Metrics: registry, Authorize: func(context.Context, *authz.Request) (authz.Decision, error) { return d, nil }})
	for _, reason := range authz.Reasons() {
		expectMetric(t, registry, "keyporter_decisions_total", reason.String(), 0)
	}
	for i, reason := range authz.Reasons() {
		d.Reason = reason
		for range i {
			if _, err := s.Check(t.Context(), codectest.Check("GET", "/a")); err != nil {
				t.Fatal(err)
			}
		}
	}
	total := 0
	for i, reason := range authz.Reasons() {
		expectMetric(t, registry, "keyporter_decisions_total", reason.String(), float64(i))
		total += i
	}
	expectMetric(t, registry, "keyporter_check_seconds", "", float64(total))
	if problems, err := testutil.GatherAndLint(registry); err != nil || len(problems) > 0 {
		t.Errorf("metric names: %v, %v", problems, err)
	}
}

// expectMetric compares a series: a counter's value, or a histogram's number of observations.
func expectMetric(t *testing.T, g prometheus.Gatherer, name, label string, want float64) {
	t.Helper()
	if got, found := metric(t, g, name, label); !found {
		t.Errorf("%s %s is missing", name, label)
	} else if got != want {
		t.Errorf("%s %s is %v, want %v", name, label, got, want)
	}
}

// metric returns the value of a counter, or the number of samples of a histogram.
func metric(t *testing.T, g prometheus.Gatherer, name, label string) (value float64, found bool) {
	t.Helper()
	families, err := g.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() != name || label != "" && m.GetLabel()[0].GetValue() != label {
				continue
			}
			if h := m.GetHistogram(); h != nil {
				return float64(h.GetSampleCount()), true
			}
			return m.GetCounter().GetValue(), true
		}
	}
	return 0, false
}

// connect runs a server in memory and returns a connection to it.
func connect(t *testing.T, c envoy.Config) (*envoy.Server, *grpc.ClientConn) {
	t.Helper()
	if c.DrainDelay == 0 {
		c.DrainDelay = -1
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	s := makeServer(c)
	return s, connectTo(t, s)
}

// connectTo serves on one more listener in memory and returns a connection to it.
func connectTo(t *testing.T, s *envoy.Server) *grpc.ClientConn {
	t.Helper()
	listener := bufconn.Listen(1 << 20)
	serve(t, s, listener)
	conn, err := grpc.NewClient("passthrough:///server", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// Over the wire, all answers of Check are answers: an allow, a denial and a 503.
func TestOverTheWire(t *testing.T) {
	s := map[string]authz.Reason{"/allow": authz.Allowed, "/deny": authz.RevokedKey, "/503": authz.Undecided}
	_, conn := connect(t, envoy.Config{Authorize: func(_ context.Context, r *authz.Request) (authz.Decision, error) {
		return authz.Decision{Reason: s[r.Path], Principal: somebody}, nil
	}})
	for path, reason := range s {
		out, err := authv3.NewAuthorizationClient(conn).Check(t.Context(), codectest.Check("GET", path))
		if err != nil {
			t.Fatal(err)
		}
		if allowed := out.GetStatus().GetCode() == 0; allowed != (reason == authz.Allowed) {
			t.Errorf("%s: %v", path, out)
		}
	}
}

// With a token configured, only its bearer may ask for decisions. The health service stays open.
func TestToken(t *testing.T) {
	const secret = "s3cret-s3cret-s3cret"
	token, err := bearer.Parse(secret)
	if err != nil {
		t.Fatal(err)
	}
	registry := prometheus.NewRegistry()
	_, conn := connect(t, envoy.Config{Authorize: allowAll, Token: token, Metrics: registry})
	refused := 0
	for _, test := range []struct {
		authorization []string
		want          codes.Code
	}{
		{[]string{"Bearer " + secret}, codes.OK},
		{nil, codes.Unauthenticated},
		{[]string{""}, codes.Unauthenticated},
		{[]string{secret}, codes.Unauthenticated},
		{[]string{"Bearer " + secret + "x"}, codes.Unauthenticated},
		{[]string{"Bearer " + secret[1:]}, codes.Unauthenticated},
		{[]string{"Bearer "}, codes.Unauthenticated},
		{[]string{"Bearer " + secret, "Bearer " + secret}, codes.Unauthenticated},
	} {
		ctx := t.Context()
		for _, value := range test.authorization {
			ctx = metadata.AppendToOutgoingContext(ctx, "authorization", value)
		}
		_, err := authv3.NewAuthorizationClient(conn).Check(ctx, codectest.Check("GET", "/a"))
		if status.Code(err) != test.want {
			t.Errorf("authorization %q: %v, want %v", test.authorization, err, test.want)
		}
		if err != nil {
			refused++
			if strings.Contains(err.Error(), secret) {
				t.Errorf("the error shows the token: %v", err)
			}
		}
	}
	expectMetric(t, registry, "keyporter_grpc_unauthenticated_total", "", float64(refused))
	expectHealth(t, conn, "", grpc_health_v1.HealthCheckResponse_SERVING)
}

func expectHealth(t *testing.T, conn *grpc.ClientConn, service string, want grpc_health_v1.HealthCheckResponse_ServingStatus) {
	t.Helper()
	out, err := grpc_health_v1.NewHealthClient(conn).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: service})
	if err != nil {
		t.Fatal(err)
	}
	if out.GetStatus() != want {
		t.Errorf("health of %q is %v, want %v", service, out.GetStatus(), want)
	}
}

// watch returns when the health of the server has become want.
func watch(t *testing.T, conn *grpc.ClientConn, want grpc_health_v1.HealthCheckResponse_ServingStatus) {
	t.Helper()
	stream, err := grpc_health_v1.NewHealthClient(conn).Watch(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: authService})
	if err != nil {
		t.Fatal(err)
	}
	for {
		out, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if out.GetStatus() == want {
			return
		}
	}
}

const authService = "envoy.service.auth.v3.Authorization"

// The health checks learn of a stop first; calls are answered until the delay is over.
func TestDrainTellsHealthFirst(t *testing.T) {
	s, conn := connect(t, envoy.Config{Authorize: allowAll, DrainDelay: time.Hour})
	for _, service := range []string{"", authService} {
		expectHealth(t, conn, service, grpc_health_v1.HealthCheckResponse_SERVING)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- s.Shutdown(ctx) }()
	watch(t, conn, grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	expectHealth(t, conn, "", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	if _, err := authv3.NewAuthorizationClient(conn).Check(t.Context(), codectest.Check("GET", "/a")); err != nil {
		t.Errorf("a call in the delay: %v", err)
	}
	stop()
	<-ended
}

// A server that tells the health checks to send calls elsewhere still answers those that come, and
// once it stops nothing makes it report that it serves.
func TestHealthIsTold(t *testing.T) {
	s, conn := connect(t, envoy.Config{Authorize: allowAll, DrainDelay: -1})
	for _, serving := range []bool{false, true, false} {
		s.SetServing(serving)
		want := grpc_health_v1.HealthCheckResponse_NOT_SERVING
		if serving {
			want = grpc_health_v1.HealthCheckResponse_SERVING
		}
		expectHealth(t, conn, "", want)
		expectHealth(t, conn, authService, want)
		if _, err := authv3.NewAuthorizationClient(conn).Check(t.Context(), codectest.Check("GET", "/a")); err != nil {
			t.Errorf("a call: %v", err)
		}
	}
}

// A Client asks as Envoy does: it returns the status that Envoy would act on, and sends the token.
func TestClientAsks(t *testing.T) {
	token, err := bearer.Parse("s3cret-s3cret-s3cret")
	if err != nil {
		t.Fatal(err)
	}
	server := makeServer(envoy.Config{Token: token, Authorize: func(_ context.Context, r *authz.Request) (authz.Decision, error) {
		if r.Method != "GET" || r.Path != "/a" || len(r.APIKey) != 1 {
			return authz.Decision{Reason: authz.NoRoute}, nil
		}
		if r.APIKey[0] != "key" {
			return authz.Decision{Reason: authz.UnknownKey}, nil
		}
		return authz.Decision{Reason: authz.Allowed, Principal: somebody}, nil
	}})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serve(t, server, listener)
	client, err := envoy.NewClient(listener.Addr().String(), token)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for _, row := range []struct {
		method, path, key string
		want              int
	}{{"GET", "/a", "key", 200}, {"GET", "/a", "other", 401}, {"PUT", "/a", "key", 404}} {
		if got, err := client.Ask(t.Context(), envoy.Question{Method: row.method, Path: row.path}, row.key); err != nil || got != row.want {
			t.Errorf("%s %s with %s: %d, %v, want %d", row.method, row.path, row.key, got, err, row.want)
		}
	}
	stranger, err := envoy.NewClient(listener.Addr().String(), bearer.Token{})
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	if _, err := stranger.Ask(t.Context(), envoy.Question{Method: "GET", Path: "/a"}, "key"); status.Code(err) != codes.Unauthenticated {
		t.Errorf("without the token: %v", err)
	}
}

// Calls in flight when the server stops are answered.
func TestDrainFailsNoCall(t *testing.T) {
	const calls = 100
	var entered sync.WaitGroup
	entered.Add(calls)
	release := make(chan struct{})
	s, conn := connect(t, envoy.Config{Timeout: time.Hour, Authorize: waits(func(ctx context.Context, r *authz.Request) (authz.Decision, error) {
		entered.Done()
		<-release
		return allowAll(ctx, r)
	})})
	answers := make(chan error, calls)
	for range calls {
		go func() {
			_, err := authv3.NewAuthorizationClient(conn).Check(t.Context(), codectest.Check("GET", "/a"))
			answers <- err
		}()
	}
	entered.Wait()
	ended := make(chan error)
	go func() { ended <- s.Shutdown(t.Context()) }()
	select {
	case err := <-ended:
		t.Fatalf("Shutdown returned %v before the calls did", err)
	case <-time.After(50 * time.Millisecond): // a Shutdown that does not wait would be faster
	}
	close(release)
	for range calls {
		if err := <-answers; err != nil {
			t.Errorf("a call failed: %v", err)
		}
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// A call that never ends does not keep the process from stopping.
func TestDrainIsCapped(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	defer close(release)
	s, conn := connect(t, envoy.Config{Authorize: waits(func(context.Context, *authz.Request) (authz.Decision, error) {
		close(entered)
		<-release
		return authz.Decision{}, nil
	})})
	call := make(chan error, 1)
	go func() {
		_, err := authv3.NewAuthorizationClient(conn).Check(t.Context(), codectest.Check("GET", "/a"))
		call <- err
	}()
	<-entered
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if err := s.Shutdown(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Shutdown returned %v", err)
	}
	if err := <-call; err == nil {
		t.Error("the cut-off call was answered")
	}
}

// A Check that is too large is decided, with 431, whatever its size; one with too much metadata is
// refused; and the next call is answered.
func TestLimits(t *testing.T) {
	for _, kind := range []codec.Kind{codec.Fast, codec.Generated} {
		t.Run(kind.String(), func(t *testing.T) { testLimits(t, kind) })
	}
}

func testLimits(t *testing.T, kind codec.Kind) {
	_, conn := connect(t, envoy.Config{Authorize: allowAll, Codec: kind})
	client := authv3.NewAuthorizationClient(conn)
	if _, err := client.Check(t.Context(), codectest.Check("GET", "/a", "x-big", strings.Repeat("a", 120<<10))); err != nil {
		t.Errorf("a message of 120 KiB, more than Envoy sends: %v", err)
	}
	for _, kib := range []int{257, 300, 1 << 10, 16 << 10} {
		out, err := client.Check(t.Context(), codectest.Check("GET", "/a", "x-big", strings.Repeat("a", kib<<10)))
		if err != nil || out.GetDeniedResponse().GetStatus().GetCode() != 431 || !strings.Contains(out.GetDeniedResponse().GetBody(), "headers_too_large") {
			t.Errorf("a message of %d KiB: %v, %v; want 431", kib, out, err)
		}
	}
	big := metadata.AppendToOutgoingContext(t.Context(), "x-big", strings.Repeat("a", 20<<10))
	if _, err := client.Check(big, codectest.Check("GET", "/a")); err == nil {
		t.Error("metadata of 20 KiB is accepted")
	}
	if _, err := client.Check(t.Context(), codectest.Check("GET", "/a")); err != nil {
		t.Errorf("after the refusals: %v", err)
	}
}

// While a Check waits, others on its connection are answered, and each is counted once.
func TestAWaitingCheckHoldsUpNoOther(t *testing.T) {
	registry := prometheus.NewRegistry()
	entered, release := make(chan struct{}), make(chan struct{})
	slow := waits(func(ctx context.Context, r *authz.Request) (authz.Decision, error) {
		close(entered)
		<-release
		return allowAll(ctx, r)
	})
	_, conn := connect(t, envoy.Config{Timeout: time.Hour, Metrics: registry, Authorize: func(ctx context.Context, r *authz.Request) (authz.Decision, error) {
		if r.Path == "/slow" {
			return slow(ctx, r)
		}
		return allowAll(ctx, r)
	}})
	client := authv3.NewAuthorizationClient(conn)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	ask := func(path string) error {
		out, err := client.Check(ctx, codectest.Check("GET", path))
		if err == nil && out.GetStatus().GetCode() != 0 {
			err = fmt.Errorf("%s is denied: %v", path, out)
		}
		return err
	}
	answer := make(chan error, 1)
	go func() { answer <- ask("/slow") }()
	<-entered
	for range 10 {
		if err := ask("/fast"); err != nil {
			t.Error(err)
		}
	}
	expectMetric(t, registry, "keyporter_decisions_total", "allowed", 10)
	close(release)
	if err := <-answer; err != nil {
		t.Error(err)
	}
	expectMetric(t, registry, "keyporter_decisions_total", "allowed", 11)
	expectMetric(t, registry, "keyporter_check_seconds", "", 11)
}

// The first attempt at a Check may not wait. One that would have to is decided once more, with the
// context of a repetition.
func TestACheckIsTriedFirst(t *testing.T) {
	fastOnly(t)
	var attempts []string
	_, conn := connect(t, envoy.Config{Authorize: func(ctx context.Context, r *authz.Request) (authz.Decision, error) {
		attempts = append(attempts, fmt.Sprint(nowait.Err(ctx), " ", nowait.Repeated(ctx)))
		d, _ := allowAll(ctx, r)
		if err := nowait.Err(ctx); err != nil {
			return authz.Decision{Principal: d.Principal}, fmt.Errorf("metering a request: %w", err)
		}
		return d, nil
	}})
	if _, err := authv3.NewAuthorizationClient(conn).Check(t.Context(), codectest.Check("GET", "/a")); err != nil {
		t.Error(err)
	}
	if want := fmt.Sprint([]string{nowait.ErrWouldWait.Error() + " false", "<nil> true"}); fmt.Sprint(attempts) != want {
		t.Errorf("attempts: %v, want %v", attempts, want)
	}
}

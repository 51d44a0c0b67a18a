package envoy_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/bearer"
	"github.com/keyporter/keyporter/envoy"
	"github.com/keyporter/keyporter/envoy/codec/codectest"
	"github.com/keyporter/keyporter/usage"
)

// inMemory runs a server in memory and returns the function that connects to it, frame by frame.
func inMemory(t *testing.T, c envoy.Config) (s *envoy.Server, dial func() raw) {
	t.Helper()
	c.DrainDelay = -1
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	s = makeServer(c)
	listener := bufconn.Listen(1 << 20)
	serve(t, s, listener)
	return s, func() raw {
		conn, err := listener.DialContext(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return raw{conn, http2.NewFramer(conn, conn)}
	}
}

// greet begins a connection.
func (r raw) greet() {
	io.WriteString(r.Conn, http2.ClientPreface)
	r.WriteSettings()
}

// untilEnd reads until the connection ends and returns the data of all answers.
func (r raw) untilEnd() (data []byte) {
	for {
		f, err := r.ReadFrame()
		if err != nil {
			return data
		}
		if d, ok := f.(*http2.DataFrame); ok {
			data = append(data, d.Data()...)
		}
	}
}

// However Authorize fails, at once or after it had to wait, the answer over the wire is a denial
// with 503 and no error of gRPC, and it is counted once.
func TestAFailureOverTheWire(t *testing.T) {
	fails := func(context.Context, *authz.Request) (authz.Decision, error) {
		return authz.Decision{Reason: authz.Allowed}, errors.New("store is down")
	}
	panics := func(context.Context, *authz.Request) (authz.Decision, error) { panic("oh") }
	late := func(ctx context.Context, _ *authz.Request) (authz.Decision, error) {
		<-ctx.Done()
		return allowAll(ctx, nil)
	}
	for name, row := range map[string]struct {
		authorize    authorizeFunc
		metric, mark string
	}{
		"an error":              {fails, "keyporter_check_errors_total", "other"},
		"an error, later":       {waits(fails), "keyporter_check_errors_total", "other"},
		"a panic":               {panics, "keyporter_check_panics_total", ""},
		"a panic, later":        {waits(panics), "keyporter_check_panics_total", ""},
		"nil":                   {nil, "keyporter_check_panics_total", ""},
		"too late":              {late, "keyporter_check_errors_total", "deadline"},
		"too late, and it said": {waits(late), "keyporter_check_errors_total", "deadline"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				registry := prometheus.NewRegistry()
				_, conn := connect(t, envoy.Config{Authorize: row.authorize, Metrics: registry})
				if got := statusOf(t, t.Context(), conn, "/a"); got != 503 {
					t.Errorf("answered %d, want 503", got)
				}
				expectOneFailure(t, registry, row.metric, row.mark)
			})
		})
	}
}

// expectOneFailure expects that one Check is counted, in one series of failures.
func expectOneFailure(t *testing.T, registry *prometheus.Registry, metric, label string) {
	t.Helper()
	expectMetric(t, registry, metric, label, 1)
	expectMetric(t, registry, "keyporter_check_seconds", "", 1)
	expectMetric(t, registry, "keyporter_decisions_total", authz.Undecided.String(), 1)
	sum := 0.0
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if name := f.GetName(); name == "keyporter_check_errors_total" || name == "keyporter_check_panics_total" {
			for _, m := range f.GetMetric() {
				sum += m.GetCounter().GetValue()
			}
		}
	}
	if sum != 1 {
		t.Errorf("%v failures are counted", sum)
	}
}

// A Check that is no valid message is denied with 503 like any other failure, and counted once.
func TestAMalformedCheck(t *testing.T) {
	fastOnly(t)
	registry := prometheus.NewRegistry()
	_, conn := connect(t, envoy.Config{Authorize: allowAll, Metrics: registry})
	var out authv3.CheckResponse
	err := conn.Invoke(t.Context(), authv3.Authorization_Check_FullMethodName, []byte{0xff}, &out, grpc.ForceCodecV2(rawCodec{}))
	if err != nil || out.GetStatus().GetCode() == 0 || out.GetDeniedResponse().GetStatus().GetCode() != 503 {
		t.Errorf("answered %v, %v", &out, err)
	}
	expectOneFailure(t, registry, "keyporter_check_errors_total", "other")
}

// A token that is replaced is refused from the next call on, and the new one admitted, also on a
// connection whose headers are known. Each refusal is counted.
func TestATokenIsReplaced(t *testing.T) {
	var tokens [2]bearer.Token
	secrets := [2]string{callersToken, "other-other-other-other"}
	for i, secret := range secrets {
		var err error
		if tokens[i], err = bearer.Parse(secret); err != nil {
			t.Fatal(err)
		}
	}
	registry := prometheus.NewRegistry()
	s, conn := connect(t, envoy.Config{Authorize: allowAll, Token: tokens[0], Metrics: registry})
	refused := 0
	for _, valid := range []int{0, 1, 0, 0} {
		s.SetToken(tokens[valid])
		for i, secret := range secrets {
			want := codes.OK
			if i != valid {
				want = codes.Unauthenticated
			}
			for range 4 { // the headers are known from the third call on
				if _, err := authv3.NewAuthorizationClient(conn).Check(bearing(t, secret), codectest.Check("GET", "/a")); status.Code(err) != want {
					t.Errorf("token %d while %d is valid: %v", i, valid, err)
				}
				if i != valid {
					refused++
				}
			}
		}
		// A token that was just valid is refused in its next call.
		s.SetToken(tokens[1-valid])
		if _, err := authv3.NewAuthorizationClient(conn).Check(bearing(t, secrets[1-valid]), codectest.Check("GET", "/a")); err != nil {
			t.Error(err)
		}
		s.SetToken(tokens[valid])
		if _, err := authv3.NewAuthorizationClient(conn).Check(bearing(t, secrets[1-valid]), codectest.Check("GET", "/a")); status.Code(err) != codes.Unauthenticated {
			t.Errorf("the token of the last call: %v", err)
		}
		refused++
	}
	expectMetric(t, registry, "keyporter_grpc_unauthenticated_total", "", float64(refused))
}

// A health check that arrives while the server stops is answered, also if its message comes after
// its headers.
func TestAHealthCheckWhileTheServerStops(t *testing.T) {
	fastOnly(t)
	synctest.Test(t, func(t *testing.T) {
		s, dial := inMemory(t, envoy.Config{Authorize: allowAll})
		r := dial()
		r.greet()
		synctest.Wait()
		stopped := make(chan error)
		go func() { stopped <- s.Shutdown(t.Context()) }()
		synctest.Wait()
		r.open(0, call())
		synctest.Wait()
		r.WriteData(1, true, make([]byte, 5))
		var answer grpc_health_v1.HealthCheckResponse
		data := r.untilEnd()
		if len(data) < 5 || proto.Unmarshal(data[5:], &answer) != nil || answer.GetStatus() != grpc_health_v1.HealthCheckResponse_NOT_SERVING {
			t.Errorf("answered %q", data)
		}
		if err := <-stopped; err != nil {
			t.Error(err)
		}
	})
}

// A watch of the health reports the stop, and does not delay it.
func TestAWatchEndsWhenTheServerStops(t *testing.T) {
	fastOnly(t)
	synctest.Test(t, func(t *testing.T) {
		s, conn := connect(t, envoy.Config{Authorize: allowAll})
		stream, err := grpc_health_v1.NewHealthClient(conn).Watch(t.Context(), &grpc_health_v1.HealthCheckRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if out, err := stream.Recv(); err != nil || out.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
			t.Fatalf("at first: %v, %v", out, err)
		}
		began := time.Now()
		if err := s.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("the stop took %v", took)
		}
		for err == nil {
			_, err = stream.Recv()
		}
		if code := status.Code(err); code != codes.Canceled {
			t.Errorf("the watch ends with %v", err)
		}
	})
}

// A Check that waits when its peer violates HTTP/2 is not charged: its answer cannot be sent.
func TestAViolationIsNotCharged(t *testing.T) {
	fastOnly(t)
	synctest.Test(t, func(t *testing.T) {
		var charged, void atomic.Int64
		entered := make(chan struct{})
		_, dial := inMemory(t, envoy.Config{
			Timeout: time.Minute,
			Void: func(c usage.Charge) {
				if c.User != "" {
					void.Add(1)
				}
			},
			Authorize: waits(func(context.Context, *authz.Request) (authz.Decision, error) {
				close(entered)
				time.Sleep(100 * time.Millisecond)
				charged.Add(1)
				return authz.Decision{Reason: authz.Allowed, Principal: somebody, Charge: usage.Charge{User: "ada"}}, nil
			}),
		})
		r := dial()
		r.greet()
		message, err := proto.Marshal(codectest.Check("GET", "/a"))
		if err != nil {
			t.Fatal(err)
		}
		r.open(0, callOf(authv3.Authorization_Check_FullMethodName))
		r.WriteData(1, true, append([]byte{0, 0, 0, 0, byte(len(message))}, message...))
		<-entered
		r.AllowIllegalWrites = true
		r.WriteRawFrame(http2.FrameData, 0, 0, []byte{1})
		if data := r.untilEnd(); len(data) > 0 {
			t.Errorf("answered %q", data)
		}
		synctest.Wait()
		if charged.Load() != 1 || void.Load() != 1 {
			t.Errorf("%d of %d charges are void", void.Load(), charged.Load())
		}
	})
}

// Connections of strangers that are closed, because there are too many or they send too much, are
// counted.
func TestRefusedStrangersAreCounted(t *testing.T) {
	for name, row := range map[string]struct {
		does    func(dial func() raw)
		refused float64
	}{
		"three connections too many": {func(dial func() raw) {
			var all []raw
			for range envoy.MaxStrangers + 3 {
				all = append(all, dial())
			}
			for _, r := range all[:3] {
				r.untilEnd()
			}
		}, 3},
		"one that sends too much": {func(dial func() raw) {
			r := dial()
			r.greet()
			go r.untilEnd()
			for r.WriteRawFrame(0xfa, 0, 0, make([]byte, 8<<10)) == nil {
				synctest.Wait()
			}
		}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				token, err := bearer.Parse(callersToken)
				if err != nil {
					t.Fatal(err)
				}
				registry := prometheus.NewRegistry()
				_, dial := inMemory(t, envoy.Config{Authorize: allowAll, Token: token, Metrics: registry})
				row.does(dial)
				expectMetric(t, registry, "keyporter_grpc_refused_peers_total", "stranger", row.refused)
			})
		})
	}
}

// The log names connections that do not begin like HTTP/2 without TLS, such as those of an Envoy
// with another protocol in its cluster: once a second, and without the bytes they sent. Each is
// counted.
func TestOtherProtocolsAreLogged(t *testing.T) {
	fastOnly(t)
	synctest.Test(t, func(t *testing.T) {
		var logs bytes.Buffer
		registry := prometheus.NewRegistry()
		_, dial := inMemory(t, envoy.Config{Authorize: allowAll, Metrics: registry, Log: slog.New(slog.NewTextHandler(&logs, nil))})
		send := func(text string) {
			r := dial()
			io.WriteString(r.Conn, text)
			_, _ = io.Copy(io.Discard, r.Conn)
		}
		for _, text := range []string{"\x16\x03\x01canary", "GET /canary HTTP/1.1\r\n\r\n", "canary"} {
			send(text)
		}
		synctest.Wait()
		time.Sleep(time.Second)
		send("canary")
		synctest.Wait()
		if n := strings.Count(logs.String(), "does not begin like HTTP/2"); n != 2 || !strings.Contains(logs.String(), "suppressed=2") || strings.Contains(logs.String(), "canary") {
			t.Errorf("logged:\n%s", logs.String())
		}
		expectMetric(t, registry, "keyporter_grpc_refused_peers_total", "not_http2", 4)
	})
}

// The time for a decision runs from the headers of its Check, also if the message comes later.
func TestTheTimeRunsFromTheArrival(t *testing.T) {
	fastOnly(t)
	synctest.Test(t, func(t *testing.T) {
		_, dial := inMemory(t, envoy.Config{Timeout: 150 * time.Millisecond, Authorize: waits(hang)})
		message, err := proto.Marshal(codectest.Check("GET", "/a"))
		if err != nil {
			t.Fatal(err)
		}
		r := dial()
		r.greet()
		synctest.Wait()
		began := time.Now()
		r.open(0, callOf(authv3.Authorization_Check_FullMethodName))
		time.Sleep(100 * time.Millisecond)
		r.WriteData(1, true, append([]byte{0, 0, 0, 0, byte(len(message))}, message...))
		for {
			f, err := r.ReadFrame()
			if err != nil {
				t.Fatal(err)
			}
			if f.Header().Type == http2.FrameData {
				break
			}
		}
		if took := time.Since(began); took != 150*time.Millisecond {
			t.Errorf("answered after %v, want 150ms", took)
		}
	})
}

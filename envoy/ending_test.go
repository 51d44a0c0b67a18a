package envoy_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/bearer"
	"github.com/keyporter/keyporter/envoy"
	"github.com/keyporter/keyporter/envoy/bootstrap"
	"github.com/keyporter/keyporter/internal/parts"
	"github.com/keyporter/keyporter/internal/parts/partstest"
	"github.com/keyporter/keyporter/usage"
)

// rogue is an upstream that misbehaves as the last segment of the path says, up to a dot.
type rogue struct {
	net.Listener
	asked sync.Map // last segment of a path → it was requested
}

// startRogue starts a rogue that treats its connections as serve does.
func startRogue(t *testing.T, serve func(*rogue, context.Context, *net.TCPConn)) *rogue {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u := &rogue{Listener: listener}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { serve(u, t.Context(), conn.(*net.TCPConn)) })
		}
	})
	t.Cleanup(func() {
		listener.Close()
		serving.Wait()
	})
	return u
}

const halfAnAnswer = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"

// serve answers the requests of a connection until the connection or ctx ends.
func (u *rogue) serve(ctx context.Context, conn *net.TCPConn) {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	reader := bufio.NewReader(conn)
	for {
		r, err := http.ReadRequest(reader)
		if err != nil {
			return
		}
		what := path.Base(r.URL.Path)
		u.asked.Store(what, true)
		switch how, _, _ := strings.Cut(what, "."); how {
		case "resets-at-once":
			conn.SetLinger(0)
			return
		case "hangs-up-at-once":
			return
		case "hangs-up-in-the-middle":
			io.WriteString(conn, halfAnAnswer)
			conn.CloseWrite() // the half must arrive; a reset at once could overtake it
			<-ctx.Done()
			return
		case "is-no-server":
			io.WriteString(conn, "220 mail.example ESMTP\r\n")
			return
		case "hangs":
			<-ctx.Done()
			return
		case "hangs-in-the-middle":
			io.WriteString(conn, halfAnAnswer)
			<-ctx.Done()
			return
		case "grpc-unavailable":
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Type: application/grpc\r\nGrpc-Status: 14\r\nContent-Length: 0\r\n\r\n")
		default:
			fmt.Fprintf(conn, "HTTP/1.1 %s Of my own\r\nContent-Length: 0\r\n\r\n", how)
		}
	}
}

// teller is a server that names charges after the last segment of their request's path, with the
// completions that it has received.
type teller struct {
	*envoy.Server
	addr    string
	endings endings
	told    map[string]usage.Completion // receipt → completion; owned by the test's goroutine
	voided  atomic.Int64
}

func startTeller(t *testing.T, token bearer.Token) *teller {
	t.Helper()
	s := &teller{told: map[string]usage.Completion{}}
	s.Server = makeServer(envoy.Config{
		OnComplete: s.endings.complete, Void: func(usage.Charge) { s.voided.Add(1) }, Token: token, DrainDelay: -1,
		Authorize: func(ctx context.Context, r *authz.Request) (authz.Decision, error) {
			what := path.Base(r.Path)
			d := authz.Decision{Reason: authz.Allowed, Principal: somebody, Charge: usage.Charge{ID: "id", Receipt: what}}
			switch how, _, _ := strings.Cut(what, "."); how {
			case "decided-too-late":
				<-ctx.Done()
			case "balance":
				d.Rule = &authz.Rule{Answer: authz.AnswerCredits}
			case "invalid":
				d.Principal.User = "no\nheader"
			case "refused":
				d.Reason, d.Charge = authz.CreditsExhausted, usage.Charge{}
			}
			return d, nil
		},
	})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = listener.Addr().String()
	serve(t, s.Server, listener)
	return s
}

// startEnvoy starts an Envoy with the generated configuration, with some words replaced, and
// returns it and its address.
func (s *teller) startEnvoy(t *testing.T, upstream string, token bearer.Token, changes ...string) (*parts.Envoy, string) {
	t.Helper()
	return s.startEnvoyWith(t, bootstrap.Config{Upstream: upstream, Token: token}, changes...)
}

// startEnvoyWith is startEnvoy with further settings beside the upstream.
func (s *teller) startEnvoyWith(t *testing.T, c bootstrap.Config, changes ...string) (*parts.Envoy, string) {
	t.Helper()
	listen, err := parts.FreeAddr()
	if err != nil {
		t.Fatal(err)
	}
	c.Authz, c.Listen, c.Admin = s.addr, listen, "127.0.0.1:0"
	config := string(printed(t, c))
	for i := 0; i < len(changes); i += 2 {
		changed := strings.ReplaceAll(config, changes[i], changes[i+1])
		if changed == config {
			t.Fatalf("the bootstrap does not say %q", changes[i])
		}
		config = changed
	}
	return partstest.StartEnvoy(t, parts.EnvoyConfig{Bootstrap: []byte(config)}), listen
}

// expect waits for the completion of a charge, and compares it.
func (s *teller) expect(t *testing.T, receipt string, status int, failure usage.Failure) {
	t.Helper()
	s.await(t, receipt)
	if got := s.told[receipt]; got.Status != status || got.Failure != failure {
		t.Errorf("%s: status %d, failure %v; want %d, %v", receipt, got.Status, got.Failure, status, failure)
	}
}

func (s *teller) await(t *testing.T, receipt string) {
	t.Helper()
	partstest.Eventually(t, "the completion of "+receipt, func() bool {
		for _, e := range s.endings.take() {
			if _, again := s.told[e.Receipt]; again {
				t.Errorf("%s: told twice", e.Receipt)
			}
			s.told[e.Receipt] = e
		}
		_, ok := s.told[receipt]
		return ok
	})
}

// dial sends a request for /api/v1/brands/what and returns the connection.
func dial(t *testing.T, addr, what string, headers ...string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(time.Minute))
	lines := append([]string{"GET /api/v1/brands/" + what + " HTTP/1.1", "host: api.example"}, headers...)
	if _, err := io.WriteString(conn, strings.Join(lines, "\r\n")+"\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	return conn
}

// ask sends a request and returns the status that its client reads; 0: none.
func ask(t *testing.T, addr, what string, headers ...string) int {
	t.Helper()
	answer, err := http.ReadResponse(bufio.NewReader(dial(t, addr, what, headers...)), nil)
	if err != nil {
		return 0
	}
	defer answer.Body.Close()
	_, _ = io.Copy(io.Discard, answer.Body) // half of them break off here
	return answer.StatusCode
}

func known(m *sync.Map, what string) func() bool {
	return func() bool { _, ok := m.Load(what); return ok }
}

// Each way in which a request can end is reported by a real Envoy, and decides about its charge.
func TestEndingsBehindARealEnvoy(t *testing.T) {
	partstest.Slow(t)
	token, err := bearer.Parse("a-token-of-some-length")
	if err != nil {
		t.Fatal(err)
	}
	const none, answered5xx, noAnswer, notAsked, clientGone = usage.NoFailure, usage.Answered5xx, usage.NoAnswer, usage.NotAsked, usage.ClientGone
	s, upstream := startTeller(t, token), startRogue(t, (*rogue).serve)
	there := upstream.Addr().String()
	nowhere, err := parts.FreeAddr()
	if err != nil {
		t.Fatal(err)
	}
	host, port, _ := net.SplitHostPort(there)
	endpoint := fmt.Sprintf("lb_endpoints: [{ endpoint: { address: { socket_address: { address: %q, port_value: %s } } } }]", host, port)
	hurry := []string{"timeout: 0s, idle_timeout: 60s, max_stream_duration: { max_stream_duration: 3600s, grpc_timeout_header_max: 3600s }", "timeout: 0.5s, idle_timeout: 60s"}
	var many, repeated []string
	for i := range 95 {
		repeated = append(repeated, "x-header: 1")
		many = append(many, fmt.Sprintf("x-header-%d: 1", i))
	}

	t.Run("an upstream that misbehaves", func(t *testing.T) {
		_, addr := s.startEnvoy(t, there, token, hurry...)
		rows := []struct {
			what    string
			headers []string
			read    int // status that the client reads
			status  int // status in the access log
			failure usage.Failure
		}{
			{"200", nil, 200, 200, none},
			{"302", nil, 302, 302, none},
			{"404", nil, 404, 404, none},
			{"500", nil, 500, 500, answered5xx},
			{"502", nil, 502, 502, answered5xx},
			{"503", nil, 503, 503, answered5xx},
			{"504", nil, 504, 504, answered5xx},
			{"grpc-unavailable", nil, 200, 200, answered5xx},
			{"resets-at-once", nil, 503, 503, noAnswer},
			{"hangs-up-at-once", nil, 503, 503, noAnswer},
			{"hangs-up-in-the-middle", nil, 200, 200, noAnswer},
			{"is-no-server", nil, 502, 502, noAnswer},
			{"hangs", nil, 504, 504, noAnswer},
			{"hangs-in-the-middle", nil, 200, 200, none}, // a slow reader looks the same
			{"too-many-headers", many, 431, 431, usage.HeadersTooLarge},
			{"too-many-of-one-name", repeated, 503, 503, usage.InvalidAnswer}, // Envoy counts names where it looks for 431
			{"invalid", nil, 503, 503, usage.InvalidAnswer},
			{"balance", nil, 200, 200, none},
		}
		for _, row := range rows {
			if got := ask(t, addr, row.what, row.headers...); got != row.read {
				t.Errorf("%s: the client reads %d, want %d", row.what, got, row.read)
			}
		}
		for _, row := range rows {
			s.expect(t, row.what, row.status, row.failure)
		}
		if known(&upstream.asked, "too-many-headers")() || known(&upstream.asked, "too-many-of-one-name")() || known(&upstream.asked, "invalid")() || known(&upstream.asked, "balance")() {
			t.Error("the upstream got what is not for it")
		}
	})

	t.Run("a client that speaks gRPC", func(t *testing.T) {
		_, addr := s.startEnvoy(t, there, token)
		for _, what := range []string{"hangs-up-at-once.grpc", "invalid.grpc"} {
			if got := ask(t, addr, what, "content-type: application/grpc"); got != 200 {
				t.Errorf("%s: the client reads %d", what, got)
			}
		}
		if got := ask(t, addr, "too-many-headers.grpc", append(many, "content-type: application/grpc")...); got != 200 {
			t.Errorf("too many headers: the client reads %d", got)
		}
		conn := dial(t, addr, "hangs.malformed", "content-type: application/grpc", "transfer-encoding: chunked")
		partstest.Eventually(t, "the upstream is asked", known(&upstream.asked, "hangs.malformed"))
		io.WriteString(conn, "no chunk\r\n")
		// Otherwise a client could have its credit back for finished work.
		s.expect(t, "hangs.malformed", 200, none)
		s.expect(t, "hangs-up-at-once.grpc", 200, noAnswer)
		s.expect(t, "invalid.grpc", 200, usage.InvalidAnswer)
		s.expect(t, "too-many-headers.grpc", 200, usage.HeadersTooLarge)
	})

	t.Run("what costs nothing in the end", func(t *testing.T) {
		_, addr := s.startEnvoy(t, there, token)
		if got := ask(t, addr, "decided-too-late"); got != 503 {
			t.Errorf("a decision that comes too late: the client reads %d", got)
		}
		if got := ask(t, addr, "refused"); got != 429 {
			t.Errorf("a refusal: the client reads %d", got)
		}
		if s.voided.Load() != 1 {
			t.Errorf("%d charges were taken back", s.voided.Load())
		}
		ask(t, addr, "201")
		s.expect(t, "201", 201, none)
		for _, receipt := range []string{"decided-too-late", "refused"} {
			if e, ok := s.told[receipt]; ok {
				t.Errorf("%s is in the access log: %+v", receipt, e)
			}
		}
	})

	t.Run("an upstream that is not there", func(t *testing.T) {
		_, addr := s.startEnvoy(t, nowhere, token)
		if got := ask(t, addr, "nobody-listens"); got != 503 {
			t.Errorf("the client reads %d", got)
		}
		s.expect(t, "nobody-listens", 503, noAnswer)
	})

	t.Run("an upstream without a healthy host", func(t *testing.T) {
		_, addr := s.startEnvoy(t, there, token, endpoint, "lb_endpoints: []")
		ask(t, addr, "nobody-healthy")
		s.expect(t, "nobody-healthy", 503, notAsked)
	})

	t.Run("an upstream with too much to do", func(t *testing.T) {
		_, addr := s.startEnvoy(t, there, token, "max_pending_requests: 8192, max_requests: 8192 }\n    load", "max_pending_requests: 0 }\n    load")
		ask(t, addr, "overflows")
		s.expect(t, "overflows", 503, notAsked)
	})

	t.Run("an upstream that says nothing for too long", func(t *testing.T) {
		_, addr := s.startEnvoy(t, there, token, "idle_timeout: 60s", "idle_timeout: 0.5s")
		ask(t, addr, "hangs.idle")
		ask(t, addr, "hangs.body", "content-length: 100")
		s.expect(t, "hangs.idle", 504, noAnswer)
		s.expect(t, "hangs.body", 408, noAnswer)
	})

	t.Run("a client that leaves", func(t *testing.T) {
		_, addr := s.startEnvoy(t, there, token)
		conn := dial(t, addr, "hangs.left")
		partstest.Eventually(t, "the upstream is asked", known(&upstream.asked, "hangs.left"))
		conn.Close()
		conn = dial(t, addr, "hangs-in-the-middle.left")
		if _, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil {
			t.Error(err)
		}
		conn.Close()
		s.expect(t, "hangs.left", 0, none)
		s.expect(t, "hangs-in-the-middle.left", 200, none)
	})

	t.Run("a client that reads too late", func(t *testing.T) {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		gaveUp := make(chan struct{})
		server := &http.Server{WriteTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			defer close(gaveUp)
			w.Header().Set("Content-Length", "100000000")
			for sent := 0; sent < 100_000_000; sent += 100_000 {
				if _, err := w.Write(make([]byte, 100_000)); err != nil {
					return
				}
			}
		})}
		go server.Serve(listener)
		t.Cleanup(func() { server.Close() })
		_, addr := s.startEnvoy(t, listener.Addr().String(), token)
		conn := dial(t, addr, "unread")
		<-gaveUp
		_, _ = io.Copy(io.Discard, conn) // until it breaks off
		s.expect(t, "unread", 200, none)
	})

	t.Run("a client that resets its stream", func(t *testing.T) {
		_, addr := s.startEnvoy(t, there, token)
		leave := begin(t, addr, "hangs.h2")
		partstest.Eventually(t, "the upstream is asked", known(&upstream.asked, "hangs.h2"))
		leave()
		s.expect(t, "hangs.h2", 0, none)
	})

	t.Run("a client that leaves before the upstream is asked", func(t *testing.T) {
		proxy, addr := s.startEnvoy(t, partstest.DeafAddr(t), token, "connect_timeout: 1s", "connect_timeout: 300s")
		conn := dial(t, addr, "left-early")
		partstest.Eventually(t, "a request waits for a connection", func() bool { return stat(t, proxy, "cluster.upstream.upstream_rq_pending_active") == "1" })
		conn.Close()
		leave := begin(t, addr, "left-early-too")
		partstest.Eventually(t, "a second request has waited", func() bool { return stat(t, proxy, "cluster.upstream.upstream_rq_pending_total") == "2" })
		leave()
		s.expect(t, "left-early", 0, clientGone)
		s.expect(t, "left-early-too", 0, clientGone)
	})

	t.Run("an upstream that speaks gRPC", func(t *testing.T) {
		_, addr := s.startEnvoy(t, startGRPCUpstream(t), token, "  - name: upstream\n", `  - name: upstream
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: { http2_protocol_options: {} }
`)
		for _, what := range []string{"trailer-14", "trailer-2", "trailer-0", "trailer-5"} {
			askHTTP2(t.Context(), t, addr, what)
		}
		s.expect(t, "trailer-14", 200, answered5xx)
		s.expect(t, "trailer-2", 200, answered5xx)
		s.expect(t, "trailer-0", 200, none)
		s.expect(t, "trailer-5", 200, none)
	})
}

// A replica that stops while it reads the access log of a real Envoy under load loses no entry: the
// other one continues after it.
func TestAStopLosesNoEndings(t *testing.T) {
	partstest.Slow(t)
	var told [2]atomic.Int64
	var servers [2]*envoy.Server
	var addrs [2]string
	for i := range servers {
		servers[i] = makeServer(envoy.Config{
			Timeout:    5 * time.Second,
			OnComplete: func(usage.Completion) { told[i].Add(1) },
			Authorize: func(ctx context.Context, r *authz.Request) (authz.Decision, error) {
				d, err := allowAll(ctx, r)
				d.Charge.Receipt = "receipt"
				return d, err
			},
		})
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addrs[i] = listener.Addr().String()
		serve(t, servers[i], listener)
	}
	proxy, url := startEnvoyBefore(t, addrs)
	ctx, stop := context.WithCancel(t.Context())
	var load sync.WaitGroup
	var answered atomic.Int64
	defer load.Wait()
	defer stop()
	for range 4 {
		load.Go(func() {
			for ctx.Err() == nil {
				if err := getOK(url); err != nil {
					t.Error(err)
					return
				}
				answered.Add(1)
			}
		})
	}
	partstest.Eventually(t, "100 completions", func() bool { return told[0].Load()+told[1].Load() > 100 })
	reader := 0 // Envoy's worker has one stream
	if told[1].Load() > 0 {
		reader = 1
	}
	if err := servers[reader].Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if resets := stat(t, proxy, "cluster.authz.upstream_rq_tx_reset"); resets == "" || resets == "0" {
		t.Error("Envoy did not reset the stream that it was asked to end")
	}
	stop()
	load.Wait()
	partstest.Eventually(t, "the completion of every answer", func() bool { return told[0].Load()+told[1].Load() >= answered.Load() })
	if told[1-reader].Load() == 0 || told[0].Load()+told[1].Load() != answered.Load() {
		t.Errorf("%d requests, told to the one that stopped %d, to the other %d", answered.Load(), told[reader].Load(), told[1-reader].Load())
	}
}

// askHTTP2 sends a gRPC request over HTTP/2 and reads the answer, until ctx ends.
func askHTTP2(ctx context.Context, t *testing.T, addr, what string) {
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: &protocols}
	defer transport.CloseIdleConnections()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+"/api/v1/brands/"+what, http.NoBody)
	if err != nil {
		t.Error(err)
		return
	}
	r.Header.Set("Content-Type", "application/grpc")
	answer, err := transport.RoundTrip(r)
	if err != nil {
		if ctx.Err() == nil {
			t.Errorf("%s: %v", what, err)
		}
		return
	}
	defer answer.Body.Close()
	_, _ = io.Copy(io.Discard, answer.Body) // the access log has the result
}

// begin sends a request over HTTP/2 and returns a function that resets its stream.
func begin(t *testing.T, addr, what string) (leave func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var asking sync.WaitGroup
	asking.Go(func() { askHTTP2(ctx, t, addr, what) })
	return func() {
		cancel()
		asking.Wait()
	}
}

// startGRPCUpstream starts an upstream that answers with a message and the gRPC status at the end
// of the path.
func startGRPCUpstream(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{Protocols: &protocols, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status")
		w.Write(make([]byte, 5)) // an empty message
		_, status, _ := strings.Cut(path.Base(r.URL.Path), "-")
		w.Header().Set("Grpc-Status", status)
	})}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
	return listener.Addr().String()
}

// stat returns the value of one of Envoy's statistics.
func stat(t *testing.T, e *parts.Envoy, name string) string {
	answer, err := http.Get("http://" + e.Admin() + "/stats?filter=^" + name + "$")
	if err != nil {
		t.Error(err)
		return ""
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Error(err)
	}
	_, value, _ := strings.Cut(strings.TrimSpace(string(text)), ": ")
	return value
}

package load_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"

	"github.com/keyporter/keyporter/bench/load"
)

// authorizer answers Checks with the result of a function, and records them.
type authorizer struct {
	authv3.UnimplementedAuthorizationServer
	answer answerFunc

	mu  sync.Mutex
	ids map[string]int // guarded by mu; request ID → number of requests
}

func (a *authorizer) Check(ctx context.Context, r *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	a.mu.Lock()
	a.ids[r.GetAttributes().GetRequest().GetHttp().GetId()]++
	a.mu.Unlock()
	if _, ok := ctx.Deadline(); !ok {
		return nil, errors.New("no deadline")
	}
	return a.answer(ctx, r)
}

type answerFunc func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error)

func allow(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	return &authv3.CheckResponse{Status: &status.Status{}}, nil
}

func deny(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	return &authv3.CheckResponse{
		Status: &status.Status{Code: 16},
		HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
			Status: &typev3.HttpStatus{Code: typev3.StatusCode_Unauthorized},
			Body:   strings.Repeat("no", 20_000), // exceeds one HTTP/2 frame
		}},
	}, nil
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return listener
}

func serve(t *testing.T, answer answerFunc, options ...grpc.ServerOption) (*authorizer, string) {
	t.Helper()
	a := &authorizer{answer: answer, ids: map[string]int{}}
	server := grpc.NewServer(options...)
	authv3.RegisterAuthorizationServer(server, a)
	listener := listen(t)
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	return a, listener.Addr().String()
}

func oneCheck() ([]*load.Check, error) {
	check, err := load.NewCheck(path, key)
	return []*load.Check{check}, err
}

func dial(t *testing.T, config load.ChecksConfig) *load.Checks {
	t.Helper()
	config.Checks = oneCheck
	checks, err := load.DialChecks(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { checks.Close() })
	return checks
}

// Every counted Check reached the server once, under its own number, in several runs over several
// connections.
func TestEveryCheckIsAskedOnceUnderItsOwnNumber(t *testing.T) {
	server, addr := serve(t, allow)
	checks := dial(t, load.ChecksConfig{Addr: addr, Answer: load.Allow})
	answers := 0
	for range 2 {
		result, err := checks.Ask(t.Context(), 50*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.IsSorted(result.Latencies) || result.PerSecond() <= 0 {
			t.Errorf("%d answers, %f/s", len(result.Latencies), result.PerSecond())
		}
		answers += len(result.Latencies)
	}
	if answers < 4*32 || len(server.ids) != answers {
		t.Errorf("%d answers to %d numbers, want as many, and at least one on each stream", answers, len(server.ids))
	}
}

// The load client respects the server's flow control, however small its windows, and reads answers
// of any length. Go's own HTTP/2 server closes a connection that violates them; gRPC's server is
// more lenient.
func TestLargeAnswersAndSmallWindows(t *testing.T) {
	checks := dial(t, load.ChecksConfig{Addr: serveStrictly(t, deny), Answer: http.StatusUnauthorized, Connections: 1, Streams: 240})
	result, err := checks.Ask(t.Context(), 200*time.Millisecond)
	if err != nil || len(result.Latencies) == 0 {
		t.Errorf("%d answers, %v", len(result.Latencies), err)
	}
}

// serveStrictly is serve on Go's own HTTP/2 server.
func serveStrictly(t *testing.T, answer answerFunc) (addr string) {
	t.Helper()
	handler := grpc.NewServer()
	authv3.RegisterAuthorizationServer(handler, &authorizer{answer: answer, ids: map[string]int{}})
	server := http.Server{
		Handler:   handler,
		Protocols: new(http.Protocols),
		HTTP2:     &http.HTTP2Config{MaxReceiveBufferPerConnection: 64 << 10, MaxReceiveBufferPerStream: 64 << 10, MaxConcurrentStreams: 250},
	}
	server.Protocols.SetUnencryptedHTTP2(true)
	listener := listen(t)
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
	return listener.Addr().String()
}

// The first wrong answer ends the run with an error that shows it.
func TestWrongAnswerEndsTheRun(t *testing.T) {
	failing := func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
		return nil, errors.New("database gone")
	}
	for name, c := range map[string]struct {
		answer answerFunc
		want   load.Answer
		text   string
	}{
		"a denial instead of a yes":        {deny, load.Allow, "wrong answer: deny with 401, expected allow"},
		"a yes instead of a denial":        {allow, 401, "wrong answer: allow, expected deny with 401"},
		"another denial":                   {deny, 404, "wrong answer: deny with 401, expected deny with 404"},
		"a gRPC error instead of a yes":    {failing, load.Allow, `wrong answer: gRPC status "2"`},
		"a gRPC error instead of a denial": {failing, 401, `wrong answer: gRPC status "2"`},
	} {
		_, addr := serve(t, c.answer)
		_, err := dial(t, load.ChecksConfig{Addr: addr, Answer: c.want}).Ask(t.Context(), time.Minute)
		if err == nil || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v, want %s", name, err, c.text)
		}
	}
}

// Two answers may be right, and then no third one is.
func TestAnotherAnswerMayBeRight(t *testing.T) {
	for also, right := range map[load.Answer]bool{401: true, 503: false, 0: false} {
		_, addr := serve(t, deny)
		_, err := dial(t, load.ChecksConfig{Addr: addr, Answer: load.Allow, Also: also}).Ask(t.Context(), 20*time.Millisecond)
		if (err == nil) != right || err != nil && !strings.Contains(err.Error(), "expected allow") {
			t.Errorf("a denial with 401, where %v is right as well: %v", also, err)
		}
	}
}

// The end of the context ends the run without a wait for outstanding answers.
func TestEndOfTheContextEndsTheRunAtOnce(t *testing.T) {
	var givenUp atomic.Int64 // Checks whose deadline has passed
	_, addr := serve(t, func(ctx context.Context, r *authv3.CheckRequest) (*authv3.CheckResponse, error) {
		select {
		case <-ctx.Done():
			givenUp.Add(1)
		case <-t.Context().Done():
		}
		return allow(ctx, r)
	})
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(10*time.Millisecond, cancel)
	_, err := dial(t, load.ChecksConfig{Addr: addr, Answer: load.Allow}).Ask(ctx, time.Minute)
	if !errors.Is(err, context.Canceled) || givenUp.Load() > 0 {
		t.Errorf("%v after %d Checks had waited in vain; want %v at once", err, givenUp.Load(), context.Canceled)
	}
}

func TestServerThatAllowsFewerStreamsIsRefused(t *testing.T) {
	_, addr := serve(t, allow, grpc.MaxConcurrentStreams(8))
	_, err := load.DialChecks(t.Context(), load.ChecksConfig{Addr: addr, Checks: oneCheck})
	if err == nil || !strings.Contains(err.Error(), "fewer streams") {
		t.Errorf("%v, want a complaint about the streams", err)
	}
}

// answerHTTP answers each request of each connection with the same bytes, in pieces.
func answerHTTP(t *testing.T, pieces ...string) string {
	t.Helper()
	listener := listen(t)
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go answerConn(conn, pieces)
		}
	}()
	return listener.Addr().String()
}

func answerConn(conn net.Conn, pieces []string) {
	defer conn.Close()
	for reader := bufio.NewReader(conn); ; {
		if _, err := http.ReadRequest(reader); err != nil {
			return
		}
		for _, piece := range pieces {
			fmt.Fprint(conn, piece)
		}
	}
}

func TestRequests(t *testing.T) {
	const right = "HTTP/1.1 401 Unauthorized\r\ncontent-length: 12\r\nserver: envoy\r\n\r\nunauthorized"
	for name, c := range map[string]struct {
		pieces []string
		text   string // of the error; empty: none
	}{
		"the right answer":            {[]string{right}, ""},
		"the right answer, in pieces": {[]string{right[:3], right[3:60], right[60:]}, ""},
		"the wrong status":            {[]string{strings.Replace(right, "401", "403", 1)}, "wrong answer: expected 401"},
		"the wrong body":              {[]string{strings.Replace(right, "unauthorized", "unavailable!", 1)}, "wrong answer: expected 401"},
		"no length":                   {[]string{strings.Replace(right, "content-length", "content-size", 1)}, "content-length"},
		"more than was asked for":     {[]string{right + right}, "content-length"},
		"something that is not HTTP":  {[]string{"SSH-2.0-OpenSSH\r\n\r\n"}, "not an HTTP/1.1 response"},
		"an answer without an end":    {[]string{strings.Repeat("x", 1<<17)}, "longer than"},
	} {
		requests, err := load.DialRequests(t.Context(), load.RequestsConfig{
			Addr: answerHTTP(t, c.pieces...), Connections: 2, Status: 401, Body: "unauthorized",
			Requests: [][]byte{[]byte("GET /a HTTP/1.1\r\nhost: a\r\n\r\n"), []byte("GET /b HTTP/1.1\r\nhost: a\r\n\r\n")},
		})
		if err != nil {
			t.Fatal(err)
		}
		result, err := requests.Ask(t.Context(), 20*time.Millisecond)
		requests.Close()
		if c.text == "" && (err != nil || len(result.Latencies) < 2) {
			t.Errorf("%s: %d answers, %v", name, len(result.Latencies), err)
		}
		if c.text != "" && (err == nil || !strings.Contains(err.Error(), c.text)) {
			t.Errorf("%s: %v, want %s", name, err, c.text)
		}
	}
}

// A quantile is an observed value: the smallest one that enough others do not exceed.
func TestQuantile(t *testing.T) {
	hundred := make([]int, 100)
	for i := range hundred {
		hundred[i] = i + 1
	}
	for _, c := range []struct {
		sorted []int
		q      float64
		want   int
	}{
		{nil, 0.5, 0},
		{[]int{7}, 0, 7},
		{[]int{7}, 0.999, 7},
		{[]int{1, 2, 3}, 0.5, 2},
		{[]int{1, 2, 3, 4}, 0.5, 2},
		{[]int{1, 2, 3, 4}, 1, 4},
		{hundred, 0.5, 50},
		{hundred, 0.99, 99},
		{hundred, 0.999, 100},
	} {
		if got := load.Quantile(c.sorted, c.q); got != c.want {
			t.Errorf("Quantile(%v, %v) = %d, want %d", c.sorted, c.q, got, c.want)
		}
	}
}

// A paced load sends about the configured number of Checks and no more, including over several
// connections.
func TestPacedLoadSendsAboutSoMany(t *testing.T) {
	server, addr := serve(t, allow)
	checks := dial(t, load.ChecksConfig{Addr: addr, Answer: load.Allow, Rate: 1000})
	for range 2 {
		clear(server.ids)
		result, err := checks.Ask(t.Context(), 500*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		if n := len(result.Latencies); n < 490 || n > 504 || len(server.ids) != n {
			t.Errorf("%d answers to %d numbers, want about 500", n, len(server.ids))
		}
	}
}

// Latencies of a paced load include the delay of Checks that a hanging server kept from being sent
// on time.
func TestPacedLatenciesCountFromWhenItShouldHaveBeenSent(t *testing.T) {
	var first atomic.Bool
	const hang = 200 * time.Millisecond
	_, addr := serve(t, func(ctx context.Context, r *authv3.CheckRequest) (*authv3.CheckResponse, error) {
		if !first.Swap(true) {
			time.Sleep(hang)
		}
		return allow(ctx, r)
	})
	checks := dial(t, load.ChecksConfig{Addr: addr, Answer: load.Allow, Rate: 1000, Connections: 1, Streams: 1})
	result, err := checks.Ask(t.Context(), 2*hang)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(result.Latencies); n < 390 || n > 401 {
		t.Errorf("%d answers, want 400", n)
	}
	if slow := result.Quantile(0.75); result.Quantile(1) < hang || slow < hang/4 {
		t.Errorf("slowest %v, a quarter above %v; want half of all to have waited for the end of %v", result.Quantile(1), slow, hang)
	}
}

func TestPacedLoadEndsWithTheContextAndAtAWrongAnswer(t *testing.T) {
	_, addr := serve(t, deny)
	_, err := dial(t, load.ChecksConfig{Addr: addr, Answer: load.Allow, Rate: 100}).Ask(t.Context(), time.Minute)
	if err == nil || !strings.Contains(err.Error(), "wrong answer") {
		t.Errorf("%v, want a wrong answer", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	_, err = dial(t, load.ChecksConfig{Addr: addr, Answer: http.StatusUnauthorized, Rate: 100}).Ask(ctx, time.Minute)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want %v", err, context.Canceled)
	}
}

// All connections together send each key once before they repeat any, starting at Begin.
func TestKeysAreSentInTurn(t *testing.T) {
	var keys []string
	for i := range 64 {
		keys = append(keys, fmt.Sprintf("wh_%048d", i))
	}
	var mu sync.Mutex
	asked := map[string]int{}
	var order []string
	_, addr := serve(t, func(ctx context.Context, r *authv3.CheckRequest) (*authv3.CheckResponse, error) {
		mu.Lock()
		defer mu.Unlock()
		key := headers(r)["x-api-key"]
		asked[key]++
		order = append(order, key)
		return allow(ctx, r)
	})
	checks := dial(t, load.ChecksConfig{Addr: addr, Answer: load.Allow, Keys: keys, Begin: 62, Streams: 1, Rate: 1000})
	result, err := checks.Ask(t.Context(), time.Duration(len(keys)+8)*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range keys {
		if n := asked[key]; n < 1 || n > 2 {
			t.Errorf("%s was sent %d times in %d Checks", key, n, len(result.Latencies))
		}
	}
	if !slices.Contains(order[:8], keys[62]) || slices.Contains(order[:8], keys[30]) {
		t.Errorf("sent first: %v, want those from %s on", order[:8], keys[62])
	}
}

package transport_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/status"

	"github.com/keyporter/keyporter/envoy/transport"
)

// bytesCodec passes bytes.
type bytesCodec struct{}

func (bytesCodec) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }
func (bytesCodec) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = append([]byte(nil), data...)
	return nil
}
func (bytesCodec) Name() string { return "bytes" }

var _ encoding.Codec = bytesCodec{}

// serve serves until the test ends.
func serve(t *testing.T, config transport.Config) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, l, config)
	return l.Addr().String()
}

// serveOn is serve with a listener.
func serveOn(t *testing.T, l net.Listener, config transport.Config) {
	t.Helper()
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	s := transport.NewServer(config)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		l.Close()
		if err := <-served; !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		s.Close()
	})
}

// echoes is a server with one method.
func echoes() transport.Config {
	return transport.Config{Methods: map[string]transport.Method{echoPath: echo{}}}
}

// start serves and returns a client.
func start(t *testing.T, config transport.Config) *grpc.ClientConn {
	t.Helper()
	return dial(t, serve(t, config))
}

// dial returns a client of grpc-go.
func dial(t *testing.T, address string) *grpc.ClientConn {
	t.Helper()
	return dialBy(t, address, insecure.NewCredentials())
}

func dialBy(t *testing.T, address string, by credentials.TransportCredentials) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(by), grpc.WithDefaultCallOptions(grpc.ForceCodec(bytesCodec{})))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

const echoPath = "/test.Echo/Echo"

func ask(t *testing.T, conn *grpc.ClientConn, method, message string) (string, error) {
	in, out := []byte(message), []byte(nil)
	err := conn.Invoke(t.Context(), method, &in, &out)
	return string(out), err
}

// allButSecret refuses the calls of one method.
func allButSecret(_ net.Conn, method string, _ []string) transport.Admission {
	if method == "/test.Echo/Secret" {
		return transport.Refused
	}
	return transport.Admitted
}

// A client of gRPC gets the answers of calls that are answered at once, that wait, that are larger
// than a frame and larger than the windows, and the status of what is refused.
func TestAClientOfGRPC(t *testing.T) {
	conn := start(t, transport.Config{
		Methods: map[string]transport.Method{echoPath: echo{}, "/test.Echo/Secret": echo{}},
		Admit:   allButSecret,
	})
	for _, message := range []string{"", "now", "wait", strings.Repeat("n", 20<<10), strings.Repeat("n", 200<<10), strings.Repeat("w", 200<<10)} {
		for range 3 {
			if got, err := ask(t, conn, echoPath, message); err != nil || got != message {
				t.Errorf("%d bytes: %d bytes, %v", len(message), len(got), err)
			}
		}
	}
	if _, err := ask(t, conn, "/test.Echo/Other", "now"); status.Code(err) != codes.Unimplemented {
		t.Errorf("an unknown method: %v", err)
	}
	if _, err := ask(t, conn, "/test.Echo/Secret", "now"); status.Code(err) != codes.Unauthenticated {
		t.Errorf("without the right to call: %v", err)
	}
	in, out := []byte(strings.Repeat("n", 100<<10)), []byte(nil)
	if err := conn.Invoke(t.Context(), echoPath, &in, &out, grpc.UseCompressor(gzip.Name)); err != nil || !bytes.Equal(in, out) {
		t.Errorf("a compressed message: %d bytes, %v", len(out), err)
	}
	if got, err := ask(t, conn, echoPath, strings.Repeat("n", 300<<10)); err != nil || got != "too large" {
		t.Errorf("a message that is too large: %q, %v", got, err)
	}
}

// A streaming call gets all messages of its caller, whatever ends it, and its own arrive.
func TestAStreamOfGRPC(t *testing.T) {
	received := make(chan []string, 1)
	conn := start(t, transport.Config{Streams: map[string]transport.Handler{"/test.Echo/Log": func(s transport.Stream) (int, string) {
		var all []string
		defer func() { received <- all }()
		for {
			m, err := s.Receive(context.Background())
			if errors.Is(err, io.EOF) {
				return 0, ""
			}
			if err != nil {
				return 1, err.Error()
			}
			all = append(all, string(m))
			if err := s.Send(m); err != nil {
				t.Error(err)
			}
		}
	}}})
	stream, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/test.Echo/Log")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"a", strings.Repeat("b", 100<<10), "", strings.Repeat("c", 256<<10), "d"}
	for _, m := range want {
		in, out := []byte(m), []byte(nil)
		if err := stream.SendMsg(&in); err != nil {
			t.Fatal(err)
		}
		if err := stream.RecvMsg(&out); err != nil || string(out) != m {
			t.Fatalf("%d bytes: %v", len(out), err)
		}
	}
	_ = stream.CloseSend()
	if err := stream.RecvMsg(new([]byte)); !errors.Is(err, io.EOF) {
		t.Errorf("the end: %v", err)
	}
	if got := <-received; len(got) != len(want) {
		t.Errorf("%d of %d messages", len(got), len(want))
	}
}

// grpcEcho is the handler of the same method in grpc-go.
func grpcEcho(_ any, _ context.Context, read func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
	var m []byte
	if err := read(&m); err != nil {
		return nil, err
	}
	return &m, nil
}

// A call that panics, at once or later, ends with an error and harms no other call of the server.
func TestPanics(t *testing.T) {
	config := transport.Config{
		Methods: map[string]transport.Method{echoPath: echo{}, "/test.Echo/Panic": panics{}},
		Streams: map[string]transport.Handler{"/test.Echo/Log": func(transport.Stream) (int, string) { panic("canary") }},
	}
	var logged bytes.Buffer
	config.Log = slog.New(slog.NewTextHandler(&logged, nil))
	conn := start(t, config)
	for _, message := range []string{"now", "wait"} {
		if _, err := ask(t, conn, "/test.Echo/Panic", message); err == nil {
			t.Errorf("%s: no error", message)
		}
		if got, err := ask(t, conn, echoPath, "now"); err != nil || got != "now" {
			t.Errorf("after %s: %q, %v", message, got, err)
		}
	}
	stream, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ClientStreams: true}, "/test.Echo/Log")
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.RecvMsg(new([]byte)); status.Code(err) != codes.Internal {
		t.Errorf("a streaming call: %v", err)
	}
	if n := strings.Count(logged.String(), "a call panicked"); n != 3 || strings.Contains(logged.String(), "canary") {
		t.Errorf("%d panics are logged: %s", n, logged.String())
	}
}

// panics panics.
type panics struct{}

func (panics) Try(c *transport.Call, _ []byte) ([]byte, bool) {
	if c.Message[0] == 'w' {
		return nil, false
	}
	panic("canary")
}
func (panics) Wait(context.Context, *transport.Call, []byte) []byte { panic("canary") }
func (panics) Refuse(*transport.Call, []byte) []byte                { return nil }

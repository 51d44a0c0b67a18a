package envoy_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/keyporter/keyporter/bearer"
	"github.com/keyporter/keyporter/envoy"
	"github.com/keyporter/keyporter/envoy/codec/codectest"
)

const callersToken = "s3cret-s3cret-s3cret"

// guarded serves on a TCP port of its own and requires a token.
func guarded(t *testing.T) (address string) {
	t.Helper()
	token, err := bearer.Parse(callersToken)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serve(t, makeServer(envoy.Config{
		Authorize: allowAll, Token: token, DrainDelay: -1, Log: slog.New(slog.DiscardHandler),
	}), listener)
	return listener.Addr().String()
}

// raw is a connection that speaks HTTP/2 frame by frame.
type raw struct {
	net.Conn
	*http2.Framer
}

func rawDial(t *testing.T, address string) raw {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return raw{conn, http2.NewFramer(conn, conn)}
}

// call opens a call and announces a message.
func (r raw) call(stream uint32, method string, announced uint32) error {
	var block bytes.Buffer
	headers := hpack.NewEncoder(&block)
	for _, h := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":path", method}, {":authority", "a"}, {"content-type", "application/grpc"}, {"te", "trailers"}} {
		headers.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]})
	}
	if err := r.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: block.Bytes(), EndHeaders: true}); err != nil {
		return err
	}
	return r.WriteData(stream, false, binary.BigEndian.AppendUint32([]byte{0}, announced))
}

// hold opens as many calls as it can. Each announces a message and sends all of it but a byte. It
// reports whether everything could be sent, so that nobody hung up.
func (r raw) hold(method string, streams int, announced uint32) bool {
	io.WriteString(r.Conn, http2.ClientPreface)
	r.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20})
	go io.Copy(io.Discard, r.Conn)
	for i := range streams {
		if r.call(uint32(2*i+1), method, announced) != nil {
			return false
		}
	}
	for left := int(announced) - 1; left > 0; {
		some := min(left, 8<<10)
		for i := range streams {
			r.SetWriteDeadline(time.Now().Add(10 * time.Second))
			if r.WriteData(uint32(2*i+1), false, make([]byte, some)) != nil {
				return false
			}
		}
		left -= some
	}
	return true
}

// Callers without the token that announce large messages and do not complete them hold next to
// nothing, on the health service and on the others. Meanwhile callers with the token get answers,
// and so do health checks.
func TestStrangersHoldLittle(t *testing.T) {
	address := guarded(t)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var attack sync.WaitGroup
	for i := range 8 {
		method := []string{"/grpc.health.v1.Health/Check", authv3.Authorization_Check_FullMethodName}[i%2]
		conn := rawDial(t, address)
		attack.Go(func() {
			if conn.hold(method, 100, 250_000) {
				t.Errorf("25 MB were taken for %s", method)
			}
		})
	}
	askBoth(t, address, 20)
	attack.Wait()
	askBoth(t, address, 20)
	runtime.GC()
	runtime.ReadMemStats(&after)
	if held := int64(after.HeapInuse) - int64(before.HeapInuse); held > 16<<20 {
		t.Errorf("%d MiB are held", held>>20)
	}
}

// askBoth asks for decisions with the token, and for the health without, each on a connection of
// its own.
func askBoth(t *testing.T, address string, n int) {
	t.Helper()
	for range n {
		conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		expectHealth(t, conn, "", grpc_health_v1.HealthCheckResponse_SERVING)
		if _, err := authv3.NewAuthorizationClient(conn).Check(withToken(t.Context()), codectest.Check("GET", "/a")); err != nil {
			t.Errorf("who has the token is refused: %v", err)
		}
		conn.Close()
	}
}

// bearing returns the context of a call with a token.
func bearing(t *testing.T, secret string) context.Context {
	return metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+secret)
}

func withToken(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+callersToken)
}

// Silent connections, however many, keep nobody out: the oldest of them are closed.
func TestSilentConnectionsKeepNobodyOut(t *testing.T) {
	address := guarded(t)
	known, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer known.Close()
	if _, err := authv3.NewAuthorizationClient(known).Check(withToken(t.Context()), codectest.Check("GET", "/a")); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{}, 300)
	for range cap(ended) {
		conn := rawDial(t, address)
		go func() { io.Copy(io.Discard, conn.Conn); ended <- struct{}{} }()
	}
	for range cap(ended) - envoy.MaxStrangers {
		<-ended
	}
	askBoth(t, address, 1)
	// The connection that has shown the token is not among them.
	if _, err := authv3.NewAuthorizationClient(known).Check(withToken(t.Context()), codectest.Check("GET", "/a"), grpc.WaitForReady(false)); err != nil {
		t.Errorf("a connection of before was ended: %v", err)
	}
}

// A flood of connections, opened faster than an Envoy can show its token, ends only those of its
// own address.
func TestAFloodOfConnectionsEndsItsOwn(t *testing.T) {
	address := guarded(t)
	ended := make(chan struct{}, 3*envoy.MaxStrangers)
	flood := func(connections, ends int) {
		for range connections {
			conn := rawDial(t, address)
			go func() { io.Copy(io.Discard, conn.Conn); ended <- struct{}{} }()
		}
		for range ends {
			<-ended
		}
	}
	flood(2*envoy.MaxStrangers, envoy.MaxStrangers)
	elsewhere := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	slow, err := elsewhere.DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Skip("there is one address of this machine only:", err)
	}
	flood(envoy.MaxStrangers, envoy.MaxStrangers) // no longer than a slow caller may take
	known, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return slow, nil }))
	if err != nil {
		t.Fatal(err)
	}
	defer known.Close()
	if _, err := authv3.NewAuthorizationClient(known).Check(withToken(t.Context()), codectest.Check("GET", "/a")); err != nil {
		t.Errorf("who was about to show the token was hung up on: %v", err)
	}
}

// Health checks once a second need no token, for ever. An incomplete call ends after some seconds,
// and only few may be open on one connection.
func TestStrangersMayAskForTheHealth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		token, err := bearer.Parse(callersToken)
		if err != nil {
			t.Fatal(err)
		}
		_, conn := connect(t, envoy.Config{Authorize: allowAll, Token: token})
		for range 200 {
			expectHealth(t, conn, "envoy.service.auth.v3.Authorization", grpc_health_v1.HealthCheckResponse_SERVING)
			time.Sleep(time.Second)
		}
		began := time.Now()
		var open []grpc.ClientStream
		for range envoy.MaxStrangerCalls {
			stream, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ClientStreams: true}, "/grpc.health.v1.Health/Check")
			if err != nil {
				t.Fatal(err)
			}
			open = append(open, stream)
		}
		synctest.Wait()
		if _, err := grpc_health_v1.NewHealthClient(conn).Check(t.Context(), nil); status.Code(err) != codes.ResourceExhausted {
			t.Errorf("one call more than may be open: %v", err)
		}
		for _, stream := range open {
			if err := stream.RecvMsg(nil); status.Code(err) != codes.DeadlineExceeded {
				t.Errorf("a call that is not sent whole: %v", err)
			}
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("it was waited for %v", took)
		}
		expectHealth(t, conn, "", grpc_health_v1.HealthCheckResponse_SERVING)
	})
}

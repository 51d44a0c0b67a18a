//go:build !race

package transport_test

import (
	"context"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keyporter/keyporter/envoy/transport"
)

// An idle connection that has answered or refused a call holds at most 16 KiB, its goroutine's
// stack included.
func TestAnIdleConnectionIsASmallObject(t *testing.T) {
	long := strings.Repeat("~", 15<<10) // metadata of a call that is handed over
	for name, row := range map[string]struct {
		path, kind, metadata string
		refused              bool
	}{
		"answered":    {echoPath, "application/grpc", "", false},
		"refused":     {otherPath, "application/grpc", long, true},
		"handed over": {otherPath, "application/grpc", long, false},
		"not a call":  {otherPath, "text/plain", long, false},
	} {
		t.Run(name, func(t *testing.T) {
			config := echoes()
			if row.refused {
				config.Admit = func(net.Conn, string, []string) transport.Admission { return transport.Refused }
			}
			config.Others = http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
			address := serve(t, config)
			const conns = 1000
			before := held()
			for range conns {
				conn, err := net.Dial("tcp", address)
				if err != nil {
					t.Fatal(err)
				}
				callOnce(t, conn, row.path, row.kind, row.metadata)
			}
			if each := (held() - before) / conns; each > 16<<10 {
				t.Errorf("%d bytes for each connection", each)
			} else {
				t.Logf("%d bytes for each connection", each)
			}
		})
	}
}

// callOnce makes a call of some size and leaves nothing of its own behind.
func callOnce(t *testing.T, conn net.Conn, path, kind, metadata string) {
	r := newRaw(t, conn)
	r.greet()
	_ = r.open(0, r.fields(":method", "POST", ":scheme", "http", ":path", path, ":authority", "a", "content-type", kind, "x-metadata", metadata))
	_ = r.WriteData(1, false, append([]byte{0, 0, 0, 0x17, 0x70}, make([]byte, 3000)...))
	_ = r.WriteData(1, true, make([]byte, 3000))
	for {
		f, err := r.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if f.Header().StreamID == 1 && f.Header().Flags.Has(http2.FlagDataEndStream) {
			return
		}
	}
}

func held() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse) + int64(m.StackInuse)
}

// A server of grpc-go behind the transport holds little of calls whose messages its service does
// not take, even if each message is empty.
func TestMessagesThatNoServiceTakes(t *testing.T) {
	release, released := make(chan struct{}), make(chan struct{}, 4)
	server := grpc.NewServer(grpc.ForceServerCodec(bytesCodec{}), grpc.UnknownServiceHandler(func(any, grpc.ServerStream) error {
		<-release
		released <- struct{}{}
		return nil
	}))
	defer server.Stop()
	config := echoes()
	config.Others, config.MaxOtherBody = server, 64<<10
	conn := start(t, config)
	before := held()
	for range cap(released) {
		stream, err := conn.NewStream(t.Context(), both, otherPath)
		if err != nil {
			t.Fatal(err)
		}
		for err == nil {
			err = stream.SendMsg(&[]byte{})
		}
		if err := stream.RecvMsg(new([]byte)); status.Code(err) != codes.ResourceExhausted {
			t.Errorf("messages without end: %v", err)
		}
	}
	each := (held() - before) / int64(cap(released))
	close(release)
	for range cap(released) {
		<-released
	}
	if t.Logf("%d bytes for each call", each); each > 1<<20 {
		t.Error("that is too much")
	}
}

// A connection keeps nothing of streaming calls that have ended, with a time-out or without.
func TestStreamsThatHaveEnded(t *testing.T) {
	conn := start(t, transport.Config{Streams: map[string]transport.Handler{echoPath: func(s transport.Stream) (int, string) {
		_ = s.Send(nil)
		return 0, ""
	}}})
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	call := func(times int) {
		for range times {
			in, out := []byte(nil), []byte(nil)
			if err := conn.Invoke(ctx, echoPath, &in, &out); err != nil {
				t.Fatal(err)
			}
		}
	}
	call(100)
	const calls = 10_000
	before := held()
	call(calls)
	if each := (held() - before) / calls; each > 90 {
		t.Errorf("%d bytes for each call", each)
	} else {
		t.Logf("%d bytes for each call", each)
	}
}

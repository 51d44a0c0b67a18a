package transport_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/keyporter/keyporter/envoy/transport"
)

// service is a service of grpc-go with a method of each kind.
type service struct{ ended chan error } // the error of the context of a call of Wait

// behind returns a transport with a method of its own and a server of grpc-go behind it.
func behind(t *testing.T, s service) transport.Config {
	t.Helper()
	server := grpc.NewServer(grpc.ForceServerCodec(bytesCodec{}))
	t.Cleanup(server.Stop)
	streams := []grpc.StreamDesc{
		{StreamName: "Collect", ClientStreams: true, Handler: s.collect},
		{StreamName: "Count", ServerStreams: true, Handler: s.count},
		{StreamName: "Echo", ClientStreams: true, ServerStreams: true, Handler: s.echo},
		{StreamName: "Wait", ClientStreams: true, ServerStreams: true, Handler: s.wait},
		{StreamName: "Leave", ClientStreams: true, ServerStreams: true, Handler: func(any, grpc.ServerStream) error {
			return status.Error(codes.Aborted, "enough: 100 %")
		}},
	}
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "test.Other", HandlerType: (*any)(nil), Streams: streams,
		Methods: []grpc.MethodDesc{{MethodName: "Unary", Handler: s.unary}},
	}, nil)
	config := echoes()
	config.Others = server
	return config
}

// unary returns its message, and the metadata that it has received.
func (service) unary(_ any, ctx context.Context, read func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
	var m []byte
	if err := read(&m); err != nil {
		return nil, err
	}
	in, _ := metadata.FromIncomingContext(ctx)
	for _, name := range []string{"x-text", "x-data-bin", "authorization"} {
		if err := grpc.SetHeader(ctx, metadata.MD{"got-" + name: in[name]}); err != nil {
			return nil, err
		}
	}
	return &m, grpc.SetTrailer(ctx, metadata.Pairs("last-bin", "\x00\xff", "last", "z"))
}

// collect returns the messages in one.
func (service) collect(_ any, s grpc.ServerStream) error {
	var all []byte
	for {
		var m []byte
		err := s.RecvMsg(&m)
		if errors.Is(err, io.EOF) {
			return s.SendMsg(&all)
		}
		if err != nil {
			return err
		}
		all = append(all, m...)
	}
}

// count returns as many messages of 10,000 bytes as its message is long.
func (service) count(_ any, s grpc.ServerStream) error {
	var m []byte
	if err := s.RecvMsg(&m); err != nil {
		return err
	}
	for i := range m {
		part := bytes.Repeat(m[i:i+1], 10_000)
		if err := s.SendMsg(&part); err != nil {
			return err
		}
	}
	return nil
}

// echo returns each message.
func (service) echo(_ any, s grpc.ServerStream) error {
	for {
		var m []byte
		err := s.RecvMsg(&m)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err := errors.Join(err, s.SendMsg(&m)); err != nil {
			return err
		}
	}
}

// wait sends a message, waits for the end of its context, and reports that.
func (s service) wait(_ any, stream grpc.ServerStream) error {
	if err := stream.SendMsg(&[]byte{}); err != nil {
		return err
	}
	<-stream.Context().Done()
	s.ended <- stream.Context().Err()
	return stream.Context().Err()
}

// both describes a streaming call.
var both = &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}

// exchange sends messages, and returns those of the answer and its status.
func exchange(t *testing.T, conn *grpc.ClientConn, method string, messages ...string) (answer []string, err error) {
	t.Helper()
	stream, err := conn.NewStream(t.Context(), both, method)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range messages {
		in := []byte(m)
		if err := stream.SendMsg(&in); err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
	}
	_ = stream.CloseSend()
	for {
		var out []byte
		if err := stream.RecvMsg(&out); err != nil {
			return answer, err
		}
		answer = append(answer, string(out))
	}
}

// A server of grpc-go behind the transport serves calls of every kind: all messages arrive in both
// directions, and metadata, trailers and status as well. Calls with equal headers are served alike.
func TestOtherMethods(t *testing.T) {
	conn := start(t, behind(t, service{}))
	large := strings.Repeat("l", 200<<10)
	for range 3 {
		ctx := metadata.AppendToOutgoingContext(t.Context(), "x-text", "a", "x-text", "b", "x-data-bin", "\x00\x01", "authorization", "Bearer t")
		var header, trailer metadata.MD
		in, out := []byte(large), []byte(nil)
		err := conn.Invoke(ctx, "/test.Other/Unary", &in, &out, grpc.Header(&header), grpc.Trailer(&trailer), grpc.UseCompressor(gzip.Name))
		if err != nil || !bytes.Equal(in, out) {
			t.Fatalf("unary: %d bytes, %v", len(out), err)
		}
		got := fmt.Sprint(header["got-x-text"], header["got-x-data-bin"], header["got-authorization"], trailer["last-bin"], trailer["last"], header["trailer"])
		if want := fmt.Sprint([]string{"a", "b"}, []string{"\x00\x01"}, []string{"Bearer t"}, []string{"\x00\xff"}, []string{"z"}, []string{}); got != want {
			t.Errorf("metadata: %q, want %q", got, want)
		}
	}
	for _, row := range []struct {
		method   string
		messages []string
		want     []string
		code     codes.Code
		text     string
	}{
		{"Collect", []string{"a", "", large, "b"}, []string{"a" + large + "b"}, codes.OK, ""},
		{"Count", []string{strings.Repeat("n", 30)}, slices.Repeat([]string{strings.Repeat("n", 10_000)}, 30), codes.OK, ""},
		{"Echo", []string{"a", "", large, "b"}, []string{"a", "", large, "b"}, codes.OK, ""},
		{"Echo", nil, nil, codes.OK, ""},
		{"Leave", []string{"a"}, nil, codes.Aborted, "enough: 100 %"},
		{"None", []string{"a"}, nil, codes.Unimplemented, "unknown method None for service test.Other"},
	} {
		got, err := exchange(t, conn, "/test.Other/"+row.method, row.messages...)
		if errors.Is(err, io.EOF) {
			err = nil
		}
		if s := status.Convert(err); !slices.Equal(got, row.want) || s.Code() != row.code || s.Message() != row.text {
			t.Errorf("%s: %d messages, %v", row.method, len(got), err)
		}
	}
	if _, err := ask(t, conn, "/test.None/Echo", "n"); status.Convert(err).Message() != "unknown service test.None" {
		t.Errorf("an unknown service: %v", err)
	}
	if got, err := ask(t, conn, echoPath, "now"); err != nil || got != "now" {
		t.Errorf("the transport's own method: %q, %v", got, err)
	}
}

// The calls of a server of grpc-go that has stopped get UNAVAILABLE.
func TestAServerBehindThatHasStopped(t *testing.T) {
	config := behind(t, service{})
	config.Others.(*grpc.Server).Stop()
	if _, err := ask(t, start(t, config), "/test.Other/Unary", "n"); status.Code(err) != codes.Unavailable {
		t.Error(err)
	}
}

// A call that its service ends before its caller has sent everything gives its place back.
func TestOtherMethodsThatLeave(t *testing.T) {
	config := behind(t, service{})
	config.MaxOthers = 1
	conn := start(t, config)
	for i := range 20 {
		stream, err := conn.NewStream(t.Context(), both, "/test.Other/Leave")
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.RecvMsg(new([]byte)); status.Code(err) != codes.Aborted {
			t.Fatalf("call %d: %v", i, err)
		}
	}
}

// The context of a service ends when the caller cancels the call, its time is over, or its
// connection ends.
func TestOtherMethodsThatAreLeft(t *testing.T) {
	s := service{ended: make(chan error, 1)}
	address := serve(t, behind(t, s))
	for name, leave := range map[string]func(cancel func(), conn *grpc.ClientConn){
		"cancelled":         func(cancel func(), _ *grpc.ClientConn) { cancel() },
		"of a connection":   func(_ func(), conn *grpc.ClientConn) { conn.Close() },
		"of a limited time": nil,
	} {
		ctx, cancel := context.WithCancel(t.Context())
		if leave == nil {
			ctx, cancel = context.WithTimeout(ctx, time.Second)
		}
		conn := dial(t, address)
		stream, err := conn.NewStream(ctx, both, "/test.Other/Wait")
		if err == nil {
			err = stream.RecvMsg(new([]byte))
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if leave != nil {
			leave(cancel, conn)
		}
		<-s.ended
		cancel()
	}
}

// No more calls are handed over at a time than may be, of all connections together. Those that are
// refused cost the others nothing, and the transport's own methods are answered.
func TestTooManyOthers(t *testing.T) {
	s := service{ended: make(chan error, 2)}
	config := behind(t, s)
	config.MaxOthers = 2
	address := serve(t, config)
	conns := []*grpc.ClientConn{dial(t, address), dial(t, address)}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for _, conn := range conns {
		stream, err := conn.NewStream(ctx, both, "/test.Other/Wait")
		if err == nil {
			err = stream.RecvMsg(new([]byte))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, conn := range conns {
		if _, err := ask(t, conn, "/test.Other/Unary", "n"); status.Code(err) != codes.ResourceExhausted {
			t.Errorf("a call above: %v", err)
		}
		if got, err := ask(t, conn, echoPath, "now"); err != nil || got != "now" {
			t.Errorf("the transport's own method: %q, %v", got, err)
		}
	}
	cancel()
	for range conns {
		<-s.ended
	}
}

// A call without the right to it is not handed over, and the method that is called is the one that
// was asked about: a path is not decoded.
func TestOtherMethodsAreAdmittedFirst(t *testing.T) {
	config := behind(t, service{})
	config.Admit = func(_ net.Conn, method string, _ []string) transport.Admission {
		if method == "/test.Other/Unary" {
			return transport.Refused
		}
		return transport.Admitted
	}
	called := make(chan string, 10)
	config.Others = note{called, config.Others}
	conn := start(t, config)
	if _, err := ask(t, conn, "/test.Other/Unary", "n"); status.Code(err) != codes.Unauthenticated {
		t.Errorf("without the right: %v", err)
	}
	paths := []string{"/test.Other/Unary?", "/test.Other/Unary?a=b", "/test.Other/Unar%79", "/test.Other%2fUnary", "/test.Other/./Unary", "//test.Other/Unary"}
	for _, path := range paths {
		if _, err := ask(t, conn, path, "n"); status.Code(err) != codes.Unimplemented {
			t.Errorf("%s: %v", path, err)
		}
		if got := <-called; got != path {
			t.Errorf("%s is called as %s", path, got)
		}
	}
}

// note notes the paths of the requests.
type note struct {
	called chan<- string
	next   http.Handler
}

func (n note) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n.called <- r.URL.Path
	n.next.ServeHTTP(w, r)
}

const otherPath = "/test.Other/Method"

// other opens a call of another method with this number.
func (p *peer) other(i uint32, more ...string) {
	fields := []string{":method", "POST", ":scheme", "http", ":path", otherPath, ":authority", "host:1", "content-type", "application/grpc", "te", "trailers"}
	p.send(func() { _ = p.open(i, p.fields(append(fields, more...)...)) })
}

// reply is the answer of a call.
type reply struct {
	headers, trailers string // "name: value" each, in order, separated by "; "
	data              string
	reset             string // the code; empty: none
}

// reply reads the answer of the call with this number.
func (p *peer) reply(t *testing.T, i uint32) (got reply) {
	t.Helper()
	decoder := newDecoder()
	for blocks := 0; ; {
		f, err := p.ReadFrame()
		if err != nil {
			t.Fatalf("the connection ends: %v", err)
		}
		switch f := f.(type) {
		case *http2.RSTStreamFrame:
			if f.StreamID == 2*i+1 {
				got.reset = f.ErrCode.String()
				return got
			}
		case *http2.DataFrame:
			if f.StreamID == 2*i+1 {
				got.data += string(f.Data())
			}
		case *http2.HeadersFrame:
			block := fieldsOf(t, decoder, f.HeaderBlockFragment())
			if f.StreamID != 2*i+1 {
				continue
			}
			if blocks++; blocks > 2 {
				t.Fatal("more than two blocks of headers")
			}
			if blocks == 1 {
				got.headers = block
			} else {
				got.trailers = block
			}
			if f.StreamEnded() {
				return got
			}
		}
	}
}

func newDecoder() *hpack.Decoder { return hpack.NewDecoder(4<<10, nil) }

func fieldsOf(t *testing.T, decoder *hpack.Decoder, block []byte) string {
	t.Helper()
	fields, err := decoder.DecodeFull(block)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, f := range fields {
		all = append(all, f.Name+": "+f.Value)
	}
	return strings.Join(all, "; ")
}

// Whatever a handler does, its caller gets one status of gRPC, or a reset where the handler aborts.
func TestAnswersOfHandlers(t *testing.T) {
	const ok = ":status: 200; content-type: application/grpc"
	const notAnswered = "grpc-status: 14; grpc-message: the call was not answered"
	for name, row := range map[string]struct {
		handler http.HandlerFunc
		want    reply
	}{
		"nothing":         {func(http.ResponseWriter, *http.Request) {}, reply{headers: ok, trailers: notAnswered}},
		"data, no status": {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "a") }, reply{ok, notAnswered, "a", ""}},
		"an error of HTTP": {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusTeapot) },
			reply{":status: 418; content-type: text/plain; charset=utf-8; x-content-type-options: nosniff", notAnswered, "no\n", ""}},
		"a status, announced or not": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Grpc-Status", "5")
			w.Header().Set("A", "b")
			w.WriteHeader(200)
			w.WriteHeader(500)
			w.Header().Set("Late", "c")
			w.Header().Set("Grpc-Message", "d")
		}, reply{":status: 200; a: b; content-type: application/grpc", "grpc-message: d; grpc-status: 5", "", ""}},
		"trailers": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Trailer", "x-one, X-Two")
			w.Header().Add("Trailer", "x-none")
			w.Header().Set("X-One", "1")
			_, _ = io.WriteString(w, "a")
			w.Header().Add("X-Two", "2")
			w.Header().Add("X-Two", "3")
			w.Header().Set(http.TrailerPrefix+"grpc-status", "0")
		}, reply{ok, "grpc-status: 0; x-one: 1; x-two: 2; x-two: 3", "a", ""}},
		"headers that may not be sent": {func(w http.ResponseWriter, _ *http.Request) {
			for _, name := range []string{"Connection", "Keep-Alive", "Transfer-Encoding", "Upgrade", "Te", "Proxy-Connection", "A b", ":path"} {
				w.Header().Set(name, "x")
				w.Header().Set(http.TrailerPrefix+name, "x")
			}
			w.Header().Set("A", "line\r\nline")
			w.Header().Set("Grpc-Status", "0")
		}, reply{ok, "grpc-status: 0", "", ""}},
		"headers that are too long": {func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("A", strings.Repeat("~", 16<<10)) },
			reply{ok, "grpc-status: 13; grpc-message: the headers of the answer are too long", "", ""}},
		"trailers that are too long": {func(w http.ResponseWriter, _ *http.Request) {

			w.Header().Set("Grpc-Status", "0")
			w.Header().Set("Grpc-Message", strings.Repeat("~", 16<<10))

		},
			reply{ok, "grpc-status: 13; grpc-message: the headers of the answer are too long", "", ""}},
		"a panic": {func(http.ResponseWriter, *http.Request) { panic("canary") },
			reply{ok + "; grpc-status: 13; grpc-message: the call panicked", "", "", ""}},
		"a panic after data": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "a")
			w.(http.Flusher).Flush()
			panic("canary")
		}, reply{ok, "grpc-status: 13; grpc-message: the call panicked", "a", ""}},
		"an abort": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, reply{reset: "INTERNAL_ERROR"}},
		"no end in time": {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
			reply{ok, "grpc-status: 4; grpc-message: the call took too long", "", ""}},
	} {
		synctest.Test(t, func(t *testing.T) {
			config := echoes()
			config.Others = row.handler
			_, p := newPeer(t, config)
			p.other(0, "grpc-timeout", "10S")
			p.send(func() { _ = p.WriteData(1, true, []byte{0, 0, 0, 0, 0}) })
			if got := p.reply(t, 0); got != row.want {
				t.Errorf("%s: %+v, want %+v", name, got, row.want)
			}
			p.echo(1, 'n')
			expectAnswer(t, p, 1)
		})
	}
}

// A handler gets the whole request as it was sent.
func TestOtherRequests(t *testing.T) {
	for name, row := range map[string]struct {
		secure bool
		host   []string
		want   string
	}{
		"plain":            {false, []string{":authority", "host:1"}, "host:1"},
		"secure":           {true, []string{":authority", "host:1"}, "host:1"},
		"host, authority":  {false, []string{":authority", "host:1", "host", "other"}, "host:1"},
		"host":             {false, []string{"host", "other"}, "other"},
		"malformed header": {false, []string{"grpc-encoding", "a\nb"}, ""},
	} {
		got := make(chan *http.Request, 1)
		config := echoes()
		config.Others = http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got <- r })
		_, l := inMemory(t, config)
		ours, theirs := net.Pipe()
		if row.secure {
			ours = secureConn{ours}
		}
		l <- ours
		p := newPeerOf(t, newRaw(t, theirs))
		fields := append([]string{":method", "POST", ":scheme", "http", ":path", otherPath}, row.host...)
		fields = append(fields, "content-type", "application/grpc", "te", "trailers", "user-agent", "u", "grpc-timeout", "9S", "grpc-encoding", "gzip",
			"x-a", "1", "x-a", "2", "content-length", "0")
		p.send(func() {
			_ = p.open(0, p.fields(fields...))
			_ = p.WriteData(1, true, nil)
		})
		if answer := p.reply(t, 0); row.want == "" {
			if answer.reset != "PROTOCOL_ERROR" {
				t.Errorf("%s: %+v", name, answer)
			}
			continue
		}
		r := <-got
		want := http.Header{
			"Content-Type": {"application/grpc"}, "Te": {"trailers"}, "User-Agent": {"u"}, "Grpc-Timeout": {"9S"},
			"Grpc-Encoding": {"gzip"}, "X-A": {"1", "2"}, "Content-Length": {"0"},
		}
		if fmt.Sprint(r.Header) != fmt.Sprint(want) {
			t.Errorf("%s: headers %v, want %v", name, r.Header, want)
		}
		line := fmt.Sprint(r.Method, r.URL.Path, r.RequestURI, r.ProtoMajor, r.Host, r.RemoteAddr, r.ContentLength, r.TLS != nil && r.TLS.ServerName == "s")
		if want := fmt.Sprint("POST", otherPath, otherPath, 2, row.want, "pipe", 0, row.secure); line != want {
			t.Errorf("%s: %s, want %s", name, line, want)
		}
	}
}

// secureConn is a connection that says that it is encrypted.
type secureConn struct{ net.Conn }

func (secureConn) ConnectionState() tls.ConnectionState { return tls.ConnectionState{ServerName: "s"} }

// parts reads a body as grpc-go does, and notes the length that each read returns.
type parts struct {
	answers bool // before it reads
	got     chan []int
	err     chan error
}

func (h parts) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h.answers {
		w.(http.Flusher).Flush()
	}
	var all []int
	for p := make([]byte, 16<<10); ; {
		n, err := r.Body.Read(p)
		if n > 0 {
			all = append(all, n)
		}
		if err != nil {
			h.got <- all
			h.err <- err
			return
		}
	}
}

// A handler that keeps all bytes it reads holds no more than is allowed: the messages of a call
// have a maximum length together, each counts at least 4 KiB, and a message is read in few parts,
// however it is split. The handler reads all that has arrived.
func TestOtherBodies(t *testing.T) {
	const most = 60 << 10 // 15 messages, and less than a window
	head := func(size int) []byte { return []byte{0, 0, byte(size >> 16), byte(size >> 8), byte(size)} }
	tooMuch := reply{headers: ":status: 200; content-type: application/grpc; grpc-status: 8; grpc-message: the messages of the call are too long"}
	fine := reply{headers: ":status: 200; content-type: application/grpc", trailers: "grpc-status: 14; grpc-message: the call was not answered"}
	for name, row := range map[string]struct {
		data    []byte
		each    int // bytes in a frame
		open    bool
		answers bool
		want    reply
		parts   []int
		err     error
	}{
		"messages without end":   {bytes.Repeat(head(0), 1000), 5, true, false, tooMuch, slices.Repeat([]int{5}, 15), nil},
		"many messages":          {bytes.Repeat(head(0), 15), 80, false, false, fine, slices.Repeat([]int{5}, 15), io.EOF},
		"a message in bits":      {append(head(20_000), make([]byte, 20_000)...), 10, false, false, fine, []int{16 << 10, 20_005 - 16<<10}, io.EOF},
		"the largest message":    {append(head(most-5), make([]byte, most-5)...), 1000, false, false, fine, []int{16 << 10, 16 << 10, 16 << 10, 12 << 10}, io.EOF},
		"a larger one":           {append(head(most-4), make([]byte, 1000)...), 1000, true, false, tooMuch, nil, nil},
		"after its answer began": {append(head(most-4), make([]byte, 1000)...), 1000, true, true, reply{headers: fine.headers, reset: "ENHANCE_YOUR_CALM"}, nil, nil},
		"a message that is cut":  {append(head(100), 1, 2), 7, false, false, fine, []int{7}, io.EOF},
		"a prefix that is cut":   {[]byte{0, 0}, 2, false, false, fine, []int{2}, io.EOF},
		"nothing":                {nil, 1, false, false, fine, nil, io.EOF},
	} {
		synctest.Test(t, func(t *testing.T) {
			h := parts{row.answers, make(chan []int, 1), make(chan error, 1)}
			config := echoes()
			config.Others, config.MaxOtherBody = h, most
			_, p := newPeer(t, config)
			p.other(0)
			p.send(func() {
				for part := range slices.Chunk(row.data, row.each) {
					_ = p.WriteData(1, false, part)
				}
				if !row.open {
					_ = p.WriteData(1, true, nil)
				}
			})
			if got := p.reply(t, 0); got != row.want {
				t.Errorf("%s: %+v, want %+v", name, got, row.want)
			}
			p.echo(1, 'n')
			expectAnswer(t, p, 1)
			if got := <-h.got; !slices.Equal(got, row.parts) {
				t.Errorf("%s: read in parts of %v bytes, want %v", name, got, row.parts)
			}
			if err := <-h.err; row.err != nil && err != row.err {
				t.Errorf("%s: %v, want %v", name, err, row.err)
			}
		})
	}
}

// A body that ends by a reset of its caller is not complete, but what had arrived is read.
func TestAnOtherBodyThatIsReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := parts{false, make(chan []int, 1), make(chan error, 1)}
		release := make(chan struct{})
		config := echoes()
		config.Others = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			<-release
			h.ServeHTTP(w, r)
		})
		_, p := newPeer(t, config)
		go p.ends()
		p.other(0)
		p.send(func() { _ = p.WriteData(1, false, []byte{0, 0, 0, 0, 1, 'm', 0}) })
		p.send(func() { _ = p.WriteRSTStream(1, http2.ErrCodeCancel) })
		synctest.Wait()
		close(release)
		if got := <-h.got; !slices.Equal(got, []int{6, 1}) {
			t.Errorf("read in parts of %v bytes", got)
		}
		if err := <-h.err; !errors.Is(err, transport.ErrReset) {
			t.Error(err)
		}
	})
}

// The window of a caller opens as the handler reads, not before.
func TestAnOtherBodyThatIsNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		read := make(chan int)
		config := echoes()
		config.Others = http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			for n := range read {
				_, _ = io.ReadFull(r.Body, make([]byte, n))
			}
		})
		_, p := newPeer(t, config)
		opened := 0
		go func() {
			for {
				f, err := p.ReadFrame()
				if err != nil {
					return
				}
				if f, ok := f.(*http2.WindowUpdateFrame); ok && f.StreamID == 1 {
					opened += int(f.Increment)
				}
			}
		}()
		p.other(0)
		data := append([]byte{0, 0, 2, 0, 0}, make([]byte, 60<<10)...)
		for part := range slices.Chunk(data, 10<<10) {
			p.send(func() { _ = p.WriteData(1, false, part) })
		}
		for _, want := range []int{0, 16 << 10, 48 << 10} {
			if want > opened {
				read <- want - opened
			}
			if synctest.Wait(); opened != want {
				t.Errorf("the window opened by %d bytes, want %d", opened, want)
			}
		}
		close(read)
	})
}

// A handler waits for a caller that reads more slowly, and holds little. It gets an error in time
// if the caller stops reading. Another connection is served meanwhile.
func TestOthersThatAreNotRead(t *testing.T) {
	for name, row := range map[string]struct {
		window uint32
		most   int64 // bytes that the handler can write
		reads  bool  // frames, but without opening a window
		busy   bool  // the connection's goroutine does something else
	}{
		"no window":          {0, 32 << 10, true, false},
		"a window":           {20_000, 52 << 10, true, false},
		"no reads":           {16 << 20, 640 << 10, false, false},
		"no reads, and busy": {16 << 20, 640 << 10, false, true},
	} {
		synctest.Test(t, func(t *testing.T) {
			var written atomic.Int64
			ended := make(chan error, 1)
			b := blocks{make(chan struct{}), make(chan struct{})}
			config := transport.Config{Methods: map[string]transport.Method{echoPath: echo{}, "/test.Echo/Block": b}}
			config.Others = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				if row.busy {
					<-b.asked
				}
				for {
					n, err := w.Write(make([]byte, 1000))
					if written.Add(int64(n)); err != nil {
						ended <- err
						return
					}
				}
			})
			_, l := inMemory(t, config)
			p := newPeerOf(t, l.connect(t), http2.Setting{ID: http2.SettingInitialWindowSize, Val: row.window})
			p.send(func() { _ = p.WriteWindowUpdate(0, 1<<30) })
			for greeted := false; !greeted; {
				f, err := p.ReadFrame()
				if err != nil {
					t.Fatal(err)
				}
				settings, ok := f.(*http2.SettingsFrame)
				greeted = ok && settings.IsAck()
			}
			began := time.Now()
			p.other(0)
			if row.reads {
				go p.ends()
			}
			if row.busy {
				p.send(func() {
					_ = p.open(1, p.fields(":method", "POST", ":scheme", "http", ":path", "/test.Echo/Block", ":authority", "a", "content-type", "application/grpc"))
					_ = p.WriteData(3, true, []byte{0, 0, 0, 0, 0})
				})
			}
			synctest.Wait()
			if n := written.Load(); n == 0 || n > row.most {
				t.Errorf("%s: %d bytes are written", name, n)
			}
			other := newPeerOf(t, l.connect(t))
			other.echo(0, 'n')
			expectAnswer(t, other, 0)
			if err := <-ended; err == nil {
				t.Errorf("%s: %v", name, err)
			}
			if took := time.Since(began); took < 10*time.Second || took > 30*time.Second {
				t.Errorf("%s: it ends after %v", name, took)
			}
			close(b.release)
		})
	}
}

// blocks answers at once, but not before it is released.
type blocks struct{ asked, release chan struct{} }

func (b blocks) Try(*transport.Call, []byte) ([]byte, bool) {
	close(b.asked)
	<-b.release
	return nil, true
}
func (blocks) Wait(context.Context, *transport.Call, []byte) []byte { return nil }
func (blocks) Refuse(*transport.Call, []byte) []byte                { return nil }

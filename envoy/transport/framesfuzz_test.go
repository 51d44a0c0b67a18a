package transport_test

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"

	"github.com/keyporter/keyporter/envoy/transport"
)

// An input of FuzzFrames is a byte and records. Of the byte, the highest bit makes the peer leave
// when it has sent everything, and the others are the length of each write in units of 16 bytes, 0
// for all at once. A record is type, flags and stream of a frame, a length, and the payload. The
// frame has the right length, however the fuzzer changes the record, unless the length has one of
// the other bits.
const (
	leaves  = 1 << 7
	longer  = 1 << 15 // the head announces a byte more than there is
	shorter = 1 << 14 // it announces half of the bytes
	record  = 5       // the length of a record without its payload
)

// framesOf returns the bytes that an input stands for.
func framesOf(input []byte) (sent []byte) {
	for len(input) >= record {
		length := binary.BigEndian.Uint16(input[3:])
		n := min(int(length&(shorter-1)), len(input)-record)
		announced := n
		switch {
		case length&longer != 0:
			announced++
		case length&shorter != 0:
			announced /= 2
		}
		sent = append(sent, byte(announced>>16), byte(announced>>8), byte(announced), input[0], input[1], 0, 0, 0, input[2])
		sent = append(sent, input[record:record+n]...)
		input = input[record+n:]
	}
	return sent
}

// inputOf returns the input that stands for well-formed frames.
func inputOf(first byte, sent []byte) []byte {
	input := []byte{first}
	for len(sent) >= 9 {
		n := int(sent[1])<<8 | int(sent[2])
		input = append(input, sent[3], sent[4], sent[8], sent[1], sent[2])
		input = append(input, sent[9:9+n]...)
		sent = sent[9+n:]
	}
	return input
}

// sentBy returns the bytes of the frames that do writes.
func sentBy(do func(r *raw)) []byte {
	var sent bytes.Buffer
	r := &raw{Framer: http2.NewFramer(&sent, nil)}
	r.encoder = hpack.NewEncoder(&r.block)
	r.AllowIllegalWrites = true
	do(r)
	return sent.Bytes()
}

// Whatever frames a peer sends, it gets no answer that grpc-go does not give, nor one to a message
// that it did not send. Its connection ends in time, and leaves no goroutine, message or place of a
// call behind.
func FuzzFrames(f *testing.F) {
	random := rand.New(rand.NewPCG(1, 1))
	var seeds [][]byte
	for _, do := range oddities {
		seeds = append(seeds, sentBy(do))
	}
	for range 50 {
		s, _, _ := calls(random)
		seeds = append(seeds, s.bytes())
	}
	for i, sent := range seeds {
		f.Add(inputOf(0, sent))
		f.Add(inputOf(leaves+byte(i), sent))
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		if len(input) == 0 || len(input) > 16<<10 {
			t.Skip()
		}
		sent := framesOf(input[1:])
		synctest.Test(t, func(t *testing.T) {
			ours, theirs := askOurs(t, sent, input[0]), askTheirs(sent)
			if expectNoMore(t, sent, ours, theirs); t.Failed() {
				t.Log(described(sent))
			}
		})
	})
}

// oddities write frames that the scripts of TestAnswersAreThoseOfGRPC lack.
var oddities = []func(r *raw){
	func(r *raw) { // headers in parts, with padding and a priority
		block := r.call("grpc-timeout", "1S", "x-bin", "AAEC")
		_ = r.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block[:9], PadLength: 3, Priority: http2.PriorityParam{Weight: 3}})
		_ = r.WriteContinuation(1, false, block[9:12])
		_ = r.WriteContinuation(1, true, block[12:])
		_ = r.WriteDataPadded(1, true, []byte{0, 0, 0, 0, 1, 'n'}, make([]byte, 4))
	},
	func(r *raw) { // a stream, ended by trailers
		_ = r.open(0, r.to("/test.Echo/Log"))
		_ = r.WriteData(1, false, []byte{0, 0, 0, 0, 1, 'a', 0, 0, 0, 0, 2, 'b'})
		_ = r.WriteData(1, false, []byte{'c', 0, 0, 0, 0, 0})
		_ = r.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, EndStream: true, BlockFragment: r.fields("x", "y")})
	},
	func(r *raw) { // calls that do not end
		_ = r.open(0, r.to("/test.Echo/Log"))
		_ = r.WriteData(1, false, []byte{0, 0, 0, 0, 9, 'a'})
		_ = r.open(1, r.call())
		_ = r.WriteData(3, false, []byte{0, 0, 0, 0, 9, 'n'})
	},
	func(r *raw) { // windows that are closed, and open
		_ = r.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 3}, http2.Setting{ID: http2.SettingMaxFrameSize, Val: 20_000})
		for i := range uint32(3) {
			_ = r.open(i, r.call())
			_ = r.WriteData(2*i+1, true, append([]byte{0, 0, 0, 0, 60}, make([]byte, 60)...))
			_ = r.WriteWindowUpdate(2*i+1, 30)
		}
		_ = r.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 60})
	},
	func(r *raw) { // encodings, and kinds of content
		for i, more := range [][]string{{"grpc-encoding", "gzip"}, {"grpc-encoding", "identity"}, {"grpc-encoding", "other"}, {"content-length", "6"}, {"host", "b"}, {"user-agent", "c"}} {
			_ = r.open(uint32(i), r.call(more...))
			_ = r.WriteData(uint32(2*i+1), true, []byte{byte(i % 2), 0, 0, 0, 1, 'n'})
		}
	},
	func(r *raw) { // headers that are not those of a call
		call := []string{":method", "POST", ":scheme", "http", ":path", echoPath, "content-type", "application/grpc"}
		for i, more := range [][]string{{":authority", "\r"}, {"te", "trailers"}, {"host", "a", "host", "a"}, {":authority", "a", "x-bin", "A"}} {
			_ = r.open(uint32(i), r.fields(slices.Concat(call[:6], more, call[6:])...))
			_ = r.WriteData(uint32(2*i+1), true, []byte{0, 0, 0, 0, 1, 'n'})
		}
	},
	func(r *raw) { // frames that carry no call, or that no client sends
		_ = r.WritePing(false, [8]byte{1})
		_ = r.WritePing(true, [8]byte{'a', 'w', 'a', 'y'})
		_ = r.WriteSettingsAck()
		_ = r.WritePriority(5, http2.PriorityParam{StreamDep: 3, Exclusive: true})
		_ = r.WriteRawFrame(0xfa, 1, 0, []byte("unknown"))
		_ = r.open(0, r.fields(":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a"))
		_ = r.WriteRSTStream(1, http2.ErrCodeNo)
		_ = r.WritePushPromise(http2.PushPromiseParam{StreamID: 1, PromiseID: 2, EndHeaders: true})
		_ = r.WriteGoAway(0, http2.ErrCodeNo, []byte("bye"))
	},
	func(r *raw) { // calls with a limit, and one that is refused
		for i := range uint32(6) {
			_ = r.open(i, r.to("/test.Echo/Limited"))
		}
		_ = r.open(6, r.to("/test.Echo/Secret"))
		for i := range uint32(7) {
			_ = r.WriteData(2*i+1, true, []byte{0, 0, 0, 0, 1, 'w'})
		}
	},
	func(r *raw) { // the same headers again and again
		for i := range uint32(20) {
			_ = r.open(i, r.call())
			_ = r.WriteData(2*i+1, true, []byte{0, 0, 0, 0, 1, byte('m' + i%3)})
		}
	},
}

// to returns the headers of a call of another method.
func (r *raw) to(path string) []byte {
	return r.fields(":method", "POST", ":scheme", "http", ":path", path, ":authority", "a", "content-type", "application/grpc", "te", "trailers")
}

// talk holds the answers that a peer has got.
type talk struct {
	answers
	away bool // GOAWAY, or the end
	over bool // the end
}

var begin = append([]byte(http2.ClientPreface), 0, 0, 0, 4, 0, 0, 0, 0, 0)

// listen reads until the connection ends.
func listen(conn net.Conn) *talk {
	k := &talk{answers: answers{}}
	go func() {
		framer, decoder := http2.NewFramer(nil, conn), hpack.NewDecoder(4<<10, nil)
		framer.SetReuseFrames()
		for {
			f, err := framer.ReadFrame()
			if err != nil {
				k.away, k.over = true, true
				return
			}
			if _, ok := f.(*http2.GoAwayFrame); ok {
				k.away = true
			}
			k.take(f, decoder)
		}
	}()
	return k
}

// frameByFrame returns the frames, and the rest of the bytes.
func frameByFrame(sent []byte) (frames [][]byte) {
	for len(sent) > 9 {
		n := min(9+(int(sent[0])<<16|int(sent[1])<<8|int(sent[2])), len(sent))
		frames, sent = append(frames, sent[:n]), sent[n:]
	}
	return append(frames, sent)
}

// askOurs returns our answers. The connection must end by itself: within two minutes if its peer
// falls silent, or at once if its peer leaves.
func askOurs(t *testing.T, sent []byte, how byte) answers {
	s := transport.NewServer(transport.Config{
		Methods: map[string]transport.Method{echoPath: echo{}, "/test.Echo/Limited": echo{}},
		Streams: map[string]transport.Handler{"/test.Echo/Log": echoAll},
		Admit:   admitSome, Log: slog.New(panicsOnly{t.Errorf}),
	})
	l, conn := connected()
	go s.Serve(l)
	k := listen(conn)
	for part := range slices.Chunk(slices.Concat(begin, sent), cmp.Or(16*int(how&^leaves), len(begin)+len(sent))) {
		if _, err := conn.Write(part); err != nil {
			break
		}
	}
	if how&leaves != 0 {
		conn.Close()
	} else {
		time.Sleep(2 * time.Minute)
	}
	if synctest.Wait(); !k.over {
		t.Error("the connection is left open")
	}
	if transport.Held(s) != 0 || transport.Waiting(s) != 0 {
		t.Errorf("%d bytes and %d calls are left", transport.Held(s), transport.Waiting(s))
	}
	conn.Close()
	s.Close()
	return k.answers
}

func admitSome(_ net.Conn, method string, _ []string) transport.Admission {
	switch method {
	case "/test.Echo/Secret":
		return transport.Refused
	case "/test.Echo/Limited":
		return transport.Limited
	}
	return transport.Admitted
}

// echoAll returns each message.
func echoAll(s transport.Stream) (code int, text string) {
	for {
		m, err := s.Receive(context.Background())
		if errors.Is(err, io.EOF) {
			return 0, ""
		}
		if err == nil {
			err = s.Send(m)
		}
		if err != nil {
			return 1, err.Error()
		}
	}
}

// panicsOnly is a log that nothing may be written to.
type panicsOnly struct {
	errorf func(format string, args ...any)
}

func (panicsOnly) Enabled(context.Context, slog.Level) bool { return true }
func (p panicsOnly) Handle(_ context.Context, r slog.Record) error {
	p.errorf("logged: %s", r.Message)
	r.Attrs(func(a slog.Attr) bool { p.errorf("%v", a); return true })
	return nil
}
func (p panicsOnly) WithAttrs([]slog.Attr) slog.Handler { return p }
func (p panicsOnly) WithGroup(string) slog.Handler      { return p }

// askTheirs returns the answers of grpc-go, which has handled each frame before it reads the next.
func askTheirs(sent []byte) *talk {
	s := grpc.NewServer(grpc.ForceServerCodec(bytesCodec{}))
	s.RegisterService(&grpc.ServiceDesc{
		ServiceName: "test.Echo", HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Echo", Handler: grpcEcho}, {MethodName: "Limited", Handler: grpcEcho}},
		Streams: []grpc.StreamDesc{{StreamName: "Log", Handler: grpcEchoAll, ClientStreams: true, ServerStreams: true}},
	}, nil)
	l, conn := connected()
	go s.Serve(l)
	k := listen(conn)
	_ = conn.SetWriteDeadline(time.Now().Add(time.Second)) // it may stop reading
	for _, frame := range append([][]byte{begin}, frameByFrame(sent)...) {
		if _, err := conn.Write(frame); err != nil {
			break
		}
		synctest.Wait()
	}
	time.Sleep(time.Second)
	synctest.Wait()
	got := talk{maps.Clone(k.answers), k.away, k.over}
	s.Stop()
	conn.Close()
	synctest.Wait()
	return &got
}

func grpcEchoAll(_ any, stream grpc.ServerStream) error {
	for {
		var m []byte
		if err := stream.RecvMsg(&m); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := stream.SendMsg(&m); err != nil {
			return err
		}
	}
}

// connected returns a listener with one connection, and its other end.
func connected() (net.Listener, net.Conn) {
	here, there := net.Pipe()
	l := &single{conn: make(chan net.Conn, 1), closed: make(chan struct{})}
	l.conn <- there
	return l, here
}

// single is a listener with one connection that can be closed once.
type single struct {
	conn   chan net.Conn
	closed chan struct{}
}

func (l *single) Accept() (net.Conn, error) {
	select {
	case c := <-l.conn:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}
func (l *single) Close() error { close(l.closed); return nil }
func (*single) Addr() net.Addr { return &net.UnixAddr{} }

// request is the part of a call that a peer has sent.
type request struct {
	data  string
	ended bool
}

// requestsOf reads the frames that a peer has sent, up to one that is malformed. Those that not all
// readers know say nothing of a request.
func requestsOf(sent []byte) map[uint32]request {
	all := map[uint32]request{}
	for _, frame := range frameByFrame(sent) {
		if len(frame) < 9 || http2.FrameType(frame[3]) > http2.FrameContinuation {
			continue
		}
		f, err := http2.NewFramer(nil, bytes.NewReader(frame)).ReadFrame()
		var ofStream http2.StreamError
		if err != nil && !errors.As(err, &ofStream) && frame[3] != byte(http2.FrameContinuation) {
			return all
		}
		if err != nil {
			continue
		}
		r := all[f.Header().StreamID]
		switch f := f.(type) {
		case *http2.DataFrame:
			if !r.ended {
				r.data, r.ended = r.data+string(f.Data()), f.StreamEnded()
			}
		case *http2.HeadersFrame:
			r.ended = r.ended || f.StreamEnded()
		}
		all[f.Header().StreamID] = r
	}
	return all
}

// plain returns messages without their compression. Grpc-go compresses its answers to a peer that
// could.
func plain(data string) (all string) {
	for len(data) >= 5 {
		n := min(int(binary.BigEndian.Uint32([]byte(data[1:]))), len(data)-5)
		message := data[5 : 5+n]
		if z, err := gzip.NewReader(strings.NewReader(message)); data[0] == 1 && err == nil {
			whole, _ := io.ReadAll(z)
			message = string(whole)
		}
		all += string(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message)))) + message
		data = data[5+n:]
	}
	return all + data
}

const deadlineExceeded = "4"

// expectNoMore compares the answers. Where grpc-go has ended its connection, it says nothing about
// the calls that it has not answered. Whether a call is
// too late, the method decides.
func expectNoMore(t *testing.T, sent []byte, ours answers, theirs *talk) {
	requests := requestsOf(sent)
	for id, a := range ours {
		if a.status != "0" || !a.ended {
			continue
		}
		r := requests[id]
		if !r.ended || !strings.HasPrefix(r.data, "\x01") && a.data != r.data {
			t.Errorf("call %d sends %+v, and we answer %+v", id, r, a)
		}
		b, known := theirs.answers[id]
		if b.status == deadlineExceeded || theirs.away && !(known && (b.ended || b.reset)) {
			continue
		}
		if b.status != "0" || a.data != plain(b.data) {
			t.Errorf("call %d sends %+v, and we answer %+v, grpc-go %+v", id, r, a, b)
		}
	}
}

// described returns the frames in words, headers decompressed.
func described(sent []byte) string {
	var text strings.Builder
	for _, frame := range frameByFrame(sent) {
		fmt.Fprintf(&text, "%.30x\n", frame)
	}
	framer, decoder := http2.NewFramer(nil, bytes.NewReader(sent)), hpack.NewDecoder(4<<10, nil)
	for {
		f, err := framer.ReadFrame()
		if err != nil {
			fmt.Fprintln(&text, err)
		}
		var ofStream http2.StreamError
		if err != nil && !errors.As(err, &ofStream) {
			return text.String()
		}
		if err == nil {
			fmt.Fprintln(&text, f)
		}
		if h, ok := f.(*http2.HeadersFrame); ok {
			fields, err := decoder.DecodeFull(h.HeaderBlockFragment())
			fmt.Fprintln(&text, fields, err)
		}
	}
}

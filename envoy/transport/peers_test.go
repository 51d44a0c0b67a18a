package transport_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/status"

	"github.com/keyporter/keyporter/envoy/transport"
)

// peer is a raw connection in memory with a goroutine that writes.
type peer struct {
	*raw
	writes chan func()
}

func newPeer(t *testing.T, config transport.Config) (*transport.Server, *peer) {
	s, r := pipe(t, config)
	return s, newPeerOf(t, r)
}

// newPeerOf begins a connection.
func newPeerOf(t *testing.T, r *raw, settings ...http2.Setting) *peer {
	p := silentPeer(t, r)
	p.send(func() { r.greet(settings...) })
	return p
}

// silentPeer returns a peer that has said nothing.
func silentPeer(t *testing.T, r *raw) *peer {
	p := &peer{r, make(chan func(), 100)}
	var writing sync.WaitGroup
	writing.Go(func() {
		for write := range p.writes {
			write()
		}
	})
	t.Cleanup(func() { close(p.writes); r.Conn.Close(); writing.Wait() })
	return p
}

// send writes after what was to be written before.
func (p *peer) send(write func()) { p.writes <- write }

// echo sends a call with a message of one byte.
func (p *peer) echo(i uint32, message byte) {
	p.send(func() {
		_ = p.open(i, p.call())
		_ = p.WriteData(2*i+1, true, []byte{0, 0, 0, 0, 1, message})
	})
}

// later answers calls when it is released.
type later struct{ release chan struct{} }

func (later) Try(*transport.Call, []byte) ([]byte, bool) { return nil, false }

func (l later) Wait(_ context.Context, c *transport.Call, out []byte) []byte {
	<-l.release
	return append(out, c.Message...)
}

func (later) Refuse(_ *transport.Call, out []byte) []byte { return append(out, "refused"...) }

// The last answers of a connection that is drained arrive, also if the peer is slow to read them.
func TestAnswersAreSentBeforeTheConnectionEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := later{make(chan struct{})}
		s, p := newPeer(t, transport.Config{Methods: map[string]transport.Method{echoPath: l}})
		p.echo(0, '1')
		p.echo(1, '2')
		stopped := make(chan error, 1)
		time.AfterFunc(time.Second, func() { stopped <- s.Shutdown(context.Background()) })
		answers, aways := 0, 0
		for {
			f, err := p.ReadFrame()
			if err != nil {
				break
			}
			switch f := f.(type) {
			case *http2.PingFrame:
				data := f.Data
				p.send(func() { _ = p.WritePing(true, data) })
			case *http2.GoAwayFrame:
				if aways++; aways == 2 {
					close(l.release)
					time.Sleep(3 * time.Second)
				}
			case *http2.HeadersFrame:
				if f.StreamEnded() {
					answers++
				}
			}
		}
		if err := <-stopped; err != nil || answers != 2 {
			t.Errorf("%d of 2 answers arrive, %v", answers, err)
		}
	})
}

// A peer that breaks the protocol gets the answers that are being sent, and then the reason.
func TestTheReasonFollowsTheAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := later{make(chan struct{})}
		_, p := newPeer(t, transport.Config{Methods: map[string]transport.Method{echoPath: l}})
		p.echo(0, '1')
		p.send(func() {
			time.Sleep(2 * time.Second)
			close(l.release) // its goroutine writes, and the peer does not read yet
			time.Sleep(time.Second)
			_ = p.WriteRawFrame(http2.FrameData, 0, 0, nil)
		})
		told, answered := false, false
		for {
			f, err := p.ReadFrame()
			if err != nil {
				break
			}
			switch f := f.(type) {
			case *http2.GoAwayFrame:
				told = f.ErrCode == http2.ErrCodeProtocol
			case *http2.SettingsFrame:
				if f.IsAck() {
					time.Sleep(5 * time.Second)
				}
			case *http2.HeadersFrame:
				answered = answered || f.StreamEnded()
			}
		}
		if !told || !answered {
			t.Errorf("GOAWAY arrives: %v, the answer: %v", told, answered)
		}
	})
}

// A handler that returns while its last message waits for the peer's window has sent it.
func TestALastMessageThatWaits(t *testing.T) {
	message := []byte(strings.Repeat("m", 200<<10))
	conn := start(t, transport.Config{Streams: map[string]transport.Handler{"/test.Echo/Log": func(s transport.Stream) (int, string) {
		if err := s.Send(message); err != nil {
			t.Error(err)
		}
		return 0, ""
	}}})
	for range 10 {
		stream, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/test.Echo/Log")
		if err != nil {
			t.Fatal(err)
		}
		var got []byte
		if err := stream.RecvMsg(&got); err != nil || len(got) != len(message) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
		if err := stream.RecvMsg(&got); !errors.Is(err, io.EOF) {
			t.Fatalf("the end: %v", err)
		}
	}
}

// Calls with large messages that arrive at once are all answered.
func TestManyLargeMessages(t *testing.T) {
	conn := start(t, echoes())
	var all sync.WaitGroup
	for _, first := range strings.Repeat("nw", 20) {
		all.Go(func() {
			message := string(first) + strings.Repeat("m", 200<<10)
			if got, err := ask(t, conn, echoPath, message); err != nil || got != message {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
	all.Wait()
}

// Frames that were on their way when the server ended their calls harm no other call.
func TestFramesOnTheirWay(t *testing.T) {
	for name, config := range map[string]transport.Config{
		"to calls that are not admitted": {Admit: allButSecret},
		"to calls that are too many":     {MaxStreams: 10},
	} {
		t.Run(name, func(t *testing.T) {
			config.Methods = map[string]transport.Method{echoPath: echo{}}
			_, p := newPeer(t, config)
			const calls = 60
			p.send(func() {
				for i := range uint32(calls) {
					_ = p.open(i, p.fields(":method", "POST", ":scheme", "http", ":path", "/test.Echo/Secret", ":authority", "a", "content-type", "application/grpc"))
				}
				for i := range uint32(calls) {
					_ = p.WriteData(2*i+1, true, []byte{0, 0, 0, 0, 1, 'n'})
				}
			})
			p.echo(calls, 'n')
			expectAnswer(t, p, calls)
		})
	}
}

// expectAnswer reads until the call with this number is answered with a message.
func expectAnswer(t *testing.T, p *peer, i uint32) {
	t.Helper()
	for {
		f, err := p.ReadFrame()
		if err != nil {
			t.Fatalf("the connection ends: %v", err)
		}
		if away, ok := f.(*http2.GoAwayFrame); ok && away.ErrCode != http2.ErrCodeNo {
			t.Fatalf("GOAWAY %v: %s", away.ErrCode, away.DebugData())
		}
		if data, ok := f.(*http2.DataFrame); ok && data.StreamID == 2*i+1 {
			return
		}
	}
}

// A peer that opens streams after it has read the last GOAWAY gets no answer to them, but to those
// before.
func TestFramesAfterTheLastGoAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := later{make(chan struct{})}
		s, p := newPeer(t, transport.Config{Methods: map[string]transport.Method{echoPath: l}})
		p.echo(0, '1')
		time.AfterFunc(time.Second, func() { _ = s.Shutdown(context.Background()) })
		for {
			f, err := p.ReadFrame()
			if err != nil {
				t.Fatalf("no answer: %v", err)
			}
			switch f := f.(type) {
			case *http2.PingFrame:
				data := f.Data
				p.send(func() { _ = p.WritePing(true, data) })
			case *http2.GoAwayFrame:
				if f.LastStreamID == 1 {
					p.echo(1, '2')
					p.send(func() { _ = p.WriteWindowUpdate(3, 1) })
					p.send(func() { _ = p.WriteRSTStream(3, http2.ErrCodeCancel) })
					p.send(func() { close(l.release) })
				}
			case *http2.DataFrame:
				if f.StreamID != 1 {
					t.Errorf("an answer on stream %d", f.StreamID)
				}
				return
			}
		}
	})
}

// The padding of data is returned to the window of a streaming call as well.
func TestAPaddedStream(t *testing.T) {
	received := make(chan int, 1)
	_, p := newPeer(t, transport.Config{MaxMessage: 1 << 10, Streams: map[string]transport.Handler{echoPath: func(s transport.Stream) (int, string) {
		n := 0
		for {
			if _, err := s.Receive(t.Context()); err != nil {
				received <- n
				return 0, ""
			}
			n++
		}
	}}})
	go p.ends()
	const messages = 1000 // with 250 KB of padding, where the window is 66 KB
	done := make(chan struct{})
	p.send(func() {
		_ = p.open(0, p.call())
		for i := range messages {
			_ = p.WriteDataPadded(1, i == messages-1, []byte{0, 0, 0, 0, 1, 'm'}, make([]byte, 250))
			time.Sleep(100 * time.Microsecond) // the window opens
		}
		close(done)
	})
	<-done
	if n := <-received; n != messages {
		t.Errorf("%d of %d messages", n, messages)
	}
}

// A stream with many messages both ways is not taken for a flood.
func TestALongStream(t *testing.T) {
	conn := start(t, transport.Config{Streams: map[string]transport.Handler{"/test.Echo/Log": func(s transport.Stream) (int, string) {
		for {
			m, err := s.Receive(s.Context())
			if err != nil {
				return 0, ""
			}
			if err := s.Send(m); err != nil {
				return internal, err.Error()
			}
		}
	}}})
	stream, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/test.Echo/Log")
	if err != nil {
		t.Fatal(err)
	}
	in, out := make([]byte, 20<<10), []byte(nil)
	for i := range 5000 {
		if err := errors.Join(stream.SendMsg(&in), stream.RecvMsg(&out)); err != nil {
			t.Fatalf("message %d: %v", i, err)
		}
	}
}

const internal = int(codes.Internal)

// Any text of a status arrives, up to its maximum length.
func TestStatusTexts(t *testing.T) {
	for _, text := range []string{"", "plain", "100%25", "two\nlines", "Übergröße", strings.Repeat("a", 100_000)} {
		conn := start(t, transport.Config{Streams: map[string]transport.Handler{"/test.Echo/Log": func(transport.Stream) (int, string) { return int(codes.NotFound), text }}})
		stream, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, "/test.Echo/Log")
		if err != nil {
			t.Fatal(err)
		}
		err = stream.RecvMsg(new([]byte))
		if got := status.Convert(err); got.Code() != codes.NotFound || got.Message() != text[:min(len(text), 1<<10)] {
			t.Errorf("%.20q: %v", text, err)
		}
	}
}

// A peer that opens its window by a byte now and then does not hold an answer for long, and one
// that was silent before is not taken for one that does not read.
func TestWindowsThatDoNotOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, p := newPeer(t, echoes())
		p.send(func() { _ = p.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}) })
		p.echo(0, 'n')
		began := time.Now()
		for range 12 {
			p.send(func() { time.Sleep(5 * time.Second); _ = p.WriteWindowUpdate(0, 1) })
		}
		for {
			f, err := p.ReadFrame()
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := f.(*http2.RSTStreamFrame); ok {
				break
			}
		}
		if took := time.Since(began); took < 10*time.Second || took > 30*time.Second {
			t.Errorf("it is reset after %v", took)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		silence := 39 * time.Second
		_, p := newPeer(t, transport.Config{Streams: map[string]transport.Handler{echoPath: func(s transport.Stream) (int, string) {
			time.Sleep(silence)
			_ = s.Send(make([]byte, 100<<10))
			return 0, ""
		}}})
		p.send(func() { _ = p.open(0, p.call()) })
		began := time.Now()
		for {
			f, err := p.ReadFrame()
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := f.(*http2.RSTStreamFrame); ok {
				break
			}
		}
		if took := time.Since(began); took < silence+10*time.Second {
			t.Errorf("it is reset after %v", took)
		}
	})
}

// momentary is a listener that has no room for a connection at first.
type momentary struct {
	net.Listener
	fails int
}

func (l *momentary) Accept() (net.Conn, error) {
	if l.fails--; l.fails >= 0 {
		return nil, &net.OpError{Op: "accept", Err: syscall.EMFILE}
	}
	return l.Listener.Accept()
}

// Too many open files do not close the port.
func TestTooManyFiles(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := transport.NewServer(transport.Config{Log: slog.New(slog.DiscardHandler)})
	served := make(chan error, 1)
	go func() { served <- s.Serve(&momentary{l, 3}) }()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	r := newRaw(t, conn)
	r.greet()
	if _, err := r.ReadFrame(); err != nil {
		t.Error(err)
	}
	l.Close()
	if err := <-served; !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	s.Close()
}

// A server that stops waits for handlers that have not taken all messages yet.
func TestAStopWaitsForHandlers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const messages = 20
		took := 0
		s, p := newPeer(t, transport.Config{Streams: map[string]transport.Handler{echoPath: func(s transport.Stream) (int, string) {
			for {
				time.Sleep(time.Second)
				if _, err := s.Receive(context.Background()); err != nil {
					return 0, ""
				}
				took++
			}
		}}})
		p.send(func() {
			_ = p.open(0, p.call())
			for range messages {
				_ = p.WriteData(1, false, []byte{0, 0, 0, 0, 1, 'm'})
			}
			_ = p.WriteRSTStream(1, http2.ErrCodeCancel)
		})
		go func() {
			for {
				f, err := p.ReadFrame()
				if err != nil {
					return
				}
				if ping, ok := f.(*http2.PingFrame); ok && !ping.IsAck() {
					data := ping.Data
					p.send(func() { _ = p.WritePing(true, data) })
				}
			}
		}()
		synctest.Wait()
		if err := s.Shutdown(context.Background()); err != nil || took != messages {
			t.Errorf("%d of %d messages, %v", took, messages, err)
		}
	})
}

// A message that is cut off by the end of its stream is an error, not the end.
func TestAMessageThatIsCutOff(t *testing.T) {
	got := make(chan error, 1)
	_, p := newPeer(t, transport.Config{Streams: map[string]transport.Handler{echoPath: func(s transport.Stream) (int, string) {
		_, err := s.Receive(t.Context())
		got <- err
		return 0, ""
	}}})
	go p.ends()
	p.send(func() {
		_ = p.open(0, p.call())
		_ = p.WriteData(1, true, []byte{0, 0, 0, 0, 9, 'm'})
	})
	if err := <-got; !errors.Is(err, transport.ErrMessage) {
		t.Error(err)
	}
}

// Streams that nobody reads starve no call of their connection.
func TestStreamsThatAreNotRead(t *testing.T) {
	release := make(chan struct{})
	_, p := newPeer(t, transport.Config{
		Methods: map[string]transport.Method{echoPath: echo{}},
		Streams: map[string]transport.Handler{"/test.Echo/Log": func(transport.Stream) (int, string) { <-release; return 0, "" }},
	})
	defer close(release)
	const streams = 8 // their windows are 2.5 MiB together
	p.send(func() {
		for i := range uint32(streams) {
			_ = p.open(i, p.fields(":method", "POST", ":scheme", "http", ":path", "/test.Echo/Log", ":authority", "a", "content-type", "application/grpc"))
			for range 19 {
				_ = p.WriteData(2*i+1, false, make([]byte, 16<<10))
			}
		}
	})
	p.echo(streams, 'n')
	expectAnswer(t, p, streams)
}

// The first headers of a connection say that no table of header compression is used, so that a peer
// with a smaller table than usual can read them.
func TestTheTableIsNotUsed(t *testing.T) {
	_, p := newPeer(t, echoes())
	p.send(func() { _ = p.WriteSettings(http2.Setting{ID: http2.SettingHeaderTableSize, Val: 0}) })
	p.echo(0, 'n')
	for {
		f, err := p.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if h, ok := f.(*http2.HeadersFrame); ok {
			if first := h.HeaderBlockFragment()[0]; first != 0x20 {
				t.Errorf("the block begins with %#x", first)
			}
			return
		}
	}
}

// A compressed message that is too large is decided like any other.
func TestALargeCompressedMessage(t *testing.T) {
	conn := start(t, echoes())
	in, out := []byte(strings.Repeat("n", 10<<20)), []byte(nil)
	if err := conn.Invoke(t.Context(), echoPath, &in, &out, grpc.UseCompressor(gzip.Name)); err != nil || string(out) != "too large" {
		t.Errorf("%q, %v", out, err)
	}
}

// Windows add up after any mixture of calls, padding and resets: a peer can send as much as at the
// beginning.
func TestWindowsAddUp(t *testing.T) {
	_, p := newPeer(t, echoes())
	answered := make(chan uint32, 1000)
	go func() {
		defer close(answered)
		for {
			f, err := p.ReadFrame()
			if err != nil {
				return
			}
			if h, ok := f.(*http2.HeadersFrame); ok && h.StreamEnded() {
				answered <- h.StreamID
			}
		}
	}()
	const calls = 400 // 6 MB, where the window is 1 MiB
	for i := range uint32(calls) {
		p.send(func() {
			_ = p.open(i, p.call())
			_ = p.WriteDataPadded(2*i+1, false, make([]byte, 15<<10), make([]byte, 200))
			if i%3 == 0 {
				_ = p.WriteRSTStream(2*i+1, http2.ErrCodeCancel)
				_ = p.WriteData(2*i+1, false, make([]byte, 1<<10)) // on its way
				return
			}
			_ = p.WriteData(2*i+1, true, nil)
		})
	}
	p.echo(calls, 'n')
	for id := range answered {
		if id == 2*calls+1 {
			return
		}
	}
	t.Error(fmt.Errorf("the last call is not answered"))
}

// rights admits callers while it is true.
type rights struct{ atomic.Bool }

func (r *rights) admit(net.Conn, string, []string) transport.Admission {
	if r.Load() {
		return transport.Admitted
	}
	return transport.Refused
}

// A caller that loses its right, and one that gets it, is treated so from the next call on,
// although its headers are known.
func TestKnownHeadersLoseTheirRight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r rights
		config := echoes()
		config.Admit = r.admit
		s, p := newPeer(t, config)
		got := make(chan bool, 10) // whether each call is answered with a message
		go func() {
			answered := false
			for {
				f, err := p.ReadFrame()
				if err != nil {
					return
				}
				if _, ok := f.(*http2.DataFrame); ok {
					answered = true
				}
				if h, ok := f.(*http2.HeadersFrame); ok && h.StreamEnded() {
					got <- answered
					answered = false
				}
			}
		}()
		for i, right := range []bool{true, true, false, false, true} {
			r.Store(right)
			s.Forget()
			p.echo(uint32(i), 'n')
			if answered := <-got; answered != right {
				t.Errorf("call %d, with the right %v: answered %v", i, right, answered)
			}
		}
	})
}

// As many calls wait as may; the method refuses the others, and they cost those nothing.
func TestTooManyCallsWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := later{make(chan struct{})}
		_, p := newPeer(t, transport.Config{MaxWaiting: 8, Methods: map[string]transport.Method{echoPath: l}})
		const calls = 5 // a connection has a quarter of the places
		for i := range uint32(calls) {
			p.echo(i, 'n')
		}
		answers := map[string]int{}
		for range calls {
			f, err := p.ReadFrame()
			for ; err == nil; f, err = p.ReadFrame() {
				if data, ok := f.(*http2.DataFrame); ok {
					answers[string(data.Data()[5:])]++
					break
				}
			}
			if err != nil {
				t.Fatal(err)
			}
			if answers["refused"] == calls-2 && answers["n"] == 0 {
				close(l.release)
			}
		}
		if answers["refused"] != calls-2 || answers["n"] != 2 {
			t.Errorf("%v", answers)
		}
	})
}

// Messages that do not end hold at most a quarter of what the server may hold. A call that finds no
// room is refused by its method, at its end: an error of gRPC could let a request pass.
func TestMessagesThatDoNotEnd(t *testing.T) {
	_, p := newPeer(t, echoes())
	const calls, size, part = 100, 240 << 10, 8 << 10 // 24 MB, where 16 MiB may be held
	const last = 2*(calls-1) + 1
	p.send(func() {
		for i := range uint32(calls) {
			_ = p.open(i, p.call())
			for n := range size / part {
				_ = p.WriteData(2*i+1, i == calls-1 && n == size/part-1, make([]byte, part))
			}
		}
	})
	for {
		f, err := p.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if d, ok := f.(*http2.DataFrame); ok {
			if d.StreamID != last || !strings.HasSuffix(string(d.Data()), "refused") {
				t.Errorf("call %d gets %q", d.StreamID/2, d.Data())
			}
			return
		}
	}
}

// A streaming call that finds no room has ended: its handler can send nothing more.
func TestStreamsWithoutRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		_, p := newPeer(t, transport.Config{Streams: map[string]transport.Handler{echoPath: func(s transport.Stream) (int, string) {
			<-release
			_ = s.Send([]byte("more"))
			return 0, ""
		}}})
		const calls, parts = 60, 20 // 18 MiB, where 16 may be held
		ended, more := map[uint32]bool{}, 0
		go func() {
			for {
				f, err := p.ReadFrame()
				if err != nil {
					return
				}
				id, kind := f.Header().StreamID, f.Header().Type
				if ended[id] && kind != http2.FrameRSTStream {
					more++
				}
				if kind == http2.FrameHeaders && f.Header().Flags.Has(http2.FlagHeadersEndStream) {
					ended[id] = true
				}
			}
		}()
		p.send(func() {
			for i := range uint32(calls) {
				_ = p.open(i, p.call())
			}
			for range parts {
				for i := range uint32(calls) {
					_ = p.WriteData(2*i+1, false, make([]byte, 15<<10))
				}
			}
		})
		synctest.Wait()
		if len(ended) == 0 {
			t.Error("there is room for all")
		}
		close(release)
		if synctest.Wait(); more > 0 {
			t.Errorf("%d frames follow the end of their stream", more)
		}
	})
}

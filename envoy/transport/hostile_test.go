package transport_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/keyporter/keyporter/envoy/transport"
	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// raw is a connection that speaks HTTP/2 frame by frame.
type raw struct {
	net.Conn
	*http2.Framer
	block   bytes.Buffer
	encoder *hpack.Encoder
}

func newRaw(t *testing.T, conn net.Conn) *raw {
	t.Cleanup(func() { conn.Close() })
	return rawOn(conn)
}

func rawOn(conn net.Conn) *raw {
	r := &raw{Conn: conn, Framer: http2.NewFramer(conn, conn)}
	r.encoder = hpack.NewEncoder(&r.block)
	return r
}

// greet begins a connection.
func (r *raw) greet(settings ...http2.Setting) {
	_, _ = io.WriteString(r.Conn, http2.ClientPreface)
	_ = r.WriteSettings(settings...)
}

// fields returns a block of headers.
func (r *raw) fields(all ...string) []byte {
	r.block.Reset()
	for ; len(all) > 0; all = all[2:] {
		_ = r.encoder.WriteField(hpack.HeaderField{Name: all[0], Value: all[1]})
	}
	return bytes.Clone(r.block.Bytes())
}

// call returns the headers of a call, and more.
func (r *raw) call(more ...string) []byte {
	return r.fields(append([]string{":method", "POST", ":scheme", "http", ":path", echoPath, ":authority", "a", "content-type", "application/grpc", "te", "trailers"}, more...)...)
}

// open begins the call with this number.
func (r *raw) open(i uint32, block []byte) error {
	return r.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: block, EndHeaders: true})
}

// ends reads until the connection ends and returns the code of the last GOAWAY.
func (r *raw) ends() (code http2.ErrCode) {
	for {
		f, err := r.ReadFrame()
		if err != nil {
			return code
		}
		if away, ok := f.(*http2.GoAwayFrame); ok {
			code = away.ErrCode
		}
	}
}

// floods are frames that a peer sends without end: those of number i, and the code that ends its
// connection.
var floods = []struct {
	name string
	code http2.ErrCode
	send func(r *raw, i uint32) error
}{
	{"headers that do not end", http2.ErrCodeEnhanceYourCalm, func(r *raw, i uint32) error {
		if i > 0 {
			return r.WriteContinuation(1, false, r.fields("x", strings.Repeat("a", 1<<10)))
		}
		return r.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: r.call()})
	}},
	{"requests that are reset while they wait for a window", http2.ErrCodeEnhanceYourCalm, func(r *raw, i uint32) error {
		if i == 0 {
			_ = r.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
		}
		get := http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: r.fields(":method", "GET", ":scheme", "http", ":path", "/"), EndHeaders: true, EndStream: true}
		if err := r.WriteHeaders(get); err != nil {
			return err
		}
		return r.WriteRSTStream(2*i+1, http2.ErrCodeCancel)
	}},
	{"settings in large frames", http2.ErrCodeEnhanceYourCalm, func(r *raw, i uint32) error {
		return r.WriteSettings(slices.Repeat([]http2.Setting{{ID: http2.SettingInitialWindowSize, Val: i}}, 2000)...)
	}},
	{"calls that are reset", http2.ErrCodeEnhanceYourCalm, func(r *raw, i uint32) error {
		if err := r.open(i, r.call()); err != nil {
			return err
		}
		return r.WriteRSTStream(2*i+1, http2.ErrCodeCancel)
	}},
	{"calls that the server must reset", http2.ErrCodeEnhanceYourCalm, func(r *raw, i uint32) error {
		if err := r.open(i, r.call()); err != nil {
			return err
		}
		return r.WriteWindowUpdate(2*i+1, 1<<31-1)
	}},
	{"calls with malformed headers", http2.ErrCodeEnhanceYourCalm, func(r *raw, i uint32) error { return r.open(i, r.call("connection", "close")) }},
	{"more calls than are allowed", http2.ErrCodeEnhanceYourCalm, func(r *raw, i uint32) error { return r.open(i, r.call()) }},
	{"data without bytes", http2.ErrCodeEnhanceYourCalm, func(r *raw, i uint32) error {
		if i > 0 {
			return r.WriteData(1, false, nil)
		}
		return r.open(0, r.call())
	}},
	{"pings", http2.ErrCodeEnhanceYourCalm, func(r *raw, _ uint32) error { return r.WritePing(false, [8]byte{1}) }},
	{"settings", http2.ErrCodeEnhanceYourCalm, func(r *raw, i uint32) error {
		return r.WriteSettings(http2.Setting{ID: http2.SettingHeaderTableSize, Val: i})
	}},
	{"window updates", http2.ErrCodeEnhanceYourCalm, func(r *raw, _ uint32) error { return r.WriteWindowUpdate(0, 1) }},
	{"priorities", http2.ErrCodeEnhanceYourCalm, func(r *raw, i uint32) error { return r.WritePriority(2*i+1, http2.PriorityParam{}) }},
	{"frames of an unknown kind", http2.ErrCodeEnhanceYourCalm, func(r *raw, _ uint32) error { return r.WriteRawFrame(0xfa, 0, 0, make([]byte, 100)) }},
	{"data without end", http2.ErrCodeEnhanceYourCalm, func(r *raw, i uint32) error {
		if i == 0 {
			_ = r.open(0, r.call())
			_ = r.open(1, r.call())
			_ = r.open(2, r.call())
		}
		return r.WriteData(1+2*(i%3), false, make([]byte, 16<<10))
	}},
}

// Whatever frames a peer sends without end, its connection is closed with the right code, and
// another connection is answered meanwhile. TLS changes nothing about it.
func TestFloods(t *testing.T) {
	t.Run("plain", func(t *testing.T) {
		address := serve(t, echoes())
		testFloods(t, dial(t, address), func() (net.Conn, error) { return net.Dial("tcp", address) })
	})
	t.Run("TLS", func(t *testing.T) {
		partstest.Slow(t)
		authority := partstest.NewAuthority(t)
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		address := l.Addr().String()
		serveOn(t, tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{authority.For(t, "127.0.0.1")}, NextProtos: []string{"h2"}}), echoes())
		client := &tls.Config{RootCAs: authority.Pool(), NextProtos: []string{"h2"}, ServerName: "127.0.0.1"}
		testFloods(t, dialBy(t, address, credentials.NewTLS(client)), func() (net.Conn, error) { return tls.Dial("tcp", address, client) })
	})
}

func testFloods(t *testing.T, other *grpc.ClientConn, connect func() (net.Conn, error)) {
	for _, row := range floods {
		t.Run(row.name, func(t *testing.T) {
			conn, err := connect()
			if err != nil {
				t.Fatal(err)
			}
			r := newRaw(t, conn)
			r.greet()
			ended := make(chan http2.ErrCode, 1)
			go func() { ended <- r.ends() }()
			for i := range uint32(200_000) {
				if row.send(r, i) != nil {
					// A peer that does not stop sending may lose GOAWAY when the connection is
					// closed.
					if code := <-ended; code != row.code && code != http2.ErrCodeNo {
						t.Errorf("closed with %v, want %v", code, row.code)
					}
					if got, err := ask(t, other, echoPath, "now"); err != nil || got != "now" {
						t.Errorf("another connection is answered %q, %v", got, err)
					}
					return
				}
			}
			t.Error("nobody closes the connection")
		})
	}
}

// pipe serves one end of a connection in memory and returns the other.
func pipe(t *testing.T, config transport.Config) (*transport.Server, *raw) {
	s, l := inMemory(t, config)
	return s, l.connect(t)
}

// inMemory serves connections in memory.
func inMemory(t *testing.T, config transport.Config) (*transport.Server, memory) {
	l := make(memory, 1)
	config.Log = slog.New(slog.DiscardHandler)
	s := transport.NewServer(config)
	go s.Serve(l)
	t.Cleanup(func() { close(l); s.Close() })
	return s, l
}

// memory is a listener for connections in memory.
type memory chan net.Conn

// connect returns the peer's end of a new connection.
func (l memory) connect(t *testing.T) *raw {
	ours, theirs := net.Pipe()
	l <- ours
	return newRaw(t, theirs)
}

func (l memory) Accept() (net.Conn, error) {
	if c, ok := <-l; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}
func (memory) Close() error   { return nil }
func (memory) Addr() net.Addr { return &net.UnixAddr{} }

// A peer that stops in the middle of something ends within its time, and one that is silent is
// asked whether it is there.
func TestPeersThatStop(t *testing.T) {
	for _, row := range []struct {
		name   string
		send   func(r *raw)
		within time.Duration
	}{
		{"before the preface", func(*raw) {}, 11 * time.Second},
		{"in the preface", func(r *raw) { _, _ = io.WriteString(r.Conn, http2.ClientPreface[:10]) }, 11 * time.Second},
		{"in a frame", func(r *raw) { r.greet(); _, _ = r.Conn.Write([]byte{0, 0}) }, 30 * time.Second},
		{"in the headers", func(r *raw) {
			r.greet()
			_ = r.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: r.call()})
		}, 30 * time.Second},
		{"and sends a byte of a frame each second", func(r *raw) {
			r.greet()
			for r.SetWriteDeadline(time.Now().Add(time.Minute)) == nil {
				if _, err := r.Conn.Write([]byte{0}); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		}, 30 * time.Second},
		{"without an answer to a ping", func(r *raw) { r.greet() }, 2 * time.Minute},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, r := pipe(t, transport.Config{})
				began := time.Now()
				var sending sync.WaitGroup
				sending.Go(func() { row.send(r) })
				r.ends()
				defer sending.Wait()
				defer r.Conn.Close()
				if took := time.Since(began); took > row.within {
					t.Errorf("it was left after %v", took)
				}
			})
		})
	}
}

// A caller that speaks HTTP/1 reads what the port speaks; anything else is hung up on.
func TestCallersOfOtherProtocols(t *testing.T) {
	for sent, want := range map[string]string{
		"GET / HTTP/1.0\r\n\r\n":                   "HTTP/1.1 505 ",
		"POST /x HTTP/1.1\r\nHost: a\r\n\r\n":      "HTTP/1.1 505 ",
		"PRI * HTTP/1.1\r\n\r\n":                   "HTTP/1.1 505 ",
		"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03": "",
		"hello\r\n": "",
	} {
		_, r := pipe(t, transport.Config{})
		go io.WriteString(r.Conn, sent)
		got, _ := io.ReadAll(r.Conn)
		if !strings.HasPrefix(string(got), want) || want == "" && len(got) > 0 {
			t.Errorf("%q is answered %q", sent, got)
		}
	}
}

// A connection that reaches its age, and one of a server that stops, says so, answers the calls
// that come before its peer has read that, and then ends.
func TestAConnectionEndsInGoodOrder(t *testing.T) {
	for name, stop := range map[string]bool{"of age": false, "the server stops": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { testGoodOrder(t, stop) })
		})
	}
}

func testGoodOrder(t *testing.T, stop bool) {
	s, r := pipe(t, transport.Config{Methods: map[string]transport.Method{echoPath: echo{}}})
	writes := make(chan func(), 10)
	var writing sync.WaitGroup
	writing.Go(func() {
		for write := range writes {
			write()
		}
	})
	defer writing.Wait()
	defer close(writes)
	writes <- func() { r.greet() }
	began, answers, last := time.Now(), 0, uint32(0)
	stopped := make(chan error, 1)
	if stop {
		time.AfterFunc(time.Second, func() { stopped <- s.Shutdown(t.Context()) })
	}
	for {
		f, err := r.ReadFrame()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		switch f := f.(type) {
		case *http2.GoAwayFrame:
			if last = f.LastStreamID; last == 1<<31-1 {
				writes <- func() { // a call that is on its way
					_ = r.open(0, r.call())
					_ = r.WriteData(1, true, []byte{0, 0, 0, 0, 1, 'n'})
				}
			}
		case *http2.PingFrame:
			data := f.Data
			writes <- func() { time.Sleep(time.Second); _ = r.WritePing(true, data) }
		case *http2.DataFrame:
			answers++
		}
	}
	if answers != 1 || last != 1 {
		t.Errorf("%d answers, the last stream is %d", answers, last)
	}
	if !stop {
		if age := time.Since(began); age < 4*time.Minute || age > 6*time.Minute {
			t.Errorf("it ended after %v", age)
		}
	} else if err := <-stopped; err != nil {
		t.Error(err)
	}
}

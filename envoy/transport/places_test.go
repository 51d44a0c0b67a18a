package transport_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"golang.org/x/net/http2"

	"github.com/keyporter/keyporter/envoy/transport"
)

const (
	okHeaders = ":status: 200; content-type: application/grpc"
	logPath   = "/test.Echo/Log"
	otherLog  = "/test.Echo/OtherLog"
)

// noPlace is the reply to a call that finds no place.
var noPlace = reply{headers: okHeaders + "; grpc-status: 8; grpc-message: too many calls of this method"}

// of opens a call of a method, and sends data without an end.
func (p *peer) of(i uint32, path string, data []byte, more ...string) {
	p.send(func() {
		fields := append([]string{":method", "POST", ":scheme", "http", ":path", path, ":authority", "a", "content-type", "application/grpc"}, more...)
		_ = p.open(i, p.fields(fields...))
		_ = p.WriteData(2*i+1, false, data)
	})
}

// oneMessage is the data of a call with a message of one byte.
var oneMessage = []byte{0, 0, 0, 0, 1, 'n'}

// A call that has ended gives back its place and the room of its message, whatever its kind,
// whether its caller waits for the end or not, and whether its handler has read the message or not.
func TestCallsThatHaveEndedGiveTheirPlacesBack(t *testing.T) {
	for name, path := range map[string]string{"a call that waits": echoPath, "a streaming call": logPath, "a call that is handed over": otherPath} {
		for _, reset := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, reset %v", name, reset), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { testPlacesAreGivenBack(t, path, reset) })
			})
		}
	}
}

func testPlacesAreGivenBack(t *testing.T, path string, reset bool) {
	release := make(chan struct{})
	s, p := newPeer(t, transport.Config{
		MaxWaiting: 1, MaxOthers: 1,
		Methods: map[string]transport.Method{echoPath: later{release}},
		Streams: map[string]transport.Handler{logPath: func(transport.Stream) (int, string) { <-release; return 0, "" }},
		Others: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			<-release
			w.Header().Set("Grpc-Status", "0")
		}),
	})
	var answered atomic.Int32
	go func() {
		for {
			f, err := p.ReadFrame()
			if err != nil {
				return
			}
			if h, ok := f.(*http2.HeadersFrame); ok && len(h.HeaderBlockFragment()) > 0 {
				answered.Add(1) // two for each call: a refusal has one
			}
		}
	}()
	const calls = 3
	for i := range uint32(calls) {
		p.of(i, path, oneMessage)
		p.send(func() {
			if path == echoPath {
				_ = p.WriteData(2*i+1, true, nil)
			}
			if reset {
				_ = p.WriteRSTStream(2*i+1, http2.ErrCodeCancel)
			}
		})
		synctest.Wait()
		if transport.Places(s) != 1 {
			t.Errorf("call %d has no place", i)
		}
		release <- struct{}{}
		if synctest.Wait(); transport.Places(s) != 0 || transport.Held(s) != 0 {
			t.Errorf("after call %d, %d places are taken and %d bytes are held", i, transport.Places(s), transport.Held(s))
		}
	}
	if n := answered.Load(); !reset && n < calls {
		t.Errorf("%d answers to %d calls", n, calls)
	}
}

// The calls of one streaming method leave places for those of another, and for calls that wait;
// those that wait leave places for streaming calls.
func TestEachMethodHasPlacesOfItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		block := func(s transport.Stream) (int, string) {
			_ = s.Send([]byte("s"))
			<-release
			return 0, ""
		}
		s, p := newPeer(t, transport.Config{
			MaxWaiting: 1,
			Methods:    map[string]transport.Method{echoPath: later{release}},
			Streams:    map[string]transport.Handler{logPath: block, otherLog: block},
		})
		got := p.replies(t)
		for i, path := range []string{logPath, logPath, echoPath, echoPath, otherLog, otherLog} {
			p.of(uint32(i), path, oneMessage)
			p.send(func() { _ = p.WriteData(2*uint32(i)+1, true, nil) })
		}
		synctest.Wait()
		close(release)
		synctest.Wait()
		if held := transport.Held(s); held != 0 {
			t.Errorf("%d bytes are held", held)
		}
		for i, want := range []string{"s", "", "n", "refused", "s", ""} {
			if r := got(uint32(i)); r.data != want || want == "" && r.headers != noPlace.headers {
				t.Errorf("call %d is answered %+v, want %q", i, r, want)
			}
		}
	})
}

// replies reads the answers of all calls. It returns a function for one answer, without the prefix
// of its message, to be called when all are read.
func (p *peer) replies(t *testing.T) (of func(i uint32) reply) {
	all := map[uint32]reply{}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			f, err := p.ReadFrame()
			if err != nil {
				return
			}
			r := all[f.Header().StreamID/2]
			switch f := f.(type) {
			case *http2.DataFrame:
				r.data += string(f.Data()[min(5, len(f.Data())):])
			case *http2.HeadersFrame:
				if block := fieldsOf(t, newDecoder(), f.HeaderBlockFragment()); r.headers == "" {
					r.headers = block
				} else {
					r.trailers = block
				}
			case *http2.RSTStreamFrame:
				r.reset = f.ErrCode.String()
			}
			if f.Header().StreamID != 0 {
				all[f.Header().StreamID/2] = r
			}
		}
	}()
	return func(i uint32) reply {
		p.Conn.Close()
		<-ended
		return all[i]
	}
}

// Calls of callers that are Limited leave places of handed-over calls for others, and the other way
// round.
func TestLimitedCallersHavePlacesOfTheirOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const most = 4
		release, entered := make(chan struct{}), make(chan string, 10)
		config := echoes()
		config.MaxOthers = most
		config.Admit = func(_ net.Conn, _ string, authorization []string) transport.Admission {
			if len(authorization) > 0 {
				return transport.Admitted
			}
			return transport.Limited
		}
		config.Others = http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			entered <- r.Header.Get("Authorization")
			<-release
		})
		_, p := newPeer(t, config)
		defer close(release)
		go func() { _, _ = io.Copy(io.Discard, p.Conn) }()
		enter := func(authorization ...string) (n int) {
			for i := range uint32(2 * most) {
				p.other(i+uint32(len(authorization))*most, authorization...)
			}
			synctest.Wait()
			for len(entered) > 0 {
				<-entered
				n++
			}
			return n
		}
		if n := enter(); n != most/4 {
			t.Errorf("%d calls of a limited caller are served, want %d", n, most/4)
		}
		if n := enter("authorization", "t"); n != most {
			t.Errorf("then %d calls of another are served, want %d", n, most)
		}
	})
}

// Admit decides each call that it refuses, also if the headers repeat: so each refusal can be
// counted, and a new right holds from the next call on. Admitted headers are not asked about again.
func TestEachRefusalIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r rights
		var asked atomic.Int32
		config := echoes()
		config.Admit = func(c net.Conn, method string, authorization []string) transport.Admission {
			asked.Add(1)
			return r.admit(c, method, authorization)
		}
		_, p := newPeer(t, config)
		go p.ends()
		const calls = 10
		next := uint32(0)
		ask := func() int32 {
			asked.Store(0)
			for range calls {
				p.echo(next, 'n')
				next++
			}
			synctest.Wait()
			return asked.Load()
		}
		if n := ask(); n != calls {
			t.Errorf("%d of %d refused calls are told", n, calls)
		}
		r.Store(true)
		if n := ask(); n != 1 {
			t.Errorf("%d calls with known headers are asked about, want 1", n)
		}
	})
}

// A call whose message finds no room is refused by its method, while it arrives and when it has to
// wait: an error of gRPC could let a request pass. Those that wait are answered.
func TestMessagesWithoutRoomAreRefused(t *testing.T) {
	const (
		size, part = 250_000, 10_000
		room       = 16 << 20 / size // calls: as many as one connection may hold
	)
	for name, row := range map[string]struct{ together, waiting uint32 }{
		"when it has to wait": {1, room - 1}, // the last one that fits is held twice
		"while it arrives":    {4, room - 3},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				release := make(chan struct{})
				s, p := newPeer(t, transport.Config{Methods: map[string]transport.Method{echoPath: brief{later{release}}}})
				got := p.replies(t)
				head := []byte{0, byte(size >> 24), byte(size >> 16 & 0xff), byte(size >> 8 & 0xff), byte(size & 0xff)}
				const rounds = 80
				for i := uint32(0); i < rounds; i += row.together {
					for k := i; k < i+row.together; k++ {
						p.of(k, echoPath, head)
					}
					for n := range size / part {
						for k := i; k < i+row.together; k++ {
							p.send(func() { _ = p.WriteData(2*k+1, n == size/part-1, make([]byte, part)) })
						}
					}
				}
				synctest.Wait()
				if held := transport.Held(s); held > 16<<20 {
					t.Errorf("%d bytes are held", held)
				}
				close(release)
				synctest.Wait()
				answers := map[string]uint32{}
				for i := range uint32(rounds) {
					r := got(i)
					answers[r.data]++
					if r.headers != okHeaders || r.trailers != "grpc-status: 0" {
						t.Errorf("call %d gets %+v", i, r)
					}
				}
				if len(answers) != 2 || answers["done"] < row.waiting || answers["refused"] == 0 {
					t.Errorf("answers: %v", answers)
				}
			})
		})
	}
}

// brief gives short answers.
type brief struct{ later }

func (b brief) Wait(ctx context.Context, c *transport.Call, out []byte) []byte {
	if b.later.Wait(ctx, c, nil); c.TooLarge {
		return append(out, "too large"...)
	}
	return append(out, "done"...)
}

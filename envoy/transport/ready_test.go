package transport_test

import (
	"bytes"
	"context"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"

	"github.com/keyporter/keyporter/envoy/transport"
)

// slow answers its first call when it is released, and counts the others.
type slow struct {
	entered chan struct{}
	release chan struct{}
	others  atomic.Int64
	first   atomic.Bool
}

func (s *slow) Try(c *transport.Call, out []byte) ([]byte, bool) {
	if s.first.CompareAndSwap(false, true) {
		close(s.entered)
		<-s.release
	} else {
		s.others.Add(1)
	}
	return append(out, c.Message...), true
}
func (s *slow) Wait(context.Context, *transport.Call, []byte) []byte { return nil }
func (s *slow) Refuse(*transport.Call, []byte) []byte                { return nil }

// Calls that their peer has given up while the server was paused are not answered, however many
// there are: a Check that nobody waits for must not be charged. Those between them are.
func TestCallsThatAreGivenUpAreNotAnswered(t *testing.T) {
	method := &slow{entered: make(chan struct{}), release: make(chan struct{})}
	// What is written to a Unix socket has arrived; TCP moves it later, on a busy machine much later.
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "grpc.sock"))
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, l, transport.Config{Methods: map[string]transport.Method{echoPath: method}})
	conn, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	r := newRaw(t, conn)
	r.greet()
	block := r.call()
	call := func(i uint32) {
		_ = r.open(i, block)
		_ = r.WriteData(2*i+1, true, append([]byte{0, 0, 0, 1, 0}, make([]byte, 256)...))
	}
	call(0)
	<-method.entered
	var rest bytes.Buffer
	r.Framer = http2.NewFramer(&rest, conn)
	const calls, each = 300, 50 // some 90 KiB, more than a buffer; one of so many is not given up
	for i := range uint32(calls) {
		call(i + 1)
		block = r.call()
	}
	for i := range uint32(calls) {
		if i%each != 0 {
			_ = r.WriteRSTStream(2*(i+1)+1, http2.ErrCodeCancel)
		}
	}
	if _, err := conn.Write(rest.Bytes()); err != nil {
		t.Fatal(err)
	}
	close(method.release)
	for answered := 0; answered < 1+calls/each; {
		f, err := r.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if f, ok := f.(*http2.DataFrame); ok {
			answered++
			if i := f.StreamID / 2; i != 0 && (i-1)%each != 0 {
				t.Errorf("call %d is answered", i)
			}
		}
	}
	if n := method.others.Load(); n != calls/each {
		t.Errorf("%d calls are decided, want %d", n, calls/each)
	}
}

// inTime ends its calls a while after they have come.
type inTime struct{ after time.Duration }

func (inTime) Try(*transport.Call, []byte) ([]byte, bool) { return nil, false }
func (m inTime) Wait(_ context.Context, c *transport.Call, out []byte) []byte {
	time.Sleep(m.after)
	return append(out, c.Message...)
}
func (inTime) Refuse(*transport.Call, []byte) []byte { return nil }

// A server that stops does not wait for peers that say nothing, whether they have begun to speak or
// not; it waits for calls that are open, and answers the first call of a peer if that is on its
// way.
func TestPeersThatAreSilentAtAStop(t *testing.T) {
	call := func(p *peer) { p.echo(0, 'n') }
	greetAndCall := func(p *peer) { p.send(func() { p.greet() }); call(p) }
	for name, row := range map[string]struct {
		greeted       bool
		before, after func(p *peer) // it does so, 1 s before and 1 s after the stop begins
		took          time.Duration
		answers       int32
	}{
		"not greeted":                           {false, nil, nil, 2 * time.Second, 0},
		"greeted, and does not answer the ping": {true, nil, nil, 2 * time.Second, 0},
		"greeted, and its first call comes":     {true, nil, call, 4 * time.Second, 1},
		"greeted too late, with a call":         {false, nil, greetAndCall, 4 * time.Second, 1},
		"greeted too late, without one":         {false, nil, func(p *peer) { p.send(func() { p.greet() }) }, 3 * time.Second, 0},
		"a call that is open":                   {true, call, nil, 2 * time.Second, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, l := inMemory(t, transport.Config{Methods: map[string]transport.Method{echoPath: inTime{3 * time.Second}}})
				p := silentPeer(t, l.connect(t))
				if row.greeted {
					p.send(func() { p.greet() })
				}
				answers := p.countAnswers()
				if row.before != nil {
					row.before(p)
				}
				time.Sleep(time.Second)
				if row.after != nil {
					time.AfterFunc(time.Second, func() { row.after(p) })
				}
				began := time.Now()
				if err := s.Shutdown(t.Context()); err != nil {
					t.Error(err)
				}
				if took := time.Since(began); took < row.took || took > row.took+lastReads {
					t.Errorf("it took %v, want %v", took, row.took)
				}
				if synctest.Wait(); answers.Load() != row.answers {
					t.Errorf("%d answers, want %d", answers.Load(), row.answers)
				}
			})
		})
	}
}

// lastReads is how long a connection that ends is still read.
const lastReads = 500 * time.Millisecond

// countAnswers counts the messages that a peer receives, and answers no ping.
func (p *peer) countAnswers() *atomic.Int32 {
	answers := &atomic.Int32{}
	go func() {
		for {
			f, err := p.ReadFrame()
			if err != nil {
				return
			}
			if _, ok := f.(*http2.DataFrame); ok {
				answers.Add(1)
			}
		}
	}()
	return answers
}

// A connection of age whose peer answers no ping ends soon after it was asked to.
func TestASilentPeerOfAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, p := newPeer(t, transport.Config{PingAfter: time.Hour})
		var asked time.Time
		for {
			f, err := p.ReadFrame()
			if err != nil {
				break
			}
			if _, ok := f.(*http2.GoAwayFrame); ok && asked.IsZero() {
				asked = time.Now()
			}
		}
		if took := time.Since(asked); asked.IsZero() || took < 2*time.Second || took > 2*time.Second+lastReads {
			t.Errorf("it ends %v after it was asked to", took)
		}
	})
}

// waitsForItsEnd waits until its context ends, and says so.
type waitsForItsEnd struct{ entered, ended chan struct{} }

func (waitsForItsEnd) Try(*transport.Call, []byte) ([]byte, bool) { return nil, false }
func (m waitsForItsEnd) Wait(ctx context.Context, _ *transport.Call, out []byte) []byte {
	close(m.entered)
	<-ctx.Done()
	close(m.ended)
	return out
}
func (waitsForItsEnd) Refuse(*transport.Call, []byte) []byte { return nil }

// However a connection ends, the context of a call that waits ends at once: its answer cannot be
// sent any more.
func TestTheEndOfAConnectionEndsItsCalls(t *testing.T) {
	for name, end := range map[string]func(p *peer){
		"a violation of HTTP/2": func(p *peer) { p.send(func() { _ = p.WriteRawFrame(http2.FrameData, 0, 0, nil) }) },
		"a reset of its stream": func(p *peer) { p.send(func() { _ = p.WriteRSTStream(1, http2.ErrCodeCancel) }) },
		"it is closed":          func(p *peer) { p.Conn.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				method := waitsForItsEnd{make(chan struct{}), make(chan struct{})}
				_, p := newPeer(t, transport.Config{Methods: map[string]transport.Method{echoPath: method}})
				go p.ends()
				p.echo(0, 'n')
				<-method.entered
				began := time.Now()
				end(p)
				<-method.ended
				if took := time.Since(began); took > 0 {
					t.Errorf("it ends after %v", took)
				}
			})
		})
	}
}

// Calls that have arrived whole before a frame that ends their connection are answered, also those
// that arrive in one piece with it.
func TestCallsBeforeABadFrameAreAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, p := newPeer(t, echoes())
		const calls = 3
		p.send(func() {
			var all bytes.Buffer
			f := http2.NewFramer(&all, nil)
			for i := range uint32(calls) {
				_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: p.call(), EndHeaders: true})
				_ = f.WriteData(2*i+1, true, []byte{0, 0, 0, 0, 1, 'n'})
			}
			_ = f.WriteRawFrame(http2.FrameData, 0, 0, nil)
			_, _ = p.Conn.Write(all.Bytes())
		})
		answers := 0
		for {
			f, err := p.ReadFrame()
			if err != nil {
				t.Fatalf("it ends without a reason: %v", err)
			}
			if _, ok := f.(*http2.DataFrame); ok {
				answers++
			}
			if _, ok := f.(*http2.GoAwayFrame); ok {
				break
			}
		}
		if answers != calls {
			t.Errorf("%d of %d calls are answered", answers, calls)
		}
	})
}

package transport_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/keyporter/keyporter/envoy/transport"
)

// For an hour, beside peers that are cut off and peers that are hostile, no call of a good client
// fails and no answer is another's; and when all have left, nothing remains of them. KEYPORTER_SOAK
// sets the time; the default is 20 s.
func TestSoak(t *testing.T) {
	if os.Getenv("KEYPORTER_LONG") != "1" {
		t.Skip("takes long: set KEYPORTER_LONG=1")
	}
	whole := 20 * time.Second
	if wanted := os.Getenv("KEYPORTER_SOAK"); wanted != "" {
		var err error
		if whole, err = time.ParseDuration(wanted); err != nil {
			t.Fatal(err)
		}
	}
	s := newSoak(t)
	began, idle := time.Now(), s.usage()
	s.round(min(whole/10, time.Minute))
	first := s.settled(idle)
	t.Logf("%v: %v; %v", time.Since(began).Round(time.Second), first, s.count())
	for rest := whole - time.Since(began); rest > 0 && !t.Failed(); rest = whole - time.Since(began) {
		s.round(min(rest, time.Minute))
		now := s.settled(first)
		t.Logf("%v: %v; %v", time.Since(began).Round(time.Second), now, s.count())
		if now.goroutines > first.goroutines || now.files > first.files || now.heap > first.heap+1<<20 || now.held > 0 {
			t.Errorf("more than at first: %v", first)
		}
	}
}

// usage is the resources of the process.
type usage struct {
	goroutines, files int
	heap              int64 // bytes
	held              int64 // bytes of messages, and calls
}

func (u usage) String() string {
	return fmt.Sprintf("%d goroutines, %d files, %d KiB of heap, %d held", u.goroutines, u.files, u.heap>>10, u.held)
}

// soak is a server and all kinds of peers.
type soak struct {
	t                 *testing.T
	server            *transport.Server
	address           string
	good, came        atomic.Int64 // answered calls, and those of them of clients that come and go
	kept, cut         atomic.Int64 // answered calls of clients behind a faulty network, and others
	resets, attackers atomic.Int64 // connections
}

func newSoak(t *testing.T) *soak {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &soak{t: t, address: l.Addr().String(), server: transport.NewServer(transport.Config{
		Methods: map[string]transport.Method{echoPath: echo{}}, Streams: map[string]transport.Handler{"/test.Echo/Log": echoAll},
		MaxAge: 10 * time.Second, Grace: 10 * time.Second, PingAfter: 5 * time.Second, PingTimeout: 5 * time.Second,
		Log: slog.New(panicsOnly{t.Errorf}),
	})}
	served := make(chan error, 1)
	go func() { served <- s.server.Serve(l) }()
	t.Cleanup(func() {
		s.server.Close()
		if err := <-served; !errors.Is(err, transport.ErrClosed) {
			t.Error(err)
		}
	})
	return s
}

// round runs all peers for a time.
func (s *soak) round(d time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	network := s.startNetwork()
	var all sync.WaitGroup
	for _, peers := range []struct {
		number int
		do     func(context.Context)
	}{
		{2, func(ctx context.Context) { s.talk(s.address, ctx.Err, s.ask) }},
		{2, func(ctx context.Context) { s.comeAndGo(ctx, s.address) }},
		{3, func(ctx context.Context) { s.talk(network.Addr().String(), ctx.Err, s.tryToAsk) }},
		{2, s.flood},
		{10, s.startOnly},
		{5, s.dribble},
		{2, s.neverRead},
	} {
		for range peers.number {
			all.Go(func() {
				for ctx.Err() == nil {
					peers.do(ctx)
				}
			})
		}
	}
	all.Wait()
	network.stop()
}

// talk makes calls by one client until its turn is over.
func (s *soak) talk(address string, over func() error, call func(*grpc.ClientConn) error) {
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(bytesCodec{})),
		grpc.WithConnectParams(grpc.ConnectParams{
			MinConnectTimeout: 20 * time.Second, Backoff: backoff.Config{BaseDelay: 10 * time.Millisecond, MaxDelay: 10 * time.Millisecond},
		}))
	if err != nil {
		s.t.Error(err)
		return
	}
	defer conn.Close()
	for over() == nil {
		if call(conn) != nil {
			return
		}
	}
}

// comeAndGo makes some calls by a client of their own.
func (s *soak) comeAndGo(ctx context.Context, address string) {
	calls := rand.IntN(20)
	s.talk(address, func() error {
		if calls--; calls < 0 {
			return io.EOF
		}
		return ctx.Err()
	}, func(conn *grpc.ClientConn) error {
		s.came.Add(1)
		return s.ask(conn)
	})
}

// ask makes a call that must be answered.
func (s *soak) ask(conn *grpc.ClientConn) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := s.call(ctx, conn); err != nil {
		s.t.Errorf("a good client: %v", err)
		return err
	}
	s.good.Add(1)
	return nil
}

// tryToAsk makes a call that may fail, or is given up.
func (s *soak) tryToAsk(conn *grpc.ClientConn) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(rand.IntN(20))*time.Millisecond)
	defer cancel()
	if s.call(ctx, conn) != nil {
		s.cut.Add(1)
	} else {
		s.kept.Add(1)
	}
	return nil
}

// call makes a unary or a streaming call and compares what it returns.
func (s *soak) call(ctx context.Context, conn *grpc.ClientConn) error {
	message := fmt.Sprint(string("nw"[rand.IntN(2)]), rand.Uint64(), strings.Repeat("m", rand.IntN(1+100<<rand.IntN(11))))
	in, out := []byte(message), []byte(nil)
	if rand.IntN(10) > 0 {
		err := conn.Invoke(ctx, echoPath, &in, &out)
		if err == nil && string(out) != message {
			s.t.Errorf("%.30s is answered %.30s", message, out)
		}
		return err
	}
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/test.Echo/Log")
	for range 3 {
		if err == nil {
			err = stream.SendMsg(&in)
		}
		if err == nil {
			err = stream.RecvMsg(&out)
		}
		if err == nil && string(out) != message {
			s.t.Errorf("%.30s comes back as %.30s", message, out)
		}
	}
	if err != nil {
		return err
	}
	if err := errors.Join(stream.CloseSend(), stream.RecvMsg(&out)); !errors.Is(err, io.EOF) {
		return fmt.Errorf("the end of a stream: %w", err)
	}
	return nil
}

// attack connects to the server until ctx ends and lets send do harm.
func (s *soak) attack(ctx context.Context, send func(r *raw)) {
	conn, err := net.Dial("tcp", s.address)
	if err != nil {
		s.t.Error(err)
		return
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	s.attackers.Add(1)
	send(rawOn(conn))
}

// patience is how long a flood may last.
const patience = 30 * time.Second

// flood sends frames without end, and reads the answers or not.
func (s *soak) flood(ctx context.Context) {
	row, reads := floods[rand.IntN(len(floods))], rand.IntN(2) == 0
	s.attack(ctx, func(r *raw) {
		var reading sync.WaitGroup
		defer reading.Wait()
		defer r.Conn.Close()
		if reads {
			reading.Go(func() { _, _ = io.Copy(io.Discard, r.Conn) })
		}
		r.greet()
		// by time, because a busy machine holds a few hundred thousand frames for the server
		for i, began := uint32(0), time.Now(); time.Since(began) < patience; i++ {
			if row.send(r, i) != nil {
				return
			}
		}
		s.t.Errorf("nobody ends a flood of %s in %v", row.name, patience)
	})
}

// startOnly stops in the middle of something, and waits until the server hangs up.
func (s *soak) startOnly(ctx context.Context) {
	s.attack(ctx, func(r *raw) {
		switch rand.IntN(4) {
		case 0:
			_, _ = io.WriteString(r.Conn, http2.ClientPreface[:rand.IntN(len(http2.ClientPreface))])
		case 1:
			r.greet()
			_, _ = r.Conn.Write([]byte{0, 0})
		case 2:
			r.greet()
			_ = r.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: r.call()})
		case 3:
			r.greet()
			_ = r.open(0, r.call())
			_ = r.WriteData(1, false, []byte{0, 0, 0, 1})
		}
		_, _ = io.Copy(io.Discard, r.Conn)
	})
}

// dribble sends a call byte by byte.
func (s *soak) dribble(ctx context.Context) {
	s.attack(ctx, func(r *raw) {
		r.greet()
		_ = r.open(0, r.call())
		for {
			if _, err := r.Conn.Write([]byte{0}); err != nil {
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(300 * time.Millisecond):
			}
		}
	})
}

// neverRead asks for large answers and reads nothing.
func (s *soak) neverRead(ctx context.Context) {
	s.attack(ctx, func(r *raw) {
		r.greet(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30})
		_ = r.WriteWindowUpdate(0, 1<<30)
		message := append([]byte{0, 0, 0, 0x3e, 0x80, "nw"[rand.IntN(2)]}, make([]byte, 15_999)...)
		for i := uint32(0); r.open(i, r.call()) == nil && r.WriteData(2*i+1, true, message) == nil; i++ {
		}
	})
}

// network is a proxy that cuts its connections off.
type network struct {
	net.Listener
	running sync.WaitGroup
	ctx     context.Context
	stopAll context.CancelFunc
}

func (s *soak) startNetwork() *network {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	n := &network{Listener: l}
	n.ctx, n.stopAll = context.WithCancel(context.Background())
	n.running.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", s.address)
			if err != nil {
				s.t.Error(err)
				client.Close()
				return
			}
			s.resets.Add(1)
			n.running.Go(func() { n.carry(client.(*net.TCPConn), server.(*net.TCPConn)) })
		}
	})
	return n
}

// carry passes some bytes on, and then resets both connections.
func (n *network) carry(a, b *net.TCPConn) {
	ctx, cancel := context.WithCancel(n.ctx)
	pass := func(to, from net.Conn) {
		defer cancel()
		_, _ = io.CopyN(to, from, rand.Int64N(1<<20))
	}
	var both sync.WaitGroup
	both.Go(func() { pass(a, b) })
	both.Go(func() { pass(b, a) })
	<-ctx.Done()
	for _, conn := range []*net.TCPConn{a, b} {
		_ = conn.SetLinger(0)
		_ = conn.Close()
	}
	both.Wait()
}

func (n *network) stop() {
	n.Close()
	n.stopAll()
	n.running.Wait()
}

// settled returns the usage when all peers have left: as soon as no more than before runs and is
// open, or in the end.
func (s *soak) settled(before usage) (u usage) {
	for range 100 {
		u = s.usage()
		if u.held == 0 && u.goroutines <= before.goroutines && u.files <= before.files {
			return u
		}
		time.Sleep(100 * time.Millisecond)
	}
	return u
}

func (s *soak) usage() usage {
	runtime.GC()
	runtime.GC() // the second one empties the pools
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	files, _ := os.ReadDir("/proc/self/fd") // none where there is no such folder
	return usage{runtime.NumGoroutine(), len(files), int64(m.HeapAlloc), transport.Held(s.server) + int64(transport.Waiting(s.server))}
}

// count describes all events so far.
func (s *soak) count() string {
	return fmt.Sprintf("%d calls answered, %d of them to clients that come and go; behind a faulty network %d answered, %d not, %d connections reset; %d attacks",
		s.good.Load(), s.came.Load(), s.kept.Load(), s.cut.Load(), s.resets.Load(), s.attackers.Load())
}

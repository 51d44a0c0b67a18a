package e2e_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// link is a network between one replica and PostgreSQL with the faults of real networks: it is
// slow, holds data back in one or both directions, delivers data late or never, breaks connections,
// and loses notifications. It changes no byte, and drops nothing from an open connection except
// whole notifications.
type link struct {
	address, target string
	up, down        direction   // to the server, to the replica
	refuse          atomic.Bool // breaks new connections
	loss            atomic.Int64
	lost            atomic.Int64 // notifications lost so far

	mu    sync.Mutex
	conns map[net.Conn]struct{} // guarded by mu
}

// direction is one way of a link.
type direction struct {
	delay atomic.Int64 // nanoseconds that each piece of data waits
	held  atomic.Bool  // all data waits
}

// pass returns true once data may pass, or false if the connection ends first.
func (d *direction) pass(ended <-chan struct{}) bool {
	time.Sleep(time.Duration(d.delay.Load()))
	for d.held.Load() {
		select {
		case <-ended:
			return false
		case <-time.After(time.Millisecond):
		}
	}
	return true
}

// startLink starts a link to a server, without faults at first.
func startLink(t testing.TB, target string) *link {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &link{address: listener.Addr().String(), target: target, conns: map[net.Conn]struct{}{}}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go l.serve(conn)
		}
	}()
	t.Cleanup(func() {
		listener.Close()
		l.reset()
	})
	return l
}

// through returns the URL of a database through the link.
func (l *link) through(database string) string {
	return strings.Replace(database, l.target, l.address, 1)
}

func (l *link) serve(client net.Conn) {
	defer client.Close()
	if l.refuse.Load() {
		client.(*net.TCPConn).SetLinger(0)
		return
	}
	server, err := net.Dial("tcp", l.target)
	if err != nil {
		return
	}
	defer server.Close()
	l.mu.Lock()
	l.conns[client], l.conns[server] = struct{}{}, struct{}{}
	l.mu.Unlock()
	ended := make(chan struct{})
	var end sync.Once
	finish := func() { end.Do(func() { close(ended) }) }
	go func() { defer finish(); l.carryUp(server, client, ended) }()
	go func() { defer finish(); l.carryDown(client, server, ended) }()
	<-ended
	l.mu.Lock()
	delete(l.conns, client)
	delete(l.conns, server)
	l.mu.Unlock()
}

func (l *link) carryUp(server io.Writer, client io.Reader, ended <-chan struct{}) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := client.Read(buffer)
		if err != nil || !l.up.pass(ended) {
			return
		}
		if _, err := server.Write(buffer[:n]); err != nil {
			return
		}
	}
}

// carryDown parses the frames of PostgreSQL's protocol, a type and a length each, so that it can
// drop notifications: type A.
func (l *link) carryDown(client io.Writer, server io.Reader, ended <-chan struct{}) {
	const headerSize = 5
	in, out := bufio.NewReaderSize(server, 32<<10), bufio.NewWriterSize(client, 32<<10)
	frame := make([]byte, headerSize, 1<<10)
	for {
		frame = frame[:headerSize]
		if _, err := io.ReadFull(in, frame); err != nil {
			return
		}
		frame = append(frame, make([]byte, binary.BigEndian.Uint32(frame[1:])+1-headerSize)...)
		if _, err := io.ReadFull(in, frame[headerSize:]); err != nil {
			return
		}
		if frame[0] == 'A' && rand.Int64N(100) < l.loss.Load() {
			l.lost.Add(1)
			continue
		}
		out.Write(frame) // Flush returns its error
		if in.Buffered() > 0 {
			continue
		}
		if !l.down.pass(ended) || out.Flush() != nil {
			return
		}
	}
}

// reset breaks all connections.
func (l *link) reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for conn := range l.conns {
		conn.(*net.TCPConn).SetLinger(0)
		conn.Close()
	}
}

// cut holds everything back, like a network that drops all packets.
func (l *link) cut() {
	l.up.held.Store(true)
	l.down.held.Store(true)
}

// heal ends every fault, and delivers data that was held back.
func (l *link) heal() {
	for _, d := range []*direction{&l.up, &l.down} {
		d.held.Store(false)
		d.delay.Store(0)
	}
	l.refuse.Store(false)
	l.loss.Store(0)
}

// linkFaults are the faults of a link, with random parameters from r.
var linkFaults = map[string]func(l *link, r *rand.Rand){
	"none":      func(*link, *rand.Rand) {},
	"latency":   func(l *link, r *rand.Rand) { l.up.delay.Store(millis(r, 60)); l.down.delay.Store(millis(r, 60)) },
	"blackhole": func(l *link, _ *rand.Rand) { l.cut() },
	"reset":     func(l *link, _ *rand.Rand) { l.reset() },
	"refused":   func(l *link, _ *rand.Rand) { l.refuse.Store(true); l.reset() },
	// Half-open: data of the other direction still arrives.
	"silent server":  func(l *link, _ *rand.Rand) { l.down.held.Store(true) },
	"silent replica": func(l *link, _ *rand.Rand) { l.up.held.Store(true) },
	"lossy":          func(l *link, r *rand.Rand) { l.loss.Store(1 + r.Int64N(50)) },
}

func millis(r *rand.Rand, most int64) int64 { return r.Int64N(most * int64(time.Millisecond)) }

// misbehave applies one fault after the other until ctx ends, and counts them. Each fault, and each
// pause between two, lasts at most longest. Half of the faults end with the loss of the data held
// back, the others with its late delivery.
func (l *link) misbehave(ctx context.Context, seed uint64, longest time.Duration, faults *counts) {
	r := rand.New(rand.NewPCG(seed, 0))
	names := sortedKeys(linkFaults)
	pause := func() {
		select {
		case <-time.After(time.Duration(r.Int64N(int64(longest)))):
		case <-ctx.Done():
		}
	}
	for ctx.Err() == nil {
		name := names[r.IntN(len(names))]
		linkFaults[name](l, r)
		faults.add(name)
		pause()
		if r.IntN(2) == 0 {
			l.reset()
		}
		l.heal()
		pause()
	}
}

// counts counts things by name.
type counts struct {
	mu sync.Mutex
	n  map[string]int
}

func (c *counts) add(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = map[string]int{}
	}
	c.n[name]++
}

func (c *counts) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []string
	for _, name := range sortedKeys(c.n) {
		all = append(all, fmt.Sprintf("%s %d", name, c.n[name]))
	}
	return strings.Join(all, ", ")
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

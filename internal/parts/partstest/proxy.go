package partstest

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// ProxyConfig configures a [Proxy].
type ProxyConfig struct {
	To       string       // host:port of the server; "": nobody answers
	Listener net.Listener // nil: a free port of 127.0.0.1
	// Filter wraps one direction of a new connection, up to the server or down to the client; nil:
	// everything passes.
	Filter func(from io.Reader, up bool) io.Reader
}

// Proxy is a network between TCP clients and a server, with the faults of real ones. It is slow,
// holds data back in one or both directions, loses data, refuses and breaks connections, and leads
// to another server. It changes no byte. Its fields and methods are safe for concurrent use.
type Proxy struct {
	Up, Down Direction    // to the server, to the client
	Connect  atomic.Int64 // how long a new connection takes, in nanoseconds
	Refuse   atomic.Bool  // new connections are broken

	config ProxyConfig
	all    sync.WaitGroup
	mu     sync.Mutex
	to     string            // guarded by mu
	open   map[*proxied]bool // guarded by mu
	made   int               // guarded by mu
}

// Direction is one way of a [Proxy].
type Direction struct {
	Delay atomic.Int64 // of each piece of data, in nanoseconds
	Hold  atomic.Bool  // data waits for the end of this, and arrives late
	Drop  atomic.Bool  // data is lost, and so is everything after it on the same connection
}

// StartProxy starts a proxy without faults. It ends, with its connections, at the end of the test.
func StartProxy(t testing.TB, c ProxyConfig) *Proxy {
	t.Helper()
	if c.Listener == nil {
		var err error
		if c.Listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
	}
	p := &Proxy{config: c, to: c.To, open: map[*proxied]bool{}}
	p.all.Go(p.accept)
	t.Cleanup(func() {
		c.Listener.Close()
		p.Move("")
		p.all.Wait()
	})
	return p
}

// Addr returns the address of the proxy, for clients.
func (p *Proxy) Addr() string { return p.config.Listener.Addr().String() }

// Connections returns the number of connections made so far.
func (p *Proxy) Connections() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.made
}

// Redirect leads new connections to another server; with "" they are broken.
func (p *Proxy) Redirect(to string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.to = to
}

// Move is Redirect, and breaks all connections.
func (p *Proxy) Move(to string) {
	p.Redirect(to)
	p.Break()
}

// Break breaks all connections.
func (p *Proxy) Break() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.open {
		reset(c.client)
		reset(c.server)
		c.end()
	}
}

// Heal ends all faults, and delivers what was held back. It breaks all connections if some may have
// lost data.
func (p *Proxy) Heal() {
	p.Connect.Store(0)
	p.Refuse.Store(false)
	lost := false
	for _, d := range []*Direction{&p.Up, &p.Down} {
		d.Delay.Store(0)
		d.Hold.Store(false)
		lost = d.Drop.Swap(false) || lost
	}
	if lost {
		p.Break()
	}
}

// proxied is a connection of a client through the proxy.
type proxied struct {
	client, server net.Conn
	over           chan struct{}
	end            func() // closes both sides
}

func (p *Proxy) accept() {
	for {
		client, err := p.config.Listener.Accept()
		if err != nil {
			return
		}
		p.all.Go(func() { p.serve(client) })
	}
}

func (p *Proxy) serve(client net.Conn) {
	defer client.Close()
	p.mu.Lock()
	to := p.to
	p.mu.Unlock()
	if to == "" || p.Refuse.Load() {
		reset(client)
		return
	}
	server, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	over := make(chan struct{})
	c := &proxied{client, server, over, sync.OnceFunc(func() { close(over); client.Close(); server.Close() })}
	defer c.end()
	if !p.add(c, to) {
		return
	}
	defer p.remove(c)
	if !wait(over, func() bool { return false }, &p.Connect) {
		return
	}
	var both sync.WaitGroup
	both.Go(func() { p.relay(c, server, p.filter(client, true), &p.Up) })
	both.Go(func() { p.relay(c, client, p.filter(server, false), &p.Down) })
	both.Wait()
}

// add keeps a connection, unless the proxy leads elsewhere by now.
func (p *Proxy) add(c *proxied, to string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.to != to {
		return false
	}
	p.open[c] = true
	p.made++
	return true
}

func (p *Proxy) remove(c *proxied) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.open, c)
}

func (p *Proxy) filter(from io.Reader, up bool) io.Reader {
	if p.config.Filter == nil {
		return from
	}
	return p.config.Filter(from, up)
}

// relay passes on one direction of a connection. The end of one direction ends both.
func (p *Proxy) relay(c *proxied, to io.Writer, from io.Reader, d *Direction) {
	defer c.end()
	buffer := make([]byte, 32<<10)
	for lost := false; ; {
		n, err := from.Read(buffer)
		lost = lost || n > 0 && d.Drop.Load()
		if n > 0 && !lost {
			if !wait(c.over, d.Hold.Load, &d.Delay) {
				return
			}
			if _, err := to.Write(buffer[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// wait returns true after a delay, and after the end of hold, or false if over ends first. Both
// faults may end meanwhile.
func wait(over <-chan struct{}, hold func() bool, delay *atomic.Int64) bool {
	for began := time.Now(); hold() || time.Since(began) < time.Duration(delay.Load()); {
		select {
		case <-over:
			return false
		case <-time.After(time.Millisecond):
		}
	}
	return true
}

// reset makes the end of a connection a reset, as if a network had broken it.
func reset(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
}

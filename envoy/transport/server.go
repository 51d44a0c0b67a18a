package transport

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"
)

// Server answers calls on the connections of its listeners.
type Server struct {
	shared *shared

	mu        sync.Mutex
	closed    bool
	listeners map[net.Listener]struct{}
	conns     map[*conn]struct{}
	serving   sync.WaitGroup // the goroutines of connections
}

// NewServer returns a server that does not listen yet.
func NewServer(c Config) *Server {
	c = c.withDefaults()
	shared := &shared{
		Config: c, waiting: make(chan struct{}, c.MaxWaiting), streaming: map[string]chan struct{}{},
		others: make(chan struct{}, c.MaxOthers), limitedOthers: make(chan struct{}, max(1, c.MaxOthers/4)),
	}
	for path := range c.Streams {
		shared.streaming[path] = make(chan struct{}, c.MaxWaiting)
	}
	return &Server{shared: shared, listeners: map[net.Listener]struct{}{}, conns: map[*conn]struct{}{}}
}

// ErrClosed is the result of Serve after Shutdown and Close.
var ErrClosed = errors.New("the server is closed")

// Serve answers calls on the connections of l until l, or the server, is closed. It waits when no
// more connections can be accepted for the moment, as when there are too many open files.
func (s *Server) Serve(l net.Listener) error {
	if !s.listen(l) {
		return ErrClosed
	}
	defer s.unlisten(l)
	for wait := time.Duration(0); ; {
		c, err := l.Accept()
		if err != nil {
			var momentary interface{ Temporary() bool }
			if s.isClosed() {
				return ErrClosed
			}
			if errors.Is(err, net.ErrClosed) || !errors.As(err, &momentary) || !momentary.Temporary() {
				return err
			}
			wait = min(max(2*wait, 5*time.Millisecond), time.Second)
			time.Sleep(wait)
			continue
		}
		wait = 0
		if !s.start(c) {
			c.Close()
			return ErrClosed
		}
	}
}

// listen reports whether the server may accept connections from l.
func (s *Server) listen(l net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		l.Close()
		return false
	}
	s.listeners[l] = struct{}{}
	return true
}

func (s *Server) unlisten(l net.Listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.listeners, l)
}

func (s *Server) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// refuseNew closes the listeners. The caller holds mu.
func (s *Server) refuseNew() {
	s.closed = true
	for l := range s.listeners {
		l.Close()
	}
}

// start serves a connection in a goroutine of its own.
func (s *Server) start(n net.Conn) bool {
	c := newConn(s.shared, n)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.conns[c] = struct{}{}
	s.serving.Go(func() {
		defer s.end(c)
		c.serve()
	})
	return true
}

func (s *Server) end(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

// Stats are the numbers of a server at one time.
type Stats struct {
	Connections int
	Calls       int // open ones
}

// Stats returns the present numbers. It looks at each connection.
func (s *Server) Stats() (now Stats) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now.Connections = len(s.conns)
	for c := range s.conns {
		c.mu.Lock()
		now.Calls += len(c.streams)
		c.mu.Unlock()
	}
	return now
}

// Forget makes every connection ask Config.Admit again.
func (s *Server) Forget() { s.shared.rights.Add(1) }

// Drain asks the peers of some connections to open no more streams there. Those connections end when
// their calls are answered, at the latest after Config.Grace. It does not wait for that.
func (s *Server) Drain(which func(net.Conn) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		if which(c.net) {
			go c.change(c.drain)
		}
	}
}

// Shutdown closes the listeners, asks the peers to open no more streams and returns when all calls
// are answered. Streaming calls are calls. If ctx ends first, it closes the connections and returns
// ctx's error.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.refuseNew()
	for c := range s.conns {
		go c.change(c.drain)
	}
	s.mu.Unlock()
	ended := make(chan struct{})
	go func() { s.serving.Wait(); s.shared.running.Wait(); close(ended) }()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		s.Close()
		select { // handlers take the messages that have arrived
		case <-ended:
		case <-time.After(lastReads):
		}
		return ctx.Err()
	}
}

// Close closes the listeners, ends all connections at once and returns when their goroutines have
// ended.
func (s *Server) Close() {
	s.mu.Lock()
	s.refuseNew()
	for c := range s.conns {
		c.net.Close()
	}
	s.mu.Unlock()
	s.serving.Wait()
}

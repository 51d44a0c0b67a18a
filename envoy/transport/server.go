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

	mu      sync.Mutex
	closed  bool
	conns   map[*conn]struct{}
	serving sync.WaitGroup // the goroutines of connections
}

// NewServer returns a server that does not listen yet.
func NewServer(c Config) *Server {
	c = c.withDefaults()
	return &Server{shared: &shared{Config: c, waiting: make(chan struct{}, c.MaxWaiting)}, conns: map[*conn]struct{}{}}
}

// ErrClosed is the result of Serve after Close.
var ErrClosed = errors.New("the server is closed")

// Serve answers calls on the connections of l until l is closed. It waits when no more connections
// can be accepted for the moment, as when there are too many open files.
func (s *Server) Serve(l net.Listener) error {
	for wait := time.Duration(0); ; {
		c, err := l.Accept()
		if err != nil {
			var momentary interface{ Temporary() bool }
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

// Forget makes every connection ask Config.Admit again.
func (s *Server) Forget() { s.shared.rights.Add(1) }

// Shutdown asks the peers to open no more streams and returns when all calls are answered.
// Streaming calls are calls. If ctx ends first, it closes the connections and returns ctx's error.
// The caller closes the listeners before.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.closed = true
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
		return ctx.Err()
	}
}

// Close ends all connections at once and returns when their goroutines have ended.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	for c := range s.conns {
		c.net.Close()
	}
	s.mu.Unlock()
	s.serving.Wait()
}

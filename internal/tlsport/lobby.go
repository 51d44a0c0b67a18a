package tlsport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"time"
)

// The bounds on callers before the end of their handshake.
const (
	// handshakeTime is the maximum time of a handshake.
	handshakeTime = 10 * time.Second
	// maxHandshakes is the maximum number of handshakes at a time. A new one ends the oldest, so
	// callers that never finish theirs keep nobody out.
	maxHandshakes = 256
)

// Cause says why a connection was refused.
type Cause string

// The causes.
const (
	Plaintext   Cause = "plaintext"   // the caller speaks no TLS
	Certificate Cause = "certificate" // the caller's certificate is not accepted
	Protocol    Cause = "protocol"    // the caller did not agree on the protocol of the port
	Slow        Cause = "slow"        // the handshake took too long
	Crowded     Cause = "crowded"     // there were too many handshakes
	Handshake   Cause = "handshake"   // all others, such as a caller without a certificate, or one that refuses ours
)

// Causes returns all causes.
func Causes() []Cause { return []Cause{Plaintext, Certificate, Protocol, Slow, Crowded, Handshake} }

// Listener returns a listener whose connections are [tls.Conn] after their handshake. Handshakes go
// on beside one another. Closing it closes l.
func (p *Port) Listener(l net.Listener) net.Listener {
	return &lobby{Listener: l, port: p, done: make(chan accepted), closed: make(chan struct{})}
}

// lobby is where connections wait for the end of their handshake.
type lobby struct {
	net.Listener
	port   *Port
	begin  sync.Once
	done   chan accepted
	end    sync.Once
	closed chan struct{}

	running sync.WaitGroup // the goroutines
	mu      sync.Mutex
	waiting []*Conn // oldest first, at most maxHandshakes; guarded by mu
}

// accepted is a result of Accept.
type accepted struct {
	conn net.Conn
	err  error
}

// Accept implements [net.Listener].
func (l *lobby) Accept() (net.Conn, error) {
	l.begin.Do(func() { l.running.Go(l.admit) })
	select {
	case a := <-l.done:
		return a.conn, a.err
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close implements [net.Listener].
func (l *lobby) Close() error {
	err := net.ErrClosed
	l.end.Do(func() {
		err = l.Listener.Close()
		close(l.closed)
		l.mu.Lock()
		for _, c := range l.waiting {
			c.Conn.Close()
		}
		l.mu.Unlock()
		l.begin.Do(func() {}) // none starts any more
		l.running.Wait()
	})
	return err
}

// admit accepts connections until the listener fails.
func (l *lobby) admit() {
	for {
		conn, err := l.Listener.Accept()
		if err == nil {
			l.running.Go(func() { l.receive(&Conn{Conn: conn, port: l.port}) })
			continue
		}
		l.deliver(accepted{err: err})
		var momentary interface{ Temporary() bool }
		if errors.Is(err, net.ErrClosed) || !errors.As(err, &momentary) || !momentary.Temporary() {
			return
		}
	}
}

// deliver passes on a result. It reports false if nobody takes it.
func (l *lobby) deliver(a accepted) bool {
	select {
	case l.done <- a:
		return true
	case <-l.closed:
		return false
	}
}

// receive does the handshake of one connection.
func (l *lobby) receive(c *Conn) {
	victim := l.enter(c)
	if victim != nil {
		l.port.refuse(victim, Crowded, errors.New("too many handshakes at a time"))
		victim.Conn.Close() // its goroutine cleans up
	}
	secure, cause, err := l.port.shake(c)
	if err == nil && l.leave(c) && l.deliver(accepted{conn: secure}) {
		return
	}
	if err != nil && l.leave(c) {
		l.port.refuse(c, cause, err)
	}
	c.Close()
}

// enter adds a connection to those that wait. If there are too many, it removes and returns the
// oldest.
func (l *lobby) enter(c *Conn) (victim *Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.waiting) == maxHandshakes {
		victim = l.waiting[0]
		l.waiting = slices.Delete(l.waiting, 0, 1)
	}
	l.waiting = append(l.waiting, c)
	select {
	case <-l.closed:
		c.Conn.Close() // Close may not have seen it
	default:
	}
	return victim
}

// leave removes a connection from those that wait. It reports false if it was a victim.
func (l *lobby) leave(c *Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.Index(l.waiting, c)
	if i >= 0 {
		l.waiting = slices.Delete(l.waiting, i, i+1)
	}
	return i >= 0
}

// shake does a handshake by the present set.
func (p *Port) shake(c *Conn) (*tls.Conn, Cause, error) {
	s := p.current.Load()
	secure := tls.Server(c, p.tls(s))
	if err := c.SetDeadline(time.Now().Add(handshakeTime)); err != nil {
		return nil, Handshake, err
	}
	if err := secure.HandshakeContext(context.Background()); err != nil {
		return nil, causeOf(err), err
	}
	state := secure.ConnectionState()
	if p.config.MustAgree && state.NegotiatedProtocol != p.config.Protocols[0] {
		return nil, Protocol, fmt.Errorf("the caller does not ask for the protocol %s (ALPN)", p.config.Protocols[0])
	}
	if s.clientCA != nil {
		p.enlist(c, state.PeerCertificates, s)
	}
	return secure, "", c.SetDeadline(time.Time{})
}

func causeOf(err error) Cause {
	var noTLS tls.RecordHeaderError
	var badCertificate *tls.CertificateVerificationError
	switch {
	case errors.As(err, &noTLS) && noTLS.Conn != nil:
		return Plaintext
	case errors.As(err, &badCertificate), errors.Is(err, errName):
		return Certificate
	case errors.Is(err, os.ErrDeadlineExceeded):
		return Slow
	}
	return Handshake
}

// refuse counts and logs a connection that is closed before its handshake has ended well. Probes
// that only connect are no news.
func (p *Port) refuse(c *Conn, cause Cause, err error) {
	level := slog.LevelWarn
	if errors.Is(err, io.EOF) {
		level = slog.LevelDebug
	}
	p.config.Refused(cause)
	p.config.Log.Log(context.Background(), level, "a connection to a TLS port was refused", "port", p.config.Name, "cause", string(cause),
		"caller", c.RemoteAddr().String(), "error", err)
}

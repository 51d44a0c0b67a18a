package tlsport

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Config configures a [Port].
type Config struct {
	Name       string // as in the settings: grpc, http, …
	Files      Files
	MinVersion uint16   // such as tls.VersionTLS13
	Protocols  []string // of ALPN; the first must be agreed on if MustAgree
	MustAgree  bool

	// Grace is how long a caller that is not accepted any more may keep its connection, so that it
	// can end in good order.
	Grace time.Duration

	Refused  func(Cause)   // called for each refused connection
	Reloaded func(ok bool) // called when changed files were read
	Log      *slog.Logger
}

// Port is the TLS of one port. It is safe for concurrent use.
type Port struct {
	config  Config
	current atomic.Pointer[set]

	mu   sync.Mutex
	open map[*Conn]struct{} // connections of callers with certificates; guarded by mu

	// Of the goroutine of Run.
	seen    content  // at the last look
	unread  error    // why it could not be read
	refused *content // the last content that cannot be used
	quiet   string   // the last complaint
}

// New reads the files. An expired certificate is no error: a restart must not turn a port with some
// callers into one without any.
func New(c Config) (*Port, error) {
	if err := c.Files.Complete(c.Name); err != nil {
		return nil, err
	}
	content, err := c.Files.read()
	if err != nil {
		return nil, fmt.Errorf("TLS of the %s port: %w", c.Name, err)
	}
	s, err := c.Files.parse(content)
	if err != nil {
		return nil, fmt.Errorf("TLS of the %s port: %w", c.Name, err)
	}
	if err := s.valid(time.Now()); err != nil {
		c.Log.Error("a TLS port has a certificate that callers refuse", "port", c.Name, "file", c.Files.Cert, "error", err)
	}
	p := &Port{config: c, open: map[*Conn]struct{}{}, seen: content}
	p.current.Store(s)
	return p, nil
}

// Expires returns when the port's certificate, or one between it and its authority, expires.
func (p *Port) Expires() time.Time { return p.current.Load().expires() }

// tls returns the configuration of a handshake by s. A ticket would let a caller come back without
// a look at its certificate, so there are none.
func (p *Port) tls(s *set) *tls.Config {
	c := &tls.Config{
		Certificates: []tls.Certificate{s.certificate}, MinVersion: p.config.MinVersion, NextProtos: p.config.Protocols,
		SessionTicketsDisabled: true,
	}
	if s.clientCA != nil {
		c.ClientAuth, c.ClientCAs = tls.RequireAndVerifyClientCert, s.clientCA
		c.VerifyConnection = func(state tls.ConnectionState) error { return s.names.check(state.PeerCertificates[0]) }
	}
	return c
}

// interval is how often the files are read. A change is applied once two reads in a row agree, so
// that no half-written set is used.
const interval = time.Second

// Run reads the files at each interval until ctx ends. If callers are not accepted any more, it
// calls retire, which should end the connections that are [Withdrawn] in good order. It closes those
// that are left after Config.Grace.
func (p *Port) Run(ctx context.Context, retire func()) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			changed := p.look(now)
			if p.withdraw(now, changed) {
				retire()
			}
		}
	}
}

// look reads the files, and reports whether a new set is in use.
func (p *Port) look(now time.Time) (changed bool) {
	content, err := p.config.Files.read()
	if err != nil {
		if before := p.unread; before != nil && before.Error() == err.Error() {
			p.complain(err)
		}
		p.unread = err
		return false
	}
	settled := p.unread == nil && content.equal(p.seen)
	p.seen, p.unread = content, nil
	if !settled || content.equal(p.current.Load().content) {
		if settled {
			p.quiet, p.refused = "", nil
		}
		return false
	}
	if p.refused != nil && p.refused.equal(content) {
		return false
	}
	s, err := p.config.Files.parse(content)
	if err == nil {
		err = s.valid(now)
	}
	if err != nil {
		p.refused = &content
		p.complain(err)
		return false
	}
	p.quiet, p.refused = "", nil
	p.current.Store(s)
	p.config.Reloaded(true)
	p.config.Log.Info("new TLS files are in use", "port", p.config.Name, "expires", s.expires())
	return true
}

// complain logs once why the files cannot be used.
func (p *Port) complain(err error) {
	if p.quiet == err.Error() {
		return
	}
	p.quiet = err.Error()
	p.config.Reloaded(false)
	p.config.Log.Error("new TLS files cannot be used: the previous ones stay", "port", p.config.Name, "error", err)
}

// withdraw marks the connections whose callers are not accepted any more, because the set has
// changed or their certificate has expired. It reports whether there are new ones, and closes those
// that are marked for longer than the grace period.
func (p *Port) withdraw(now time.Time, changed bool) (found bool) {
	s := p.current.Load()
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.open {
		switch at := c.withdrawn.Load(); {
		case at != nil:
			if now.Sub(*at) > p.config.Grace {
				c.Conn.Close() // its reader cleans up
			}
		case changed && s.accepts(c.chain, now) != nil, now.After(c.chain[0].NotAfter):
			c.withdrawn.Store(&now)
			found = true
		}
	}
	return found
}

// Conn is what lies under the [tls.Conn] of a caller with a certificate.
type Conn struct {
	net.Conn
	port      *Port
	chain     []*x509.Certificate
	withdrawn atomic.Pointer[time.Time] // since when its caller is not accepted any more; nil: it is
}

// Close implements [net.Conn].
func (c *Conn) Close() error {
	c.port.mu.Lock()
	delete(c.port.open, c)
	c.port.mu.Unlock()
	return c.Conn.Close()
}

// enlist remembers a connection after its handshake by s.
func (p *Port) enlist(c *Conn, chain []*x509.Certificate, s *set) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c.chain = chain
	p.open[c] = struct{}{}
	if now := time.Now(); p.current.Load() != s && p.current.Load().accepts(chain, now) != nil {
		c.withdrawn.Store(&now) // the set has changed meanwhile
	}
}

// Withdrawn reports whether the caller of a connection showed a certificate that is not accepted
// any more.
func Withdrawn(conn net.Conn) bool {
	secure, ok := conn.(*tls.Conn)
	if !ok {
		return false
	}
	c, ok := secure.NetConn().(*Conn)
	return ok && c.withdrawn.Load() != nil
}

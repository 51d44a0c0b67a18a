package tlsport_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyporter/keyporter/internal/parts/partstest"
	"github.com/keyporter/keyporter/internal/tlsport"
)

// port is a port under test, whose connections are echoed.
type port struct {
	*tlsport.Port
	files   partstest.CertificateFiles
	address string

	mu       sync.Mutex
	causes   []tlsport.Cause
	reloads  []bool
	log      bytes.Buffer
	listener net.Listener
	conns    []net.Conn
}

// Write implements [io.Writer] for the log.
func (p *port) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.Write(b)
}

func (p *port) logged() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

func (p *port) refused() []tlsport.Cause {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.causes
}

// newPort returns a port with a certificate for the name keyporter.
func newPort(t *testing.T, c tlsport.Config, own tls.Certificate, trusted ...*partstest.Authority) *port {
	t.Helper()
	p := &port{files: partstest.NewCertificateFiles(t, own, trusted...)}
	c.Name, c.Files.Cert, c.Files.Key = "grpc", p.files.Cert, p.files.Key
	if len(trusted) > 0 {
		c.Files.ClientCA = p.files.CA
	}
	c.MinVersion, c.MustAgree = tls.VersionTLS13, true
	if c.Protocols == nil {
		c.Protocols = []string{"h2"}
	}
	c.Refused = func(cause tlsport.Cause) { p.mu.Lock(); p.causes = append(p.causes, cause); p.mu.Unlock() }
	c.Reloaded = func(ok bool) { p.mu.Lock(); p.reloads = append(p.reloads, ok); p.mu.Unlock() }
	c.Log = slog.New(slog.NewTextHandler(p, nil))
	var err error
	if p.Port, err = tlsport.New(c); err != nil {
		t.Fatal(err)
	}
	return p
}

// serve echoes on l until the test ends.
func (p *port) serve(t *testing.T, l net.Listener) {
	t.Helper()
	p.address, p.listener = l.Addr().String(), p.Listener(l)
	var running sync.WaitGroup
	running.Go(func() {
		for {
			conn, err := p.listener.Accept()
			if err != nil {
				return
			}
			p.mu.Lock()
			p.conns = append(p.conns, conn)
			p.mu.Unlock()
			running.Go(func() {
				defer conn.Close()
				io.Copy(conn, conn)
			})
		}
	})
	t.Cleanup(func() {
		p.listener.Close()
		p.mu.Lock()
		for _, conn := range p.conns {
			conn.(*tls.Conn).NetConn().Close()
		}
		p.mu.Unlock()
		running.Wait()
	})
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// echo sends a word and reads it again.
func echo(conn net.Conn) error {
	if _, err := io.WriteString(conn, "word"); err != nil {
		return err
	}
	_, err := io.ReadFull(conn, make([]byte, 4))
	return err
}

// client returns the settings of a caller that trusts an authority and shows a certificate.
func client(server *partstest.Authority, own ...tls.Certificate) *tls.Config {
	return &tls.Config{RootCAs: server.Pool(), ServerName: "keyporter", Certificates: own, NextProtos: []string{"h2"}}
}

// call does a handshake and an echo on conn.
func call(conn net.Conn, c *tls.Config) error {
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	return echo(tls.Client(conn, c))
}

// A caller gets past the handshake with an accepted certificate for an allowed name, and by nothing
// else. Each refusal is counted by its cause.
func TestCallers(t *testing.T) {
	t.Parallel()
	server, clients, others := partstest.NewAuthority(t), partstest.NewAuthority(t), partstest.NewAuthority(t)
	p := newPort(t, tlsport.Config{Files: tlsport.Files{ClientNames: []string{"envoy.example", "spiffe://example.org/ns/edge/*"}}},
		server.For(t, "keyporter"), clients)
	p.serve(t, listen(t))
	expired := partstest.Named(t, "envoy.example")
	expired.NotAfter = time.Now().Add(-time.Minute)
	forServers := partstest.Named(t, "envoy.example")
	forServers.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	named := func(names ...string) *tls.Config { return client(server, clients.For(t, names...)) }
	for _, row := range []struct {
		what string
		c    *tls.Config
		want tlsport.Cause // "": accepted
	}{
		{"an allowed DNS name", named("envoy.example"), ""},
		{"an allowed DNS name among others", named("other.example", "Envoy.Example"), ""},
		{"a SPIFFE ID below the allowed path", named("spiffe://example.org/ns/edge/sa/envoy"), ""},
		{"no certificate", client(server), tlsport.Handshake},
		{"a certificate of another authority", client(server, others.For(t, "envoy.example")), tlsport.Certificate},
		{"an expired certificate", client(server, clients.Issue(t, expired)), tlsport.Certificate},
		{"a certificate for servers only", client(server, clients.Issue(t, forServers)), tlsport.Certificate},
		{"another DNS name", named("other.example"), tlsport.Certificate},
		{"a DNS name below the allowed one", named("a.envoy.example"), tlsport.Certificate},
		{"no name", named(), tlsport.Certificate},
		{"the path itself as SPIFFE ID", named("spiffe://example.org/ns/edge"), tlsport.Certificate},
		{"a SPIFFE ID with another beginning", named("spiffe://example.org/ns/edger/sa/envoy"), tlsport.Certificate},
		{"a SPIFFE ID of another trust domain", named("spiffe://example.com/ns/edge/sa/envoy"), tlsport.Certificate},
		{"a SPIFFE ID that climbs", named("spiffe://example.org/ns/edge/../sa"), tlsport.Certificate},
		{"a SPIFFE ID that ends in a *", named("spiffe://example.org/ns/edge/*"), tlsport.Certificate},
		{"two SPIFFE IDs", named("spiffe://example.org/ns/edge/a", "spiffe://example.org/ns/edge/b"), tlsport.Certificate},
		{"TLS 1.2", &tls.Config{RootCAs: server.Pool(), ServerName: "keyporter", MaxVersion: tls.VersionTLS12}, tlsport.Handshake},
		{"HTTP/1 by ALPN", func() *tls.Config { c := named("envoy.example"); c.NextProtos = []string{"http/1.1"}; return c }(), tlsport.Protocol},
		{"no ALPN", func() *tls.Config { c := named("envoy.example"); c.NextProtos = nil; return c }(), tlsport.Protocol},
		{"no TLS", nil, tlsport.Plaintext},
	} {
		before := len(p.refused())
		conn, err := net.Dial("tcp", p.address)
		if err != nil {
			t.Fatal(err)
		}
		if row.c != nil {
			err = call(conn, row.c)
		} else {
			io.WriteString(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
			_, err = io.ReadFull(conn, make([]byte, 100))
		}
		conn.Close()
		if row.want == "" {
			if err != nil {
				t.Errorf("%s: %v", row.what, err)
			}
			continue
		}
		if err == nil {
			t.Errorf("%s: accepted", row.what)
			continue
		}
		partstest.Eventually(t, row.what+" is counted", func() bool { return len(p.refused()) > before })
		if got := p.refused()[before]; got != row.want {
			t.Errorf("%s: counted as %s, want %s", row.what, got, row.want)
		}
	}
}

// Callers that do not finish their handshake keep nobody waiting, and are closed in time.
func TestASlowHandshakeDelaysNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := partstest.NewAuthority(t)
		p := newPort(t, tlsport.Config{}, server.For(t, "keyporter"))
		l := make(memory, 1)
		p.serve(t, l)
		began := time.Now()
		var silent []net.Conn
		for range 300 { // more than may be in their handshake
			silent = append(silent, l.connect())
		}
		synctest.Wait()
		conn := l.connect()
		if err := call(conn, client(server)); err != nil || time.Since(began) > 0 {
			t.Errorf("another caller: %v after %v", err, time.Since(began))
		}
		conn.Close()
		for _, c := range silent {
			io.Copy(io.Discard, c)
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("the last silent caller is closed after %v", took)
		}
		synctest.Wait()
		counted := map[tlsport.Cause]int{}
		for _, cause := range p.refused() {
			counted[cause]++
		}
		if counted[tlsport.Crowded] != 300-255 || counted[tlsport.Slow] != 255 {
			t.Errorf("refused: %v\n%s", counted, p.logged())
		}
	})
}

// memory is a listener for connections in memory.
type memory chan net.Conn

func (l memory) connect() net.Conn {
	ours, theirs := net.Pipe()
	l <- ours
	return theirs
}

func (l memory) Accept() (net.Conn, error) {
	if c, ok := <-l; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}
func (l memory) Close() error { close(l); return nil }
func (memory) Addr() net.Addr { return &net.UnixAddr{} }

// run rereads the files while the test runs, in virtual time, and counts the calls of retire.
func (p *port) run(t *testing.T) (retired *atomic.Int32) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	retired = new(atomic.Int32)
	var running sync.WaitGroup
	running.Go(func() { p.Run(ctx, func() { retired.Add(1) }) })
	t.Cleanup(func() { cancel(); running.Wait() })
	return retired
}

// look waits until changed files have been read.
func look() { time.Sleep(3 * time.Second); synctest.Wait() }

// New files are in use for the next handshake and break no connection. The callers that they do not
// accept any more have their connections for the grace period; all others keep theirs.
func TestNewFilesAreUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		before, after := partstest.NewAuthority(t), partstest.NewAuthority(t)
		first, second := before.For(t, "keyporter"), after.For(t, "keyporter")
		old, fresh := before.For(t, "envoy"), after.For(t, "envoy")
		p := newPort(t, tlsport.Config{Grace: 30 * time.Second}, first, before)
		l := make(memory, 1)
		p.serve(t, l)
		retired := p.run(t)
		stays, err := tls.Client(l.connect(), client(before, old)), error(nil)
		if err = echo(stays); err != nil {
			t.Fatal(err)
		}
		p.files.Write(t, second, before, after)
		look()
		if err := call(l.connect(), client(after, fresh)); err != nil {
			t.Errorf("with the new certificates: %v", err)
		}
		if err := call(l.connect(), client(before, old)); err == nil {
			t.Error("the old certificate of the port is still in use")
		}
		if err := call(l.connect(), client(after, old)); err != nil {
			t.Errorf("with the old certificate of a caller, while it is accepted: %v", err)
		}
		if err := echo(stays); err != nil || retired.Load() > 0 {
			t.Errorf("on a connection from before: %v", err)
		}

		p.files.Write(t, second, after)
		look()
		if err := call(l.connect(), client(after, old)); err == nil {
			t.Error("a caller of a removed authority is accepted")
		}
		if err := echo(stays); err != nil || retired.Load() != 1 {
			t.Errorf("in the grace period: %v, asked to leave %d times", err, retired.Load())
		}
		time.Sleep(31 * time.Second)
		if err := echo(stays); err == nil {
			t.Error("the connection of a caller of a removed authority stays")
		}
	})
}

// A caller whose certificate expires is asked to leave.
func TestAnExpiredCallerIsAskedToLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := partstest.NewAuthority(t)
		soon := partstest.Named(t, "envoy")
		soon.NotAfter = time.Now().Add(time.Minute)
		p := newPort(t, tlsport.Config{Grace: 30 * time.Second}, a.For(t, "keyporter"), a)
		l := make(memory, 1)
		p.serve(t, l)
		retired := p.run(t)
		conn := tls.Client(l.connect(), client(a, a.Issue(t, soon)))
		if err := echo(conn); err != nil || retired.Load() > 0 {
			t.Fatal(err)
		}
		time.Sleep(time.Minute + 2*time.Second)
		if err := echo(conn); err != nil || retired.Load() != 1 {
			t.Errorf("after the end of its certificate: %v, asked to leave %d times", err, retired.Load())
		}
		time.Sleep(31 * time.Second)
		if err := echo(conn); err == nil {
			t.Error("the connection stays")
		}
	})
}

// Files that cannot be used change nothing. That is logged once, and good ones end it.
func TestFilesThatCannotBeUsedChangeNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := partstest.NewAuthority(t)
		own, other := a.For(t, "keyporter"), a.For(t, "keyporter")
		expired := partstest.Named(t, "keyporter")
		expired.NotAfter = time.Now().Add(-time.Minute)
		for what, spoil := range map[string]func(p *port) error{
			"no key":         func(p *port) error { return os.Remove(p.files.Key) },
			"no PEM":         func(p *port) error { return os.WriteFile(p.files.Cert, []byte("no PEM"), 0o600) },
			"no authority":   func(p *port) error { return os.WriteFile(p.files.CA, nil, 0o600) },
			"a folder":       func(p *port) error { os.Remove(p.files.CA); return os.Mkdir(p.files.CA, 0o700) },
			"an expired one": func(p *port) error { p.files.Write(t, a.Issue(t, expired), a); return nil },
			"another one's key": func(p *port) error {
				f := partstest.NewCertificateFiles(t, other)
				text, err := os.ReadFile(f.Key)
				if err != nil {
					return err
				}
				return os.WriteFile(p.files.Key, text, 0o600)
			},
		} {
			p := newPort(t, tlsport.Config{}, own, a)
			l := make(memory, 1)
			p.serve(t, l)
			p.run(t)
			if err := spoil(p); err != nil {
				t.Fatal(err)
			}
			for range 5 {
				look()
			}
			if err := call(l.connect(), client(a, other)); err != nil {
				t.Errorf("%s: the previous files are not in use: %v", what, err)
			}
			if n := strings.Count(p.logged(), "new TLS files cannot be used: the previous ones stay"); n != 1 || len(p.reloads) != 1 || p.reloads[0] {
				t.Errorf("%s: logged %d times, %v\n%s", what, n, p.reloads, p.logged())
			}
		}
	})
}

// A service starts with an expired certificate, and says so.
func TestAnExpiredCertificateAtTheStart(t *testing.T) {
	t.Parallel()
	a := partstest.NewAuthority(t)
	expired := partstest.Named(t, "keyporter")
	expired.NotAfter = time.Now().Add(-time.Minute)
	p := newPort(t, tlsport.Config{}, a.Issue(t, expired))
	if !strings.Contains(p.logged(), "level=ERROR") || !strings.Contains(p.logged(), "expired") {
		t.Errorf("logged: %s", p.logged())
	}
	if left := time.Until(p.Expires()); left > 0 || left < -2*time.Minute {
		t.Errorf("it expires in %v", left)
	}
}

// Half a set of settings, and files that do not fit, are errors that name the setting or the file.
func TestMistakesInTheSettings(t *testing.T) {
	t.Parallel()
	a := partstest.NewAuthority(t)
	good, other := partstest.NewCertificateFiles(t, a.For(t, "keyporter"), a), partstest.NewCertificateFiles(t, a.For(t, "keyporter"))
	missing := filepath.Join(t.TempDir(), "missing")
	for _, row := range []struct {
		files tlsport.Files
		want  string // "": no error
	}{
		{tlsport.Files{}, ""},
		{tlsport.Files{Cert: good.Cert, Key: good.Key}, ""},
		{tlsport.Files{Cert: good.Cert, Key: good.Key, ClientCA: good.CA, ClientNames: []string{"envoy", "spiffe://example.org/*"}}, ""},
		{tlsport.Files{Cert: good.Cert}, "--grpc-tls-cert: needs --grpc-tls-key"},
		{tlsport.Files{Key: good.Key}, "--grpc-tls-key: needs --grpc-tls-cert"},
		{tlsport.Files{ClientCA: good.CA}, "--grpc-tls-client-ca: needs --grpc-tls-cert"},
		{tlsport.Files{Cert: good.Cert, Key: good.Key, ClientNames: []string{"envoy"}}, "--grpc-tls-client-names: needs --grpc-tls-client-ca"},
		{tlsport.Files{Cert: good.Cert, Key: good.Key, ClientCA: good.CA, ClientNames: []string{"*.envoy"}}, `"*.envoy" is neither a DNS name`},
		{tlsport.Files{Cert: good.Cert, Key: good.Key, ClientCA: good.CA, ClientNames: []string{"spiffe://example.org/a*"}}, "is no SPIFFE ID"},
		{tlsport.Files{Cert: missing, Key: good.Key}, missing},
		{tlsport.Files{Cert: good.Cert, Key: other.Key}, "are no certificate with its key"},
		{tlsport.Files{Cert: good.Cert, Key: good.Key, ClientCA: other.CA}, "there is no certificate (PEM) in it"},
		{tlsport.Files{Cert: good.Cert, Key: good.Key, ClientCA: t.TempDir()}, "is no file that can be read again"},
	} {
		err := row.files.Check("grpc")
		if row.want == "" && err != nil || row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)) {
			t.Errorf("%+v: %v, want %q", row.files, err, row.want)
		}
	}
}

// An HTTP server answers a caller that is not accepted any more once, and takes its certificate for
// none.
func TestHTTPServersEndWithdrawnConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		before, after := partstest.NewAuthority(t), partstest.NewAuthority(t)
		p := newPort(t, tlsport.Config{Grace: time.Minute, Protocols: []string{"http/1.1"}}, before.For(t, "keyporter"), before)
		l := make(memory, 1)
		p.run(t)
		s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, strings.Join(tlsport.NamesOfCaller(r), ","))
		})}
		tlsport.Prepare(s)
		var running sync.WaitGroup
		running.Go(func() { s.Serve(p.Listener(l)) })
		defer running.Wait()
		c := client(before, before.For(t, "billing"))
		c.NextProtos = []string{"http/1.1"}
		conn := tls.Client(l.connect(), c)
		defer s.Close()
		defer conn.NetConn().Close()
		ask := func() (string, bool) {
			if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 4096)
			n, _ := conn.Read(b)
			head, body, _ := strings.Cut(string(b[:n]), "\r\n\r\n")
			return body, strings.Contains(head, "Connection: close")
		}
		if names, closes := ask(); names != "billing" || closes {
			t.Errorf("at first: %q, %t", names, closes)
		}
		p.files.Write(t, before.For(t, "keyporter"), after)
		look()
		if names, closes := ask(); names != "" || !closes {
			t.Errorf("then: %q, %t", names, closes)
		}
	})
}

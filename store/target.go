package store

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/lib/pq"
)

const (
	// connectTimeout limits an attempt to connect to one address, unless the URL has a
	// connect_timeout. Callers' deadlines do not shorten it: it leaves room for one lost answer of
	// a name server (5 s), and a slow handshake.
	connectTimeout = 10 * time.Second
	// dialTimeout is how long an address may be silent before the next one is tried.
	dialTimeout = 4 * time.Second
)

// target is the PostgreSQL server of a URL: the primary among one or more addresses.
type target struct {
	config pq.Config // for each address
	dsn    string    // the same for the driver's listener
	all    []endpoint
	// unsynced counts the commits that PostgreSQL reported as made although no standby has them.
	unsynced atomic.Int64
	resolve  func(ctx context.Context, host string) ([]netip.Addr, error)
	last     atomic.Pointer[endpoint] // the last primary
}

// endpoint is one of the hosts of a URL, or one of its addresses.
type endpoint struct {
	host string
	addr netip.Addr
	port uint16
}

func (e endpoint) socket() bool { return filepath.IsAbs(e.host) || strings.HasPrefix(e.host, "@") }

func newTarget(dsn string) (*target, error) {
	// The driver adds the hosts of a variable to those of the URL.
	for _, name := range []string{"PGHOST", "PGHOSTADDR", "PGPORT"} {
		if strings.Contains(os.Getenv(name), ",") && (strings.Contains(dsn, "host") || strings.Contains(dsn, "port=")) {
			return nil, fmt.Errorf("the environment variable %s names several, and so the URL must name no host: unset it", name)
		}
	}
	config, err := pq.NewConfig(dsn)
	if err != nil {
		return nil, err
	}
	config.BinaryParameters = true // one round trip for a query with parameters, and no named statements
	if config.ConnectTimeout <= 0 {
		config.ConnectTimeout = connectTimeout
	}
	t := &target{config: config, all: []endpoint{{config.Host, config.Hostaddr, config.Port}}}
	for _, m := range config.Multi {
		t.all = append(t.all, endpoint{m.Host, m.Hostaddr, m.Port})
	}
	t.config.Multi = nil
	t.config.TargetSessionAttrs = pq.TargetSessionAttrsAny // inRecovery checks all of them
	// The listener tries the addresses by itself. LISTEN fails on a standby.
	t.dsn = fmt.Sprintf("%s target_session_attrs=primary connect_timeout=%d", dsn, int(config.ConnectTimeout/time.Second))
	t.resolve = func(ctx context.Context, host string) ([]netip.Addr, error) {
		return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	}
	return t, nil
}

// endpoints returns all addresses of all hosts in the order of attempts. The last primary comes
// first.
func (t *target) endpoints(ctx context.Context) (all []endpoint, err error) {
	ctx, cancel := context.WithTimeout(ctx, t.config.ConnectTimeout)
	defer cancel()
	for _, e := range t.all {
		if e.socket() || e.addr.IsValid() {
			all = append(all, e)
			continue
		}
		if addr, problem := netip.ParseAddr(e.host); problem == nil {
			all = append(all, endpoint{e.host, addr, e.port})
			continue
		}
		addrs, problem := t.resolve(ctx, e.host)
		err = errors.Join(err, problem)
		for _, addr := range addrs {
			all = append(all, endpoint{e.host, addr.Unmap(), e.port})
		}
	}
	if len(all) == 0 {
		return nil, err
	}
	if t.config.LoadBalanceHosts == pq.LoadBalanceHostsRandom {
		rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	}
	if last := t.last.Load(); last != nil {
		slices.SortStableFunc(all, func(a, b endpoint) int { return after(a == *last) - after(b == *last) })
	}
	return all, nil
}

func after(first bool) int {
	if first {
		return 0
	}
	return 1
}

// open connects to the primary. A connection on which the server is silent for that long during a
// wait is given up as half open.
func (t *target) open(ctx context.Context, silence time.Duration) (*link, error) {
	all, err := t.endpoints(ctx)
	if err != nil {
		return nil, err
	}
	var problems attempts
	for _, e := range all {
		l, err := t.openAt(ctx, e, silence)
		if err == nil {
			t.last.Store(&e)
			return l, nil
		}
		if code(err) == tooManyConnections {
			err = fmt.Errorf("%w: %w", errFull, err)
		}
		if len(all) > 1 {
			err = fmt.Errorf("%s: %w", net.JoinHostPort(e.host, fmt.Sprint(e.port)), err)
		}
		problems = append(problems, err)
		if ctx.Err() != nil {
			break
		}
	}
	if len(problems) == 1 {
		return nil, problems[0]
	}
	return nil, problems
}

const tooManyConnections = "53300"

// attempts holds the errors of several addresses, printed in one line.
type attempts []error

func (a attempts) Error() string {
	texts := make([]string, len(a))
	for i, err := range a {
		texts[i] = err.Error()
	}
	return strings.Join(texts, "; ")
}

func (a attempts) Unwrap() []error { return a }

func (t *target) openAt(ctx context.Context, e endpoint, silence time.Duration) (*link, error) {
	config := t.config.Clone()
	config.Host, config.Hostaddr, config.Port = e.host, e.addr, e.port
	connector, err := pq.NewConnectorConfig(config)
	if err != nil {
		return nil, err
	}
	d := &dialer{ctx: ctx, silence: silence}
	connector.Dialer(d)
	conn, err := connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	if err := t.prepare(ctx, conn); err != nil {
		conn.Close()
		return nil, err
	}
	wire, open := d.established()
	if !open {
		conn.Close()
		return nil, context.Cause(ctx)
	}
	life := connectionLife + rand.N(connectionLife/4) // so that replicas do not reconnect all at once
	return &link{session: conn.(session), wire: wire, ends: time.Now().Add(life)}, nil
}

// prepare rejects a standby, and counts commits that the server reports to lack their standby.
func (t *target) prepare(ctx context.Context, conn driver.Conn) error {
	standby, err := inRecovery(context.WithoutCancel(ctx), conn)
	if err != nil {
		return err
	}
	if standby {
		return ErrReplica
	}
	pq.SetNoticeHandler(conn, func(notice *pq.Error) {
		// The routine identifies the notice, since its code is that of any warning and its text is
		// translated.
		if notice.Routine == "SyncRepWaitForLSN" {
			t.unsynced.Add(1)
		}
	})
	return nil
}

// dialer makes connections that detect a silent peer. While the driver connects, only its own
// deadline applies.
type dialer struct {
	ctx     context.Context // its end closes a connection that is not established yet
	silence time.Duration
	// established; later connections cancel a statement
	done    atomic.Bool
	latest  atomic.Pointer[watched]                                      // the last one dialled
	keep    func() bool                                                  // detaches it from ctx
	turn    int                                                          // of a listener's attempt
	resolve func(ctx context.Context, host string) ([]netip.Addr, error) // for a listener
}

// established returns the established connection, which no longer ends with ctx. It is not open if
// ctx ended first: the connection is being closed.
func (d *dialer) established() (wire net.Conn, open bool) {
	d.done.Store(true)
	return d.latest.Load(), d.keep()
}

func (d *dialer) Dial(network, address string) (net.Conn, error) {
	return d.DialContext(d.ctx, network, address)
}

func (d *dialer) DialTimeout(network, address string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(d.ctx, timeout)
	defer cancel()
	return d.DialContext(ctx, network, address)
}

func (d *dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if d.resolve != nil && network == "tcp" {
		var err error
		if address, err = d.next(ctx, address); err != nil {
			return nil, err
		}
	}
	conn, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	w := &watched{Conn: conn, silence: d.silence}
	if d.done.Load() {
		w.hurried = true
		return w, nil
	}
	if d.keep != nil {
		d.keep()
	}
	d.latest.Store(w)
	d.keep = context.AfterFunc(d.ctx, func() { conn.Close() })
	return w, nil
}

// next returns another address of a host each time.
func (d *dialer) next(ctx context.Context, address string) (string, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil || net.ParseIP(host) != nil {
		return address, err
	}
	addrs, err := d.resolve(ctx, host)
	if err != nil || len(addrs) == 0 {
		return "", errors.Join(errors.New("no address of "+host), err)
	}
	d.turn++
	return net.JoinHostPort(addrs[(d.turn-1)%len(addrs)].Unmap().String(), port), nil
}

// watched sets a deadline for each read and write. An idle connection does neither.
type watched struct {
	net.Conn
	silence time.Duration
	hurried bool                      // applies silence even if the driver has set a deadline
	fixed   atomic.Pointer[time.Time] // the driver's deadline, if any: it still applies
}

func (w *watched) SetDeadline(t time.Time) error {
	w.fixed.Store(&t)
	return w.Conn.SetDeadline(t)
}

func (w *watched) deadline() time.Time {
	t := time.Now().Add(w.silence)
	fixed := w.fixed.Load()
	if fixed != nil && !fixed.IsZero() && (!w.hurried || fixed.Before(t)) {
		return *fixed
	}
	return t
}

func (w *watched) Read(b []byte) (int, error) {
	if err := w.SetReadDeadline(w.deadline()); err != nil {
		return 0, err
	}
	return w.Conn.Read(b)
}

func (w *watched) Write(b []byte) (int, error) {
	if err := w.SetWriteDeadline(w.deadline()); err != nil {
		return 0, err
	}
	return w.Conn.Write(b)
}

// checkFiles checks the certificate files as the driver reads them, and that the optional ones
// exist.
func (t *target) checkFiles() error {
	if t.config.SSLMode == pq.SSLModeDisable || t.config.SSLInline || t.all[0].socket() {
		return nil
	}
	for name, file := range map[string]string{"sslrootcert": t.config.SSLRootCert, "sslcert": t.config.SSLCert, "sslkey": t.config.SSLKey} {
		if file == "" || name == "sslrootcert" && file == "system" {
			continue
		}
		if _, err := os.ReadFile(file); err != nil {
			return fmt.Errorf("%s of the database: %w", name, err)
		}
	}
	connector, err := pq.NewConnectorConfig(t.config)
	if err != nil {
		return err
	}
	connector.Dialer(noDialer{})
	// An error of the driver before it sends anything is about the files.
	if _, err = connector.Connect(context.Background()); errors.Is(err, errNotSent) {
		return nil
	}
	return fmt.Errorf("the certificates of the database: %w", err)
}

var errNotSent = errors.New("nothing is sent")

// noDialer makes connections on which nothing can be sent.
type noDialer struct{}

func (noDialer) Dial(string, string) (net.Conn, error)                       { return deadEnd{}, nil }
func (noDialer) DialTimeout(string, string, time.Duration) (net.Conn, error) { return deadEnd{}, nil }

type deadEnd struct{ net.Conn }

func (deadEnd) SetDeadline(time.Time) error { return nil }
func (deadEnd) Write([]byte) (int, error)   { return 0, errNotSent }
func (deadEnd) Close() error                { return nil }

package envoy

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

	"github.com/keyporter/keyporter/bearer"
	"github.com/keyporter/keyporter/envoy/transport"
)

// The bounds on the resources of callers that have shown no token (strangers). Such a caller can
// only ask for the server's health, about once a second, in a few hundred bytes. Its data is held
// while its call is open, so these bounds also limit the memory of all strangers together.
const (
	// maxStrangers is the maximum number of their connections. A new one ends the oldest of the
	// address with the most connections, so a caller with many connections keeps nobody out: an
	// Envoy shows its token in the first call.
	maxStrangers = 128
	// maxStrangerCalls is the maximum number of their open calls on one connection.
	maxStrangerCalls = 4
	// strangerCall is the maximum time of one call, so that an announced message must also arrive.
	strangerCall = 5 * time.Second
	// strangerBurst and strangerPace limit what one of their connections may send: at once, in
	// bytes, and in each second after that. A connection that sends more is closed.
	strangerBurst = 16 << 10
	strangerPace  = 4 << 10
)

// callers lets only callers with the token ask, and watches the connections that have shown none.
type callers struct {
	token    atomic.Pointer[bearer.Token]
	log      *slog.Logger
	refusals prometheus.Counter // calls
	closed   prometheus.Counter // connections
	lines    logLimiter         // of refusals in the log

	mu        sync.Mutex
	strangers []*callerConn // oldest first, at most maxStrangers; guarded by mu
}

// listener watches the connections that l accepts.
func (c *callers) listener(l net.Listener) net.Listener { return callerListener{l, c} }

type callerListener struct {
	net.Listener
	callers *callers
}

func (l callerListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.callers.add(conn), nil
}

// add registers a new connection. It closes a stranger's connection if there are too many.
func (c *callers) add(conn net.Conn) *callerConn {
	added := &callerConn{Conn: conn, from: networkOf(conn), callers: c, left: strangerBurst, at: time.Now()}
	if victim := c.list(added); victim != nil {
		victim.refuse()
		victim.cut() // its reader cleans up
	}
	return added
}

// list adds a connection to the list of strangers. If the list is full, it first removes and
// returns another one.
func (c *callers) list(added *callerConn) (victim *callerConn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.strangers) == maxStrangers {
		i := c.victim()
		victim = c.strangers[i]
		c.strangers = slices.Delete(c.strangers, i, i+1)
	}
	c.strangers = append(c.strangers, added)
	return victim
}

// victim returns the index of the connection to close: the oldest of the address with the most
// connections. To outpace an Envoy's first call, an attacker needs as many addresses. It must be
// called with mu held.
func (c *callers) victim() int {
	counts := map[netip.Prefix]int{}
	for _, s := range c.strangers {
		counts[s.from]++
	}
	victim := 0
	for i, s := range c.strangers {
		if counts[s.from] > counts[c.strangers[victim].from] {
			victim = i
		}
	}
	return victim
}

// networkOf returns the origin of a connection: an address, or with IPv6 the network of one
// machine. It is zero without one, as on a Unix socket.
func networkOf(conn net.Conn) netip.Prefix {
	tcp, ok := conn.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	address := tcp.AddrPort().Addr().Unmap().WithZone("")
	network, _ := address.Prefix(min(address.BitLen(), 64))
	return network
}

// remove takes a connection off the list of strangers: it has shown a token, or has ended.
func (c *callers) remove(conn *callerConn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i := slices.Index(c.strangers, conn); i >= 0 {
		c.strangers = slices.Delete(c.strangers, i, i+1)
	}
}

// callerConn is a connection. A stranger can send only little on it.
type callerConn struct {
	net.Conn
	from    netip.Prefix // its address
	callers *callers
	known   atomic.Bool  // its caller has shown the token
	calls   atomic.Int32 // open calls of a stranger
	refused atomic.Bool  // it is counted as closed

	// The bytes that may still be sent, as of a time. Only the reader touches these.
	left int
	at   time.Time
}

var errTalkative = errors.New("a caller without the token has sent too much")

// Read fails if a stranger has sent more than it may. Each read is returned whole, because it may
// contain the token: only the next read fails.
func (c *callerConn) Read(p []byte) (int, error) {
	if !c.known.Load() && c.left+c.earned() < 0 {
		c.refuse()
		return 0, errTalkative
	}
	n, err := c.Conn.Read(p)
	if !c.known.Load() {
		c.left, c.at = min(strangerBurst, c.left+c.earned())-n, time.Now()
	}
	return n, err
}

// cut closes the connection at once. With TLS, Close would first take its time to say so to the peer.
func (c *callerConn) cut() {
	if secure, ok := c.Conn.(interface{ NetConn() net.Conn }); ok {
		secure.NetConn().Close()
		return
	}
	c.Conn.Close()
}

// refuse counts a stranger's connection that is closed.
func (c *callerConn) refuse() {
	if c.refused.CompareAndSwap(false, true) {
		c.callers.closed.Inc()
	}
}

// earned is the number of bytes that may be sent beyond left by now.
func (c *callerConn) earned() int {
	return int(time.Since(c.at) * strangerPace / time.Second)
}

// CloseWrite ends our half of the connection, where its kind has halves.
func (c *callerConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

func (c *callerConn) Close() error {
	c.callers.remove(c)
	return c.Conn.Close()
}

// introduce records that the caller has shown the token.
func (c *callerConn) introduce() {
	if !c.known.Load() {
		c.known.Store(true)
		c.callers.remove(c)
	}
}

// bound returns the context of a stranger's call, which ends soon, or false if too many calls are
// open.
func (c *callerConn) bound(ctx context.Context) (context.Context, bool) {
	if c.calls.Add(1) > maxStrangerCalls {
		c.calls.Add(-1)
		return ctx, false
	}
	bound, cancel := context.WithTimeout(ctx, strangerCall)
	context.AfterFunc(ctx, func() { cancel(); c.calls.Add(-1) }) // ctx ends with the call
	return bound, true
}

// AuthType implements [credentials.AuthInfo], by which a call finds its connection.
func (c *callerConn) AuthType() string { return "" }

// introductions are no credentials: they let calls find their connection.
type introductions struct {
	credentials.TransportCredentials
}

func (introductions) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	caller, ok := conn.(*callerConn)
	if !ok {
		return nil, nil, errors.New("a connection that nobody watches")
	}
	return conn, caller, nil
}

func (introductions) Info() credentials.ProtocolInfo            { return credentials.ProtocolInfo{} }
func (i introductions) Clone() credentials.TransportCredentials { return i }

// healthService is open to all: the kubelet and other probes have no token.
var healthService = "/" + healthpb.Health_ServiceDesc.ServiceName + "/"

// admission decides what a caller may do, before anything but the headers of its call is read. Only
// callers with the token may call anything but the health service. If a Check is refused, Envoy
// answers its client with 503.
func (c *callers) admission(conn *callerConn, method string, authorization []string) transport.Admission {
	if c.token.Load().Opens(authorization) {
		conn.introduce()
		return transport.Admitted
	}
	if strings.HasPrefix(method, healthService) {
		return transport.Limited
	}
	c.refusals.Inc()
	if suppressed, ok := c.lines.allow(time.Now()); ok {
		c.log.Warn("gRPC caller refused: no token, or a wrong one", "caller", conn.RemoteAddr().String(), "suppressed", suppressed)
	}
	return transport.Refused
}

// admit checks a call of grpc-go.
func (c *callers) admit(ctx context.Context, call *tap.Info) (context.Context, error) {
	conn := connOf(ctx)
	switch c.admission(conn, call.FullMethodName, call.Header["authorization"]) {
	case transport.Admitted:
		if call.FullMethodName == accesslogv3.AccessLogService_StreamAccessLogs_FullMethodName {
			return lingering(ctx), nil
		}
		return ctx, nil
	case transport.Limited:
		if bound, ok := conn.bound(ctx); ok {
			return bound, nil
		}
		return ctx, status.Error(codes.ResourceExhausted, "too many calls at a time for a caller without the gRPC token")
	}
	return ctx, status.Error(codes.Unauthenticated, "this port requires the gRPC token as authorization: Bearer TOKEN")
}

// lingers is how much longer than its call the context of an access log lasts.
const lingers = 250 * time.Millisecond

// lingering returns a context that ends a little after ctx. At the end of a call's context, gRPC
// drops what has arrived and is not read yet. An Envoy's last entries arrive together with the end.
func lingering(ctx context.Context) context.Context {
	late, end := context.WithCancel(context.WithoutCancel(ctx))
	context.AfterFunc(ctx, func() { time.AfterFunc(lingers, end) })
	return late
}

// connOf returns the connection of a call.
func connOf(ctx context.Context) *callerConn {
	p, _ := peer.FromContext(ctx)
	return p.AuthInfo.(*callerConn) // set by introductions
}

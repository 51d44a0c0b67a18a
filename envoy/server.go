package envoy

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/health"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/bearer"
	"github.com/keyporter/keyporter/envoy/codec"
	"github.com/keyporter/keyporter/usage"
)

// The defaults of a [Config].
const (
	DefaultTimeout    = 150 * time.Millisecond
	DefaultDrainDelay = 3 * time.Second
)

// maxStreams is the maximum number of calls on a connection. An Envoy opens a connection per worker
// thread, and another when this many calls wait on one.
const maxStreams = 1024

// Config configures a [Server]. Only Authorize is required.
type Config struct {
	// Authorize decides. An error means that it could not, and is answered with 503. It must
	// respect the context and be safe for concurrent use. With a context of [nowait.Context] it
	// returns [nowait.ErrWouldWait] in place of waiting, without an effect, and is asked again.
	Authorize func(context.Context, *authz.Request) (authz.Decision, error)

	// Void undoes the charge of a decision that did not reach the caller. Nil: charges stand.
	Void func(usage.Charge)

	// Mask hides keys of other systems in a text that a record of the access log keeps. Nil: there
	// are none.
	Mask func(string) string

	// Cause names why a decision failed, for metrics and the log: one of Causes, or "" if unknown.
	// Nil: always unknown.
	Cause  func(error) string
	Causes []string

	// OnComplete receives the completion of each request with somebody's key, live or revoked. A
	// caller could have sent all of it: only the receipt of a charged request is authenticated. It
	// must be safe for concurrent use and must not block: Envoy drops entries meanwhile. Nil: the
	// access log is read and dropped.
	OnComplete func(usage.Completion)

	// Token is the token that callers must send; without one, anybody who reaches the listener may
	// ask.
	Token bearer.Token

	// Codec selects how messages are read and written; their content is the same.
	Codec codec.Kind

	// Selection selects what the answers to allowed requests carry.
	Selection codec.Selection

	// Transport selects how calls are carried; the answers are the same.
	Transport Transport

	// Timeout bounds one decision. It counts within the caller's own deadline, see [Server.Check].
	// 0: DefaultTimeout.
	Timeout time.Duration

	// DrainDelay is how long Shutdown continues to accept calls after it has told the health
	// checks. It must be longer than Envoy takes to notice: interval × unhealthy_threshold of its
	// health check, 2 s in the generated bootstrap. 0: DefaultDrainDelay; negative: none.
	DrainDelay time.Duration

	Log     *slog.Logger          // nil: slog.Default()
	Metrics prometheus.Registerer // nil: not registered
}

// carrier accepts connections and carries their calls.
type carrier interface {
	// Serve returns an error at once if it cannot go on, or one that says that Shutdown was called.
	Serve(l net.Listener) error
	// Shutdown takes no new calls and returns when the last one is answered. If ctx ends first, it
	// cuts them off and returns ctx's error.
	Shutdown(ctx context.Context) error
	// Forget ends all remembered rights of callers.
	Forget()
	// Drain ends some connections in good order, as far as it can. It does not wait for that.
	Drain(which func(net.Conn) bool)
}

// Server answers Envoy's ext_authz v3 calls and the health checks of grpc.health.v1, and reads
// Envoy's access log.
type Server struct {
	authv3.UnimplementedAuthorizationServer

	config     Config
	log        *slog.Logger
	metrics    *metrics
	health     *health.Server
	carrier    carrier
	buffers    *codec.BufferPool
	unreported unreported
	callers    callers

	trying context.Context // of Checks that may not wait

	// stopping ends when the streams of access logs must end; readers are the goroutines that read
	// them.
	stopping context.Context
	stop     context.CancelFunc
	readers  sync.WaitGroup

	panics  logLimiter
	foreign logLimiter // of connections that are not HTTP/2
}

// SetToken replaces the token that later calls must send.
func (s *Server) SetToken(t bearer.Token) {
	s.callers.token.Store(&t)
	s.carrier.Forget()
}

// Retire ends some of the connections that Serve got from its listener, each when its calls are
// answered. It does not wait for that. [GRPCTransport] cannot end one alone: there it does nothing,
// and connections end by their age, after 6 min at most.
func (s *Server) Retire(which func(net.Conn) bool) {
	s.carrier.Drain(func(conn net.Conn) bool {
		caller, ok := conn.(*callerConn)
		return ok && which(caller.Conn)
	})
}

// Unreported returns how long charges have been made without an access log entry for one; 0 if the
// last entry named one, or none is awaited. The second result says whether entries have arrived,
// but named none.
func (s *Server) Unreported() (time.Duration, bool) { return s.unreported.lasting() }

// panicked logs a panic, with its stack but without its value: that may quote the request.
func (s *Server) panicked(message string, p any) {
	suppressed, ok := s.panics.allow(time.Now())
	if !ok {
		return
	}
	what := fmt.Sprintf("%T", p)
	if e, ok := p.(runtime.Error); ok {
		what = e.Error() // the runtime's own text: an index, a nil pointer, a type
	}
	s.log.Error(message, "panic", what, "stack", string(debug.Stack()), "suppressed", suppressed)
}

package envoy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/protobuf/proto"

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

// Config configures a [Server]. Only Authorize is required.
type Config struct {
	// Authorize decides. An error means that it could not, and is answered with 503. It must
	// respect the context and be safe for concurrent use.
	Authorize func(context.Context, *authz.Request) (authz.Decision, error)

	// Void undoes the charge of a decision that did not reach the caller. Nil: charges stand.
	Void func(usage.Charge)

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

// The bounds on the resources of one caller.
const (
	// maxReceivedSize is the maximum size of a message that gRPC reads: the longest possible Check,
	// from an Envoy with the largest allowed headers (max_request_headers_kb: 8192). gRPC's error
	// would be a 503 to the client on every attempt.
	maxReceivedSize = 17 << 20
	// maxStreams is the maximum number of calls on a connection. An Envoy opens a connection per
	// worker thread, and another when this many calls wait on one.
	maxStreams = 1024
	// maxMetadataSize bounds the metadata of a call: the token, a trace context, a few bytes of
	// Envoy's own.
	maxMetadataSize = 16 << 10
	// handshakeTimeout is the maximum time in which a new connection must begin to speak HTTP/2.
	handshakeTimeout = 5 * time.Second
)

// streamWorkers is the number of goroutines that wait for calls: as many as are usually in flight
// at once, including the streams of access logs. Further calls get goroutines of their own.
const streamWorkers = 256

// Server answers Envoy's ext_authz v3 calls and the health checks of grpc.health.v1, and reads
// Envoy's access log.
type Server struct {
	authv3.UnimplementedAuthorizationServer

	config     Config
	log        *slog.Logger
	metrics    *metrics
	token      atomic.Pointer[bearer.Token]
	health     *health.Server
	grpc       *grpc.Server
	buffers    *codec.BufferPool
	unreported unreported
	callers    callers

	// stopping ends when the streams of access logs must end; readers are the goroutines that read
	// them.
	stopping context.Context
	stop     context.CancelFunc
	readers  sync.WaitGroup

	panics, strangers logLimiter
}

// NewServer returns a Server; call [Server.Serve] to start it.
func NewServer(c Config) *Server {
	if c.Timeout == 0 {
		c.Timeout = DefaultTimeout
	}
	if c.DrainDelay == 0 {
		c.DrainDelay = DefaultDrainDelay
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Cause == nil {
		c.Cause = func(error) string { return "" }
	}
	if c.Void == nil {
		c.Void = func(usage.Charge) {}
	}
	if c.OnComplete == nil {
		c.OnComplete = func(usage.Completion) {}
	}
	s := &Server{config: c, log: c.Log, metrics: newMetrics(c.Metrics, c.Causes), health: health.NewServer(), buffers: codec.NewBufferPool()}
	s.unreported.began = time.Now()
	s.SetToken(c.Token)
	s.stopping, s.stop = context.WithCancel(context.Background())
	s.grpc = grpc.NewServer(append(s.options(), grpc.Creds(introductions{}), grpc.InTapHandle(s.admit))...)
	s.register()
	healthpb.RegisterHealthServer(s.grpc, s.health)
	s.health.SetServingStatus(authv3.Authorization_ServiceDesc.ServiceName, healthpb.HealthCheckResponse_SERVING)
	return s
}

// register adds the services for Envoy.
func (s *Server) register() {
	checks := authv3.Authorization_ServiceDesc
	if s.config.Codec == codec.Fast {
		checks.Methods = []grpc.MethodDesc{{MethodName: checks.Methods[0].MethodName, Handler: s.checkInPlace}}
	}
	s.grpc.RegisterService(&checks, s)
	accesslogv3.RegisterAccessLogServiceServer(s.grpc, accessLog{server: s})
}

// options are the bounds on callers, and the settings that make an answer cheap.
func (s *Server) options() []grpc.ServerOption {
	options := limits()
	if s.config.Codec == codec.Fast {
		options = append(options, grpc.ForceServerCodecV2(codec.NewGRPC(s.buffers)), experimental.BufferPool(s.buffers))
	}
	return append(options,
		// A new goroutine for each call would have to grow its stack first.
		grpc.NumStreamWorkers(streamWorkers),
	)
}

func limits() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.MaxRecvMsgSize(maxReceivedSize),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.MaxHeaderListSize(maxMetadataSize),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			// An Envoy never closes its connections, so a new replica behind the same name would
			// get none. Calls in flight on an ending connection are answered first.
			MaxConnectionAge:      5 * time.Minute,  // ± 10 %, so that they do not all end at once
			MaxConnectionAgeGrace: 30 * time.Second, // longer than streamLife
			Time:                  time.Minute,      // ping a silent caller after this time
			Timeout:               20 * time.Second,
		}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{
			MinTime:             5 * time.Second, // the generated bootstrap pings every 30 s
			PermitWithoutStream: true,
		}),
	}
}

// SetToken replaces the token that later calls must send.
func (s *Server) SetToken(t bearer.Token) { s.token.Store(&t) }

// Serve answers calls from l until Shutdown, and then returns nil.
func (s *Server) Serve(l net.Listener) error {
	err := s.serve(s.callers.listener(l))
	if err == nil || errors.Is(err, grpc.ErrServerStopped) {
		return nil
	}
	return fmt.Errorf("serving gRPC on %s: %w", l.Addr(), err)
}

// SetServing tells the health checks whether to send calls here. It does not change how calls are
// answered, and does nothing once Shutdown has begun.
func (s *Server) SetServing(serving bool) {
	status := healthpb.HealthCheckResponse_NOT_SERVING
	if serving {
		status = healthpb.HealthCheckResponse_SERVING
	}
	for _, service := range []string{"", authv3.Authorization_ServiceDesc.ServiceName} {
		s.health.SetServingStatus(service, status)
	}
}

// Shutdown stops without failing a call. It tells the health checks, continues to answer for
// Config.DrainDelay so that every Envoy notices, then takes no new calls, ends the streams of
// access logs, which would never end, and returns when the last call is answered. If ctx ends
// first, it cuts off the remaining calls and returns ctx's error.
func (s *Server) Shutdown(ctx context.Context) error {
	s.health.Shutdown()
	if s.config.DrainDelay > 0 {
		select {
		case <-time.After(s.config.DrainDelay):
		case <-ctx.Done():
		}
	}
	drained := make(chan struct{})
	go func() {
		s.stop()
		s.grpc.GracefulStop()
		s.readers.Wait()
		close(drained)
	}()
	select {
	case <-drained:
		return nil
	case <-ctx.Done():
		s.grpc.Stop() // also ends GracefulStop
		return fmt.Errorf("draining the gRPC server: %w", ctx.Err())
	}
}

// Check implements the ext_authz service. It never returns a gRPC error: Envoy would treat that as
// a failure, and an operator may have told it to let failures pass. An undecided request is denied
// with 503.
func (s *Server) Check(ctx context.Context, in *authv3.CheckRequest) (reply *authv3.CheckResponse, _ error) {
	var d authz.Decision
	defer s.guard(&d, func(unavailable *codec.Answer) { reply = unavailable.Response() })
	var c codec.Call
	if c.TooLarge = proto.Size(in) > codec.MaxMessageSize; !c.TooLarge {
		c.Decode(in)
	}
	var a codec.Answer
	s.answer(&lazyDeadline{Context: ctx}, &c, &d, &a)
	return a.Response(), nil
}

// checkInPlace is [Server.Check] without the generated types for question and answer.
func (s *Server) checkInPlace(_ any, ctx context.Context, read func(any) error, _ grpc.UnaryServerInterceptor) (reply any, _ error) {
	var d authz.Decision
	defer s.guard(&d, func(unavailable *codec.Answer) {
		k := &codec.Check{}
		k.Answer(unavailable, s.buffers)
		reply = k
	})
	x := &exchange{}
	if err := read(&x.Check); err != nil {
		return nil, err
	}
	var a codec.Answer
	x.bound.Context = ctx
	s.answer(&x.bound, &x.Call, &d, &a)
	x.Answer(&a, s.buffers)
	return &x.Check, nil
}

// exchange is one Check and its deadline, in one object.
type exchange struct {
	codec.Check
	bound lazyDeadline
}

// guard must be deferred. If reading a Check or writing its answer panics, the reply is a denial
// with 503, and the charge of d is undone.
func (s *Server) guard(d *authz.Decision, reply func(*codec.Answer)) {
	p := recover()
	if p == nil {
		return
	}
	s.metrics.panics.Inc()
	s.panicked("a Check panicked while it was read or answered, and was answered 503: report this stack, it is a fault of Keyporter", p)
	s.config.Void(d.Charge)
	var unavailable codec.Answer
	unavailable.Fill(&codec.Call{}, &authz.Decision{})
	reply(&unavailable)
}

// answer decides c, and fills a. It sets the deadline of ctx.
func (s *Server) answer(ctx *lazyDeadline, c *codec.Call, d *authz.Decision, a *codec.Answer) {
	began, reason := time.Now(), authz.Undecided
	ended := began
	defer func() {
		if p := recover(); p != nil {
			s.metrics.panics.Inc()
			s.panicked("a Check panicked and was answered 503: report this stack, it is a fault of Keyporter", p)
			s.config.Void(d.Charge)
			reason, ended = authz.Undecided, time.Now()
			*a, *d = codec.Answer{}, authz.Decision{}
			a.Fill(&codec.Call{}, d)
		}
		s.metrics.decided(reason, ended.Sub(began))
	}()
	if c.TooLarge {
		d.Reason = authz.TooLarge
	} else {
		ended = s.decide(ctx, &c.Request, d, began)
	}
	a.Fill(c, d)
	s.unreported.charged(&c.Request, d)
	reason = d.Reason
}

// decide asks Config.Authorize. An error, and an answer that comes too late, is a denial. It
// returns the time of the decision.
func (s *Server) decide(ctx *lazyDeadline, r *authz.Request, d *authz.Decision, began time.Time) time.Time {
	ctx.end = began.Add(s.budget(ctx.Context, began))
	defer ctx.release()
	var err error
	*d, err = s.config.Authorize(ctx, r)
	ended := time.Now()
	if err == nil {
		err = ctx.at(ended) // a decision made before a long pause may no longer be right
	}
	if err != nil {
		s.failed(ctx.Context, r, d, err)
		s.config.Void(d.Charge)
		d.Reason, d.Charge, d.Location = authz.Undecided, usage.Charge{}, ""
	}
	return ended
}

// budget returns the maximum time for a decision: Config.Timeout, but at most three quarters of the
// caller's deadline, so that our 503 arrives in time.
func (s *Server) budget(ctx context.Context, now time.Time) time.Duration {
	deadline, ok := ctx.Deadline()
	if !ok {
		return s.config.Timeout
	}
	return min(s.config.Timeout, deadline.Sub(now)*3/4)
}

// failed counts an undecided call and logs it, at most once a second for each cause. A caller that
// hung up is not logged.
func (s *Server) failed(ctx context.Context, r *authz.Request, d *authz.Decision, err error) {
	if errors.Is(ctx.Err(), context.Canceled) {
		s.metrics.errors[causeCanceled].count.Inc()
		return
	}
	name := s.config.Cause(err)
	if name == "" && errors.Is(err, context.DeadlineExceeded) {
		name = causeDeadline
	}
	cause := s.metrics.cause(name)
	cause.count.Inc()
	if suppressed, ok := cause.lines.allow(time.Now()); ok {
		s.log.Error("check not decided, answered 503", "cause", cause.name, "request", short(r.ID), "route", routeOf(d.Rule),
			"error", err, "suppressed", suppressed)
	}
}

// routeOf names a rule as the configuration does: by its path, not that of the request.
func routeOf(rule *authz.Rule) string {
	if rule == nil {
		return ""
	}
	return rule.Path + rule.Name
}

// short keeps a caller's text from filling the log. Envoy's ids of requests are 20 digits long.
func short(id string) string { return strings.ToValidUTF8(id[:min(len(id), 64)], "") }

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

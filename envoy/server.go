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
)

// What a [Config] that leaves them out gets.
const (
	DefaultTimeout    = 150 * time.Millisecond
	DefaultDrainDelay = 3 * time.Second
)

// Config says how a [Server] answers. Only Authorize is required.
type Config struct {
	// Authorize decides. An error means that it could not, and is answered with 503. It must
	// respect the context and is called from many goroutines.
	Authorize func(context.Context, *authz.Request) (authz.Decision, error)

	// Void takes back what a decision has charged that did not reach the caller. Nil: nothing is.
	Void func(authz.Charge)

	// Cause names why a decision failed, for metrics and the log: one of Causes, or "" where it
	// does not know. Nil: it never does.
	Cause  func(error) string
	Causes []string

	// Settle is told how a request with somebody's key, live or ended, came to its end. What it is told is
	// what a caller sent: only the receipt, which a request has that was charged, is authenticated. It is called from many goroutines and must not wait:
	// while it does, Envoy drops what it cannot send. Nil: the access log is read and dropped.
	Settle func(authz.Ending)

	// Token is what callers must send; without one, whoever reaches the listener may ask.
	Token Token

	// Codec says how messages are read and written; what they say is the same.
	Codec Codec

	// Timeout bounds one decision. It counts inside the caller's own deadline, see [Server.Check].
	// 0: DefaultTimeout.
	Timeout time.Duration

	// DrainDelay is how long Shutdown goes on accepting calls after it has told the health checks.
	// It must be longer than Envoy takes to notice: interval × unhealthy_threshold of its health
	// check, 2 s in the generated bootstrap. 0: DefaultDrainDelay; negative: none.
	DrainDelay time.Duration

	Log     *slog.Logger          // nil: slog.Default()
	Metrics prometheus.Registerer // nil: not registered
}

// Bounds on what one caller can make the server hold.
const (
	// A Check carries the request's headers, at most 60 KiB in Envoy unless it is told otherwise,
	// and the path once more; the rest is a few hundred bytes. Twice that leaves room. A longer one is
	// answered with 431, and a longer message of the access log is left out.
	maxMessageSize = 256 << 10
	// The longest message that gRPC reads: the longest Check there is, of an Envoy that takes as
	// many headers as any may (max_request_headers_kb: 8192). gRPC's error would be 503 to the
	// client, for ever.
	maxReceivedSize = 17 << 20
	// An Envoy opens a connection per worker thread, and another when this many calls wait on one.
	maxStreams = 1024
	// The metadata of a call: the token, a trace context, a few bytes of Envoy's own.
	maxMetadataSize = 16 << 10
	// How long a new connection may take to say that it speaks HTTP/2.
	handshakeTimeout = 5 * time.Second
)

// streamWorkers is how many goroutines wait for calls: as many as are usually under way at once, the streams of
// access logs included. More calls than that get goroutines of their own.
const streamWorkers = 256

// Server answers Envoy's ext_authz v3 calls and the health checks of grpc.health.v1, and reads Envoy's
// access log.
type Server struct {
	authv3.UnimplementedAuthorizationServer

	config  Config
	log     *slog.Logger
	metrics *metrics
	token   atomic.Pointer[Token]
	health  *health.Server
	grpc    *grpc.Server
	buffers *bufferPool
	untold  untold
	callers callers

	// stopping ends when the streams of access logs have to; readers are the goroutines that read them.
	stopping context.Context
	stop     context.CancelFunc
	readers  sync.WaitGroup

	panics, strangers throttle
}

// NewServer returns a Server that has yet to [Server.Serve].
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
		c.Void = func(authz.Charge) {}
	}
	if c.Settle == nil {
		c.Settle = func(authz.Ending) {}
	}
	s := &Server{config: c, log: c.Log, metrics: newMetrics(c.Metrics, c.Causes), health: health.NewServer(), buffers: newBufferPool()}
	s.untold.began = time.Now()
	s.SetToken(c.Token)
	s.stopping, s.stop = context.WithCancel(context.Background())
	s.grpc = grpc.NewServer(append(s.options(), grpc.Creds(introductions{}), grpc.InTapHandle(s.admit))...)
	s.register()
	healthpb.RegisterHealthServer(s.grpc, s.health)
	s.health.SetServingStatus(authv3.Authorization_ServiceDesc.ServiceName, healthpb.HealthCheckResponse_SERVING)
	return s
}

// register adds the services of Envoy.
func (s *Server) register() {
	checks := authv3.Authorization_ServiceDesc
	if s.config.Codec == CodecFast {
		checks.Methods = []grpc.MethodDesc{{MethodName: checks.Methods[0].MethodName, Handler: s.checkInPlace}}
	}
	s.grpc.RegisterService(&checks, s)
	accesslogv3.RegisterAccessLogServiceServer(s.grpc, accessLog{server: s})
}

// options are the bounds on callers, and what makes an answer cheap.
func (s *Server) options() []grpc.ServerOption {
	options := limits()
	if s.config.Codec == CodecFast {
		options = append(options, grpc.ForceServerCodecV2(newCodec(s.buffers)), experimental.BufferPool(s.buffers))
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
			// An Envoy keeps its connections for ever, and a new replica behind the same name would
			// get none. What is under way when a connection ends is answered first.
			MaxConnectionAge:      5 * time.Minute,  // ± 10 %, so that they do not all end at once
			MaxConnectionAgeGrace: 30 * time.Second, // longer than streamLife
			Time:                  time.Minute,      // ask a silent caller whether it is still there
			Timeout:               20 * time.Second,
		}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{
			MinTime:             5 * time.Second, // the generated bootstrap pings every 30 s
			PermitWithoutStream: true,
		}),
	}
}

// SetToken replaces what callers must send, for the calls that come afterwards.
func (s *Server) SetToken(t Token) { s.token.Store(&t) }

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

// Shutdown stops without failing a call: it tells the health checks, goes on answering for
// Config.DrainDelay so that every Envoy has noticed, then takes no new calls, ends the streams of
// access logs, which would go on for ever, and returns when the last call is answered. If ctx ends first, it cuts off what is left and returns ctx's error.
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

// Check implements the ext_authz service. It returns no gRPC error, whatever happens: to Envoy that
// would be a failure, which an operator may have told it to let pass. What could not be decided is
// denied with 503.
func (s *Server) Check(ctx context.Context, in *authv3.CheckRequest) (reply *authv3.CheckResponse, _ error) {
	var d authz.Decision
	defer s.guard(&d, func(unavailable *answer) { reply = unavailable.response() })
	var c call
	if c.tooLarge = proto.Size(in) > maxMessageSize; !c.tooLarge {
		c.decode(in)
	}
	var a answer
	s.answer(&bound{Context: ctx}, &c, &d, &a)
	return a.response(), nil
}

// checkInPlace is what [Server.Check] is, with neither question nor answer in the generated types.
func (s *Server) checkInPlace(_ any, ctx context.Context, read func(any) error, _ grpc.UnaryServerInterceptor) (reply any, _ error) {
	var d authz.Decision
	defer s.guard(&d, func(unavailable *answer) {
		k := &check{}
		k.answer(unavailable, s.buffers)
		reply = k
	})
	k := &check{}
	if err := read(k); err != nil {
		return nil, err
	}
	var a answer
	k.bound.Context = ctx
	s.answer(&k.bound, &k.call, &d, &a)
	k.answer(&a, s.buffers)
	return k, nil
}

// guard is deferred: where a Check panics that is read, or whose answer is written, the reply is a denial with 503, and
// the charge of d is taken back.
func (s *Server) guard(d *authz.Decision, reply func(*answer)) {
	p := recover()
	if p == nil {
		return
	}
	s.metrics.panics.Inc()
	s.panicked("a Check panicked while it was read or answered, and was answered 503: report this stack, it is a fault of Keyporter", p)
	s.config.Void(d.Charge)
	var unavailable answer
	unavailable.fill(&call{}, &authz.Decision{})
	reply(&unavailable)
}

// answer decides c, and makes a the answer. It sets the end of ctx.
func (s *Server) answer(ctx *bound, c *call, d *authz.Decision, a *answer) {
	began, reason := time.Now(), authz.Undecided
	ended := began
	defer func() {
		if p := recover(); p != nil {
			s.metrics.panics.Inc()
			s.panicked("a Check panicked and was answered 503: report this stack, it is a fault of Keyporter", p)
			s.config.Void(d.Charge)
			reason, ended = authz.Undecided, time.Now()
			*a, *d = answer{}, authz.Decision{}
			a.fill(&call{}, d)
		}
		s.metrics.decided(reason, ended.Sub(began))
	}()
	if c.tooLarge {
		d.Reason = authz.TooLarge
	} else {
		ended = s.decide(ctx, &c.Request, d, began)
	}
	a.fill(c, d)
	s.untold.charged(&c.Request, d)
	reason = d.Reason
}

// decide asks Config.Authorize. An error, and an answer that comes too late, is a denial. It returns when
// it was decided.
func (s *Server) decide(ctx *bound, r *authz.Request, d *authz.Decision, began time.Time) time.Time {
	ctx.end = began.Add(s.budget(ctx.Context, began))
	defer ctx.release()
	var err error
	*d, err = s.config.Authorize(ctx, r)
	ended := time.Now()
	if err == nil {
		err = ctx.at(ended) // what was true before a long pause need not be true now
	}
	if err != nil {
		s.failed(ctx.Context, r, d, err)
		s.config.Void(d.Charge)
		d.Reason, d.Charge, d.Location = authz.Undecided, authz.Charge{}, ""
	}
	return ended
}

// budget returns how long a decision may take: Config.Timeout, but no more than three quarters of
// what the caller waits, so that our 503 arrives while someone listens.
func (s *Server) budget(ctx context.Context, now time.Time) time.Duration {
	deadline, ok := ctx.Deadline()
	if !ok {
		return s.config.Timeout
	}
	return min(s.config.Timeout, deadline.Sub(now)*3/4)
}

// failed counts an undecided call and logs it, at most once a second for each cause. A caller who
// hung up is no news.
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

// short keeps a caller's text from filling the log. What Envoy calls a request is 20 digits long.
func short(id string) string { return strings.ToValidUTF8(id[:min(len(id), 64)], "") }

// panicked logs a panic, with its stack but without its value: that may quote the request.
func (s *Server) panicked(message string, p any) {
	suppressed, ok := s.panics.allow(time.Now())
	if !ok {
		return
	}
	what := fmt.Sprintf("%T", p)
	if e, ok := p.(runtime.Error); ok {
		what = e.Error() // the runtime's own words: an index, a nil pointer, a type
	}
	s.log.Error(message, "panic", what, "stack", string(debug.Stack()), "suppressed", suppressed)
}

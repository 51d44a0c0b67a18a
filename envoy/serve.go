package envoy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"

	"github.com/keyporter/keyporter/envoy/codec"
	"github.com/keyporter/keyporter/usage"
)

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
	s.callers.log, s.callers.refusals = s.log, s.metrics.strangers
	s.SetToken(c.Token)
	s.stopping, s.stop = context.WithCancel(context.Background())
	s.grpc = grpc.NewServer(append(s.options(), grpc.Creds(introductions{}), grpc.InTapHandle(s.callers.admit))...)
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
		s.grpc.Stop()    // also ends GracefulStop
		s.readers.Wait() // for the time that an access log lingers
		return fmt.Errorf("draining the gRPC server: %w", ctx.Err())
	}
}

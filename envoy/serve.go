package envoy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/keyporter/keyporter/envoy/codec"
	"github.com/keyporter/keyporter/envoy/transport"
	"github.com/keyporter/keyporter/nowait"
	"github.com/keyporter/keyporter/usage"
)

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
	s.callers.log, s.callers.refusals, s.callers.closed = s.log, s.metrics.strangers, s.metrics.peers[causeStranger]
	s.callers.token.Store(&c.Token)
	s.stopping, s.stop = context.WithCancel(context.Background())
	s.trying = nowait.Context(context.Background())
	if c.Transport == GRPCTransport {
		s.carrier = grpcCarrier{s.newGRPC()}
	} else {
		s.carrier = s.newFast()
	}
	s.health.SetServingStatus(authv3.Authorization_ServiceDesc.ServiceName, healthpb.HealthCheckResponse_SERVING)
	return s
}

// Serve answers calls from l until Shutdown, and then returns nil.
func (s *Server) Serve(l net.Listener) error {
	err := s.carrier.Serve(s.callers.listener(l))
	if err == nil || errors.Is(err, grpc.ErrServerStopped) || errors.Is(err, transport.ErrClosed) {
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
	s.stop()
	err := s.carrier.Shutdown(ctx)
	s.readers.Wait() // for the time that an access log lingers
	if err != nil {
		return fmt.Errorf("draining the gRPC server: %w", err)
	}
	return nil
}

package envoy

import (
	"context"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// guardCall lets only callers with the token call anything but the health service. Envoy answers its
// own clients with 503 when we refuse it.
func (s *Server) guardCall(ctx context.Context, in any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if err := s.admit(ctx, info.FullMethod); err != nil {
		return nil, err
	}
	return next(ctx, in)
}

func (s *Server) guardStream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if err := s.admit(stream.Context(), info.FullMethod); err != nil {
		return err
	}
	return next(srv, stream)
}

// healthService is open to all: the kubelet and others that ask have no token.
var healthService = "/" + healthpb.Health_ServiceDesc.ServiceName + "/"

func (s *Server) admit(ctx context.Context, method string) error {
	token := s.token.Load()
	if token.IsZero() || strings.HasPrefix(method, healthService) {
		return nil
	}
	if token.Opens(metadata.ValueFromIncomingContext(ctx, "authorization")) {
		return nil
	}
	s.metrics.strangers.Inc()
	if suppressed, ok := s.strangers.allow(time.Now()); ok {
		s.log.Warn("gRPC caller refused: no token, or a wrong one", "caller", caller(ctx), "suppressed", suppressed)
	}
	return status.Error(codes.Unauthenticated, "this port wants the gRPC token as authorization: Bearer TOKEN")
}

func caller(ctx context.Context) string {
	if p, ok := peer.FromContext(ctx); ok {
		return p.Addr.String()
	}
	return "unknown"
}

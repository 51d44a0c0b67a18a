package envoy

import (
	"context"
	"net"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/experimental"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/envoy/codec"
)

// newGRPC returns the server of [GRPCTransport].
func (s *Server) newGRPC() *grpc.Server {
	server := grpc.NewServer(append(s.options(), grpc.Creds(introductions{}), grpc.InTapHandle(s.callers.admit))...)
	s.register(server)
	healthpb.RegisterHealthServer(server, s.health)
	return server
}

// grpcCarrier implements [carrier].
type grpcCarrier struct{ *grpc.Server }

// Forget implements [carrier]: grpc-go asks at each call.
func (c grpcCarrier) Forget() {}

// Drain implements [carrier]: grpc-go cannot.
func (c grpcCarrier) Drain(func(net.Conn) bool) {}

// Shutdown implements [carrier].
func (c grpcCarrier) Shutdown(ctx context.Context) error {
	drained := make(chan struct{})
	go func() {
		c.GracefulStop()
		close(drained)
	}()
	select {
	case <-drained:
		return nil
	case <-ctx.Done():
		c.Stop() // also ends GracefulStop
		return ctx.Err()
	}
}

// The bounds on the resources of one caller.
const (
	// maxReceivedSize is the maximum size of a message that gRPC reads: the longest possible Check,
	// from an Envoy with the largest allowed headers (max_request_headers_kb: 8192). gRPC's error
	// would be a 503 to the client on every attempt.
	maxReceivedSize = 17 << 20
	// maxMetadataSize bounds the metadata of a call: the token, a trace context, a few bytes of
	// Envoy's own.
	maxMetadataSize = 16 << 10
	// handshakeTimeout is the maximum time in which a new connection must begin to speak HTTP/2.
	handshakeTimeout = 5 * time.Second
)

// streamWorkers is the number of goroutines that wait for calls: as many as are usually in flight
// at once, including the streams of access logs. Further calls get goroutines of their own.
const streamWorkers = 256

// register adds the services for Envoy.
func (s *Server) register(server *grpc.Server) {
	checks := authv3.Authorization_ServiceDesc
	if s.config.Codec == codec.Fast {
		checks.Methods = []grpc.MethodDesc{{MethodName: checks.Methods[0].MethodName, Handler: s.checkInPlace}}
	}
	server.RegisterService(&checks, s)
	accesslogv3.RegisterAccessLogServiceServer(server, accessLog{server: s})
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
	began := time.Now()
	c.CallerTimeout = timeoutOf(ctx, began)
	s.answer(&lazyDeadline{Context: ctx, end: began.Add(s.budget(c.CallerTimeout))}, &c, began, &d, &a)
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
	began := time.Now()
	x.Call.CallerTimeout = timeoutOf(ctx, began)
	x.bound.Context, x.bound.end = ctx, began.Add(s.budget(x.Call.CallerTimeout))
	s.answer(&x.bound, &x.Call, began, &d, &a)
	x.Answer(&a, s.buffers)
	return &x.Check, nil
}

// exchange is one Check and its deadline, in one object.
type exchange struct {
	codec.Check
	bound lazyDeadline
}

// timeoutOf returns what is left of a caller's time-out; 0 if it has none.
func timeoutOf(ctx context.Context, now time.Time) time.Duration {
	if end, ok := ctx.Deadline(); ok {
		return max(1, end.Sub(now))
	}
	return 0
}

// accessLog is the access log service of a Server.
type accessLog struct {
	accesslogv3.UnimplementedAccessLogServiceServer
	server *Server
}

// StreamAccessLogs reads one worker's entries.
func (a accessLog) StreamAccessLogs(stream accesslogv3.AccessLogService_StreamAccessLogsServer) error {
	ended := make(chan struct{})
	defer close(ended)
	a.server.readStream(a.server.receive(stream, ended))
	return nil
}

// grpcLogStream implements [logStream].
type grpcLogStream struct {
	stream   accesslogv3.AccessLogService_StreamAccessLogsServer
	messages chan *codec.LogMessage
	err      error // the end, once messages is closed
}

// receive delivers the messages of a stream until its caller or its handler ends it. A message that
// came before the caller's end is delivered.
func (s *Server) receive(stream accesslogv3.AccessLogService_StreamAccessLogsServer, ended <-chan struct{}) *grpcLogStream {
	l := &grpcLogStream{stream: stream, messages: make(chan *codec.LogMessage)}
	s.readers.Go(func() {
		defer close(l.messages)
		for {
			m := &codec.LogMessage{}
			if err := s.receiveOne(stream, m); err != nil {
				l.err = endOf(err)
				return
			}
			select {
			case l.messages <- m:
			case <-ended:
				return
			}
		}
	})
	return l
}

func (s *Server) receiveOne(stream accesslogv3.AccessLogService_StreamAccessLogsServer, m *codec.LogMessage) error {
	if s.config.Codec == codec.Fast {
		return stream.RecvMsg(m)
	}
	in, err := stream.Recv()
	if err != nil {
		return err
	}
	if proto.Size(in) > codec.MaxMessageSize {
		return errUnread
	}
	m.Decode(in)
	return nil
}

// endOf returns the end of a stream for an error of gRPC.
func endOf(err error) error {
	switch status.Code(err) {
	case codes.ResourceExhausted, codes.Internal, codes.InvalidArgument:
		return errUnread
	}
	return err
}

func (l *grpcLogStream) next(ctx context.Context) (*codec.LogMessage, error) {
	select {
	case m, ok := <-l.messages:
		if !ok {
			return nil, l.err
		}
		return m, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// end sends an answer whose bytes are no message: field 0 of a type that does not exist. Envoy
// expects no answer and takes no notice of a valid one, but it resets the stream for this one. All
// that it has sent by then arrives first; a stream that the server ends loses it.
func (l *grpcLogStream) end() error {
	answer := &accesslogv3.StreamAccessLogsResponse{}
	answer.ProtoReflect().SetUnknown([]byte{0x07})
	return l.stream.SendMsg(answer)
}

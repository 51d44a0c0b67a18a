package envoy

import (
	"context"
	"errors"
	"net"
	"net/http"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/envoy/codec"
	"github.com/keyporter/keyporter/envoy/transport"
	"github.com/keyporter/keyporter/nowait"
)

// newFast returns the server of [FastTransport].
func (s *Server) newFast() *transport.Server {
	fast := transport.NewServer(transport.Config{
		Methods: map[string]transport.Method{authv3.Authorization_Check_FullMethodName: fastCheck{s}},
		Streams: map[string]transport.Handler{
			accesslogv3.AccessLogService_StreamAccessLogs_FullMethodName: s.fastLog,
			healthpb.Health_Check_FullMethodName:                         s.fastHealth,
			healthpb.Health_Watch_FullMethodName:                         s.fastWatch,
		},
		Others: s.others(),
		Admit: func(caller net.Conn, method string, authorization []string) transport.Admission {
			return s.callers.admission(caller.(*callerConn), method, authorization)
		},
		MaxMessage: codec.MaxMessageSize, MaxStreams: maxStreams, Ended: s.hungUp, Log: s.log,
	})
	addTransport(s.config.Metrics, fast.Stats)
	return fast
}

// hungUp counts a connection that the transport has ended. An Envoy whose cluster speaks TLS or
// HTTP/1 to this port lets nothing pass, so the log says so.
func (s *Server) hungUp(caller net.Conn, cause transport.Cause) {
	s.metrics.peers[cause].Inc()
	if cause != transport.NotHTTP2 {
		return
	}
	if suppressed, ok := s.foreign.allow(time.Now()); ok {
		s.log.Warn("a connection to the gRPC port was closed because it does not begin like HTTP/2 without TLS: "+
			"if it is Envoy's, look at the protocol and the TLS of its cluster for Keyporter",
			"caller", caller.RemoteAddr().String(), "suppressed", suppressed)
	}
}

// others returns grpc-go. It serves the rest of the health service, and refuses methods that do not
// exist.
func (s *Server) others() http.Handler {
	server := grpc.NewServer(grpc.MaxRecvMsgSize(codec.MaxMessageSize))
	healthpb.RegisterHealthServer(server, s.health)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.metrics.others.Inc()
		server.ServeHTTP(w, r)
	})
}

var errTooManyWait = errors.New("too many Checks wait for the database or Valkey, or they hold too much memory")

// fastExchange is one Check and its deadline.
type fastExchange struct {
	codec.Call
	bound lazyDeadline
}

// fastCheck answers Checks like [Server.Check].
type fastCheck struct{ server *Server }

// Try implements [transport.Method].
func (m fastCheck) Try(c *transport.Call, out []byte) ([]byte, bool) {
	answer, found, ok := m.answer(m.server.trying, c, out)
	c.Kept = found
	return answer, ok
}

// Wait implements [transport.Method].
func (m fastCheck) Wait(ctx context.Context, c *transport.Call, out []byte) []byte {
	if c.Kept {
		ctx = nowait.Repetition(ctx) // the first run has counted what it found
	}
	answer, _, ok := m.answer(ctx, c, out)
	if !ok {
		return m.Refuse(c, out) // cannot happen: ctx lets it wait
	}
	return answer
}

// Refuse implements [transport.Method].
func (m fastCheck) Refuse(_ *transport.Call, out []byte) []byte {
	return m.undecided(causeWaiting, errTooManyWait, out)
}

// undecided counts a Check that is answered with 503 before a decision was tried.
func (m fastCheck) undecided(cause string, err error, out []byte) []byte {
	m.server.metrics.decided(authz.Undecided, 0)
	m.server.undecided(m.server.metrics.cause(cause), "", "", err)
	var a codec.Answer
	a.Fill(&codec.Call{}, &authz.Decision{})
	return m.append(out, &a)
}

// answer decides a Check whose time runs from its arrival. The result ok is false if it would have
// to wait and ctx forbids it; found says whether the owner of the key or session was found.
func (m fastCheck) answer(ctx context.Context, c *transport.Call, out []byte) (answer []byte, found, ok bool) {
	var d authz.Decision
	x := &fastExchange{}
	defer m.server.guard(&d, func(unavailable *codec.Answer) { answer, ok = m.append(out, unavailable), true })
	if x.Call.TooLarge = c.TooLarge; !c.TooLarge {
		if err := m.server.config.Codec.ReadCheck(c.Message, &x.Call); err != nil {
			return m.undecided(causeOther, err, out), false, true
		}
	}
	var a codec.Answer
	x.CallerTimeout = c.Timeout
	x.bound.Context, x.bound.end = ctx, c.Arrived.Add(m.server.budget(c.Timeout))
	if !m.server.answer(&x.bound, &x.Call, c.Arrived, &d, &a) {
		return nil, d.Principal.User != "", false
	}
	return m.append(out, &a), false, true
}

func (m fastCheck) append(out []byte, a *codec.Answer) []byte {
	answer, err := m.server.config.Codec.AppendAnswer(out, a)
	if err != nil {
		panic(err) // impossible: its texts are ours, or came as valid text
	}
	return answer
}

// fastLog reads a stream of the access log.
func (s *Server) fastLog(stream transport.Stream) (code int, text string) {
	s.readStream(&fastLogStream{stream: stream, codec: s.config.Codec})
	return 0, ""
}

// fastLogStream implements [logStream]. Entries that Envoy sends before it notices the end arrive.
type fastLogStream struct {
	stream transport.Stream
	codec  codec.Kind
}

func (l *fastLogStream) next(ctx context.Context) (*codec.LogMessage, error) {
	message, err := l.stream.Receive(ctx)
	switch {
	case errors.Is(err, transport.ErrMessage):
		return nil, errUnread
	case err != nil:
		return nil, err
	}
	m := &codec.LogMessage{}
	if l.codec.ReadLog(message, m) != nil {
		return nil, errUnread
	}
	return m, nil
}

func (l *fastLogStream) end() error {
	l.stream.End(0, "")
	return nil
}

// fastHealth answers a health check.
func (s *Server) fastHealth(stream transport.Stream) (code int, text string) {
	return s.fastHealthCall(stream, func(ctx context.Context, in *healthpb.HealthCheckRequest) error {
		answer, err := s.health.Check(ctx, in)
		if err != nil {
			return err
		}
		return sendFast(stream, answer)
	})
}

// fastWatch sends a caller each change until the caller leaves or the server stops.
func (s *Server) fastWatch(stream transport.Stream) (code int, text string) {
	return s.fastHealthCall(stream, func(ctx context.Context, in *healthpb.HealthCheckRequest) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(s.stopping, cancel)()
		return s.health.Watch(in, healthWatch{stream: stream, ctx: ctx})
	})
}

// fastHealthCall reads the only message of a call and returns the status of do.
func (s *Server) fastHealthCall(stream transport.Stream, do func(context.Context, *healthpb.HealthCheckRequest) error) (code int, text string) {
	ctx := stream.Context()
	message, err := stream.Receive(ctx)
	switch {
	case errors.Is(err, transport.ErrMessage):
		return int(codes.Unimplemented), err.Error()
	case err != nil:
		ended := status.FromContextError(err)
		return int(ended.Code()), ended.Message()
	}
	var in healthpb.HealthCheckRequest
	if proto.Unmarshal(message, &in) != nil {
		return int(codes.Internal), "the message is malformed"
	}
	answer := status.Convert(do(ctx, &in))
	return int(answer.Code()), answer.Message()
}

// healthWatch is the part of a stream of gRPC that [health.Server] uses.
type healthWatch struct {
	grpc.ServerStream
	stream transport.Stream
	ctx    context.Context
}

func (w healthWatch) Context() context.Context { return w.ctx }

func (w healthWatch) Send(m *healthpb.HealthCheckResponse) error { return sendFast(w.stream, m) }

func sendFast(stream transport.Stream, m proto.Message) error {
	message, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	return stream.Send(message)
}

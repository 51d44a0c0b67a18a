//go:build lean

package envoy

import (
	"context"
	"net"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/envoy/codec"
	"github.com/keyporter/keyporter/envoy/transport"
	"github.com/keyporter/keyporter/envoy/wire"
)

// A binary built with -tags lean answers Checks by [transport.Server], to measure what that gains:
// `make bench-lean`. It must not run in production: it has no health checks, access log and drain,
// and a Check that has to wait blocks all others of its connection.
func (s *Server) serve(l net.Listener) error {
	methods := map[string]transport.Method{authv3.Authorization_Check_FullMethodName: leanCheck{s}}
	return transport.NewServer(transport.Config{Methods: methods, Admit: s.admitLean, Log: s.log}).Serve(lean{l})
}

func (s *Server) admitLean(_ string, authorization []string) bool {
	return s.callers.token.Load().Opens(authorization)
}

// lean is a listener whose callers are no strangers.
type lean struct{ net.Listener }

func (l lean) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if caller, ok := conn.(*callerConn); ok {
		caller.introduce()
	}
	return conn, err
}

// leanCheck answers Checks.
type leanCheck struct{ server *Server }

// Try implements [transport.Method].
func (m leanCheck) Try(c *transport.Call, out []byte) ([]byte, bool) {
	return m.Wait(context.Background(), c, out), true
}

// Wait implements [transport.Method].
func (m leanCheck) Wait(ctx context.Context, c *transport.Call, out []byte) []byte {
	var (
		x exchange
		d authz.Decision
		a codec.Answer
	)
	if x.Call.TooLarge = c.TooLarge; !c.TooLarge && !x.Call.Read(c.Message) {
		return m.Refuse(c, out) // a form that only the generated types read
	}
	x.bound.Context = ctx
	m.server.answer(&x.bound, &x.Call, &d, &a)
	return m.append(out, &a)
}

// Refuse implements [transport.Method].
func (m leanCheck) Refuse(_ *transport.Call, out []byte) []byte {
	var a codec.Answer
	a.Fill(&codec.Call{}, &authz.Decision{})
	return m.append(out, &a)
}

func (m leanCheck) append(out []byte, a *codec.Answer) []byte {
	buffer := m.server.buffers.Get(a.Size())
	defer m.server.buffers.Put(buffer)
	w := wire.Write(*buffer)
	a.Write(&w)
	return append(out, w.Message()...)
}

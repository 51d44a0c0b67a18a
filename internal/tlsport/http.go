package tlsport

import (
	"context"
	"net"
	"net/http"
)

// connKey is the key of a request's connection in its context.
type connKey struct{}

// Prepare makes an HTTP server end the connections that are [Withdrawn] after their next answer,
// and tell its handler the names of callers: see [NamesOfCaller].
func Prepare(s *http.Server) {
	introduce, handler := s.ConnContext, s.Handler
	s.ConnContext = func(ctx context.Context, conn net.Conn) context.Context {
		if introduce != nil {
			ctx = introduce(ctx, conn)
		}
		return context.WithValue(ctx, connKey{}, conn)
	}
	s.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if withdrawn(r) {
			w.Header().Set("Connection", "close")
		}
		handler.ServeHTTP(w, r)
	})
}

func withdrawn(r *http.Request) bool {
	conn, _ := r.Context().Value(connKey{}).(net.Conn)
	return Withdrawn(conn)
}

// NamesOfCaller returns the names in the certificate that the caller of a request has shown and
// that the port accepts; nil without one. The server must be prepared: see [Prepare].
func NamesOfCaller(r *http.Request) []string {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 || withdrawn(r) {
		return nil
	}
	return NamesOf(r.TLS.PeerCertificates[0])
}

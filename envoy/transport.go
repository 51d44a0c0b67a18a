package envoy

import "net"

func (s *Server) serve(l net.Listener) error { return s.grpc.Serve(l) }

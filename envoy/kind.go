package envoy

import "fmt"

// Transport selects how calls are carried over HTTP/2.
type Transport uint8

// The transports.
const (
	FastTransport Transport = iota // by package transport
	GRPCTransport                  // by grpc-go
)

// String returns the name of t in the configuration.
func (t Transport) String() string {
	if t == GRPCTransport {
		return "grpc"
	}
	return "fast"
}

// ParseTransport reads the name of a transport.
func ParseTransport(s string) (Transport, error) {
	for _, t := range []Transport{FastTransport, GRPCTransport} {
		if s == t.String() {
			return t, nil
		}
	}
	return FastTransport, fmt.Errorf("unknown transport %q: want fast or grpc", s)
}

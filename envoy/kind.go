package envoy

import "fmt"

// Transport selects how calls are carried over HTTP/2.
type Transport uint8

// The transports.
const (
	GRPCTransport Transport = iota // by grpc-go
	FastTransport                  // by package transport
)

// String returns the name of t in the configuration.
func (t Transport) String() string {
	if t == FastTransport {
		return "fast"
	}
	return "grpc"
}

// ParseTransport reads the name of a transport.
func ParseTransport(s string) (Transport, error) {
	for _, t := range []Transport{GRPCTransport, FastTransport} {
		if s == t.String() {
			return t, nil
		}
	}
	return GRPCTransport, fmt.Errorf("unknown transport %q: want fast or grpc", s)
}

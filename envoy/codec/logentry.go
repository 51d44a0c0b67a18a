package codec

import (
	"fmt"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	accesslogdata "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	"google.golang.org/grpc/mem"
)

// authzFilter is the namespace of our facts in an entry's metadata: the filter that asks Keyporter.
const authzFilter = "envoy.filters.http.ext_authz"

// headerGRPCStatus is the header, or trailer, with the status of an answer of gRPC.
const headerGRPCStatus = "grpc-status"

// AddressUnix is the address of a client without one.
const AddressUnix = "unix"

// ErrLongMessage ends a stream of the access log.
var ErrLongMessage = fmt.Errorf("a message of more than %d bytes", MaxMessageSize)

// LogMessage is the decoded part of one message of the access log. Its receiver owns it.
type LogMessage struct {
	Entries []LogEntry
	TCP     int        // entries of other protocols than HTTP
	buffer  mem.Buffer // aliased by the texts; nil: none
}

// Free gives the memory of m back. The texts of its entries are invalid afterwards.
func (m *LogMessage) Free() {
	if m.buffer != nil {
		m.buffer.Free()
	}
}

// LogEntry is the decoded part of one entry of Envoy's access log, whichever codec decoded it. Its
// texts are valid only while it is being read: they may alias the message.
type LogEntry struct {
	kind         accesslogdata.AccessLogType
	intermediate bool
	Start        time.Time
	Address      string // of the client
	Sent, Began  bool   // the upstream received some of the request, and began to answer
	Flags        ResponseFlags

	Method      corev3.RequestMethod
	Path, Agent string

	Status      int    // received by the client; 0: none
	Details     string // of the status
	Size        uint64 // of the answer's body, in bytes
	GRPCHeader  string // the grpc-status in the headers of the answer
	GRPCTrailer string // and in its trailers

	Facts Facts
}

// IsEnd reports whether an entry marks the end of a request, rather than its beginning or a moment
// in between.
func (e *LogEntry) IsEnd() bool {
	switch e.kind {
	case accesslogdata.AccessLogType_DownstreamEnd:
		return true
	case accesslogdata.AccessLogType_NotSet:
		return !e.intermediate
	}
	return false
}

// Facts are the facts about the request that Keyporter gave Envoy with its decision.
type Facts struct{ Charge, KeyID, Reason, User string }

// ResponseFlags has a bit for each field of the message ResponseFlags, by its number.
type ResponseFlags uint64

// The numbers of the flags in use.
const (
	NoHealthyUpstream             = 2
	UpstreamRequestTimeout        = 3
	LocalReset                    = 4
	UpstreamRemoteReset           = 5
	UpstreamConnectionFailure     = 6
	UpstreamConnectionTermination = 7
	UpstreamOverflow              = 8
	NoRouteFound                  = 9
	DownstreamTermination         = 15
	UpstreamRetryLimitExceeded    = 16
	StreamIdleTimeout             = 17
	UpstreamProtocolError         = 24
	NoClusterFound                = 25
	DNSResolutionFailure          = 27
	DownstreamRemoteReset         = 28
)

// Any reports whether one of the flags is set.
func (f ResponseFlags) Any(flags ...int) bool {
	for _, flag := range flags {
		if f&(1<<flag) != 0 {
			return true
		}
	}
	return false
}

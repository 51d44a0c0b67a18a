package envoy

import (
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	accesslogdata "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
)

// logEntry is the decoded part of one entry of Envoy's access log, whichever codec decoded it. Its
// texts are valid only while it is being read: they may alias the message.
type logEntry struct {
	kind         accesslogdata.AccessLogType
	intermediate bool
	start        time.Time
	address      string // of the client
	sent, began  bool   // the upstream received some of the request, and began to answer
	flags        responseFlags

	method      corev3.RequestMethod
	path, agent string

	status   int    // received by the client; 0: none
	details  string // of the status
	size     uint64 // of the answer's body, in bytes
	headers  string // the grpc-status in the headers of the answer
	trailers string // and in its trailers

	facts ownFacts
}

// ownFacts are the facts about the request that Keyporter gave Envoy with its decision.
type ownFacts struct{ charge, keyID, reason, user string }

// responseFlags has a bit for each field of the message ResponseFlags, by its number.
type responseFlags uint64

// The flags in use.
const (
	noHealthyUpstream             = 2
	upstreamRequestTimeout        = 3
	localReset                    = 4
	upstreamRemoteReset           = 5
	upstreamConnectionFailure     = 6
	upstreamConnectionTermination = 7
	upstreamOverflow              = 8
	noRouteFound                  = 9
	downstreamTermination         = 15
	upstreamRetryLimitExceeded    = 16
	streamIdleTimeout             = 17
	upstreamProtocolError         = 24
	noClusterFound                = 25
	dnsResolutionFailure          = 27
	downstreamRemoteReset         = 28
)

// any reports whether one of the flags is set.
func (f responseFlags) any(flags ...int) bool {
	for _, flag := range flags {
		if f&(1<<flag) != 0 {
			return true
		}
	}
	return false
}

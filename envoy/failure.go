package envoy

import (
	"strings"

	"github.com/keyporter/keyporter/authz"
)

// What Envoy says about an answer: that it came from us in place of the upstream, that it could not
// be carried out, that the client had not sent all of its request in time, that the request and its
// answer had their age, and what it begins with where the client's HTTP/1 is none, which a client
// that speaks gRPC is told with HTTP 200.
const (
	detailsOurs           = "ext_authz_denied"
	detailsInvalid        = "ext_authz_invalid"
	detailsRequestTimeout = "request_overall_timeout"
	detailsMaxDuration    = "max_duration_timeout"
	detailsHTTP1          = "http1."
)

// failure tells why a request that was charged brought its client nothing, if it did not. What a
// client can bring about alone, such as a slow reader who runs into a timeout with the answer half
// read, is no failure: it would be a way to have the answer and the credits.
func (e *logEntry) failure() authz.Failure {
	switch {
	case e.details == detailsOurs:
		return authz.NoFailure // the answer was ours, the balance: there is no upstream that could fail
	case e.details == detailsInvalid && e.isTooLarge():
		return authz.HeadersTooLarge
	case e.details == detailsInvalid:
		return authz.InvalidAnswer
	case e.began:
		return e.failureAfterHeaders()
	case e.status == 0 && e.sent:
		return authz.NoFailure // the client left; the upstream works on it all the same
	case e.status == 0:
		return authz.ClientGone
	case e.flags.any(streamIdleTimeout) && e.sent:
		return authz.NoAnswer // also where the request was still open: so is that of every stream
	case e.flags.any(streamIdleTimeout):
		return authz.NotAsked
	case strings.HasPrefix(e.details, detailsHTTP1), e.isLate(), e.status >= 400 && e.status < 500:
		return authz.NoFailure // Envoy refused what the client did, such as to send its body too slowly
	case e.isUnreachable():
		return authz.NotAsked
	case e.isBroken() || e.sent && e.isFailing():
		return authz.NoAnswer
	case e.isFailing():
		return authz.NotAsked
	}
	return authz.NoFailure
}

// failureAfterHeaders is about a request to which the upstream has sent an answer, or a part of one.
func (e *logEntry) failureAfterHeaders() authz.Failure {
	switch {
	case e.isFailing():
		return authz.Answered5xx
	case e.flags.any(downstreamTermination, downstreamRemoteReset):
		return authz.NoFailure // the client left in the middle
	case e.size >= unread:
		return authz.NoFailure // the client may have kept the upstream waiting, until it hung up
	case e.flags.any(upstreamConnectionTermination, upstreamRemoteReset, upstreamProtocolError):
		return authz.NoAnswer // it broke off in the middle
	}
	return authz.NoFailure
}

// unread is how much of an answer Envoy takes from the upstream, in bytes, before it waits for the client
// to read: the smallest of the buffers in the generated configuration.
const unread = 32 << 10

// isFailing reports whether the client was told of a failure of the server: by its status, or, to a client
// that speaks gRPC, in the answer's trailers, or in its headers where there is nothing else.
func (e *logEntry) isFailing() bool {
	return e.status >= 500 || e.isFailingGRPC(e.trailers) || e.isFailingGRPC(e.headers)
}

// isLate reports whether the client may have taken too long to send its request. Of one that was
// complete Envoy says 504; to a client that speaks gRPC it tells both in the same way.
func (e *logEntry) isLate() bool {
	return e.details == detailsRequestTimeout || e.details == detailsMaxDuration && e.status != 504
}

// isTooLarge reports whether a local reply says that the headers outgrew their limits. To a client
// that speaks gRPC it says UNKNOWN for that, and UNAVAILABLE for a 503.
func (e *logEntry) isTooLarge() bool { return e.status == 431 || e.headers == "2" }

// isUnreachable reports whether there was no upstream to ask.
func (e *logEntry) isUnreachable() bool {
	return e.flags.any(noHealthyUpstream, upstreamOverflow, noRouteFound, noClusterFound, dnsResolutionFailure)
}

// isBroken reports whether there was an upstream, and no answer from it.
func (e *logEntry) isBroken() bool {
	return e.flags.any(upstreamConnectionFailure, upstreamConnectionTermination, upstreamRemoteReset, localReset,
		upstreamRequestTimeout, upstreamRetryLimitExceeded, upstreamProtocolError)
}

const headerGRPCStatus = "grpc-status"

// isFailingGRPC reports whether a gRPC status is what 5xx is in HTTP. Codes that a method answers
// with in good order, such as NOT_FOUND or RESOURCE_EXHAUSTED, are not. Nor is one at the end of a
// longer answer: a client can bring it about, by a last message that is none, when it has what it
// wants. DEADLINE_EXCEEDED is only where there was no message: a client chooses its deadline.
func (e *logEntry) isFailingGRPC(status string) bool {
	switch status {
	case "2", "13", "14", "15":
		return e.size < unread
	case "4":
		return e.size == 0
	}
	return false
}

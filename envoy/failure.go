package envoy

import (
	"strings"

	"github.com/keyporter/keyporter/usage"
)

// The response code details in Envoy's access log: Keyporter answered in place of the upstream; its
// answer could not be applied; the client did not send its whole request in time; the request and
// its answer reached their maximum duration; and the prefix for invalid HTTP/1, which a gRPC client
// receives as HTTP 200.
const (
	detailsOurs           = "ext_authz_denied"
	detailsInvalid        = "ext_authz_invalid"
	detailsRequestTimeout = "request_overall_timeout"
	detailsMaxDuration    = "max_duration_timeout"
	detailsHTTP1          = "http1."
)

// failure returns why a charged request brought its client nothing, if it did not. An ending that a
// client can cause alone is no failure, such as a slow reader that runs into a timeout halfway
// through the answer: it would otherwise have both the answer and the credits.
func (e *logEntry) failure() usage.Failure {
	switch {
	case e.details == detailsOurs:
		return usage.NoFailure // Keyporter answered with the balance: no upstream could fail
	case e.details == detailsInvalid && e.isTooLarge():
		return usage.HeadersTooLarge
	case e.details == detailsInvalid:
		return usage.InvalidAnswer
	case e.began:
		return e.failureAfterHeaders()
	case e.status == 0 && e.sent:
		return usage.NoFailure // the client left; the upstream works on it all the same
	case e.status == 0:
		return usage.ClientGone
	case e.flags.any(streamIdleTimeout) && e.sent:
		return usage.NoAnswer // also if the request was still open: that of every stream is
	case e.flags.any(streamIdleTimeout):
		return usage.NotAsked
	case strings.HasPrefix(e.details, detailsHTTP1), e.isLate(), e.status >= 400 && e.status < 500:
		return usage.NoFailure // Envoy refused a client error, such as a body sent too slowly
	case e.isUnreachable():
		return usage.NotAsked
	case e.isBroken() || e.sent && e.isFailing():
		return usage.NoAnswer
	case e.isFailing():
		return usage.NotAsked
	}
	return usage.NoFailure
}

// failureAfterHeaders is for a request to which the upstream has sent an answer, or a part of one.
func (e *logEntry) failureAfterHeaders() usage.Failure {
	switch {
	case e.isFailing():
		return usage.Answered5xx
	case e.flags.any(downstreamTermination, downstreamRemoteReset):
		return usage.NoFailure // the client left in the middle
	case e.size >= Unread:
		return usage.NoFailure // the client may have kept the upstream waiting until it hung up
	case e.flags.any(upstreamConnectionTermination, upstreamRemoteReset, upstreamProtocolError):
		return usage.NoAnswer // it broke off in the middle
	}
	return usage.NoFailure
}

// Unread is the number of bytes of an answer that Envoy takes from the upstream before it waits for
// the client to read: the smallest of the buffers in the generated configuration.
const Unread = 32 << 10

// isFailing reports whether the client received a server failure: by its status, or for a gRPC
// client in the answer's trailers, or in its headers if there is nothing else.
func (e *logEntry) isFailing() bool {
	return e.status >= 500 || e.isFailingGRPC(e.trailers) || e.isFailingGRPC(e.headers)
}

// isLate reports whether the client may have taken too long to send its request. For a complete
// request Envoy says 504; to a gRPC client it reports both in the same way.
func (e *logEntry) isLate() bool {
	return e.details == detailsRequestTimeout || e.details == detailsMaxDuration && e.status != 504
}

// isTooLarge reports whether a local reply says that the headers outgrew their limits. To a gRPC
// client that is UNKNOWN, and a 503 is UNAVAILABLE.
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

// isFailingGRPC reports whether a gRPC status corresponds to HTTP 5xx. Codes that a method returns
// in normal operation, such as NOT_FOUND or RESOURCE_EXHAUSTED, do not. Nor does a status at the
// end of a longer answer: a client can cause it with an invalid last message once it has all it
// wants. DEADLINE_EXCEEDED counts only if there was no message, because a client chooses its
// deadline.
func (e *logEntry) isFailingGRPC(status string) bool {
	switch status {
	case "2", "13", "14", "15":
		return e.size < Unread
	case "4":
		return e.size == 0
	}
	return false
}

package envoy

import (
	"strings"

	"github.com/keyporter/keyporter/envoy/codec"
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

// failureOf returns why a charged request brought its client nothing, if it did not. An ending that
// a client can cause alone is no failure, such as a slow reader that runs into a timeout halfway
// through the answer: it would otherwise have both the answer and the credits.
func failureOf(e *codec.LogEntry) usage.Failure {
	switch {
	case e.Details == detailsOurs:
		return usage.NoFailure // Keyporter answered with the balance: no upstream could fail
	case e.Details == detailsInvalid && isTooLarge(e):
		return usage.HeadersTooLarge
	case e.Details == detailsInvalid:
		return usage.InvalidAnswer
	case e.Began:
		return failureAfterHeaders(e)
	case e.Status == 0 && e.Sent:
		return usage.NoFailure // the client left; the upstream works on it all the same
	case e.Status == 0:
		return usage.ClientGone
	case e.Flags.Any(codec.StreamIdleTimeout) && e.Sent:
		return usage.NoAnswer // also if the request was still open: that of every stream is
	case e.Flags.Any(codec.StreamIdleTimeout):
		return usage.NotAsked
	case strings.HasPrefix(e.Details, detailsHTTP1), isLate(e), e.Status >= 400 && e.Status < 500:
		return usage.NoFailure // Envoy refused a client error, such as a body sent too slowly
	case isUnreachable(e):
		return usage.NotAsked
	case isBroken(e) || e.Sent && isFailing(e):
		return usage.NoAnswer
	case isFailing(e):
		return usage.NotAsked
	}
	return usage.NoFailure
}

// failureAfterHeaders is for a request to which the upstream has sent an answer, or a part of one.
func failureAfterHeaders(e *codec.LogEntry) usage.Failure {
	switch {
	case isFailing(e):
		return usage.Answered5xx
	case e.Flags.Any(codec.DownstreamTermination, codec.DownstreamRemoteReset):
		return usage.NoFailure // the client left in the middle
	case e.Size >= Unread:
		return usage.NoFailure // the client may have kept the upstream waiting until it hung up
	case e.Flags.Any(codec.UpstreamConnectionTermination, codec.UpstreamRemoteReset, codec.UpstreamProtocolError):
		return usage.NoAnswer // it broke off in the middle
	}
	return usage.NoFailure
}

// Unread is the number of bytes of an answer that Envoy takes from the upstream before it waits for
// the client to read: the smallest of the buffers in the generated configuration.
const Unread = 32 << 10

// isFailing reports whether the client received a server failure: by its status, or for a gRPC
// client in the answer's trailers, or in its headers if there is nothing else.
func isFailing(e *codec.LogEntry) bool {
	return e.Status >= 500 || isFailingGRPC(e, e.GRPCTrailer) || isFailingGRPC(e, e.GRPCHeader)
}

// isLate reports whether the client may have taken too long to send its request. For a complete
// request Envoy says 504; to a gRPC client it reports both in the same way.
func isLate(e *codec.LogEntry) bool {
	return e.Details == detailsRequestTimeout || e.Details == detailsMaxDuration && e.Status != 504
}

// isTooLarge reports whether a local reply says that the headers outgrew their limits. To a gRPC
// client that is UNKNOWN, and a 503 is UNAVAILABLE.
func isTooLarge(e *codec.LogEntry) bool { return e.Status == 431 || e.GRPCHeader == "2" }

// isUnreachable reports whether there was no upstream to ask.
func isUnreachable(e *codec.LogEntry) bool {
	return e.Flags.Any(codec.NoHealthyUpstream, codec.UpstreamOverflow, codec.NoRouteFound, codec.NoClusterFound, codec.DNSResolutionFailure)
}

// isBroken reports whether there was an upstream, and no answer from it.
func isBroken(e *codec.LogEntry) bool {
	return e.Flags.Any(codec.UpstreamConnectionFailure, codec.UpstreamConnectionTermination, codec.UpstreamRemoteReset, codec.LocalReset,
		codec.UpstreamRequestTimeout, codec.UpstreamRetryLimitExceeded, codec.UpstreamProtocolError)
}

// isFailingGRPC reports whether a gRPC status corresponds to HTTP 5xx. Codes that a method returns
// in normal operation, such as NOT_FOUND or RESOURCE_EXHAUSTED, do not. Nor does a status at the
// end of a longer answer: a client can cause it with an invalid last message once it has all it
// wants. DEADLINE_EXCEEDED counts only if there was no message, because a client chooses its
// deadline.
func isFailingGRPC(e *codec.LogEntry, status string) bool {
	switch status {
	case "2", "13", "14", "15":
		return e.Size < Unread
	case "4":
		return e.Size == 0
	}
	return false
}

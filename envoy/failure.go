package envoy

import (
	accesslogdata "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"

	"github.com/keyporter/keyporter/authz"
)

// detailsOurs is what Envoy says about an answer that came from us in place of the upstream.
const detailsOurs = "ext_authz_denied"

// failureOf tells why a request that was charged brought its client nothing, if it did not. What a
// client can bring about alone, such as a slow reader who runs into a timeout with the answer half
// read, is no failure: it would be a way to have the answer and the credits.
func failureOf(e *accesslogdata.HTTPAccessLogEntry) authz.Failure {
	p := e.GetCommonProperties()
	flags := p.GetResponseFlags()
	switch {
	case e.GetResponse().GetResponseCodeDetails() == detailsOurs:
		return authz.NoFailure // the answer was ours, the balance: there is no upstream that could fail
	case isAnswered(p):
		return failureAfterHeaders(e)
	case statusOf(e) == 0 && isSent(p):
		return authz.NoFailure // the client left; the upstream works on it all the same
	case statusOf(e) == 0:
		return authz.ClientGone
	case statusOf(e) >= 400 && statusOf(e) < 500:
		return authz.NoFailure // Envoy refused what the client did, such as to send its body too slowly
	case isUnreachable(flags):
		return authz.NotAsked
	case isBroken(flags) || isSent(p) && isFailing(e):
		return authz.NoAnswer
	case isFailing(e):
		return authz.NotAsked
	}
	return authz.NoFailure
}

// failureAfterHeaders is about a request to which the upstream has sent an answer, or a part of one.
func failureAfterHeaders(e *accesslogdata.HTTPAccessLogEntry) authz.Failure {
	flags := e.GetCommonProperties().GetResponseFlags()
	switch {
	case isFailing(e):
		return authz.Answered5xx
	case flags.GetDownstreamConnectionTermination(), flags.GetDownstreamRemoteReset():
		return authz.NoFailure // the client left in the middle
	case e.GetResponse().GetResponseBodyBytes() >= unread:
		return authz.NoFailure // the client may have kept the upstream waiting, until it hung up
	case flags.GetUpstreamConnectionTermination(), flags.GetUpstreamRemoteReset(), flags.GetUpstreamProtocolError():
		return authz.NoAnswer // it broke off in the middle
	}
	return authz.NoFailure
}

// unread is how much of an answer Envoy takes from the upstream, in bytes, before it waits for the client
// to read: the smallest of the buffers in the generated configuration.
const unread = 32 << 10

// isSent reports whether the upstream has got any of the request. The number of attempts does not tell:
// it counts those without any upstream to ask too, and the upstream's address may be one that refused.
func isSent(p *accesslogdata.AccessLogCommon) bool { return p.GetTimeToFirstUpstreamTxByte() != nil }

// isAnswered reports whether the upstream has begun to answer.
func isAnswered(p *accesslogdata.AccessLogCommon) bool {
	return p.GetTimeToFirstUpstreamRxByte() != nil
}

// isFailing reports whether the client was told of a failure of the server: by its status, or, to a client
// that speaks gRPC, in the answer's trailers, or in its headers where there is nothing else.
func isFailing(e *accesslogdata.HTTPAccessLogEntry) bool {
	r := e.GetResponse()
	return statusOf(e) >= 500 || isFailingGRPC(r.GetResponseTrailers()[headerGRPCStatus]) ||
		isFailingGRPC(r.GetResponseHeaders()[headerGRPCStatus])
}

const headerGRPCStatus = "grpc-status"

// isFailingGRPC reports whether a gRPC status is what 5xx is in HTTP. Codes that a method answers with
// in good order, such as NOT_FOUND or RESOURCE_EXHAUSTED, are not.
func isFailingGRPC(status string) bool {
	switch status {
	case "2", "4", "13", "14", "15":
		return true
	}
	return false
}

// isUnreachable reports whether there was no upstream to ask.
func isUnreachable(f *accesslogdata.ResponseFlags) bool {
	return f.GetNoHealthyUpstream() || f.GetUpstreamOverflow() || f.GetNoRouteFound() || f.GetNoClusterFound() || f.GetDnsResolutionFailure()
}

// isBroken reports whether there was an upstream, and no answer from it.
func isBroken(f *accesslogdata.ResponseFlags) bool {
	return f.GetUpstreamConnectionFailure() || f.GetUpstreamConnectionTermination() || f.GetUpstreamRemoteReset() ||
		f.GetLocalReset() || f.GetUpstreamRequestTimeout() || f.GetUpstreamRetryLimitExceeded() || f.GetUpstreamProtocolError()
}

package envoy

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	accesslogdata "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
)

// decode fills m from a message in the generated types.
func (m *logMessage) decode(in *accesslogv3.StreamAccessLogsMessage) {
	*m = logMessage{tcp: len(in.GetTcpLogs().GetLogEntry())}
	for _, e := range in.GetHttpLogs().GetLogEntry() {
		m.entries = append(m.entries, entryOf(e))
	}
}

func entryOf(e *accesslogdata.HTTPAccessLogEntry) logEntry {
	common, request, response := e.GetCommonProperties(), e.GetRequest(), e.GetResponse()
	return logEntry{
		kind: common.GetAccessLogType(),
		//lint:ignore SA1019 all that an Envoy without the types has
		intermediate: common.GetIntermediateLogEntry(),
		start:        common.GetStartTime().AsTime(),
		address:      addressOf(common.GetDownstreamRemoteAddress()),
		// The number of attempts says nothing: it also counts attempts without any upstream, and
		// the upstream's address may be one that refused.
		sent:  common.GetTimeToFirstUpstreamTxByte() != nil,
		began: common.GetTimeToFirstUpstreamRxByte() != nil,
		flags: flagsOf(common.GetResponseFlags()),

		method: request.GetRequestMethod(), path: request.GetPath(), agent: request.GetUserAgent(),

		status: int(response.GetResponseCode().GetValue()), details: response.GetResponseCodeDetails(), size: response.GetResponseBodyBytes(),
		headers: response.GetResponseHeaders()[headerGRPCStatus], trailers: response.GetResponseTrailers()[headerGRPCStatus],

		facts: factsOf(common.GetMetadata()),
	}
}

func factsOf(metadata *corev3.Metadata) ownFacts {
	filter := metadata.GetFilterMetadata()[authzFilter]
	own := filter.GetFields()[MetadataKey].GetStructValue().GetFields()
	return ownFacts{
		charge: own[metadataCharge].GetStringValue(), keyID: own["key_id"].GetStringValue(),
		reason: own["reason"].GetStringValue(), user: own["user"].GetStringValue(),
	}
}

// addressOf returns the client's address, without a port.
func addressOf(a *corev3.Address) string {
	if socket := a.GetSocketAddress(); socket != nil {
		return socket.GetAddress()
	}
	return addressUnix
}

func flagsOf(f *accesslogdata.ResponseFlags) (flags responseFlags) {
	for _, f := range [...]struct {
		flag int
		set  bool
	}{
		{noHealthyUpstream, f.GetNoHealthyUpstream()},
		{upstreamRequestTimeout, f.GetUpstreamRequestTimeout()},
		{localReset, f.GetLocalReset()},
		{upstreamRemoteReset, f.GetUpstreamRemoteReset()},
		{upstreamConnectionFailure, f.GetUpstreamConnectionFailure()},
		{upstreamConnectionTermination, f.GetUpstreamConnectionTermination()},
		{upstreamOverflow, f.GetUpstreamOverflow()},
		{noRouteFound, f.GetNoRouteFound()},
		{downstreamTermination, f.GetDownstreamConnectionTermination()},
		{upstreamRetryLimitExceeded, f.GetUpstreamRetryLimitExceeded()},
		{streamIdleTimeout, f.GetStreamIdleTimeout()},
		{upstreamProtocolError, f.GetUpstreamProtocolError()},
		{noClusterFound, f.GetNoClusterFound()},
		{dnsResolutionFailure, f.GetDnsResolutionFailure()},
		{downstreamRemoteReset, f.GetDownstreamRemoteReset()},
	} {
		if f.set {
			flags |= 1 << f.flag
		}
	}
	return flags
}

package codec

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	accesslogdata "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
)

// Decode fills m from a message in the generated types.
func (m *LogMessage) Decode(in *accesslogv3.StreamAccessLogsMessage) {
	*m = LogMessage{TCP: len(in.GetTcpLogs().GetLogEntry())}
	for _, e := range in.GetHttpLogs().GetLogEntry() {
		m.Entries = append(m.Entries, entryOf(e))
	}
}

func entryOf(e *accesslogdata.HTTPAccessLogEntry) LogEntry {
	common, request, response := e.GetCommonProperties(), e.GetRequest(), e.GetResponse()
	return LogEntry{
		kind: common.GetAccessLogType(),
		//lint:ignore SA1019 all that an Envoy without the types has
		intermediate: common.GetIntermediateLogEntry(),
		Start:        common.GetStartTime().AsTime(),
		Address:      addressOf(common.GetDownstreamRemoteAddress()),
		// The number of attempts says nothing: it also counts attempts without any upstream, and
		// the upstream's address may be one that refused.
		Sent:  common.GetTimeToFirstUpstreamTxByte() != nil,
		Began: common.GetTimeToFirstUpstreamRxByte() != nil,
		Flags: flagsOf(common.GetResponseFlags()),

		Method: request.GetRequestMethod(), Path: request.GetPath(), Agent: request.GetUserAgent(),

		Status: int(response.GetResponseCode().GetValue()), Details: response.GetResponseCodeDetails(), Size: response.GetResponseBodyBytes(),
		GRPCHeader: response.GetResponseHeaders()[headerGRPCStatus], GRPCTrailer: response.GetResponseTrailers()[headerGRPCStatus],

		Facts: factsOf(common.GetMetadata()),
	}
}

func factsOf(metadata *corev3.Metadata) Facts {
	filter := metadata.GetFilterMetadata()[authzFilter]
	own := filter.GetFields()[MetadataKey].GetStructValue().GetFields()
	return Facts{
		Charge: own[metadataCharge].GetStringValue(), KeyID: own["key_id"].GetStringValue(),
		Reason: own["reason"].GetStringValue(), User: own["user"].GetStringValue(),
	}
}

// addressOf returns the client's address, without a port.
func addressOf(a *corev3.Address) string {
	if socket := a.GetSocketAddress(); socket != nil {
		return socket.GetAddress()
	}
	return AddressUnix
}

func flagsOf(f *accesslogdata.ResponseFlags) (flags ResponseFlags) {
	for _, f := range [...]struct {
		flag int
		set  bool
	}{
		{NoHealthyUpstream, f.GetNoHealthyUpstream()},
		{UpstreamRequestTimeout, f.GetUpstreamRequestTimeout()},
		{LocalReset, f.GetLocalReset()},
		{UpstreamRemoteReset, f.GetUpstreamRemoteReset()},
		{UpstreamConnectionFailure, f.GetUpstreamConnectionFailure()},
		{UpstreamConnectionTermination, f.GetUpstreamConnectionTermination()},
		{UpstreamOverflow, f.GetUpstreamOverflow()},
		{NoRouteFound, f.GetNoRouteFound()},
		{DownstreamTermination, f.GetDownstreamConnectionTermination()},
		{UpstreamRetryLimitExceeded, f.GetUpstreamRetryLimitExceeded()},
		{StreamIdleTimeout, f.GetStreamIdleTimeout()},
		{UpstreamProtocolError, f.GetUpstreamProtocolError()},
		{NoClusterFound, f.GetNoClusterFound()},
		{DNSResolutionFailure, f.GetDnsResolutionFailure()},
		{DownstreamRemoteReset, f.GetDownstreamRemoteReset()},
	} {
		if f.set {
			flags |= 1 << f.flag
		}
	}
	return flags
}

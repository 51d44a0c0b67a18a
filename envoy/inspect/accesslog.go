package inspect

import (
	"fmt"
	"slices"
	"strings"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	celv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/filters/cel/v3"
	grpclogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/grpc/v3"
)

// The rules about the access log that reports completions to Keyporter. Refunds depend on it.

// accessLog is an access log that goes to Keyporter.
type accessLog struct {
	path Path
	*accesslogv3.AccessLog
	settings *grpclogv3.HttpGrpcAccessLogConfig
}

// accessLogs are the access logs of m with the same destination as its Checks.
func (m *manager) accessLogs(c *config) []accessLog {
	var all []accessLog
	for i, l := range m.GetAccessLog() {
		var settings grpclogv3.HttpGrpcAccessLogConfig
		if unpack(l.GetTypedConfig(), &settings) && m.asks(c, settings.GetCommonConfig().GetGrpcService().GetEnvoyGrpc().GetClusterName()) {
			all = append(all, accessLog{m.path.At("access_log").Item(i), l, &settings})
		}
	}
	return all
}

// asks reports whether Checks are sent to a cluster, or to one of its addresses.
func (m *manager) asks(c *config, name string) bool {
	return slices.ContainsFunc(m.services, func(s service) bool {
		asked, addresses := s.target(c)
		return asked != "" && asked == name ||
			slices.ContainsFunc(c.addressesOf(name), func(a string) bool { return slices.Contains(addresses, a) })
	})
}

func findNoAccessLog(c *config, m *manager, report report) {
	if len(m.accessLogs(c)) == 0 {
		report(m.path.At("access_log"), "no access log goes to the cluster that ext_authz asks")
	}
}

func eachAccessLog(look func(accessLog, report)) finder {
	return eachManager(func(c *config, m *manager, report report) {
		for _, l := range m.accessLogs(c) {
			look(l, report)
		}
	})
}

func findLogFilter(l accessLog, report report) {
	switch filter := l.GetFilter(); {
	case filter == nil:
		report(l.path, "it has no filter")
	case !selectsOurs(filter):
		report(l.path.At("filter"), "the filter does not select the requests with a key")
	}
}

// metadataNamespace is the namespace in which the filter ext_authz stores Keyporter's facts about a
// request, and metadataKey is their name there.
const (
	metadataNamespace = "envoy.filters.http.ext_authz"
	metadataKey       = "keyporter"
)

// selectsOurs reports whether a filter passes exactly the requests with Keyporter's facts.
func selectsOurs(filter *accesslogv3.AccessLogFilter) bool {
	var cel celv3.ExpressionFilter
	if unpack(filter.GetExtensionFilter().GetTypedConfig(), &cel) {
		return strings.Contains(cel.GetExpression(), metadataNamespace) && strings.Contains(cel.GetExpression(), metadataKey)
	}
	metadata := filter.GetMetadataFilter()
	path := metadata.GetMatcher().GetPath()
	missing := metadata.GetMatchIfKeyNotFound()
	return metadata.GetMatcher().GetFilter() == metadataNamespace &&
		len(path) > 0 && path[0].GetKey() == metadataKey &&
		metadata.GetMatcher().GetValue().GetPresentMatch() && !metadata.GetMatcher().GetInvert() &&
		missing != nil && !missing.GetValue()
}

func findNoGRPCStatus(l accessLog, report report) {
	for _, list := range []struct {
		field string
		names []string
	}{
		{"additional_response_headers_to_log", l.settings.GetAdditionalResponseHeadersToLog()},
		{"additional_response_trailers_to_log", l.settings.GetAdditionalResponseTrailersToLog()},
	} {
		if !slices.ContainsFunc(list.names, func(name string) bool { return strings.EqualFold(name, "grpc-status") }) {
			report(l.path.in("typed_config", list.field), "the list lacks grpc-status")
		}
	}
}

// The maximum size of a message that Keyporter accepts, and of the last entry in it; and how long a
// stopping replica still reads entries.
const (
	maxMessage     = 256 << 10
	maxEntry       = 100 << 10
	maxFlushPeriod = 3 * time.Second
)

func findLogBuffer(l accessLog, report report) {
	common := l.settings.GetCommonConfig()
	at := l.path.in("typed_config", "common_config")
	if size := common.GetBufferSizeBytes().GetValue(); size > maxMessage-maxEntry {
		report(at.At("buffer_size_bytes"), fmt.Sprintf("%d bytes are more than %d", size, maxMessage-maxEntry))
	}
	if period := common.GetBufferFlushInterval().AsDuration(); period >= maxFlushPeriod {
		report(at.At("buffer_flush_interval"), fmt.Sprintf("%v is not less than %v", period, maxFlushPeriod))
	}
}

func findLogAPI(l accessLog, report report) {
	if isOldAPI(l.settings.GetCommonConfig().GetTransportApiVersion()) {
		report(l.path.in("typed_config", "common_config", "transport_api_version"), "it is V2")
	}
}

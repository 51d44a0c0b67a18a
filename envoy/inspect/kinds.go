package inspect

import (
	"strings"

	"google.golang.org/protobuf/types/known/anypb"
)

// kind is an HTTP filter's possible effect on a decision.
type kind int

const (
	kindUnknown  kind = iota
	kindHarmless      // it changes neither a request's destination nor Keyporter's inputs
	kindChanges       // it may change headers, the path or the route of a request
	kindAnswers       // it may answer a request that nobody has decided
)

// kinds has the filters of Envoy by the folder of their settings in its API. Missing ones may
// contain other filters, or do anything.
var kinds = kindTable(map[kind]string{
	kindHarmless: `adaptive_concurrency admission_control alternate_protocols_cache aws_eventstream_parser bandwidth_limit
		bandwidth_share body_size_limit buffer cdn_loop compressor cors csrf custom_response decompressor dynamic_forward_proxy
		ext_authz fault file_system_buffer grpc_field_extraction grpc_stats grpc_web health_check ip_tagging json_to_metadata
		kill_request local_ratelimit original_src proto_message_extraction rate_limit_quota ratelimit rbac router
		set_filter_state set_metadata sse_to_metadata stateful_session tap thrift_to_metadata upstream_codec`,
	kindChanges: `api_key_auth aws_lambda aws_request_signing basic_auth connect_grpc_bridge credential_injector
		dynamic_modules ext_proc gcp_authn geoip golang grpc_http1_bridge grpc_http1_reverse_bridge
		grpc_json_reverse_transcoder grpc_json_transcoder header_mutation header_to_metadata jwt_authn lua oauth2
		proto_api_scrubber transform wasm`,
	kindAnswers: "cache cache_v2 file_server",
})

// meshFilters are the filters that Istio adds everywhere, by the type of their settings. They
// report requests to other proxies and to Istio itself.
var meshFilters = map[string]kind{
	"io.istio.http.peer_metadata.Config":                        kindHarmless,
	"istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig": kindHarmless,
	"stats.PluginConfig":                                        kindHarmless,
}

func kindTable(folders map[kind]string) map[string]kind {
	table := map[string]kind{}
	for k, names := range folders {
		for name := range strings.FieldsSeq(names) {
			table[name] = k
		}
	}
	return table
}

func kindOf(typed *anypb.Any) kind {
	_, name, _ := strings.Cut(typed.GetTypeUrl(), "/")
	folder, ok := strings.CutPrefix(name, "envoy.extensions.filters.http.")
	if !ok {
		return meshFilters[name]
	}
	folder, _, _ = strings.Cut(folder, ".")
	return kinds[folder]
}

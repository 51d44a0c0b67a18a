package inspect_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v4"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/bearer"
	"github.com/keyporter/keyporter/envoy/bootstrap"
	"github.com/keyporter/keyporter/envoy/inspect"
	"github.com/keyporter/keyporter/internal/routes"
)

const (
	secret  = "s3cret-s3cret-s3cret"
	manager = "static_resources.listeners[0].filter_chains[0].filters[0].typed_config"
	guard   = manager + ".http_filters[2].typed_config"
	host    = manager + ".route_config.virtual_hosts[0]"
	logs    = manager + ".access_log"
	cluster = "static_resources.clusters[0]"
)

// Excerpts of the printed configuration.
const (
	atManager = "          codec_type: AUTO\n"
	atGuard   = "              stat_prefix: keyporter\n"
	atFilters = "          http_filters:\n"
	marksOne  = manager + ".http_filters[3].typed_config" // guard, with another filter before it
	atRouter  = "          - name: envoy.filters.http.router\n"
	atChains  = "    filter_chains:\n"
	atRoutes  = "              routes:\n"
	atLogs    = "          access_log:\n"
	atFormat  = "                  time: \"%START_TIME%\"\n"
	toAuthz   = "timeout: 0.250s # Keyporter's own deadline lies inside\n                envoy_grpc: { cluster_name: authz, skip_envoy_headers: true }"
	waits     = "timeout: 0.250s # Keyporter's own deadline lies inside"
)

const (
	off     = `typed_per_filter_config: { envoy.filters.http.ext_authz: { "@type": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute, disabled: true } }`
	without = "request_headers_to_remove: [x-keyporter-user, x-keyporter-account, X-Keyporter-Plan, x-keyporter-key-id, x-keyporter-charge]"
)

const (
	timeoutOfAuthz = "    connect_timeout: 0.250s"
	upstreamTLS    = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
)

// ownHost is a virtual host beside the one for all.
const ownHost = "            - { name: own, domains: [api.example.com], routes: [{ match: { prefix: / }, direct_response: { status: 404 } }] }\n"

// unbounded removes the maximum duration of a stream from the connection manager.
var unbounded = replace("            max_stream_duration: 3600s # where", "            # where")

// overHTTP2 makes Envoy speak HTTP/2 to the upstream.
var overHTTP2 = after("  - name: upstream\n", "    typed_extension_protocol_options: { envoy.extensions.upstreams.http.v3.HttpProtocolOptions: { \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: { http2_protocol_options: {} } } }\n")

func replace(words, others string) []string  { return []string{words, others} }
func after(words, more string) []string      { return []string{words, words + more} }
func before(words, more string) []string     { return []string{words, more + words} }
func both(changes, others []string) []string { return slices.Concat(changes, others) }
func set(setting string) []string            { return after(atGuard, "              "+setting+"\n") }

// marked puts a filter before the guard that marks requests with a permission, as Istio does, and
// lets the guard run for those whose mark has a prefix.
func marked(permission, prefix string) []string {
	return both(
		before("          - name: envoy.filters.http.ext_authz\n", `          - { name: envoy.filters.http.rbac, typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC, shadow_rules_stat_prefix: istio_ext_authz_, shadow_rules: { action: DENY, policies: { "istio-ext-authz-ns[a]-policy[b]-rule[0]": { permissions: [`+permission+`], principals: [{ and_ids: { ids: [{ any: true }] } }] } } } } }`+"\n"),
		set("filter_enabled_metadata: { filter: envoy.filters.http.rbac, path: [{ key: istio_ext_authz_shadow_effective_policy_id }], value: { string_match: { prefix: "+prefix+" } } }"),
	)
}
func manage(setting string) []string { return after(atManager, "          "+setting+"\n") }
func ownRoute(text string) []string  { return after(atRoutes, "              - "+text+"\n") }
func log(name, format string) []string {
	return after(atFormat, fmt.Sprintf("                  %s: %q\n", name, format))
}
func addLog(text string) []string { return after(atLogs, "          - "+text+"\n") }

// node is the part of a bootstrap with the version, as a running Envoy reports it.
func node(minor, patch int) []string {
	return before("admin:\n", fmt.Sprintf("node: { user_agent_build_version: { version: { major_number: 1, minor_number: %d, patch: %d } } }\n", minor, patch))
}

// listener is one more listener, with routes and filters.
func listener(routes string) []string {
	return after("  listeners:\n", `  - name: bare
    address: { socket_address: { address: 0.0.0.0, port_value: 8088 } }
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: bare
          route_config: { virtual_hosts: [{ name: all, domains: ["*"], routes: [`+routes+`] }] }
          http_filters:
          - { name: router, typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router } }
`)
}

const bare = "static_resources.listeners[0].filter_chains[0].filters[0].typed_config"

type mistake struct {
	name    string
	changes []string // of the printed configuration: words, and their replacements
	rule    string   // of the finding
	path    string   // where
}

// Each mistake is typical of adding Keyporter to an existing configuration.
var mistakes = []mistake{
	// Which requests are asked about.
	{"a listener forwards without asking", listener(`{ match: { prefix: / }, route: { cluster: upstream } }`),
		"ext-authz-missing", bare + ".http_filters"},
	{"a virtual host is not asked about", after("domains: [\"*\"]\n", "              "+off+"\n"),
		"ext-authz-off", host + `.typed_per_filter_config["envoy.filters.http.ext_authz"]`},
	{"no route is asked about", after("            name: routes\n", "            "+off+"\n"),
		"ext-authz-off", manager + `.route_config.typed_per_filter_config["envoy.filters.http.ext_authz"]`},
	{"the filter is disabled", after("          - name: envoy.filters.http.ext_authz\n", "            disabled: true\n"),
		"ext-authz-off", manager + ".http_filters[2].disabled"},
	{"a route is not asked about", ownRoute("{ match: { path: /own }, route: { cluster: upstream, timeout: 60s }, " + without + ", " + off + " }"),
		"ext-authz-off", host + `.routes[0].typed_per_filter_config["envoy.filters.http.ext_authz"]`},
	{"a route is disabled in the general form", ownRoute("{ match: { path: /own }, route: { cluster: upstream, timeout: 60s }, " + without + ", " +
		`typed_per_filter_config: { envoy.filters.http.ext_authz: { "@type": type.googleapis.com/envoy.config.route.v3.FilterConfig, disabled: true } } }`),
		"ext-authz-off", host + `.routes[0].typed_per_filter_config["envoy.filters.http.ext_authz"]`},
	{"a part of a route is not asked about", ownRoute("{ match: { path: /own }, " + without + ", route: { timeout: 60s, weighted_clusters: { clusters: [{ name: upstream, weight: 9 }, { name: page, weight: 1, " + off + " }] } } }"),
		"ext-authz-off", host + `.routes[0].route.weighted_clusters.clusters[1].typed_per_filter_config["envoy.filters.http.ext_authz"]`},
	{"half of the requests are asked about", set("filter_enabled: { default_value: { numerator: 50 } }"),
		"ext-authz-partial", guard + ".filter_enabled"},
	{"metadata tell who is asked about", set("filter_enabled_metadata: { filter: envoy.filters.http.rbac, path: [{ key: a }], value: { present_match: true } }"),
		"ext-authz-conditional", guard + ".filter_enabled_metadata"},
	{"a policy of Istio asks about some paths", marked(`{ and_rules: { rules: [{ any: true }, { url_path: { path: { prefix: /v1/ } } }] } }`, "istio-ext-authz"),
		"ext-authz-conditional", marksOne + ".filter_enabled_metadata"},
	{"a policy of Istio is for another filter", marked(`{ any: true }`, "another"),
		"ext-authz-conditional", marksOne + ".filter_enabled_metadata"},
	{"a matcher takes the place of a policy of Istio", both(marked(`{ any: true }`, "istio-ext-authz"), replace("shadow_rules: {", "shadow_matcher: { matcher_list: { matchers: [] } }, shadow_rules: {")),
		"ext-authz-conditional", marksOne + ".filter_enabled_metadata"},
	{"a policy of Istio has a condition", both(marked(`{ any: true }`, "istio-ext-authz"), replace(`"istio-ext-authz-ns[a]-policy[b]-rule[0]": {`, `"istio-ext-authz-ns[a]-policy[b]-rule[0]": { condition: { const_expr: { bool_value: false } },`)),
		"ext-authz-conditional", marksOne + ".filter_enabled_metadata"},
	{"nobody is refused", set("shadow_mode: true"),
		"ext-authz-shadow", guard + ".shadow_mode"},
	{"a script runs after the decision", before(atRouter, `          - { name: script, typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua } }`+"\n"),
		"ext-authz-not-last", manager + ".http_filters[3]"},
	{"a cache answers before the decision", after(atFilters, `          - { name: cache, typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.cache.v3.CacheConfig } }`+"\n"),
		"answers-before-ext-authz", manager + ".http_filters[0]"},
	{"what is not HTTP passes", after(atChains, `    - { filters: [{ name: tcp, typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, cluster: upstream } }] }`+"\n"),
		"tcp-beside-http", "static_resources.listeners[0].filter_chains[0]"},
	{"a failure lets requests pass", replace("failure_mode_allow: false", "failure_mode_allow: true"),
		"failure-mode-allow", guard + ".failure_mode_allow"},
	{"the route is picked again", replace("clear_route_cache: false", "clear_route_cache: true"),
		"clear-route-cache", guard + ".clear_route_cache"},
	{"the route is picked again by a header", set("clear_route_cache_headers: [x-tenant]"),
		"clear-route-cache", guard + ".clear_route_cache"},

	// How Keyporter is asked.
	{"Checks go by HTTP", replace("grpc_service:\n                "+waits, "http_service:\n                server_uri: { uri: http://keyporter, cluster: authz, timeout: 0.250s }"),
		"http-service", guard + ".http_service"},
	{"one route asks by HTTP", ownRoute(`{ match: { path: /own }, route: { cluster: upstream, timeout: 60s }, typed_per_filter_config: { envoy.filters.http.ext_authz: {
                  "@type": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute,
                  check_settings: { http_service: { server_uri: { uri: http://keyporter, cluster: authz, timeout: 1s } } } } } }`),
		"http-service", host + `.routes[0].typed_per_filter_config["envoy.filters.http.ext_authz"].check_settings.http_service`},
	{"Checks go by an old API", replace(atGuard+"              transport_api_version: V3\n", atGuard+"              transport_api_version: V2\n"),
		"api-version", guard + ".transport_api_version"},
	{"the log goes by an old API", replace("log_name: keyporter\n                transport_api_version: V3\n", "log_name: keyporter\n                transport_api_version: V2\n"),
		"api-version", logs + "[1].typed_config.common_config.transport_api_version"},
	{"there is no such cluster", replace("envoy_grpc: { cluster_name: authz,", "envoy_grpc: { cluster_name: auth,"),
		"authz-cluster-missing", guard + ".grpc_service.envoy_grpc.cluster_name"},
	{"the cluster speaks HTTP/1.1", replace("http2_protocol_options:\n            max_concurrent_streams: 1024", "http_protocol_options:\n            max_concurrent_streams: 1024"),
		"authz-cluster-http1", cluster},
	{"the cluster speaks TLS with anybody", replace(timeoutOfAuthz, timeoutOfAuthz+"\n    transport_socket: { name: tls, typed_config: { \"@type\": "+upstreamTLS+" } }"),
		"authz-cluster-unverified", cluster + ".transport_socket"},
	{"the cluster speaks TLS with anybody of an authority", replace(timeoutOfAuthz, timeoutOfAuthz+"\n    transport_socket: { name: tls, typed_config: { \"@type\": "+upstreamTLS+
		", common_tls_context: { validation_context: { trusted_ca: { filename: /ca.pem } } } } }"),
		"authz-cluster-unverified", cluster + ".transport_socket"},
	{"a header is not among those allowed", replace("                - { exact: authorization }\n", ""),
		"header-withheld", guard + ".allowed_headers"},
	{"the path is not among those allowed", replace("                - { exact: \":path\" }\n", ""),
		"header-withheld", guard + ".allowed_headers"},
	{"a header is disallowed", set("disallowed_headers: { patterns: [{ exact: COOKIE, ignore_case: true }] }"),
		"header-withheld", guard + ".disallowed_headers"},
	{"the path may not be changed", set("decoder_header_mutation_rules: { disallow_system: true }"),
		"mutation-rules", guard + ".decoder_header_mutation_rules"},
	{"a failure is a 403", replace("              status_on_error: { code: ServiceUnavailable }\n", ""),
		"status-on-error", guard + ".status_on_error"},
	{"headers are joined", replace("encode_raw_headers: true", "encode_raw_headers: false"),
		"raw-headers", guard + ".encode_raw_headers"},
	{"headers that imitate are not among those allowed", replace("- { safe_regex: { regex: \"x[^a-z0-9](keyporter|api)[^a-z0-9].*\" } }", "- { prefix: x-keyporter- }"),
		"lookalike-headers", guard + ".allowed_headers"},
	{"accept is not among those allowed", replace("                - { exact: accept }\n", ""),
		"answer-headers", guard + ".allowed_headers"},
	{"bad changes are left out", replace("validate_mutations: true", "validate_mutations: false"),
		"validate-mutations", guard + ".validate_mutations"},
	{"the body is read first", set("with_request_body: { max_request_bytes: 8192 }"),
		"request-body", guard + ".with_request_body"},
	{"the body of one route is read first", ownRoute(`{ match: { path: /own }, route: { cluster: upstream, timeout: 60s }, typed_per_filter_config: { envoy.filters.http.ext_authz: {
                  "@type": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute, check_settings: { with_request_body: { max_request_bytes: 1 } } } } }`),
		"request-body", host + `.routes[0].typed_per_filter_config["envoy.filters.http.ext_authz"].check_settings.with_request_body`},
	{"Checks go by the other client", replace(toAuthz, "timeout: 0.250s\n                google_grpc: { target_uri: \"127.0.0.1:9001\", stat_prefix: a }"),
		"google-grpc", guard + ".grpc_service.google_grpc"},
	{"Envoy waits too little", replace(waits, "timeout: 0.1s"),
		"authz-timeout", guard + ".grpc_service.timeout"},
	{"no time-out is set", replace(waits, ""),
		"authz-timeout", guard + ".grpc_service"},
	{"Envoy waits longer than for the answer", both(replace(waits, "timeout: 2s"), ownRoute("{ match: { path: /own }, route: { cluster: upstream, timeout: 1s } }")),
		"authz-timeout-long", guard + ".grpc_service.timeout"},
	{"nobody looks whether a replica is there", replace("    health_checks:\n", "    unhealthy:\n"),
		"authz-health-check", cluster},
	{"few are asked about at a time", replace("max_requests: 8192, max_retries", "max_requests: 1024, max_retries"),
		"authz-circuit-breaker", cluster + ".circuit_breakers"},
	{"few requests at a time reach the upstream", replace("- { max_connections: 8192, max_pending_requests: 8192, max_requests: 8192 }\n    load_assignment:\n      cluster_name: upstream\n",
		"- { max_requests: 8192, max_pending_requests: 8192 }\n    load_assignment:\n      cluster_name: upstream\n"),
		"upstream-circuit-breaker", "static_resources.clusters[1].circuit_breakers"},
	{"trailers pass to an upstream that speaks HTTP/2", both(overHTTP2, replace(`- remove_on_match: { key_matcher: { safe_regex: { regex: ".*" } } }`, "- remove: other")),
		"request-trailers", manager + ".http_filters"},
	{"trailers are announced to an upstream that speaks HTTP/2", both(overHTTP2, replace("- remove: trailer\n", "- remove: other\n")),
		"request-trailers", manager + ".early_header_mutation_extensions"},
	{"what Keyporter says is forgotten", set("enable_dynamic_metadata_ingestion: false"),
		"metadata-ingestion", guard + ".enable_dynamic_metadata_ingestion"},

	// What Keyporter receives, and what logs contain.
	{"no access log reports completions", replace("access_loggers.grpc.v3.HttpGrpcAccessLogConfig", "access_loggers.grpc.v3.TcpGrpcAccessLogConfig"),
		"access-log-missing", logs},
	{"requests without a key are reported", replace("match_if_key_not_found: false", "match_if_key_not_found: true"),
		"access-log-filter", logs + "[1].filter"},
	{"all requests are reported", replace("            filter:\n              metadata_filter:", "            unfiltered:\n              metadata_filter:"),
		"access-log-filter", logs + "[1]"},
	{"only failures are reported", replace("              metadata_filter:\n", "              response_flag_filter: {}\n              never:\n"),
		"access-log-filter", logs + "[1].filter"},
	{"failures of gRPC are not reported", replace("additional_response_trailers_to_log: [grpc-status]", "additional_response_trailers_to_log: [grpc-message]"),
		"access-log-grpc-status", logs + "[1].typed_config.additional_response_trailers_to_log"},
	{"the buffer is too large", replace("buffer_size_bytes: 65536", "buffer_size_bytes: 1048576"),
		"access-log-buffer", logs + "[1].typed_config.common_config.buffer_size_bytes"},
	{"the buffer waits too long", replace("buffer_flush_interval: 1s", "buffer_flush_interval: 10s"),
		"access-log-buffer", logs + "[1].typed_config.common_config.buffer_flush_interval"},
	{"the query is logged", log("uri", "%REQ(:PATH)%"),
		"log-query", logs + "[0].typed_config.log_format.json_format.uri"},
	{"the query before a rewrite is logged", log("uri", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH):256%"),
		"log-query", logs + "[0].typed_config.log_format.json_format.uri"},
	{"the log has no format", addLog(`{ name: file, typed_config: { "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: /dev/stdout } }`),
		"log-query", logs + "[0].typed_config"},
	{"a log of a kind that is not known has the query", addLog(`{ name: otel, typed_config: { "@type": type.googleapis.com/envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig, body: { string_value: "%REQ(:METHOD)% %PATH(WQ)%" } } }`),
		"log-query", logs + "[0].typed_config.body.string_value"},
	{"another service gets the query", addLog(`{ name: als, typed_config: { "@type": type.googleapis.com/envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig, common_config: { grpc_service: { envoy_grpc: { cluster_name: page } } } } }`),
		"log-query", logs + "[0].typed_config"},
	{"a key is logged", log("key", "%REQ(X-API-Key)%"),
		"log-credentials", logs + "[0].typed_config.log_format.json_format.key"},
	{"the log of Keyporter has a key", replace("              additional_response_headers_to_log:", "              additional_request_headers_to_log: [Authorization]\n              additional_response_headers_to_log:"),
		"log-credentials", logs + "[1].typed_config.additional_request_headers_to_log"},
	{"a key is traced", manage("tracing: { custom_tags: [{ tag: key, request_header: { name: x-api-key } }] }"),
		"log-credentials", manager + ".tracing.custom_tags[0]"},
	{"the query is traced", manage("tracing: { provider: { name: zipkin } }"),
		"tracing-query", manager + ".tracing"},

	// The rest of a request's life.
	{"a request is sent twice", replace("refused-stream,reset-before-request\", num_retries: 1", "refused-stream,reset-before-request,5xx\", num_retries: 1"),
		"upstream-retries", host + ".retry_policy.retry_on"},
	{"a request of one route is sent twice", ownRoute("{ match: { path: /own }, route: { cluster: upstream, timeout: 60s, retry_policy: { retry_on: \"connect-failure, reset\", per_try_timeout: 1s } } }"),
		"upstream-retries", host + ".routes[0].route.retry_policy.retry_on"},
	{"a request to one cluster is sent twice", after("  - name: upstream\n", "    typed_extension_protocol_options: { envoy.extensions.upstreams.http.v3.HttpProtocolOptions: { \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, retry_policy: { retry_on: gateway-error } } }\n"),
		"upstream-retries", `static_resources.clusters[1].typed_extension_protocol_options["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"].retry_policy.retry_on`},
	{"a slow request is sent twice", ownRoute("{ match: { path: /own }, route: { cluster: upstream, timeout: 60s, hedge_policy: { hedge_on_per_try_timeout: true } } }"),
		"upstream-retries", host + ".routes[0].route.hedge_policy"},
	{"redirects are followed", ownRoute("{ match: { path: /own }, route: { cluster: upstream, timeout: 60s, internal_redirect_policy: {} } }"),
		"internal-redirect", host + ".routes[0].route.internal_redirect_policy"},
	{"a part of the path becomes a query", ownRoute("{ match: { prefix: /own/ }, route: { cluster: upstream, timeout: 60s, prefix_rewrite: \"/own?id=\" } }"),
		"rewrite-query", host + ".routes[0].route.prefix_rewrite"},
	{"answers end early", ownRoute("{ match: { path: /own }, route: { cluster: upstream } }"),
		"route-timeout", host + ".routes[0].route"},
	{"WebSockets stay open", both(unbounded, ownRoute("{ match: { path: /own }, route: { cluster: upstream, timeout: 60s, upgrade_configs: [{ upgrade_type: websocket }] } }")),
		"upgrade-unbounded", host + ".routes[0].route.upgrade_configs"},
	{"all WebSockets stay open", both(both(unbounded, replace(", max_stream_duration: { max_stream_duration: 3600s, grpc_timeout_header_max: 3600s }", "")), manage("upgrade_configs: [{ upgrade_type: websocket }]")),
		"upgrade-unbounded", manager + ".upgrade_configs"},
	{"dots stay in paths", replace("normalize_path: true", "normalize_path: false"),
		"normalize-path", manager + ".normalize_path"},
	{"slashes stay in paths", replace("merge_slashes: true", "merge_slashes: false"),
		"merge-slashes", manager + ".merge_slashes"},
	{"a port leads to another host", after("            virtual_hosts:\n", ownHost),
		"host-spellings", manager + ".route_config.ignore_port_in_host_matching"},
	{"a dot leads to another host", both(after("            virtual_hosts:\n", strings.Replace(ownHost, "[api", "[\"api.example.com:*\", api", 1)), replace("strip_trailing_host_dot: true", "strip_trailing_host_dot: false")),
		"host-spellings", manager + ".strip_trailing_host_dot"},
	{"escaped slashes are redirected", replace("action: REJECT_REQUEST", "action: UNESCAPE_AND_REDIRECT"),
		"escaped-slashes", manager + ".path_with_escaped_slashes_action"},
	{"header-underscores pass", replace("headers_with_underscores_action: DROP_HEADER", "headers_with_underscores_action: ALLOW"),
		"header-underscores", manager + ".common_http_protocol_options"},
	{"clients say who they are", replace("use_remote_address: true", "use_remote_address: false"),
		"client-address", manager + ".use_remote_address"},
	{"private networks are believed", manage("internal_address_config: {}"),
		"internal-addresses", manager + ".internal_address_config"},
	{"headers may be huge", replace("max_request_headers_kb: 60", "max_request_headers_kb: 128"),
		"headers-limit", manager + ".max_request_headers_kb"},
	{"the admin interface is open", replace("address: { socket_address: { address: \"127.0.0.1\", port_value: 9901 } }", "address: { socket_address: { address: \"0.0.0.0\", port_value: 9901 } }"),
		"admin-open", "admin.address"},

	// Envoy's version, and unknown filters.
	{"Envoy has faults", node(38, 3), "envoy-faults", "node.user_agent_build_version.version"},
	{"Envoy is old", node(40, 0), "envoy-old", "node.user_agent_build_version.version"},
	{"a filter after the decision is not known", before(atRouter, `          - { name: own, typed_config: { "@type": type.googleapis.com/example.v1.Own } }`+"\n"),
		"not-looked-at", manager + ".http_filters[3]"},
	{"more listeners come from elsewhere", before("static_resources:\n", "dynamic_resources: { lds_config: { ads: {} } }\n"),
		"not-looked-at", "dynamic_resources.lds_config"},
}

// Every mistake in the printed configuration is found at its place, and nothing else is; so it is
// in the dump of a running Envoy, with routes by RDS and listeners and clusters from elsewhere.
func TestEveryMistakeIsFound(t *testing.T) {
	found := map[string]bool{}
	right := printed(t)
	for _, m := range mistakes {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			document := string(toJSON(t, changed(t, right, m.changes)))
			want := []string{m.rule + " " + m.path}
			if diff := cmp.Diff(want, inspected(t, document)); diff != "" {
				t.Errorf("found (-want +got):\n%s", diff)
			}
			if m.path == "dynamic_resources.lds_config" {
				return // a dump has them
			}
			if got := inspected(t, dump(t, document)); len(got) != 1 || !strings.HasPrefix(got[0], m.rule+" configs[") {
				t.Errorf("found in a dump: %q, want %s", got, m.rule)
			}
		})
		found[m.rule] = true
	}
	for _, rule := range inspect.Rules() {
		if !found[rule.ID] && rule.ID != "identity-headers" && !strings.HasPrefix(rule.ID, "rule-name-") { // see below
			t.Errorf("no mistake here is found by %s", rule.ID)
		}
	}
}

// Routes and the route table agree on the names of rules, if the table is known.
func TestNamesOfRules(t *testing.T) {
	const named = host + `.routes[0].typed_per_filter_config["envoy.filters.http.ext_authz"].check_settings.context_extensions["keyporter-rule"]`
	naming := ownRoute(`{ match: { path: /own }, route: { cluster: upstream, timeout: 60s }, typed_per_filter_config: { envoy.filters.http.ext_authz: { "@type": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute, check_settings: { context_extensions: { keyporter-rule: report } } } } }`)
	for _, row := range []struct {
		name    string
		changes []string
		table   []string
		want    string
	}{
		{"the table is not known", naming, nil, ""},
		{"a rule of the table", naming, []string{"report"}, ""},
		{"a name that the table lacks", naming, []string{}, "rule-name-unknown " + named},
		{"another rule, which no route names", naming, []string{"report", "other"}, "rule-name-unused " + strings.TrimSuffix(guard, ".typed_config")},
		{"a route that has lost its name", nil, []string{"report"}, "rule-name-unused " + strings.TrimSuffix(guard, ".typed_config")},
		{"a running Envoy, which hides the name", both(naming, replace("keyporter-rule: report }", `keyporter-rule: "[redacted]" }`)), []string{"other"}, ""},
		{"no names anywhere", nil, []string{}, ""},
	} {
		findings, err := inspect.Config(toJSON(t, changed(t, printed(t), row.changes)), inspect.Known{Names: row.table})
		if err != nil {
			t.Fatal(err)
		}
		var found []string
		for _, f := range findings {
			found = append(found, f.ID+" "+string(f.Path))
		}
		if got := strings.Join(found, "\n"); got != row.want {
			t.Errorf("%s: found %q, want %q", row.name, got, row.want)
		}
	}
}

// If Keyporter is not asked, a client's identity headers do not reach an upstream that trusts them.
func TestIdentityHeadersOnUnguardedRoutes(t *testing.T) {
	unguarded := ownRoute("{ match: { path: /own }, route: { cluster: upstream, timeout: 60s }, " + off + " }")
	const at = " " + host + `.routes[0].typed_per_filter_config["envoy.filters.http.ext_authz"]`
	const removed = `              - remove_on_match: { key_matcher: { safe_regex: { regex: "x[^a-z0-9]keyporter[^a-z0-9].*" } } }` + "\n"
	nobody := replace(removed, "              - remove: x-other\n")
	for _, row := range []struct {
		name    string
		changes []string
		found   bool
	}{
		{"nobody removes them", nobody, true},
		{"one is left", both(nobody, after("            name: routes\n", "            "+strings.Replace(without, "x-keyporter-key-id, ", "", 1)+"\n")), true},
		{"all routes remove them", both(nobody, after("            name: routes\n", "            "+without+"\n")), false},
		{"they are removed as it is printed", nil, false},
		{"they are removed before everything", replace(removed, "              - remove_on_match: { key_matcher: { safe_regex: { regex: \"x[^a-z]keyporter[^a-z](user|account|plan|key-id|charge)\" } } }\n"), false},
	} {
		want := []string{"ext-authz-off" + at}
		if row.found {
			want = append(want, "identity-headers"+at)
		}
		if diff := cmp.Diff(want, inspected(t, changed(t, printed(t), both(unguarded, row.changes)))); diff != "" {
			t.Errorf("%s: found (-want +got):\n%s", row.name, diff)
		}
	}
}

// Correct settings in another form are not found.
func TestWhatIsNoMistake(t *testing.T) {
	for name, changes := range map[string][]string{
		"a listener that forwards nothing":        listener(`{ match: { prefix: / }, redirect: { https_redirect: true } }`),
		"a listener for metrics":                  both(listener(`{ match: { prefix: /stats }, route: { cluster: stats } }`), after("  clusters:\n", "  - { name: stats, load_assignment: { cluster_name: stats, endpoints: [{ lb_endpoints: [{ endpoint: { address: { socket_address: { address: 127.0.0.1, port_value: 9901 } } } }] }] } }\n")),
		"a route that forwards nothing":           ownRoute("{ match: { path: /own }, direct_response: { status: 204 }, " + off + " }"),
		"what is switched off is refused":         set("filter_enabled: { default_value: { numerator: 1 } }\n              deny_at_disable: { runtime_key: a, default_value: true }"),
		"a policy of Istio that matches all":      marked(`{ and_rules: { rules: [{ any: true }] } }`, "istio-ext-authz"),
		"all are asked about":                     set("filter_enabled: { runtime_key: a, default_value: { numerator: 1000000, denominator: MILLION } }"),
		"filters that change nothing":             before(atRouter, `          - { name: compress, typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.compressor.v3.Compressor } }`+"\n"),
		"a script that is off":                    before(atRouter, `          - { name: script, disabled: true, typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua } }`+"\n"),
		"a script before the decision":            after(atFilters, `          - { name: script, typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua } }`+"\n"),
		"context extensions":                      ownRoute(`{ match: { path: /own }, route: { cluster: upstream, timeout: 60s }, typed_per_filter_config: { envoy.filters.http.ext_authz: { "@type": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute, check_settings: { context_extensions: { keyporter-rule: own } } } } }`),
		"a filter by another name, on by a route": both(replace("          - name: envoy.filters.http.ext_authz\n", "          - name: authz/own\n            disabled: true\n"), after("            name: routes\n", "            typed_per_filter_config: { authz/own: { \"@type\": type.googleapis.com/envoy.config.route.v3.FilterConfig, config: {} } }\n")),
		"a cluster by another name":               both(replace("grpc_service:\n                  envoy_grpc: { cluster_name: authz,", "grpc_service:\n                  envoy_grpc: { cluster_name: keyporter,"), after("  clusters:\n", "  - { name: keyporter, load_assignment: { endpoints: [{ lb_endpoints: [{ endpoint: { address: { socket_address: { address: 127.0.0.1, port_value: 9001 } } } }] }] } }\n")),
		"HTTP/2 by ALPN":                          both(replace("explicit_http_config:\n          http2_protocol_options:\n            max_concurrent_streams: 1024", "auto_config:\n          http2_protocol_options:\n            max_concurrent_streams: 1024"), after("  - name: authz\n", "    transport_socket: { name: tls }\n")),
		"bounded WebSockets":                      manage("upgrade_configs: [{ upgrade_type: websocket }]"),
		"logs to nowhere":                         addLog(`{ name: file, typed_config: { "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: /dev/null } }`),
		"traces without paths":                    manage("tracing: { provider: { name: zipkin }, max_path_tag_length: 0 }"),
		"an answer of any length":                 ownRoute("{ match: { path: /own }, route: { cluster: upstream, timeout: 0s } }"),
		"an answer that ends by its duration":     ownRoute("{ match: { path: /own }, route: { cluster: upstream, max_stream_duration: { max_stream_duration: 3600s } } }"),
		"hosts in all spellings":                  both(after("            virtual_hosts:\n", ownHost), after("            name: routes\n", "            ignore_port_in_host_matching: true\n")),
		"no version of the API":                   replace("transport_api_version: V3\n", "\n"),
		"a newer Envoy":                           node(41, 0),
		"loopback is internal":                    manage("internal_address_config: { cidr_ranges: [{ address_prefix: 127.0.0.0, prefix_len: 8 }] }"),
		"fields of a later Envoy":                 manage("a_new_field: { a: [1] }"),
	} {
		if got := inspected(t, changed(t, printed(t), changes)); len(got) > 0 {
			t.Errorf("%s: found %q", name, got)
		}
	}
}

// The output of control planes is understood: filters by other names that routes switch on, routes
// by RDS, listeners and clusters by LDS and CDS, endpoints by EDS, unknown extensions.
func TestConfigurationsOfOthers(t *testing.T) {
	const (
		gateway = "configs[3].dynamic_listeners[0].active_state.listener.default_filter_chain.filters[0].typed_config"
		routes  = "configs[4].dynamic_route_configs[0].route_config.virtual_hosts[0].routes"
		ingress = "configs[2].dynamic_listeners[0].active_state.listener.filter_chains[0].filters[0].typed_config"
	)
	for file, want := range map[string][]string{
		"testdata/envoy_gateway.yaml": {
			"access-log-filter " + gateway + ".access_log[1]",
			"access-log-grpc-status " + gateway + ".access_log[1].typed_config.additional_response_headers_to_log",
			"access-log-grpc-status " + gateway + ".access_log[1].typed_config.additional_response_trailers_to_log",
			"authz-circuit-breaker configs[1].dynamic_active_clusters[2].cluster.circuit_breakers",
			"authz-health-check configs[1].dynamic_active_clusters[2].cluster",
			"escaped-slashes " + gateway + ".path_with_escaped_slashes_action",
			"ext-authz-off " + routes + "[0]",
			"identity-headers " + routes + "[0]",
			"log-query " + gateway + ".access_log[0].typed_config.log_format.json_format[\"x-envoy-origin-path\"]",
			"raw-headers " + gateway + ".http_filters[0].typed_config.encode_raw_headers",
			"route-timeout " + routes + "[1].route",
			"upgrade-unbounded " + routes + "[1].route.upgrade_configs",
			"upstream-circuit-breaker configs[1].dynamic_active_clusters[0].cluster.circuit_breakers",
			"validate-mutations " + gateway + ".http_filters[0].typed_config.validate_mutations",
		},
		"testdata/istio.yaml": {
			"access-log-filter " + ingress + ".access_log[1]",
			"access-log-grpc-status " + ingress + ".access_log[1].typed_config.additional_response_headers_to_log",
			"authz-health-check configs[1].dynamic_active_clusters[0].cluster",
			"authz-timeout-long " + ingress + ".http_filters[2].typed_config.grpc_service.timeout",
			"escaped-slashes " + ingress + ".path_with_escaped_slashes_action",
			"ext-authz-conditional " + ingress + ".http_filters[2].typed_config.filter_enabled_metadata",
			"ext-authz-missing configs[2].static_listeners[1].listener.filter_chains[0].filters[0].typed_config.http_filters",
			"log-query " + ingress + ".access_log[0].typed_config.log_format.text_format_source.inline_string",
			"merge-slashes " + ingress + ".merge_slashes",
			"raw-headers " + ingress + ".http_filters[2].typed_config.encode_raw_headers",
			"upstream-retries configs[3].dynamic_route_configs[0].route_config.virtual_hosts[0].routes[0].route.retry_policy.retry_on",
			"status-on-error " + ingress + ".http_filters[2].typed_config.status_on_error",
			"header-underscores " + ingress + ".common_http_protocol_options",
			"upgrade-unbounded " + ingress + ".upgrade_configs",
			"upstream-circuit-breaker configs[1].dynamic_active_clusters[1].cluster.circuit_breakers",
			"validate-mutations " + ingress + ".http_filters[2].typed_config.validate_mutations",
		},
	} {
		slices.Sort(want)
		if diff := cmp.Diff(want, inspected(t, read(t, file))); diff != "" {
			t.Errorf("%s: found (-want +got):\n%s", file, diff)
		}
	}
}

// printed is the configuration that `keyporter envoy` prints.
func printed(t *testing.T) string {
	t.Helper()
	token, err := bearer.Parse(secret)
	if err != nil {
		t.Fatal(err)
	}
	table, err := authz.NewRouteTable(defaultRules(t))
	if err != nil {
		t.Fatal(err)
	}
	text, err := bootstrap.YAML(bootstrap.Config{Routes: table, Token: token})
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// changed replaces words in a text.
func changed(t *testing.T, text string, changes []string) string {
	t.Helper()
	for i := 0; i+1 < len(changes); i += 2 {
		if !strings.Contains(text, changes[i]) {
			t.Fatalf("the configuration does not say %q", changes[i])
		}
		text = strings.ReplaceAll(text, changes[i], changes[i+1])
	}
	return text
}

// inspected returns the ids and paths of the findings in YAML or JSON, in no order.
func inspected(t *testing.T, document string) []string {
	t.Helper()
	findings, err := inspect.Config(toJSON(t, document), inspect.Known{})
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, f := range findings {
		found = append(found, f.ID+" "+string(f.Path))
		if strings.Contains(fmt.Sprint(f), secret) {
			t.Errorf("%s contains a secret", f.ID)
		}
	}
	slices.Sort(found)
	return found
}

func read(t testing.TB, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func toJSON(t testing.TB, document string) []byte {
	t.Helper()
	if json.Valid([]byte(document)) {
		return []byte(document)
	}
	var value any
	if err := yaml.Unmarshal([]byte(document), &value); err != nil {
		t.Fatal(err)
	}
	encoded, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return encoded
}

// object is a JSON object.
type object = map[string]any

// dump turns a bootstrap into the dump of an Envoy that got all of it from a control plane.
func dump(t *testing.T, document string) string {
	t.Helper()
	var b object
	if err := json.Unmarshal(toJSON(t, document), &b); err != nil {
		t.Fatal(err)
	}
	static := b["static_resources"].(object)
	listeners, clusters, tables := []object{}, []object{}, []object{}
	for _, l := range static["listeners"].([]any) {
		byRDS(l.(object), &tables)
		listeners = append(listeners, object{"active_state": object{"listener": typed("config.listener.v3.Listener", l.(object))}})
	}
	for _, k := range static["clusters"].([]any) {
		clusters = append(clusters, object{"cluster": typed("config.cluster.v3.Cluster", k.(object))})
	}
	encoded, err := json.Marshal(object{"configs": []object{
		typed("admin.v3.BootstrapConfigDump", object{"bootstrap": b}),
		typed("admin.v3.ClustersConfigDump", object{"dynamic_active_clusters": clusters}),
		typed("admin.v3.ListenersConfigDump", object{"dynamic_listeners": listeners}),
		typed("admin.v3.RoutesConfigDump", object{"dynamic_route_configs": tables}),
	}})
	if err != nil {
		t.Fatal(err)
	}
	return string(encoded)
}

// typed is a message of Envoy's API with its type.
func typed(name string, message object) object {
	message = maps.Clone(message)
	message["@type"] = "type.googleapis.com/envoy." + name
	return message
}

// byRDS moves the routes of a listener to a table of their own.
func byRDS(l object, tables *[]object) {
	for _, chain := range l["filter_chains"].([]any) {
		http := chain.(object)["filters"].([]any)[0].(object)["typed_config"].(object)
		table, ok := http["route_config"].(object)
		if !ok {
			continue
		}
		table["name"] = fmt.Sprint("table-", len(*tables))
		delete(http, "route_config")
		http["rds"] = object{"route_config_name": table["name"]}
		*tables = append(*tables, object{"route_config": typed("config.route.v3.RouteConfiguration", table)})
	}
}

// defaultRules are the rules that Keyporter ships with.
func defaultRules(t testing.TB) []authz.Rule {
	t.Helper()
	rules, err := routes.Default()
	if err != nil {
		t.Fatal(err)
	}
	return rules
}

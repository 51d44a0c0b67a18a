package inspect

import (
	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
)

// rules are all rules. A new rule needs an id that was never used before, its change in the test,
// and go test ./envoy/inspect -update for the table in the documents.
var rules = sorted([]Rule{
	{
		ID: "ext-authz-missing", Severity: Error, find: findMissing,
		Title: "a connection manager does not ask Keyporter",
		Why:   "Whatever arrives here is forwarded undecided and unpaid, with the client's headers as they are. Only a listener that is no way to the API may do without.",
		Fix: `http_filters: # last before the router
- name: envoy.filters.http.ext_authz
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz
    transport_api_version: V3
    failure_mode_allow: false
    status_on_error: { code: ServiceUnavailable }
    encode_raw_headers: true
    validate_mutations: true
    charge_cluster_response_stats: false
    grpc_service:
      timeout: 0.250s
      envoy_grpc: { cluster_name: authz }`,
	},
	{
		ID: "ext-authz-off", Severity: Error, find: eachManager(findOff),
		Title: "ext_authz is switched off where requests are forwarded",
		Why:   "Requests on this route are forwarded undecided and unpaid. Where everybody may pass, give the path a rule of kind public: then credentials are stripped and other spellings of the path refused all the same.",
		Fix: `# in the route table of Keyporter; and take away what switches ext_authz off:
# disabled of the filter, and its entry in typed_per_filter_config
- { paths: ["/healthz"], kind: public }`,
	},
	{
		ID: "ext-authz-partial", Severity: Error, find: sets("filter_enabled", "it works on a part of the requests", isPartial),
		Title: "ext_authz works on a part of the requests only",
		Why:   "The others are forwarded undecided and unpaid.",
		Fix:   `deny_at_disable: { runtime_key: keyporter.deny, default_value: true } # or leave out filter_enabled`,
	},
	{
		ID: "ext-authz-conditional", Severity: Error, find: sets("filter_enabled_metadata", "it works where another filter says so", isConditional),
		Title: "ext_authz works on some requests only, as metadata tell",
		Why:   "What the condition leaves out is forwarded undecided and unpaid. Istio writes it for an AuthorizationPolicy: its rules have to match every path that is not for everybody, in every spelling.",
		Fix:   `deny_at_disable: { runtime_key: keyporter.deny, default_value: true } # or leave out filter_enabled_metadata`,
	},
	{
		ID: "ext-authz-shadow", Severity: Error, find: sets("shadow_mode", "it refuses nothing", (*extauthzv3.ExtAuthz).GetShadowMode),
		Title: "ext_authz refuses nothing",
		Why:   "In shadow mode refused requests are forwarded as well, and what Keyporter allows is charged.",
		Fix:   `shadow_mode: false`,
	},
	{
		ID: "ext-authz-not-last", Severity: Error, find: eachManager(findAfter),
		Title: "a filter after ext_authz can change what was decided",
		Why:   "It may send a request elsewhere than Keyporter has decided about, or put back or replace headers: identity, credentials.",
		Fix: `http_filters: # the others first, then
- name: envoy.filters.http.ext_authz
  typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz } # as it is
- name: envoy.filters.http.router
  typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }`,
	},
	{
		ID: "answers-before-ext-authz", Severity: Error, find: eachManager(findBefore),
		Title: "a filter before ext_authz answers by itself",
		Why:   "What it has is given to everybody, key or not: an answer from a cache was somebody's.",
		Fix: `http_filters: # ext_authz first
- name: envoy.filters.http.ext_authz
  typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz } # as it is`,
	},
	{
		ID: "tcp-beside-http", Severity: Error, find: findBesides,
		Title: "a filter chain beside a guarded one does not speak HTTP",
		Why:   "Connections that match this chain are forwarded as they are. Keyporter is asked about none of their requests.",
		Fix: `filter_chains: # give it a connection manager with ext_authz, or a listener of its own
- filters:
  - name: envoy.filters.network.http_connection_manager`,
	},
	{
		ID: "failure-mode-allow", Severity: Error, find: sets("failure_mode_allow", "what cannot be asked about passes", (*extauthzv3.ExtAuthz).GetFailureModeAllow),
		Title: "requests pass while Keyporter cannot be asked",
		Why:   "A client who makes a Check fail, or waits until one does, is let in with any key, and unpaid. The key is not stripped then either.",
		Fix:   `failure_mode_allow: false`,
	},
	{
		ID: "clear-route-cache", Severity: Error, find: sets("clear_route_cache", "the route is picked anew", clearsRoute),
		Title: "the route is picked anew after the decision",
		Why:   "By what has changed, a request may take a route whose path, kind and cost were not decided about.",
		Fix:   `clear_route_cache: false # and leave out clear_route_cache_headers`,
	},
	{
		ID: "http-service", Severity: Error, find: eachService(findHTTPService),
		Title: "ext_authz speaks HTTP, which Keyporter does not",
		Why:   "Checks are decided by gRPC only: this one fails. Envoy's client for HTTP also had a fault by which it read freed memory (CVE-2026-50572).",
		Fix: `grpc_service: # in place of http_service
  timeout: 0.250s
  envoy_grpc: { cluster_name: authz }`,
	},
	{
		ID: "api-version", Severity: Error, find: both(
			sets("transport_api_version", "it is V2", func(a *extauthzv3.ExtAuthz) bool { return isOldAPI(a.GetTransportApiVersion()) }),
			eachTeller(findTellerAPI)),
		Title: "Keyporter is spoken to in an old version of Envoy's API",
		Why:   "Keyporter knows V3 only, and Envoy today refuses to start with anything else.",
		Fix:   `transport_api_version: V3`,
	},
	{
		ID: "authz-cluster-missing", Severity: Error, find: eachService(findNoCluster),
		Title: "the cluster that ext_authz asks does not exist",
		Why:   "No Check arrives, and every request is refused.",
		Fix: `clusters:
- name: authz
  type: STRICT_DNS
  connect_timeout: 0.250s
  typed_extension_protocol_options:
    envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
      "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
      explicit_http_config: { http2_protocol_options: {} }
  load_assignment:
    cluster_name: authz
    endpoints: [{ lb_endpoints: [{ endpoint: { address: { socket_address: { address: keyporter, port_value: 9001 } } } }] }]`,
	},
	{
		ID: "authz-cluster-http1", Severity: Error, find: eachCluster(findHTTP1Cluster),
		Title: "the cluster that ext_authz asks does not speak HTTP/2",
		Why:   "gRPC needs HTTP/2: no Check arrives, and every request is refused.",
		Fix: `typed_extension_protocol_options:
  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
    "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
    explicit_http_config: { http2_protocol_options: {} }`,
	},
	{
		ID: "header-withheld", Severity: Error, find: withheld(credentialHeaders...),
		Title: "Keyporter is not shown a header that may hold a credential",
		Why:   "A credential in it opens nothing, and goes on to the upstream where another one is good: Keyporter strips what it has seen. Without :path it cannot tell what the path was, byte for byte.",
		Fix: `allowed_headers: # or leave it out, and disallowed_headers too: then Keyporter is shown all
  patterns:
  - { exact: ":path" }
  - { exact: x-api-key }
  - { exact: authorization }
  - { exact: cookie }
  - { exact: accept }
  - { exact: content-type }
  - { exact: sec-websocket-protocol }
  - { exact: origin }
  - { exact: access-control-request-method }
  - { safe_regex: { regex: "x[^a-z0-9](keyporter|api)[^a-z0-9].*" } }`,
	},
	{
		ID: "mutation-rules", Severity: Error, find: eachGuard(findMutationRules),
		Title: "Keyporter may not change what it has to",
		Why:   "The key stays in the query or the headers, and the upstream sees it; or the client's identity headers stay.",
		Fix:   `decoder_header_mutation_rules: null`,
	},
	{
		ID: "identity-headers", Severity: Error, find: eachManager(findImpersonation),
		Title: "a client's own identity headers reach the upstream",
		Why:   "Where Keyporter is asked it overwrites them. Where it is not, a client may say that it is anybody, to an upstream that knows these headers.",
		Fix:   `request_headers_to_remove: [x-keyporter-user, x-keyporter-account, x-keyporter-plan, x-keyporter-key-id, x-keyporter-charge]`,
	},
	{
		ID: "log-query", Severity: Error, find: findLeaks(false),
		Title: "an access log has the query, and a key in it",
		Why:   "A key in the query of a request that was refused is written down: of one whose rate limit is used up, for example. So is one that is only a letter short.",
		Fix: `log_format:
  json_format:
    path: "%PATH(NQ)%" # in place of %REQ(:PATH)%, %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%, %PATH(WQ)%`,
	},
	{
		ID: "log-credentials", Severity: Error, find: both(findLeaks(true), eachManager(findTracedCredentials)),
		Title: "an access log or a trace has a header that may hold a credential",
		Why:   "Keys and sessions of refused requests are written down, and of all others where the header is one that Keyporter leaves as it is.",
		Fix:   `# leave the header out. Who it was is in %DYNAMIC_METADATA(envoy.filters.http.ext_authz:keyporter:user)%`,
	},
	{
		ID: "tracing-query", Severity: Error, find: eachManager(findTracing),
		Title: "each trace has the query, and a key in it",
		Why:   "A span has the whole URL, as http.url. A key in the query of a request that was refused is in it.",
		Fix: `tracing:
  max_path_tag_length: 0 # http.url is without its path then`,
	},
	{
		ID: "admin-open", Severity: Error, find: findOpenAdmin,
		Title: "Envoy's admin interface can be reached from outside",
		Why:   "Whoever reaches it reads the configuration, the gRPC token in it, and can stop Envoy.",
		Fix:   `address: { socket_address: { address: 127.0.0.1, port_value: 9901 } }`,
	},
	{
		ID: "envoy-faults", Severity: Error, find: findFaulty,
		Title: "this release of Envoy has known faults that Keyporter depends on",
		Why:   "Its ext_authz can be made to crash or to read freed memory (CVE-2026-47205, -50572, -73547), or paths escape normalisation (CVE-2026-73511, -73551). Releases older than 1.36 are mended no more.",
		Fix:   `# use Envoy 1.40.1, 1.39.5, 1.38.8 or 1.37.10, or newer`,
	},

	{
		ID: "status-on-error", Severity: Warning, find: sets("status_on_error", "it is not 503", hasOtherStatus),
		Title: "a failure to ask looks like a refusal",
		Why:   "While Keyporter cannot be asked, clients get 403 with an empty body: they give up, or look for a fault in their key, where they should try again.",
		Fix:   `status_on_error: { code: ServiceUnavailable }`,
	},
	{
		ID: "raw-headers", Severity: Warning, find: sets("encode_raw_headers", "headers are joined and repaired", func(a *extauthzv3.ExtAuthz) bool { return !a.GetEncodeRawHeaders() }),
		Title: "Keyporter is not shown headers as they are",
		Why:   "Repeated headers arrive joined, and bytes that are no text as '!'. Keyporter is then strict: a path with '!' that it would have to change is refused.",
		Fix:   `encode_raw_headers: true`,
	},
	{
		ID: "lookalike-headers", Severity: Warning, find: withheld("x!keyporter!user", "x!api!key"),
		Title: "Keyporter is not shown headers that imitate its own",
		Why:   "Some upstreams take any mark in a name for a hyphen. Keyporter removes such headers, where it is shown them.",
		Fix: `allowed_headers:
  patterns: # beside the others
  - { safe_regex: { regex: "x[^a-z0-9](keyporter|api)[^a-z0-9].*" } }`,
	},
	{
		ID: "answer-headers", Severity: Warning, find: withheld(answerHeaders...),
		Title: "Keyporter is not shown how to answer",
		Why:   "By accept it tells a browser from a program, by content-type who speaks gRPC and reads grpc-status, and from sec-websocket-protocol it takes out a key.",
		Fix: `allowed_headers:
  patterns: # beside the others
  - { exact: accept }
  - { exact: content-type }
  - { exact: sec-websocket-protocol }`,
	},
	{
		ID: "validate-mutations", Severity: Warning, find: sets("validate_mutations", "it is off", func(a *extauthzv3.ExtAuthz) bool { return !a.GetValidateMutations() }),
		Title: "a change that Envoy cannot make is left out",
		Why:   "The request goes on without it, say with the key still in it. It should fail.",
		Fix:   `validate_mutations: true`,
	},
	{
		ID: "request-body", Severity: Warning, find: eachManager(findBody),
		Title: "the body is read before Keyporter is asked",
		Why:   "Keyporter does not look at it. A client without a key makes Envoy hold its body, a stream never gets as far as the Check, and a large body is 413.",
		Fix:   `with_request_body: null`,
	},
	{
		ID: "google-grpc", Severity: Warning, find: eachService(findGoogleGRPC),
		Title: "Checks are sent by Envoy's other gRPC client",
		Why:   "It knows no cluster, and so no health checks, no circuit breakers and no other replica to try.",
		Fix: `grpc_service:
  timeout: 0.250s
  envoy_grpc: { cluster_name: authz }`,
	},
	{
		ID: "authz-timeout", Severity: Warning, find: eachService(findTimeout),
		Title: "Envoy waits for a decision less than Keyporter may take for one",
		Why:   "That is 150 ms by default, in which a slow database still answers. Where Envoy gives up earlier, good requests are refused with 503.",
		Fix: `grpc_service:
  timeout: 0.250s`,
	},
	{
		ID: "authz-timeout-long", Severity: Warning, find: eachService(findLongTimeout),
		Title: "Envoy waits for a decision longer than for the answer",
		Why:   "While Keyporter hangs, so does every request, with all that it holds, where it should be 503 at once.",
		Fix: `grpc_service:
  timeout: 0.250s`,
	},
	{
		ID: "authz-health-check", Severity: Warning, find: eachCluster(findNoHealthCheck),
		Title: "Envoy does not notice that a replica is stopping or gone",
		Why:   "A replica that stops, or has lost its lease, says so by its health, and is asked all the same: each such request is a 503.",
		Fix: `health_checks:
- interval: 1s
  no_traffic_interval: 1s
  timeout: 1s
  unhealthy_threshold: 2
  healthy_threshold: 1
  grpc_health_check: { service_name: envoy.service.auth.v3.Authorization }`,
	},
	{
		ID: "authz-circuit-breaker", Severity: Warning, find: eachCluster(findBreaker),
		Title: "a short stall becomes refusals",
		Why:   "Above 1024 Checks at a time, Envoy's default, requests are refused without being asked about. A stall of a few milliseconds is enough.",
		Fix: `circuit_breakers:
  thresholds:
  - { max_connections: 1024, max_pending_requests: 8192, max_requests: 8192, max_retries: 1024 }`,
	},
	{
		ID: "upstream-circuit-breaker", Severity: Warning, find: eachManager(findUpstreamBreaker),
		Title: "a few slow clients take the upstream from all others",
		Why:   "Above 1024 connections or requests at a time, Envoy's default, all others are 503. One client who reads slowly, or asks for what takes long, opens as many.",
		Fix: `circuit_breakers:
  thresholds:
  - { max_connections: 8192, max_pending_requests: 8192, max_requests: 8192 }`,
	},
	{
		ID: "request-trailers", Severity: Warning, find: eachManager(findTrailers),
		Title: "a client's trailers reach the upstream",
		Why:   "Keyporter does not see them. An upstream that joins them to the headers reads the client's x-keyporter-user. One that has been told of them refuses some names: the client has its credit back for a request that was carried out.",
		Fix: `http_filters: # before ext_authz
- name: envoy.filters.http.header_mutation
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation
    mutations:
      request_trailers_mutations:
      - remove_on_match: { key_matcher: { safe_regex: { regex: ".*" } } }
early_header_mutation_extensions:
- name: envoy.http.early_header_mutation.header_mutation
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation
    mutations: [{ remove: trailer }]`,
	},
	{
		ID: "metadata-ingestion", Severity: Warning, find: sets("enable_dynamic_metadata_ingestion", "it is off", func(a *extauthzv3.ExtAuthz) bool {
			return a.GetEnableDynamicMetadataIngestion() != nil && !a.GetEnableDynamicMetadataIngestion().GetValue()
		}),
		Title: "Envoy forgets what Keyporter says about a request",
		Why:   "The access log then does not name the charge: no credit comes back, and the page shows no requests.",
		Fix:   `enable_dynamic_metadata_ingestion: true`,
	},
	{
		ID: "access-log-missing", Severity: Warning, find: eachManager(findNoTeller),
		Title: "Keyporter is not told how requests end",
		Why:   "No credit comes back when the upstream fails, and the page shows no requests.",
		Fix: `access_log:
- name: envoy.access_loggers.http_grpc
  filter:
    metadata_filter:
      matcher:
        filter: envoy.filters.http.ext_authz
        path: [{ key: keyporter }, { key: key_id }]
        value: { present_match: true }
      match_if_key_not_found: false
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig
    common_config:
      log_name: keyporter
      transport_api_version: V3
      buffer_flush_interval: 1s
      buffer_size_bytes: 65536
      grpc_service: { envoy_grpc: { cluster_name: authz } }
    additional_response_headers_to_log: [grpc-status]
    additional_response_trailers_to_log: [grpc-status]`,
	},
	{
		ID: "access-log-filter", Severity: Warning, find: eachTeller(findTellerFilter),
		Title: "Keyporter is told of other requests than those with a key",
		Why:   "Of those without it can make nothing, and reads them all the same: a flood of them is its flood too. What another filter leaves out is never given back.",
		Fix: `filter:
  metadata_filter:
    matcher:
      filter: envoy.filters.http.ext_authz
      path: [{ key: keyporter }, { key: key_id }]
      value: { present_match: true }
    match_if_key_not_found: false`,
	},
	{
		ID: "access-log-grpc-status", Severity: Warning, find: eachTeller(findNoGRPCStatus),
		Title: "Keyporter is not told that a gRPC upstream failed",
		Why:   "It fails with HTTP status 200, and says so in grpc-status alone. Without that its failures stay charged.",
		Fix: `additional_response_headers_to_log: [grpc-status]
additional_response_trailers_to_log: [grpc-status]`,
	},
	{
		ID: "access-log-buffer", Severity: Warning, find: eachTeller(findTellerBuffer),
		Title: "Keyporter is told too much at once, or too late",
		Why:   "It takes messages of 256 KiB, and a replica that stops waits 3 s for what it has yet to be told. The rest is lost, and stays charged.",
		Fix: `common_config:
  buffer_flush_interval: 1s
  buffer_size_bytes: 65536`,
	},
	{
		ID: "upstream-retries", Severity: Warning, find: eachManager(findRetries),
		Title: "a request may be sent to the upstream twice",
		Why:   "Keyporter is asked once and charges once. The upstream may have done its work before it failed, and does it again.",
		Fix:   `retry_policy: { retry_on: "connect-failure,refused-stream,reset-before-request", num_retries: 1 }`,
	},
	{
		ID: "internal-redirect", Severity: Warning, find: eachRoute(findInternalRedirect),
		Title: "Envoy follows redirects of the upstream by itself",
		Why:   "Each is a request of its own, and by then without its key: the client gets 401, and has paid for the redirect.",
		Fix:   `# leave it out: the client follows the redirect, with its key`,
	},
	{
		ID: "rewrite-query", Severity: Warning, find: eachRoute(findRewrittenQuery),
		Title: "a route makes another query of what was decided",
		Why:   "Keyporter has checked the query and promises to leave it as it is but for the key. A part of the path that becomes one was never checked.",
		Fix:   `prefix_rewrite: /v2/ # without a question mark`,
	},
	{
		ID: "route-timeout", Severity: Warning, find: eachRoute(findRouteTimeout),
		Title: "every answer ends after 15 seconds",
		Why:   "That is the default of a route. Long answers are cut, and stay charged, since the upstream has answered.",
		Fix: `route:
  timeout: 0s # or as long as an answer may take
  idle_timeout: 60s
  max_stream_duration: { max_stream_duration: 3600s }`,
	},
	{
		ID: "upgrade-unbounded", Severity: Warning, find: eachManager(findUpgrade),
		Title: "a connection may stay open for ever",
		Why:   "An upgraded connection is decided once, when it starts. It outlives its key by as long as it stays open.",
		Fix: `common_http_protocol_options:
  max_stream_duration: 3600s`,
	},
	{
		ID: "normalize-path", Severity: Warning, find: manages("normalize_path", "it is off", func(m *manager) bool { return !m.GetNormalizePath().GetValue() }),
		Title: "Envoy leaves paths as they are spelt",
		Why:   "Envoy and the upstream may read a/../b differently. Keyporter refuses such paths, so good clients get 400 where Envoy could resolve them.",
		Fix:   `normalize_path: true`,
	},
	{
		ID: "host-spellings", Severity: Warning, find: eachManager(findHostSpellings),
		Title: "another spelling of a host takes another virtual host",
		Why: "Keyporter reads a host without its port and a dot at its end, and Envoy does not here. If the route table of Keyporter has `hosts`, " +
			"such a request is decided by the rules of one host and takes the routes of another.",
		Fix: `# of the connection manager, and of its route configuration
strip_trailing_host_dot: true
route_config:
  ignore_port_in_host_matching: true`,
	},
	{
		ID: "merge-slashes", Severity: Warning, find: manages("merge_slashes", "it is off", func(m *manager) bool { return !m.GetMergeSlashes() }),
		Title: "Envoy leaves doubled slashes in paths",
		Why:   "Envoy and the upstream may read a//b differently. Keyporter refuses such paths, so good clients get 400 where Envoy could resolve them.",
		Fix:   `merge_slashes: true`,
	},
	{
		ID: "escaped-slashes", Severity: Warning, find: manages("path_with_escaped_slashes_action", "it is not REJECT_REQUEST", keepsEscapedSlashes),
		Title: "Envoy does not refuse escaped slashes in paths",
		Why:   "Programs disagree on whether %2f divides a path. Unescaped and redirected, it repeats the query, and a key in it, in a Location header.",
		Fix:   `path_with_escaped_slashes_action: REJECT_REQUEST`,
	},
	{
		ID: "header-underscores", Severity: Warning, find: manages("common_http_protocol_options", "headers with underscores pass", allowsUnderscores),
		Title: "headers with underscores reach the upstream",
		Why:   "Many upstreams read x_keyporter_user as x-keyporter-user. Keyporter removes those that it is shown, and nobody does where it is not asked.",
		Fix: `common_http_protocol_options:
  headers_with_underscores_action: DROP_HEADER`,
	},
	{
		ID: "client-address", Severity: Warning, find: manages("use_remote_address", "it is off", believesClients),
		Title: "Envoy believes clients who say what they are",
		Why:   "A client may choose its address in logs (x-forwarded-for), and send Envoy's own headers, such as x-envoy-retry-on. Behind another proxy say how many there are.",
		Fix: `use_remote_address: true
xff_num_trusted_hops: 0 # or how many proxies are in front`,
	},
	{
		ID: "internal-addresses", Severity: Warning, find: manages("internal_address_config", "it names addresses beyond this machine", believesNetworks),
		Title: "Envoy takes whole networks for its own",
		Why:   "Whoever sends from there may use Envoy's own headers, such as x-envoy-retry-on or x-envoy-upstream-rq-timeout-ms. Without ranges that is every private address.",
		Fix:   `internal_address_config: null`,
	},
	{
		ID: "headers-limit", Severity: Warning, find: manages("max_request_headers_kb", "it is more than 100", takesLargeHeaders),
		Title: "a request may be too large to ask about",
		Why:   "Keyporter takes Checks of 256 KiB. Beyond that it refuses the request with 431, whatever its key.",
		Fix:   `max_request_headers_kb: 60`,
	},
	{
		ID: "envoy-old", Severity: Warning, find: findOld,
		Title: "there is a newer patch of this release of Envoy",
		Why:   "Keyporter is to be used with Envoy 1.40.1, 1.39.5, 1.38.8 or 1.37.10, or newer.",
		Fix:   `# use a newer patch`,
	},

	{
		ID: "not-looked-at", Severity: Note, find: both(findUnseen, eachManager(findUnknownAfter)),
		Title: "not looked at",
		Why:   "This may matter, and cannot be told from the document.",
		Fix:   `# give the admin interface of the running Envoy, or its /config_dump?include_eds, in place of a file`,
	},
})

// both reports the findings of a and b.
func both(a, b finder) finder {
	return func(c *config, report report) { a(c, report); b(c, report) }
}

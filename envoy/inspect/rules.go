package inspect

import (
	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
)

// rules are all rules. A new rule needs an id that was never used before, its change in the test,
// and go test ./envoy/inspect -update for the table in the documents.
var rules = sorted([]Rule{
	{
		ID: "ext-authz-missing", Severity: Error, find: findMissing,
		Title: "a listener forwards requests without asking Keyporter",
		Why:   "The connection manager has no ext_authz filter. It forwards every request without a key check and without a charge, and with the client's identity headers. Accept this only for a listener through which no client reaches the API.",
		Fix: `http_filters: # as the last filter before the router
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
		Title: "a route switches ext_authz off",
		Why:   "Requests on this route reach the upstream without a key check and without a charge. For a path that needs no key, add a public rule to Keyporter's route table instead: Keyporter then still removes credentials and rejects other spellings of the path.",
		Fix: `# add this rule to Keyporter's route table; then remove what switches ext_authz off:
# disabled of the filter, or the filter's entry in typed_per_filter_config
- { paths: ["/healthz"], kind: public }`,
	},
	{
		ID: "ext-authz-partial", Severity: Error, find: sets("filter_enabled", "the filter runs on a percentage of requests", isPartial),
		Title: "ext_authz runs on a percentage of requests only",
		Why:   "The other requests reach the upstream without a key check and without a charge.",
		Fix:   `deny_at_disable: { runtime_key: keyporter.deny, default_value: true } # or remove filter_enabled`,
	},
	{
		ID: "ext-authz-conditional", Severity: Error, find: eachManager(findConditional),
		Title: "ext_authz runs only on requests with certain metadata",
		Why:   "All other requests reach the upstream without a key check and without a charge. Istio writes this setting for an AuthorizationPolicy with action CUSTOM: one empty rule matches every request and is not reported; a list of paths must match every path that needs a key, in every spelling.",
		Fix:   `deny_at_disable: { runtime_key: keyporter.deny, default_value: true } # or remove filter_enabled_metadata`,
	},
	{
		ID: "ext-authz-shadow", Severity: Error, find: sets("shadow_mode", "it is on", (*extauthzv3.ExtAuthz).GetShadowMode),
		Title: "ext_authz runs in shadow mode and rejects nothing",
		Why:   "Envoy forwards requests that Keyporter denied. Those that Keyporter allowed are charged all the same.",
		Fix:   `shadow_mode: false`,
	},
	{
		ID: "ext-authz-not-last", Severity: Error, find: eachManager(findAfter),
		Title: "a filter after ext_authz may change a request that was decided",
		Why:   "It may send the request to a path or an upstream that Keyporter did not decide about. It may also restore or replace headers that Keyporter set or removed, such as identity and credentials.",
		Fix: `http_filters: # move the other filters before these two
- name: envoy.filters.http.ext_authz
  typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz } # as it is
- name: envoy.filters.http.router
  typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }`,
	},
	{
		ID: "answers-before-ext-authz", Severity: Error, find: eachManager(findBefore),
		Title: "a filter before ext_authz answers requests itself",
		Why:   "It answers every client, with a key or without. A cache, for example, gives the answer for one user to another.",
		Fix: `http_filters: # move ext_authz before the filter that answers
- name: envoy.filters.http.ext_authz
  typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz } # as it is`,
	},
	{
		ID: "tcp-beside-http", Severity: Error, find: findBesides,
		Title: "a filter chain of a guarded listener forwards plain TCP",
		Why:   "Envoy forwards the connections that match this chain as they are, and asks Keyporter about none of their requests.",
		Fix: `filter_chains: # use a connection manager with ext_authz, or move the chain to another listener
- filters:
  - name: envoy.filters.network.http_connection_manager`,
	},
	{
		ID: "failure-mode-allow", Severity: Error, find: sets("failure_mode_allow", "it is on", (*extauthzv3.ExtAuthz).GetFailureModeAllow),
		Title: "Envoy lets requests pass when Keyporter does not answer",
		Why:   "A client that makes a Check fail, or waits for a failure, gets in with any key and without a charge. The key also reaches the upstream, because nobody removes it.",
		Fix:   `failure_mode_allow: false`,
	},
	{
		ID: "clear-route-cache", Severity: Error, find: sets("clear_route_cache", "Envoy selects the route again after the decision", clearsRoute),
		Title: "Envoy selects the route again after the decision",
		Why:   "Keyporter's changes may match another route. Keyporter did not decide about that route's path, kind and cost.",
		Fix:   `clear_route_cache: false # and remove clear_route_cache_headers`,
	},
	{
		ID: "http-service", Severity: Error, find: eachService(findHTTPService),
		Title: "ext_authz asks Keyporter over HTTP instead of gRPC",
		Why:   "Keyporter answers Checks over gRPC only, so each of these Checks fails. Envoy's HTTP client for ext_authz also had a fault that read freed memory (CVE-2026-50572).",
		Fix: `grpc_service: # in place of http_service
  timeout: 0.250s
  envoy_grpc: { cluster_name: authz }`,
	},
	{
		ID: "api-version", Severity: Error, find: both(
			sets("transport_api_version", "it is V2", func(a *extauthzv3.ExtAuthz) bool { return isOldAPI(a.GetTransportApiVersion()) }),
			eachAccessLog(findLogAPI)),
		Title: "Envoy calls Keyporter with version 2 of its API",
		Why:   "Keyporter supports V3 only. Current releases of Envoy refuse to start with any other version.",
		Fix:   `transport_api_version: V3`,
	},
	{
		ID: "authz-cluster-missing", Severity: Error, find: eachService(findNoCluster),
		Title: "ext_authz names a cluster that does not exist",
		Why:   "No Check reaches Keyporter, so Envoy refuses every request.",
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
		Title: "the cluster of ext_authz does not use HTTP/2",
		Why:   "gRPC needs HTTP/2. No Check reaches Keyporter, so Envoy refuses every request.",
		Fix: `typed_extension_protocol_options:
  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
    "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
    explicit_http_config: { http2_protocol_options: {} }`,
	},
	{
		ID: "authz-cluster-unverified", Severity: Warning, find: eachCluster(findUnverifiedCluster),
		Title: "the cluster of ext_authz speaks TLS and does not verify Keyporter",
		Why:   "Whoever is on the way can pose as Keyporter: it then reads every key, and allows what it likes. Envoy verifies nothing without an authority, and without a name every certificate of the authority will do.",
		Fix: `transport_socket:
  name: envoy.transport_sockets.tls
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
    sni: keyporter.example.com
    common_tls_context:
      alpn_protocols: [h2]
      validation_context:
        trusted_ca: { filename: /etc/envoy/tls/ca.crt }
        match_typed_subject_alt_names: [{ san_type: DNS, matcher: { exact: keyporter.example.com } }]`,
	},
	{
		ID: "rule-name-unknown", Severity: Error, find: eachManager(findUnknownName),
		Title: "a route names a rule that the route table lacks",
		Why:   "Keyporter answers each of its requests with 503. Found with the route table only (keyporter envoy check --config FILE), and not in a running Envoy, which hides names.",
		Fix: `check_settings:
  context_extensions: { keyporter-rule: NAME } # a name of the route table`,
	},
	{
		ID: "header-withheld", Severity: Error, find: withheld(credentialHeaders...),
		Title: "ext_authz withholds from Keyporter a header that may contain a credential",
		Why:   "Keyporter neither accepts nor removes a credential that it does not see: beside a good credential elsewhere, this one reaches the upstream. Without :path, Keyporter does not know the exact bytes of the path.",
		Fix: `allowed_headers: # or remove it and disallowed_headers: then Keyporter sees all headers
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
		Title: "the mutation rules forbid changes that Keyporter must make",
		Why:   "Keyporter cannot remove the key from the path or the headers, so the upstream sees it; or it cannot replace the client's identity headers.",
		Fix:   `decoder_header_mutation_rules: null`,
	},
	{
		ID: "identity-headers", Severity: Error, find: eachManager(findImpersonation),
		Title: "a route without ext_authz passes the client's identity headers on",
		Why:   "Keyporter overwrites these headers on the routes that it decides. On this route a client can pretend to be any user towards an upstream that trusts the headers.",
		Fix:   `request_headers_to_remove: [x-keyporter-user, x-keyporter-account, x-keyporter-plan, x-keyporter-key-id, x-keyporter-charge]`,
	},
	{
		ID: "log-query", Severity: Error, find: findLeaks(false),
		Title: "an access log contains the query, where clients may send their key",
		Why:   "Keyporter removes the key only from requests that it allows. When it denies one, for a used-up rate limit for example, a valid key in the query is logged. So is a key with a typing mistake.",
		Fix: `log_format:
  json_format:
    path: "%PATH(NQ)%" # in place of %REQ(:PATH)%, %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%, %PATH(WQ)%`,
	},
	{
		ID: "log-credentials", Severity: Error, find: both(findLeaks(true), eachManager(findTracedCredentials)),
		Title: "an access log or a trace contains a header that may hold a credential",
		Why:   "It records the keys and sessions of denied requests. It also records those of allowed requests in headers that Keyporter does not change.",
		Fix:   `# remove the header; for the user, log %DYNAMIC_METADATA(envoy.filters.http.ext_authz:keyporter:user)%`,
	},
	{
		ID: "tracing-query", Severity: Error, find: eachManager(findTracing),
		Title: "traces contain the query, where clients may send their key",
		Why:   "Each span records the full URL as http.url. When Keyporter denies a request, a valid key in the query stays there.",
		Fix: `tracing:
  max_path_tag_length: 0 # http.url then has no path and no query`,
	},
	{
		ID: "admin-open", Severity: Error, find: findOpenAdmin,
		Title: "other machines can reach Envoy's admin interface",
		Why:   "A caller can read the configuration with the gRPC token in it, and can stop Envoy.",
		Fix:   `address: { socket_address: { address: 127.0.0.1, port_value: 9901 } }`,
	},
	{
		ID: "envoy-faults", Severity: Error, find: findFaulty,
		Title: "this release of Envoy has known faults in what Keyporter relies on",
		Why:   "Clients can make ext_authz crash or read freed memory (CVE-2026-47205, -50572, -73547), or bypass the normalization of paths (CVE-2026-73511, -73551). The Envoy project no longer fixes releases older than 1.36.",
		Fix:   `# use Envoy 1.40.1, 1.39.5, 1.38.8 or 1.37.10, or newer`,
	},

	{
		ID: "status-on-error", Severity: Warning, find: sets("status_on_error", "it is not 503", hasOtherStatus),
		Title: "Envoy does not answer 503 when Keyporter fails to answer",
		Why:   "By default, clients get 403 with an empty body. They give up or look for a mistake in their key, instead of trying again.",
		Fix:   `status_on_error: { code: ServiceUnavailable }`,
	},
	{
		ID: "raw-headers", Severity: Warning, find: sets("encode_raw_headers", "it is off", func(a *extauthzv3.ExtAuthz) bool { return !a.GetEncodeRawHeaders() }),
		Title: "Envoy joins repeated headers before Keyporter sees them",
		Why:   "Envoy also replaces invalid bytes with '!'. Keyporter is stricter then: it rejects a path with '!' if it has to change the path.",
		Fix:   `encode_raw_headers: true`,
	},
	{
		ID: "lookalike-headers", Severity: Warning, find: withheld("x!keyporter!user", "x!api!key"),
		Title: "ext_authz withholds from Keyporter headers that imitate its own",
		Why:   "Some upstreams read any separator in a header name as a hyphen: x!keyporter!user as x-keyporter-user. Keyporter removes such headers if it sees them.",
		Fix: `allowed_headers:
  patterns: # add to the list
  - { safe_regex: { regex: "x[^a-z0-9](keyporter|api)[^a-z0-9].*" } }`,
	},
	{
		ID: "answer-headers", Severity: Warning, find: withheld(answerHeaders...),
		Title: "ext_authz withholds headers that determine the form of an answer",
		Why:   "Keyporter reads accept to recognize a browser and content-type to recognize gRPC, which needs grpc-status. It also removes a key from sec-websocket-protocol.",
		Fix: `allowed_headers:
  patterns: # add to the list
  - { exact: accept }
  - { exact: content-type }
  - { exact: sec-websocket-protocol }`,
	},
	{
		ID: "validate-mutations", Severity: Warning, find: sets("validate_mutations", "it is off", func(a *extauthzv3.ExtAuthz) bool { return !a.GetValidateMutations() }),
		Title: "Envoy skips an invalid header change and forwards the request",
		Why:   "The request then reaches the upstream without that change, with the key still in it for example. It should fail instead.",
		Fix:   `validate_mutations: true`,
	},
	{
		ID: "request-body", Severity: Warning, find: eachManager(findBody),
		Title: "Envoy reads the request body before it asks Keyporter",
		Why:   "Keyporter does not need the body. With this setting, clients without a key make Envoy buffer bodies, streams never get a decision, and large bodies get 413.",
		Fix:   `with_request_body: null`,
	},
	{
		ID: "google-grpc", Severity: Warning, find: eachService(findGoogleGRPC),
		Title: "Envoy sends Checks through google_grpc instead of a cluster",
		Why:   "Without a cluster there are no health checks and no circuit breakers, and Envoy cannot try another replica.",
		Fix: `grpc_service:
  timeout: 0.250s
  envoy_grpc: { cluster_name: authz }`,
	},
	{
		ID: "authz-timeout", Severity: Warning, find: eachService(findTimeout),
		Title: "Envoy waits for a decision for less time than Keyporter may take",
		Why:   "Keyporter takes at most 150 ms by default, enough for a slow database. If Envoy gives up earlier, requests with a good key get 503.",
		Fix: `grpc_service:
  timeout: 0.250s`,
	},
	{
		ID: "authz-timeout-long", Severity: Warning, find: eachService(findLongTimeout),
		Title: "Envoy waits longer for a decision than for the upstream's answer",
		Why:   "If Keyporter hangs, each request hangs with it and keeps its memory and connections, instead of getting 503 soon.",
		Fix: `grpc_service:
  timeout: 0.250s`,
	},
	{
		ID: "authz-health-check", Severity: Warning, find: eachCluster(findNoHealthCheck),
		Title: "Envoy does not check the health of Keyporter's replicas",
		Why:   "A replica that is stopping or has lost its lease fails its health check. Envoy goes on sending Checks to it, and each of those requests gets 503.",
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
		Title: "Envoy refuses requests after a short stall of Keyporter",
		Why:   "With Envoy's default of 1024 concurrent Checks, requests beyond that number are refused without a Check. A stall of a few milliseconds is enough.",
		Fix: `circuit_breakers:
  thresholds:
  - { max_connections: 1024, max_pending_requests: 8192, max_requests: 8192, max_retries: 1024 }`,
	},
	{
		ID: "upstream-circuit-breaker", Severity: Warning, find: eachManager(findUpstreamBreaker),
		Title: "a few slow clients can use up all connections to the upstream",
		Why:   "With Envoy's default of 1024 concurrent connections or requests, all further requests get 503. A single client with slow reads or slow requests can open that many.",
		Fix: `circuit_breakers:
  thresholds:
  - { max_connections: 8192, max_pending_requests: 8192, max_requests: 8192 }`,
	},
	{
		ID: "request-trailers", Severity: Warning, find: eachManager(findTrailers),
		Title: "clients can send trailers to the upstream",
		Why:   "Keyporter does not see trailers. An upstream that merges them into the headers may read the client's x-keyporter-user. An upstream that rejects an announced trailer name answers with an error, so the client gets a credit back for a request that the upstream carried out.",
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
		ID: "rule-name-unused", Severity: Warning, find: findUnusedName,
		Title: "no route names a rule of the route table that has a name",
		Why:   "Such a rule decides only requests whose route names it. If a route has lost the name, Keyporter decides its requests by their path: by another rule, or with 404. Found with the route table only (keyporter envoy check --config FILE). A running Envoy hides names, so there it is only found if no route has one.",
		Fix: `check_settings:
  context_extensions: { keyporter-rule: NAME } # in the route's settings of ext_authz; or remove the rule`,
	},
	{
		ID: "metadata-ingestion", Severity: Warning, find: sets("enable_dynamic_metadata_ingestion", "it is off", func(a *extauthzv3.ExtAuthz) bool {
			return a.GetEnableDynamicMetadataIngestion() != nil && !a.GetEnableDynamicMetadataIngestion().GetValue()
		}),
		Title: "Envoy drops the metadata that Keyporter returns with a decision",
		Why:   "The access log then has no name of the charge: no credit comes back, and the users' page lists no requests.",
		Fix:   `enable_dynamic_metadata_ingestion: true`,
	},
	{
		ID: "access-log-missing", Severity: Warning, find: eachManager(findNoAccessLog),
		Title: "no access log reports completed requests to Keyporter",
		Why:   "Credits do not come back when the upstream fails, and the users' page lists no requests.",
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
		ID: "access-log-filter", Severity: Warning, find: eachAccessLog(findLogFilter),
		Title: "the access log reports the wrong requests to Keyporter",
		Why:   "Keyporter needs exactly the requests with a key. It cannot use other entries but still reads them, so a flood of requests without a key becomes a flood of entries. A charge whose entry the filter leaves out never gets a refund.",
		Fix: `filter:
  metadata_filter:
    matcher:
      filter: envoy.filters.http.ext_authz
      path: [{ key: keyporter }, { key: key_id }]
      value: { present_match: true }
    match_if_key_not_found: false`,
	},
	{
		ID: "access-log-grpc-status", Severity: Warning, find: eachAccessLog(findNoGRPCStatus),
		Title: "the access log does not report failures of gRPC upstreams",
		Why:   "A gRPC upstream fails with HTTP status 200 and an error in grpc-status. Without that field, its failures stay charged.",
		Fix: `additional_response_headers_to_log: [grpc-status]
additional_response_trailers_to_log: [grpc-status]`,
	},
	{
		ID: "access-log-buffer", Severity: Warning, find: eachAccessLog(findLogBuffer),
		Title: "Envoy buffers too many entries of the access log, or for too long",
		Why:   "Keyporter accepts messages up to 256 KiB, and a stopping replica waits 3 s for the last entries. Later or larger ones are lost, and their failures stay charged.",
		Fix: `common_config:
  buffer_flush_interval: 1s
  buffer_size_bytes: 65536`,
	},
	{
		ID: "upstream-retries", Severity: Warning, find: eachManager(findRetries),
		Title: "Envoy may send one request to the upstream twice",
		Why:   "Keyporter decides and charges once. The upstream may have done the work before it failed, and then does it again.",
		Fix:   `retry_policy: { retry_on: "connect-failure,refused-stream,reset-before-request", num_retries: 1 }`,
	},
	{
		ID: "internal-redirect", Severity: Warning, find: eachRoute(findInternalRedirect),
		Title: "Envoy follows the upstream's redirects itself",
		Why:   "Envoy asks Keyporter about the redirected request after the key was removed. The client gets 401, and has paid for the first answer.",
		Fix:   `# remove internal_redirect_policy: the client then follows the redirect, with its key`,
	},
	{
		ID: "rewrite-query", Severity: Warning, find: eachRoute(findRewrittenQuery),
		Title: "a route rewrites a part of the path to a query",
		Why:   "Keyporter decided about the query that the client sent, and promises to change nothing in it but the key. It never checked the new query.",
		Fix:   `prefix_rewrite: /v2/ # without a question mark`,
	},
	{
		ID: "route-timeout", Severity: Warning, find: eachRoute(findRouteTimeout),
		Title: "answers on a route end after Envoy's default of 15 seconds",
		Why:   "Envoy cuts off longer answers. They stay charged, because the upstream did answer.",
		Fix: `route:
  timeout: 0s # or as long as an answer may take
  idle_timeout: 60s
  max_stream_duration: { max_stream_duration: 3600s }`,
	},
	{
		ID: "upgrade-unbounded", Severity: Warning, find: eachManager(findUpgrade),
		Title: "an upgraded connection may stay open for ever",
		Why:   "Keyporter decides about a connection once, at its start. Without a bound, the connection stays open after its key was revoked.",
		Fix: `common_http_protocol_options:
  max_stream_duration: 3600s`,
	},
	{
		ID: "normalize-path", Severity: Warning, find: manages("normalize_path", "it is off", func(m *manager) bool { return !m.GetNormalizePath().GetValue() }),
		Title: "Envoy does not normalize paths",
		Why:   "Envoy and the upstream may read a/../b differently, so Keyporter answers such paths with 400. With normalization these requests succeed.",
		Fix:   `normalize_path: true`,
	},
	{
		ID: "host-spellings", Severity: Warning, find: eachManager(findHostSpellings),
		Title: "a port or a final dot in the host selects another virtual host",
		Why:   "Keyporter ignores both when it reads a host; Envoy does not. If Keyporter's route table has `hosts`, Keyporter decides by the rules of one host and Envoy uses the routes of another.",
		Fix: `# in the connection manager, and in its route configuration
strip_trailing_host_dot: true
route_config:
  ignore_port_in_host_matching: true`,
	},
	{
		ID: "merge-slashes", Severity: Warning, find: manages("merge_slashes", "it is off", func(m *manager) bool { return !m.GetMergeSlashes() }),
		Title: "Envoy does not merge doubled slashes in paths",
		Why:   "Envoy and the upstream may read a//b differently, so Keyporter answers such paths with 400. With merging these requests succeed.",
		Fix:   `merge_slashes: true`,
	},
	{
		ID: "escaped-slashes", Severity: Warning, find: manages("path_with_escaped_slashes_action", "it is not REJECT_REQUEST", keepsEscapedSlashes),
		Title: "Envoy does not reject escaped slashes in paths",
		Why:   "Programs disagree on whether %2f separates segments. The option to unescape and redirect also copies the query, and a key in it, to a Location header.",
		Fix:   `path_with_escaped_slashes_action: REJECT_REQUEST`,
	},
	{
		ID: "header-underscores", Severity: Warning, find: manages("common_http_protocol_options", "it allows headers with underscores", allowsUnderscores),
		Title: "headers with underscores reach the upstream",
		Why:   "Many upstreams read x_keyporter_user as x-keyporter-user. Keyporter removes such headers only on routes that it decides, and only if it sees them.",
		Fix: `common_http_protocol_options:
  headers_with_underscores_action: DROP_HEADER`,
	},
	{
		ID: "client-address", Severity: Warning, find: manages("use_remote_address", "it is off", trustsClients),
		Title: "Envoy trusts the address that a client claims",
		Why:   "A client can choose its address in logs with x-forwarded-for, and can send Envoy's internal headers, such as x-envoy-retry-on. Behind another proxy, set the number of trusted hops.",
		Fix: `use_remote_address: true
xff_num_trusted_hops: 0 # or how many proxies are in front`,
	},
	{
		ID: "internal-addresses", Severity: Warning, find: manages("internal_address_config", "it includes addresses of other machines", trustsNetworks),
		Title: "Envoy treats other machines' addresses as internal",
		Why:   "A client from there can send Envoy's internal headers, such as x-envoy-retry-on or x-envoy-upstream-rq-timeout-ms. Without ranges, every private address is internal.",
		Fix:   `internal_address_config: null`,
	},
	{
		ID: "headers-limit", Severity: Warning, find: manages("max_request_headers_kb", "it is more than 100", takesLargeHeaders),
		Title: "Envoy accepts more headers than fit into a Check",
		Why:   "Keyporter accepts Checks up to 256 KiB. A request beyond that gets 431, whatever its key.",
		Fix:   `max_request_headers_kb: 60`,
	},
	{
		ID: "envoy-old", Severity: Warning, find: findOld,
		Title: "a newer patch of this Envoy release exists",
		Why:   "Use Keyporter with Envoy 1.40.1, 1.39.5, 1.38.8 or 1.37.10, or newer.",
		Fix:   `# use the newest patch of your release`,
	},

	{
		ID: "not-looked-at", Severity: Note, find: both(findUnseen, eachManager(findUnknownAfter)),
		Title: "a part of the configuration was not inspected",
		Why:   "The document lacks this part, or has it in an unknown form. The part may break any of the rules above.",
		Fix:   `# inspect the running Envoy instead of a file: keyporter envoy check http://HOST:ADMIN_PORT`,
	},
})

// both reports the findings of a and b.
func both(a, b finder) finder {
	return func(c *config, report report) { a(c, report); b(c, report) }
}

// Package envoy is all that speaks Envoy: the ext_authz v3 server with its health service, the
// translation of a CheckRequest to an [authz.Request] and of an [authz.Decision] to a CheckResponse,
// and the bootstrap that fits a route table. It decides nothing: `keyporter serve` hands it the
// function that does.
package envoy

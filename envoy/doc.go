// Package envoy is everything that speaks to Envoy: the ext_authz v3 server with its health
// service, the translation of a CheckRequest to an [authz.Request] and of an [authz.Decision] to a
// CheckResponse, and the bootstrap for a route table. It decides nothing: `keyporter serve` passes
// it the function that decides.
package envoy

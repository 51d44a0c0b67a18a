// Package envoy answers Envoy: the ext_authz v3 server with its health service, the reader of its
// access log, and the translation of a CheckRequest to an [authz.Request] and of an
// [authz.Decision] to a CheckResponse. It decides nothing: `keyporter serve` passes it the function
// that decides.
package envoy

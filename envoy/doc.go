// Package envoy answers Envoy: the ext_authz v3 server with its health service, and the reader of
// Envoy's access log. It bounds what callers may do, keeps the metrics, and judges how a request
// ended. It decides nothing: `keyporter serve` passes it the function that decides. Package codec
// translates the messages.
package envoy

// Package codec translates between Envoy's messages and ours: a CheckRequest to an [authz.Request],
// an [authz.Decision] to a CheckResponse, and a message of the access log to its entries. Each is
// read and written in place, and by the generated code; both have the same result. It decides
// nothing, and knows neither the server nor a connection.
package codec

// Package transport serves gRPC calls over HTTP/2 for callers that make many short calls on few
// connections, as Envoy does.
//
// One goroutine for each connection reads what has arrived, answers the calls that need not wait,
// and sends all answers in one write before it waits for more. A call that must wait goes on in a
// goroutine of its own, and its answer joins the connection's next write. A connection is served by
// one processor at a time.
//
// The package knows bytes and a table of methods; it does not know what they mean. It hands the
// calls of other methods over to an http.Handler. Frames that are common are read here; the others,
// and compressed headers, by golang.org/x/net/http2.
package transport

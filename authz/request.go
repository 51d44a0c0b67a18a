package authz

import "time"

// Request holds the input of a decision as plain strings, so that it does not depend on how the
// wire is decoded. It holds secrets: never log one.
type Request struct {
	Method        string   // as sent, such as GET
	Host          string   // the value of host or :authority
	Path          string   // the path with its query, as sent
	Rule          string   // the name of the rule that Envoy's route asks for; empty: match by path
	APIKey        []string // the values of x-api-key, in order
	Authorization []string // the values of authorization, in order
	Cookie        []string // the values of cookie, in order
	Accept        string   // the value of accept
	ID            string   // Envoy's request ID, which no client can choose
	// CallerTimeout is how long Envoy waits for the decision, and may repeat the Check. 0: without
	// a limit.
	CallerTimeout time.Duration

	// Protocols are the values of sec-websocket-protocol, in order. Some pages send their key
	// there, because browsers let a page set no other header on a WebSocket.
	Protocols []string
	// Origin and RequestMethod are the values of origin and access-control-request-method.
	Origin, RequestMethod string
	// Length and TransferEncoding are the values of content-length and transfer-encoding.
	Length, TransferEncoding string
	// UnclearPath reports that a '!' in Path may stand for a byte sent by the client that is not
	// UTF-8.
	UnclearPath bool
}

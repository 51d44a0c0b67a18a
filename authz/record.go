package authz

import "time"

// Record is what Envoy's access log tells of a request with a key that is, or was, a user's: what the
// page shows of it. All of it is what a caller sent; nothing of it is a credential.
type Record struct {
	User, KeyID    string
	At             time.Time // when it began
	Method, Path   string    // the path without its query
	Status         int       // what the client got; 0: nothing
	Reason         string    // why it was decided as it was, as in [Reason.String]
	Address, Agent string    // of the client
	Credits        int64     // that were charged
	Refunded       bool      // and came back
}

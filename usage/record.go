package usage

import "time"

// Record is the page's entry for one request with a user's current or former key, from Envoy's
// access log. Its values come from the caller; none of them is a credential.
type Record struct {
	User, KeyID    string
	At             time.Time // when the request began
	Method, Path   string    // without the query
	Status         int       // sent to the client; 0: none
	Reason         string    // the reason of the decision, as in metrics
	Address, Agent string    // of the client
	Credits        int64     // charged
	Refunded       bool      // the credits were refunded
}

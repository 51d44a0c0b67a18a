package authz

import (
	"context"

	"github.com/keyporter/keyporter/usage"
)

// Use describes a request to meter.
type Use struct {
	Principal Principal
	Request   string           // Envoy's request ID: a repeated Check is charged once; may be empty
	Cost      int64            // in credits
	Refund    usage.RefundRule // when to refund them
}

// Charge records the amount charged for a request and its user's usage after it. A rejected request
// is not charged.
type Charge struct {
	// ID names the charge to the upstream, and Receipt names it in Envoy's access log. Each is
	// authenticated, and neither can replace the other. Both are empty if nothing was charged.
	ID, Receipt string

	User, Request string // the rate log and its entry for this request; empty: not counted
	Account       string
	Pool          usage.PoolKind // the kind of pool that was charged
	Month         usage.Month
	Cost          int64  // in credits; 0: nothing was charged
	Number        uint64 // sequence number in the process that made the charge

	Rate    usage.Rate
	Credits usage.Credits
}

// A Meter charges for requests. Its methods must be safe for concurrent use.
type Meter interface {
	// Take charges a request if the returned reason is [Allowed], and charges nothing otherwise. An
	// error means that it could not decide and charged nothing.
	Take(context.Context, Use) (Charge, Reason, error)
	// Void undoes a charge for a request that did not pass after all.
	Void(Charge)
}

// Unmetered is a [Meter] that charges nothing, for callers that need only the rest of the decision.
type Unmetered struct{}

// Take implements [Meter].
func (Unmetered) Take(context.Context, Use) (Charge, Reason, error) { return Charge{}, Allowed, nil }

// Void implements [Meter].
func (Unmetered) Void(Charge) {}

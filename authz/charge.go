package authz

import (
	"context"
	"time"

	"github.com/keyporter/keyporter/usage"
)

// Use describes a request to meter.
type Use struct {
	Principal     Principal
	Request       string           // Envoy's request ID: a repeated Check is charged once; may be empty
	CallerTimeout time.Duration    // for how long the Check may be repeated, as in [Request]
	Cost          int64            // in credits
	Refund        usage.RefundRule // when to refund them
}

// A Meter charges for requests. Its methods must be safe for concurrent use.
type Meter interface {
	// Take charges a request if the returned reason is [Allowed], and charges nothing otherwise. An
	// error means that it could not decide and charged nothing.
	Take(context.Context, Use) (usage.Charge, Reason, error)
	// Void undoes a charge for a request that did not pass after all.
	Void(usage.Charge)
}

// Unmetered is a [Meter] that charges nothing, for callers that need only the rest of the decision.
type Unmetered struct{}

// Take implements [Meter].
func (Unmetered) Take(context.Context, Use) (usage.Charge, Reason, error) {
	return usage.Charge{}, Allowed, nil
}

// Void implements [Meter].
func (Unmetered) Void(usage.Charge) {}

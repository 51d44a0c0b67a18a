package authz

import (
	"context"
	"fmt"
	"strconv"
	"time"
)

// Use describes a request to meter.
type Use struct {
	Principal Principal
	Request   string // Envoy's request ID: a repeated Check is charged once; may be empty
	Cost      int64  // in credits
	Refund    Refund // when to refund them
}

// Charge records the amount charged for a request and its user's usage after it. A rejected request
// is not charged.
type Charge struct {
	// ID names the charge to the upstream, and Receipt names it in Envoy's access log. Each is
	// authenticated, and neither can replace the other. Both are empty if nothing was charged.
	ID, Receipt string

	User, Request string // the rate log and its entry for this request; empty: not counted
	Account       string
	Pool          Pool // the kind of pool that was charged
	Month         Month
	Cost          int64  // in credits; 0: nothing was charged
	Number        uint64 // sequence number in the process that made the charge

	Rate    Rate
	Credits Credits
}

// Rate is a user's usage under the rate limit.
type Rate struct {
	Limit     Limit         // requests in any window
	Window    time.Duration // 0: no limit applies
	Remaining int64         // requests that still fit; with divided limits, of this replica's share
	Used      int64         // requests in the current window; set for a peek, not for a request
	Reset     time.Duration // until the oldest request leaves the window
}

// Limited reports whether there is a limit.
func (r Rate) Limited() bool { return r.Window > 0 && r.Limit != Unlimited }

// String returns the limit in words, such as "60 requests per minute".
func (r Rate) String() string {
	if r.Limit == Unlimited {
		return "unlimited requests"
	}
	requests := "requests"
	if r.Limit == 1 {
		requests = "request"
	}
	return r.Limit.String() + " " + requests + " per " + period(r.Window)
}

// text tells a client about an exhausted limit.
func (r Rate) text() string {
	return "Rate limit exceeded. Max " + r.String() + "."
}

// period names a window: "minute", "30 seconds", "1.5 seconds".
func period(window time.Duration) string {
	for _, unit := range []struct {
		length time.Duration
		name   string
	}{{24 * time.Hour, "day"}, {time.Hour, "hour"}, {time.Minute, "minute"}, {time.Second, "second"}} {
		if window == unit.length {
			return unit.name
		}
		if window > unit.length && window%unit.length == 0 {
			return fmt.Sprintf("%d %ss", window/unit.length, unit.name)
		}
	}
	return strconv.FormatFloat(window.Seconds(), 'f', -1, 64) + " seconds"
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

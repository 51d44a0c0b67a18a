package authz

import (
	"context"
	"fmt"
	"strconv"
	"time"
)

// Use is a request that is to be metered.
type Use struct {
	Principal Principal
	Request   string // what Envoy calls the request: a Check that it sends twice is charged once; may be empty
	Cost      int64  // in credits
	Refund    Refund // when they come back
}

// Charge is what was taken for a request, and where its user stands after that. For one that was refused
// nothing was taken.
type Charge struct {
	// ID names the charge to the upstream, and Receipt to Envoy's access log: each is authenticated, and
	// neither can be used in place of the other. Both are empty where nothing was taken.
	ID, Receipt string

	User, Request string // whose log counts the request, and under which name; empty: none does
	Account       string
	Pool          Pool // where the credits were taken from
	Month         Month
	Cost          int64  // in credits; 0: none was taken
	Number        uint64 // of the charge, in the process that made it

	Rate    Rate
	Credits Credits
}

// Rate is where a user stands with the rate limit.
type Rate struct {
	Limit     Limit         // requests in any window
	Window    time.Duration // 0: no limit applies
	Remaining int64         // requests that fit right now; of this replica's share, where limits are divided
	Used      int64         // requests that count right now; where a user looks, not in an answer to a request
	Reset     time.Duration // until room is made by the oldest request that counts
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

// text is what a client is told who has used up the limit.
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

// A Meter charges for requests. Its methods are called from many goroutines.
type Meter interface {
	// Take charges a request, or nothing if the reason is not [Allowed]. An error means that it could
	// not tell, and nothing was taken.
	Take(context.Context, Use) (Charge, Reason, error)
	// Void takes a charge back, of a request that was not let pass in the end.
	Void(Charge)
}

// Unmetered is a [Meter] that charges nothing, for who only wants to know the rest of the decision.
type Unmetered struct{}

// Take implements [Meter].
func (Unmetered) Take(context.Context, Use) (Charge, Reason, error) { return Charge{}, Allowed, nil }

// Void implements [Meter].
func (Unmetered) Void(Charge) {}

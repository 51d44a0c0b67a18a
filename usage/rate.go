package usage

import (
	"fmt"
	"strconv"
	"time"
)

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

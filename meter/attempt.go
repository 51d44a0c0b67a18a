package meter

import (
	"time"

	"github.com/keyporter/keyporter/usage"
)

// Attempt is a request to be counted.
type Attempt struct {
	User   string
	ID     string        // Envoy's id of the request; empty: never taken for another one
	Limit  usage.Limit   // requests in any window
	Window time.Duration // greater than 0
	// Charge is the request's charge if it is admitted. It is remembered with the ID, for as long
	// as the Check may be repeated.
	Charge Charged

	asked bool // a shared server was asked, and may have admitted a repeated Check of it
}

// Charged is a charge as a [Limiter] remembers it: by its name if the log is shared, by its number,
// which needs less memory, within this process. The zero Charged means that there is no charge, or
// that it is no longer known.
type Charged struct {
	Name   string // for the upstream, as signed
	Number uint64 // in this process
	Month  usage.Month
	// Terms is a hash of everything else that the name says. A repeated Check usually has the terms
	// of the first one, so they need not be remembered. If they differ, for example because the
	// user has moved to another account, the charge is no longer known, and stands.
	Terms uint32
}

// Verdict is the answer to an [Attempt]. The zero Verdict refuses.
type Verdict struct {
	// Admitted says that the request fits, and is counted.
	Admitted bool
	// Duplicate says that the request was counted before: Envoy repeats a Check that got no answer
	// in time.
	Duplicate bool
	// Charge is the charge of the first Check, by Name or by Number. It is set for a duplicate.
	Charge    Charged
	Remaining int64         // how many more requests fit now; 0 if there is no limit
	Used      int64         // how many requests count now; set by [Limiter.Look]
	Reset     time.Duration // until the oldest request makes room; 0 if none counts
}

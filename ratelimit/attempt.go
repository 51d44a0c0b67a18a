// Package ratelimit counts requests in a sliding window, exactly: it keeps the time of each request
// that a user was admitted in the last window. [Memory] keeps the logs of a single replica, and
// [Shared] those of several replicas, in a [Valkey].
package ratelimit

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
	Charge ChargeRef
	// CallerTimeout is how long the caller waits for an answer. It may repeat the Check as long as
	// it waits. 0: it waits without a limit.
	CallerTimeout time.Duration

	asked bool // a shared server was asked, and may have admitted a repeated Check of it
}

// The bounds of the time for which an admitted request is remembered. An entry takes some 100 bytes
// in memory, so that of a caller that waits longer than a minute is forgotten before its time.
const (
	minRemembered = 5 * time.Second
	maxRemembered = time.Minute
	// rememberedLonger is for a repeated Check that is sent at the last moment.
	rememberedLonger = time.Second
)

// remembered returns how long the request is remembered after it was admitted: a little longer than
// its caller waits. The caller has waited for a while already, so this is on the safe side.
func (a *Attempt) remembered() time.Duration {
	if a.CallerTimeout <= 0 || a.CallerTimeout > maxRemembered-rememberedLonger {
		return maxRemembered
	}
	return max(minRemembered, a.CallerTimeout+rememberedLonger)
}

// ChargeRef is a charge as a log remembers it: by its name if the log is shared, by its number,
// which needs less memory, within this process. The zero ChargeRef means that there is no charge,
// or that it is no longer known.
type ChargeRef struct {
	Name   string // for the upstream, as signed
	Number uint64 // in this process
	Month  usage.Month
	// Fingerprint is a hash of everything else that the name says. A repeated Check usually has the
	// same one as the first, so the rest need not be remembered. If they differ, for example
	// because the user has moved to another account, the charge is no longer known, and stands.
	Fingerprint uint32
}

// Verdict is the answer to an [Attempt]. The zero Verdict refuses.
type Verdict struct {
	// Admitted says that the request fits, and is counted.
	Admitted bool
	// Duplicate says that the request was counted before: Envoy repeats a Check that got no answer
	// in time.
	Duplicate bool
	// Charge is the charge of the first Check, by Name or by Number. It is set for a duplicate.
	Charge    ChargeRef
	Remaining int64         // how many more requests fit now; 0 if there is no limit
	Used      int64         // how many requests count now; set by a peek
	Reset     time.Duration // until the oldest request makes room; 0 if none counts
}

package requestlog

import (
	"time"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/usage"
)

// Outcome is the key of a count for operators: the requests of a user on a day with one reason.
type Outcome struct {
	User   string
	Day    int64  // such as 20261124
	Reason string // of the decision, as in metrics; otherReason for unknown ones
}

const (
	// outcomesInterval is the time between two saves of outcomes: a row for each user and reason.
	outcomesInterval = time.Minute
	// maxOutcomes limits the unsaved outcomes of charged requests, and those of others.
	maxOutcomes = 10_000
	otherReason = "other"
)

// outcomes counts requests by outcome, in bounded memory. The zero value is ready to use.
type outcomes struct {
	counts map[bool]map[Outcome]int64 // whether the requests were charged → their counts
	last   time.Time                  // of the last take
}

// knownReasons are the reasons of decisions.
var knownReasons = func() map[string]bool {
	known := map[string]bool{}
	for _, r := range authz.Reasons() {
		known[r.String()] = true
	}
	return known
}()

// add counts a request, unless that needs more memory than allowed.
func (o *outcomes) add(r usage.Record, at time.Time) {
	charged := r.Credits > 0
	if o.counts == nil {
		o.counts = map[bool]map[Outcome]int64{true: {}, false: {}}
	}
	key := Outcome{r.User, usage.DayOf(at), r.Reason}
	if !knownReasons[key.Reason] {
		key.Reason = otherReason
	}
	if _, known := o.counts[charged][key]; known || len(o.counts[charged]) < maxOutcomes {
		o.counts[charged][key]++
	}
}

// take returns the counts once a minute, or at the end, and starts anew; else nil.
func (o *outcomes) take(now time.Time, over bool) map[Outcome]int64 {
	if o.counts == nil || !over && now.Sub(o.last) < outcomesInterval {
		return nil
	}
	all := o.counts[true]
	for key, n := range o.counts[false] {
		all[key] += n
	}
	*o = outcomes{last: now}
	return all
}

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
	// outcomesSlice is the number of counts that are saved at a time, so that many users do not hold
	// up the records of the next tick.
	outcomesSlice = 1000
	otherReason   = "other"
)

// outcomes counts requests by outcome, in bounded memory. The zero value is ready to use.
type outcomes struct {
	counts map[bool]map[Outcome]int64 // whether the requests were charged → their counts
	last   time.Time                  // when the counts became due
	due    map[Outcome]int64          // what is left of them
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

// take returns counts that are due: once a minute all of them, a slice at a time, and at the end the
// rest.
func (o *outcomes) take(now time.Time, over bool) map[Outcome]int64 {
	if len(o.due) == 0 || over {
		o.makeDue(now, over)
	}
	if over || len(o.due) <= outcomesSlice {
		all := o.due
		o.due = nil
		return all
	}
	slice := map[Outcome]int64{}
	for key, n := range o.due {
		slice[key] = n
		delete(o.due, key)
		if len(slice) == outcomesSlice {
			break
		}
	}
	return slice
}

// makeDue adds the counts to those that are due, once a minute or at the end.
func (o *outcomes) makeDue(now time.Time, over bool) {
	if o.counts == nil || !over && now.Sub(o.last) < outcomesInterval {
		return
	}
	all := o.counts[true]
	for _, more := range []map[Outcome]int64{o.counts[false], o.due} {
		for key, n := range more {
			all[key] += n
		}
	}
	*o = outcomes{last: now, due: all}
}

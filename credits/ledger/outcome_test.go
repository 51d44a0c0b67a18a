package ledger

import (
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/keyporter/keyporter/usage"
)

// The first outcome of a charge decides, except that its upstream may ask for a refund later; and a
// charge that came back with its month does not come back again.
func TestTheFirstOutcomeOfAChargeDecides(t *testing.T) {
	const now, last, earlier = usage.Month(202611), usage.Month(202610), usage.Month(202609)
	for _, row := range []struct {
		name      string
		month     usage.Month
		closed    bool // after the first outcome
		causes    []string
		confirmed int64
		refunds   []string
	}{
		{"it stays charged", now, false, []string{""}, 3, nil},
		{"whoever repeats that", now, false, []string{"", "", ""}, 3, nil},
		{"it comes back", now, false, []string{"answered_5xx"}, 3, []string{"answered_5xx"}},
		{"a second failure of it is none", now, false, []string{"answered_5xx", "no_answer"}, 3, []string{"answered_5xx"}},
		{"it stays charged, as its upstream said, whatever the log says later", now, false, []string{"", "answered_5xx"}, 3, nil},
		{"its upstream changes its mind", now, false, []string{"", CauseSettled}, 3, []string{CauseSettled}},
		{"last month's", last, false, []string{"answered_5xx"}, 3, []string{"answered_5xx"}},
		{"an older one's, by the log", earlier, false, []string{"answered_5xx"}, 0, nil},
		{"an older one's, by its upstream", earlier, false, []string{CauseSettled}, 0, []string{CauseSettled}},
		{"one that was known when the month was closed", last, true, []string{"", CauseSettled}, 3, []string{CauseSettled}},
		{"one that was not", last, true, []string{"late", CauseSettled}, 0, nil},
	} {
		o := &Outcomes{Now: now, Closed: map[usage.Month]bool{row.month: row.closed && row.causes[0] == "late"}, Pages: map[PageID]*Page{}}
		var confirmed int64
		var refunds []string
		for _, cause := range row.causes {
			if cause == "late" {
				continue
			}
			one := Outcome{ChargeID: ChargeID{"a", PageSize + 7}, Month: row.month, User: "ada", Credits: 3, Cause: cause}
			if cause != "" {
				one.Refund = one.Credits
			}
			r := Report{Outcomes: []Outcome{one}}
			for _, page := range r.Pages() {
				if o.Pages[page] == nil {
					o.Pages[page] = &Page{}
				}
			}
			tally := o.Count(r.Outcomes)
			confirmed += tally.Reported
			for _, refund := range tally.Refunds {
				refunds = append(refunds, refund.Cause)
			}
			o.Closed[row.month] = row.closed
		}
		if confirmed != row.confirmed || !slices.Equal(refunds, row.refunds) {
			t.Errorf("%s: %d confirmed, refunds %v; want %d, %v", row.name, confirmed, refunds, row.confirmed, row.refunds)
		}
	}
}

// A refund gives back what raises the total of its charge, however often and in which order its
// parts arrive.
func TestPartsRaiseTheTotal(t *testing.T) {
	refund := func(charge string, total int64) Refund { return Refund{Charge: charge, Total: total} }
	for _, row := range []struct {
		name    string
		before  map[string]int64
		refunds []Refund
		want    []int64 // credits
	}{
		{"all at once", nil, []Refund{refund("a", 10)}, []int64{10}},
		{"a part, then more, then all", nil, []Refund{refund("a", 3), refund("a", 7), refund("a", 10)}, []int64{3, 4, 3}},
		{"repeated", nil, []Refund{refund("a", 3), refund("a", 3)}, []int64{3}},
		{"a late smaller part", nil, []Refund{refund("a", 7), refund("a", 3)}, []int64{7}},
		{"a part after a part of an earlier report", map[string]int64{"a": 3}, []Refund{refund("a", 10)}, []int64{7}},
		{"nothing after all", map[string]int64{"a": 10}, []Refund{refund("a", 10), refund("a", 1)}, nil},
		{"two charges", map[string]int64{"a": 1}, []Refund{refund("b", 2), refund("a", 2)}, []int64{2, 1}},
		{"no refund", nil, []Refund{refund("a", 0)}, nil},
	} {
		totals := map[string]int64{}
		maps.Copy(totals, row.before)
		var got []int64
		for _, part := range Parts(row.refunds, totals) {
			got = append(got, part.Credits)
		}
		if !slices.Equal(got, row.want) {
			t.Errorf("%s: %v, want %v", row.name, got, row.want)
		}
	}
}

// A page is read as it was written, whichever charges are marked on it.
func TestPagesComeBackAsTheyWere(t *testing.T) {
	numbers := rapid.OneOf(rapid.SliceOf(rapid.Uint64Range(0, PageSize-1)), rapid.Just(everyNumber()))
	rapid.Check(t, func(t *rapid.T) {
		page, marked := &Page{Month: 202611}, map[uint64]bool{}
		for _, n := range numbers.Draw(t, "numbers") {
			if page.mark(n) == marked[n] {
				t.Fatalf("%d: marked twice, or not at all", n)
			}
			marked[n] = true
		}
		read, err := ParsePage(page.Month, page.Text())
		if err != nil {
			t.Fatal(err)
		}
		for n := range uint64(PageSize) {
			if read.marked(n) != marked[n] {
				t.Fatalf("%d: read as %v", n, !marked[n])
			}
		}
	})
}

func everyNumber() (all []uint64) {
	for n := range uint64(PageSize) {
		all = append(all, n)
	}
	return all
}

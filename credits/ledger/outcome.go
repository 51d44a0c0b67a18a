package ledger

import (
	"encoding/base64"
	"strconv"

	"github.com/keyporter/keyporter/usage"
)

// ChargeID names one charge: the process that made it, and its number there.
type ChargeID struct {
	Holder string
	Number uint64
}

// String returns the name of the charge as the ledger keeps it for a refund.
func (c ChargeID) String() string { return c.Holder + "-" + strconv.FormatUint(c.Number, 10) }

// Outcome is how a charge ended, as an access log or the upstream itself has reported it. Both may
// report the same charge, repeatedly, and to several processes.
type Outcome struct {
	ChargeID
	Month         usage.Month
	User, Account string
	Credits       int64  // of the charge
	Refund        int64  // of these, come back in total; 0: all stay charged
	Cause         string // of the refund; "" if there is none
}

// The causes that the ledger knows.
const (
	// CauseSettled is the cause of a refund that the upstream has asked for. It alone is granted
	// after another outcome was reported: the upstream knows better than the log.
	CauseSettled = "settled"
	// CauseListed is the cause of a refund for an answer that is no failure, but has a status in
	// the route's refund rule.
	CauseListed = "listed_status"
	// CauseVoid is the cause of a refund for a request that did not pass.
	CauseVoid = "void"
	// CauseUnreported is the cause of a refund for charges whose outcome was never reported.
	CauseUnreported = "unreported"
)

// Charged names the charges of a process to a user in a month.
type Charged struct {
	Month                 usage.Month
	User, Account, Holder string
}

// Outcomes count each charge once, however often and by whomever its outcome is reported. They
// need one bit for each charge, on pages of [PageSize], for this month and the last one, whose
// outcomes still count. The caller has locked the pages.
type Outcomes struct {
	Now    usage.Month
	Closed map[usage.Month]bool // unreported charges of the month have been refunded
	Pages  map[PageID]*Page     // the pages that [Report.Pages] names
}

// Tally is the sum of some outcomes.
type Tally struct {
	Credits  map[Charged]int64 // reported for the first time
	Reported int64             // their sum, without void charges
	Refunds  []Refund          // some may have been made before
}

// Count counts some outcomes. The first outcome of a charge decides, except that
// the upstream may still ask for a refund, or for a larger one, later.
func (o *Outcomes) Count(outcomes []Outcome) Tally {
	t := Tally{Credits: map[Charged]int64{}}
	for _, one := range outcomes {
		first := o.first(one)
		if first {
			t.Credits[Charged{one.Month, one.User, one.Account, one.Holder}] += one.Credits
		}
		if first && one.Cause != CauseVoid {
			t.Reported += one.Credits
		}
		if one.Refund > 0 && (first || one.Cause == CauseSettled && !o.givenBack(one)) {
			t.Refunds = append(t.Refunds, Refund{
				Payer:  Payer{Month: one.Month, User: one.User, Account: one.Account},
				Charge: one.String(), Total: one.Refund, Cause: one.Cause,
			})
		}
	}
	return t
}

// first marks a charge. It reports whether the charge was not marked before and its month still
// counts.
func (o *Outcomes) first(one Outcome) bool {
	if one.Month < o.Now.Previous() || o.Closed[one.Month] {
		return false
	}
	page := o.Pages[one.page()]
	page.Month = max(page.Month, one.Month)
	return page.mark(one.Number)
}

// givenBack reports whether a charge was refunded as unreported when its month closed.
func (o *Outcomes) givenBack(one Outcome) bool {
	return o.Closed[one.Month] && !o.Pages[one.page()].marked(one.Number)
}

// PageSize is the number of charges on a [Page].
const PageSize = 1 << 13

// PageID names a page: the charges of a process from Number × [PageSize] on.
type PageID struct {
	Holder string
	Number uint64
}

func (c ChargeID) page() PageID { return PageID{c.Holder, c.Number / PageSize} }

// Page has a bit for each reported charge. The zero Page has none.
type Page struct {
	Month usage.Month // of the latest charge on it
	bits  []byte
}

// allMarked is the text of a full page.
const allMarked = "*"

// ParsePage reads the text made by [Page.Text].
func ParsePage(month usage.Month, text string) (*Page, error) {
	p := &Page{Month: month, bits: make([]byte, PageSize/8)}
	if text == allMarked {
		for i := range p.bits {
			p.bits[i] = 0xff
		}
		return p, nil
	}
	bits, err := base64.RawStdEncoding.DecodeString(text)
	copy(p.bits, bits)
	return p, err
}

// Text returns the page in a form for the database, "" if it is empty. It leaves out trailing bytes
// without a mark.
func (p *Page) Text() string {
	end, all := 0, len(p.bits) > 0
	for i, b := range p.bits {
		if b != 0 {
			end = i + 1
		}
		all = all && b == 0xff
	}
	if all {
		return allMarked
	}
	return base64.RawStdEncoding.EncodeToString(p.bits[:end])
}

// mark sets the bit of a charge, and reports whether it was unset.
func (p *Page) mark(number uint64) bool {
	if p.marked(number) {
		return false
	}
	if p.bits == nil {
		p.bits = make([]byte, PageSize/8)
	}
	i := number % PageSize
	p.bits[i/8] |= 1 << (i % 8)
	return true
}

func (p *Page) marked(number uint64) bool {
	i := number % PageSize
	return p.bits != nil && p.bits[i/8]&(1<<(i%8)) != 0
}

// Pages returns the pages with the outcomes of a report, each once.
func (r *Report) Pages() []PageID {
	seen := map[PageID]bool{}
	var pages []PageID
	for _, o := range r.Outcomes {
		if page := o.page(); !seen[page] {
			seen[page] = true
			pages = append(pages, page)
		}
	}
	return pages
}

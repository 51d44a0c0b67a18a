package ledger

import (
	"encoding/base64"
	"strconv"

	"github.com/keyporter/keyporter/authz"
)

// ChargeID names one charge: the process that made it, and its number there.
type ChargeID struct {
	Holder string
	Number uint64
}

// String returns the name of the charge as the ledger keeps it for a refund.
func (c ChargeID) String() string { return c.Holder + "-" + strconv.FormatUint(c.Number, 10) }

// Outcome is how a charge ended, as an access log or the upstream itself has reported it. The same
// charge may be reported by both, repeatedly, and to several processes.
type Outcome struct {
	ChargeID
	Month         authz.Month
	User, Account string
	Credits       int64
	Cause         string // of the refund; "": the credits stay charged
}

// The causes that the ledger knows.
const (
	// CauseSettled is the cause of a refund that the upstream has asked for. It alone is granted
	// after the charge has been confirmed: the upstream knows better than the log.
	CauseSettled = "settled"
	// CauseVoid is the cause of a refund for a request that was not let pass.
	CauseVoid = "void"
	// CauseUnreported is the cause of a refund for charges whose outcome was never reported.
	CauseUnreported = "unreported"
)

// Confirmed is whose confirmed credits are summed up, by the process that charged them.
type Confirmed struct {
	Month                 authz.Month
	User, Account, Holder string
}

// Outcomes tell once for each charge that its outcome is known, whoever reports it and however
// often. For that it needs one bit of each charge, on pages of [PageSize], as long as outcomes of
// its month count: for this month and the last one. Whoever uses it has locked its pages.
type Outcomes struct {
	Now    authz.Month
	Closed map[authz.Month]bool // what was not confirmed there has been given back
	Pages  map[PageID]*Page     // those that [Report.Pages] names
}

// Tally is what outcomes add up to.
type Tally struct {
	Confirmed map[Confirmed]int64 // credits that were confirmed for the first time
	Reported  int64               // the sum of these, without void charges
	Refunds   []Refund            // some may have been made before
}

// Count confirms the charges of some outcomes. The first outcome of a charge decides, and a refund
// that the upstream asks for later.
func (o *Outcomes) Count(outcomes []Outcome) Tally {
	t := Tally{Confirmed: map[Confirmed]int64{}}
	for _, one := range outcomes {
		first := o.confirm(one)
		if first {
			t.Confirmed[Confirmed{one.Month, one.User, one.Account, one.Holder}] += one.Credits
		}
		if first && one.Cause != CauseVoid {
			t.Reported += one.Credits
		}
		if one.Cause != "" && one.Credits > 0 && (first || one.Cause == CauseSettled && !o.givenBack(one)) {
			t.Refunds = append(t.Refunds, Refund{
				Payer:  Payer{Month: one.Month, User: one.User, Account: one.Account},
				Charge: one.String(), Credits: one.Credits, Cause: one.Cause,
			})
		}
	}
	return t
}

// confirm marks a charge, and reports whether it was not marked before and still counts.
func (o *Outcomes) confirm(one Outcome) bool {
	if one.Month < o.Now.Previous() || o.Closed[one.Month] {
		return false
	}
	page := o.Pages[one.page()]
	page.Month = max(page.Month, one.Month)
	return page.mark(one.Number)
}

// givenBack reports whether a charge came back with all that nobody had reported.
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

// Page has a bit for each charge whose outcome is known. The zero Page has none.
type Page struct {
	Month authz.Month // of the latest charge on it
	bits  []byte
}

// allMarked is the text of a page without a gap.
const allMarked = "*"

// ParsePage reads what [Page.Text] has returned.
func ParsePage(month authz.Month, text string) (*Page, error) {
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

// Text returns the page in a form for the database, "" if it is empty. Trailing bytes without a
// mark are left out.
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

// mark sets the bit of a charge, and reports whether it was not set.
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

// Pages returns the pages that the outcomes of a report are marked on, each once.
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

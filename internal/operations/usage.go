package operations

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/ledger"
	"github.com/keyporter/keyporter/store/requests"
	"github.com/keyporter/keyporter/usage"
)

// Usage is what users and accounts have used, for invoices. The figures are the ledger's.
type Usage struct {
	in  *ledger.Ledger
	log *requests.Log
	db  *store.DB
}

// Usage returns the operations on usage.
func (o Operator) Usage() Usage { return Usage{ledger.New(o.db), requests.New(o.db), o.db} }

// The values of [UsageQuery.GroupBy].
const (
	ByAccount = "account"
	ByUser    = "user"
	ByDay     = "day"
)

// UsageGroups are the values of [UsageQuery.GroupBy].
var UsageGroups = []string{ByAccount, ByUser, ByDay}

// UsageQuery selects usage.
type UsageQuery struct {
	// From and To are the first and the last month, such as 2026-11, at most 120 months. By day
	// they may also be days, such as 2026-11-24, and the first one is at most 100 days ago. An
	// empty To is now, an empty From the month of To. What is in the future is left out.
	From, To string
	GroupBy  string // account, user or day; "": account
	// Account and User select the usage of one of them; if both are empty, that of all. A user has
	// no usage by account: that by user names the accounts.
	Account, User string
}

// UsageRow is the usage of an account or of a user in a month, or of all that is selected on a day.
type UsageRow struct {
	Month   string `json:"month,omitempty"` // such as 2026-11
	Day     string `json:"day,omitempty"`   // such as 2026-11-24
	Account string `json:"account,omitempty"`
	// User belonged to the account when the credits were charged. It is empty by account, and for
	// lost and outstanding credits of a pool that the users of the account share.
	User     string `json:"user,omitempty"`
	Used     int64  `json:"used"` // credits, including refunded ones
	Refunded int64  `json:"refunded"`
	// Charged is Used less Refunded. It is too low, even negative, if credits were refunded whose
	// use a killed process had not reported; these are part of Lost.
	Charged int64 `json:"charged"`
	*UsageOpen
	// Requests counts the requests on a day by the reason of their decision, such as allowed or
	// rate_limited: those of a user, or of all, as far as Envoy's access log has reported them and
	// they were saved. Some may be missing. An account has none.
	Requests map[string]int64 `json:"requests_best_effort,omitempty"`
}

// UsageOpen is the part of a month's usage that is not settled. Days do not have it.
type UsageOpen struct {
	Unreported  int64 `json:"unreported"`  // of the charged credits: no outcome was reported
	Lost        int64 `json:"lost"`        // held by killed processes; used or not
	Outstanding int64 `json:"outstanding"` // held by running processes, or not yet reported
}

// UsageColumns returns the names of the columns of a table of usage, as CSV has them.
func UsageColumns(by string) []string {
	switch by {
	case ByDay:
		return []string{"day", "used", "refunded", "charged", "requests_best_effort"}
	case ByUser:
		return []string{"month", "account", "user", "used", "refunded", "charged", "unreported", "lost", "outstanding"}
	}
	return []string{"month", "account", "used", "refunded", "charged", "unreported", "lost", "outstanding"}
}

// Cells returns the row of a table with the columns of [UsageColumns]; none stands for an empty
// one.
func (r UsageRow) Cells(by, none string) []string {
	cells := []string{r.Month, cmp.Or(r.Account, none)}
	switch by {
	case ByUser:
		cells = append(cells, cmp.Or(r.User, none))
	case ByDay:
		cells = []string{r.Day}
	}
	figures := []int64{r.Used, r.Refunded, r.Charged}
	if r.UsageOpen != nil {
		figures = append(figures, r.Unreported, r.Lost, r.Outstanding)
	}
	for _, credits := range figures {
		cells = append(cells, strconv.FormatInt(credits, 10))
	}
	if r.UsageOpen == nil {
		cells = append(cells, cmp.Or(reasons(r.Requests), none))
	}
	return cells
}

// reasons lists counts of requests: "allowed=12 rate_limited=3".
func reasons(counts map[string]int64) string {
	var all []string
	for _, reason := range slices.Sorted(maps.Keys(counts)) {
		all = append(all, fmt.Sprintf("%s=%d", reason, counts[reason]))
	}
	return strings.Join(all, " ")
}

// maxMonths bounds the months of one query.
const maxMonths = 120

// period is a number of months, or of days.
type period struct{ first, last time.Time }

// Check returns a [FieldError] if the query is invalid.
func (q UsageQuery) Check() error {
	_, err := q.period(time.Now())
	return err
}

// period returns the selected months or days.
func (q UsageQuery) period(now time.Time) (p period, err error) {
	switch {
	case q.GroupBy != "" && q.GroupBy != ByAccount && q.GroupBy != ByUser && q.GroupBy != ByDay:
		return p, FieldError{"group_by", fmt.Sprintf("%q: want account, user or day", q.GroupBy)}
	case q.Account != "" && q.User != "":
		return p, FieldError{"user", "usage is of a user or of an account, not of both"}
	case q.User != "" && q.GroupBy != ByUser && q.GroupBy != ByDay:
		return p, FieldError{"group_by", "of one user: want user, which names the accounts, or day"}
	}
	today := now.UTC().Truncate(24 * time.Hour)
	to := period{usage.MonthOf(today).Start(), today}
	if q.To != "" {
		if to, err = q.parse("to", q.To); err != nil {
			return p, err
		}
	}
	from := period{first: usage.MonthOf(to.first).Start()}
	if q.From != "" {
		if from, err = q.parse("from", q.From); err != nil {
			return p, err
		}
	}
	p = period{from.first, to.last}
	if p.last.After(today) {
		p.last = today
	}
	return p, q.checkPeriod(p, today)
}

// parse reads a month or a day.
func (q UsageQuery) parse(field, s string) (period, error) {
	if month, err := usage.ParseMonth(s); err == nil {
		return period{month.Start(), month.End().AddDate(0, 0, -1)}, nil
	}
	day, err := time.Parse(time.DateOnly, s)
	switch {
	case err != nil && q.GroupBy == ByDay:
		return period{}, FieldError{field, fmt.Sprintf("%q: want a day such as 2026-11-24, or a month such as 2026-11", s)}
	case err != nil || q.GroupBy != ByDay:
		return period{}, FieldError{field, fmt.Sprintf("%q: want a month such as 2026-11; usage is by day only if grouped by day", s)}
	}
	return period{day, day}, nil
}

func (q UsageQuery) checkPeriod(p period, today time.Time) error {
	kept := today.Add(-requests.DaysKept)
	switch {
	case p.first.After(today):
		return FieldError{"from", p.first.Format(time.DateOnly) + " is in the future"}
	case p.first.After(p.last):
		return FieldError{"from", fmt.Sprintf("%s is after %s", p.first.Format(time.DateOnly), p.last.Format(time.DateOnly))}
	case q.GroupBy == ByDay && p.first.Before(kept):
		return FieldError{"from", fmt.Sprintf("days are kept for %d days: want %s or later; months are kept", int(requests.DaysKept.Hours()/24), kept.Format(time.DateOnly))}
	case usage.MonthOf(p.first.AddDate(0, maxMonths, 0)) <= usage.MonthOf(p.last):
		return FieldError{"from", fmt.Sprintf("want at most %d months", maxMonths)}
	}
	return nil
}

// Each lists the selected usage: by month, then by account, or by user and account; or each day.
// The lost and outstanding credits of shared pools come last in each month. It reads page by page,
// so that it needs little memory for any number of users. A query that is invalid, or that names
// nobody, is the first error.
func (u Usage) Each(ctx context.Context, q UsageQuery) iter.Seq2[UsageRow, error] {
	return func(yield func(UsageRow, error) bool) {
		p, err := u.prepare(ctx, q)
		if err != nil {
			yield(UsageRow{}, err)
			return
		}
		for row, err := range u.rows(ctx, q, p) {
			if !yield(row, err) || err != nil {
				return
			}
		}
	}
}

// prepare checks a query by the clock and the names of the database.
func (u Usage) prepare(ctx context.Context, q UsageQuery) (period, error) {
	now, err := u.db.Now(ctx)
	if err != nil {
		return period{}, err
	}
	p, err := q.period(now)
	if err != nil {
		return period{}, err
	}
	first, last := usage.MonthOf(p.first), usage.MonthOf(p.last)
	if q.User != "" {
		return p, known(ctx, u.in, usage.PoolUser, q.User, first, last)
	}
	if q.Account != "" {
		return p, known(ctx, u.in, usage.PoolAccount, q.Account, first, last)
	}
	return p, nil
}

func (u Usage) rows(ctx context.Context, q UsageQuery, p period) iter.Seq2[UsageRow, error] {
	of := ledger.Owner{Account: q.Account, User: q.User}
	if q.GroupBy == ByDay {
		return u.days(ctx, of, p)
	}
	list := u.in.UsageByAccount
	if q.GroupBy == ByUser {
		list = u.in.UsageByUser
	}
	return func(yield func(UsageRow, error) bool) {
		for month := p.first; !month.After(p.last); month = month.AddDate(0, 1, 0) {
			for m, err := range list(ctx, usage.MonthOf(month), of) {
				if !yield(monthRow(m), err) || err != nil {
					return
				}
			}
		}
	}
}

func (u Usage) days(ctx context.Context, of ledger.Owner, p period) iter.Seq2[UsageRow, error] {
	return func(yield func(UsageRow, error) bool) {
		for d, err := range u.in.EachDay(ctx, p.first, p.last, of) {
			row := UsageRow{Day: d.Date.Format(time.DateOnly), Account: of.Account, User: of.User, Used: d.Used, Refunded: d.Refunded, Charged: d.Used - d.Refunded}
			if err == nil && of.Account == "" {
				row.Requests, err = u.log.Outcomes(ctx, d.Date, of.User)
			}
			if !yield(row, err) || err != nil {
				return
			}
		}
	}
}

func monthRow(m ledger.MonthUsage) UsageRow {
	return UsageRow{
		Month: m.Month.String(), Account: m.Account, User: m.User, Used: m.Used, Refunded: m.Refunded, Charged: m.Used - m.Refunded,
		UsageOpen: &UsageOpen{m.Unreported, m.Lost, m.Outstanding},
	}
}

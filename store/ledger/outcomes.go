package ledger

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/keyporter/keyporter/credits/ledger"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/usage"
)

// countOutcomes counts the outcomes of a report, each charge only once, and adds the refunds of its
// outcomes to the report. It returns the number of newly reported credits.
func (l *Ledger) countOutcomes(ctx context.Context, tx *sql.Tx, r *ledger.Report, now usage.Month) (reported int64, err error) {
	if len(r.Outcomes) == 0 {
		return 0, nil
	}
	o := ledger.Outcomes{Now: now}
	if o.Closed, err = l.closedMonths(ctx, tx, r.Outcomes, now); err != nil {
		return 0, err
	}
	before, err := l.lockPages(ctx, tx, r.Pages(), &o)
	if err != nil {
		return 0, err
	}
	tally := o.Count(r.Outcomes)
	r.Refunds = append(r.Refunds, tally.Refunds...)
	if err := l.writePages(ctx, tx, o.Pages, before); err != nil {
		return 0, err
	}
	return tally.Reported, l.writeReported(ctx, tx, tally.Credits)
}

// closedMonths returns the closed months among those before this one, and keeps the others open
// until the transaction ends. This month cannot be closed.
func (l *Ledger) closedMonths(ctx context.Context, tx *sql.Tx, outcomes []ledger.Outcome, now usage.Month) (map[usage.Month]bool, error) {
	type monthRow struct {
		Month int64 `json:"month"`
	}
	seen := map[usage.Month]bool{}
	var months []monthRow
	for _, o := range outcomes {
		if o.Month < now && !seen[o.Month] {
			seen[o.Month] = true
			months = append(months, monthRow{int64(o.Month)})
		}
	}
	closed := map[usage.Month]bool{}
	if len(months) == 0 {
		return closed, nil
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO credit_months (month, closed) SELECT `+store.Number("month")+`, FALSE FROM `+l.db.Dialect.Rows+`
		WHERE TRUE ORDER BY 1 ON CONFLICT DO NOTHING`, store.Rows(months)); err != nil {
		return nil, err
	}
	return closed, store.Each(ctx, tx, func(row store.Scanner) error {
		var month usage.Month
		var is bool
		err := row.Scan(&month, &is)
		closed[month] = is
		return err
	}, `SELECT month, closed FROM credit_months WHERE month IN (SELECT `+store.Number("month")+` FROM `+l.db.Dialect.Rows+`) ORDER BY month`+l.db.Dialect.Share, store.Rows(months))
}

// closeMonth closes a month: from now on, outcomes change nothing unless their charge was reported
// before.
func (l *Ledger) closeMonth(ctx context.Context, month usage.Month) error {
	_, err := l.db.Write(ctx, l.db.Reports, func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO credit_months (month, closed) VALUES ($1, TRUE)
			ON CONFLICT (month) DO UPDATE SET closed = TRUE WHERE NOT credit_months.closed`, int64(month))
		return err
	})
	return err
}

// pageRow is a page of charges as a row of JSON.
type pageRow struct {
	Holder string `json:"holder"`
	Page   int64  `json:"page"`
	Month  int64  `json:"month"`
	Marks  string `json:"marks"`
}

var pageColumns = store.Column("holder") + ` AS holder, ` + store.Number("page") + ` AS page`

// lockPages creates missing pages, locks all of them, always in the same order, and reads them. It
// returns the rows as they were.
func (l *Ledger) lockPages(ctx context.Context, tx *sql.Tx, pages []ledger.PageID, o *ledger.Outcomes) (map[ledger.PageID]pageRow, error) {
	all := make([]pageRow, 0, len(pages))
	for _, p := range pages {
		all = append(all, pageRow{Holder: p.Holder, Page: int64(p.Number)})
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO credit_charges (holder, page, month, marks)
		SELECT `+pageColumns+`, 0, '' FROM `+l.db.Dialect.Rows+` WHERE TRUE ORDER BY 1, 2 ON CONFLICT DO NOTHING`, store.Rows(all)); err != nil {
		return nil, err
	}
	locked := ``
	if l.db.Dialect.Lock != "" {
		locked = l.db.Dialect.Lock + ` OF c`
	}
	o.Pages = map[ledger.PageID]*ledger.Page{}
	before := map[ledger.PageID]pageRow{}
	err := store.Each(ctx, tx, func(row store.Scanner) error {
		var p pageRow
		if err := row.Scan(&p.Holder, &p.Page, &p.Month, &p.Marks); err != nil {
			return err
		}
		id := ledger.PageID{Holder: p.Holder, Number: uint64(p.Page)}
		page, err := ledger.ParsePage(usage.Month(p.Month), p.Marks)
		o.Pages[id], before[id] = page, p
		return err
	}, `SELECT c.holder, c.page, c.month, c.marks FROM credit_charges c JOIN (SELECT `+pageColumns+` FROM `+l.db.Dialect.Rows+`) w
		ON w.holder = c.holder AND w.page = c.page ORDER BY c.holder, c.page`+locked, store.Rows(all))
	if err == nil && len(before) < len(pages) {
		err = fmt.Errorf("%w: a page of charges was tidied away", store.ErrAgain)
	}
	return before, err
}

// writePages writes the pages that have changed.
func (l *Ledger) writePages(ctx context.Context, tx *sql.Tx, pages map[ledger.PageID]*ledger.Page, before map[ledger.PageID]pageRow) error {
	var changed []pageRow
	for id, page := range pages {
		row := pageRow{id.Holder, int64(id.Number), int64(page.Month), page.Text()}
		if row != before[id] {
			changed = append(changed, row)
		}
	}
	if len(changed) == 0 {
		return nil
	}
	_, err := tx.ExecContext(ctx, `UPDATE credit_charges SET month = w.month, marks = w.marks
		FROM (SELECT `+pageColumns+`, `+store.Number("month")+` AS month, `+store.Column("marks")+` AS marks FROM `+l.db.Dialect.Rows+`) w
		WHERE w.holder = credit_charges.holder AND w.page = credit_charges.page`, store.Rows(changed))
	return err
}

// writeReported adds to the reported credits. Transactions that add to the same rows have locked
// the same pages, or wait: rows are written in one order.
func (l *Ledger) writeReported(ctx context.Context, tx *sql.Tx, reported map[ledger.Charged]int64) error {
	if len(reported) == 0 {
		return nil
	}
	all := make([]payerRow, 0, len(reported))
	for c, credits := range reported {
		all = append(all, payerRow{Month: int64(c.Month), User: c.User, Account: c.Account, Holder: c.Holder, Credits: credits})
	}
	_, err := tx.ExecContext(ctx, `INSERT INTO credit_reported (month, user_name, account, holder, credits)
		SELECT `+store.Number("month")+`, `+store.Column("user")+`, `+store.Column("account")+`, `+store.Column("holder")+`, `+store.Number("credits")+`
		FROM `+l.db.Dialect.Rows+` WHERE TRUE ORDER BY 1, 2, 3, 4
		ON CONFLICT (month, user_name, account, holder) DO UPDATE SET credits = credit_reported.credits + excluded.credits`, store.Rows(all))
	return err
}

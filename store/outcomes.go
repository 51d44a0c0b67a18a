package store

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/keyporter/keyporter/credits/ledger"
	"github.com/keyporter/keyporter/usage"
)

// countOutcomes confirms the charges of a report, each only once, and adds the refunds of its
// outcomes to the report. It returns the number of newly confirmed credits.
func (db *DB) countOutcomes(ctx context.Context, tx *sql.Tx, r *ledger.Report, now usage.Month) (confirmed int64, err error) {
	if len(r.Outcomes) == 0 {
		return 0, nil
	}
	o := ledger.Outcomes{Now: now}
	if o.Closed, err = db.closedMonths(ctx, tx, r.Outcomes, now); err != nil {
		return 0, err
	}
	before, err := db.lockPages(ctx, tx, r.Pages(), &o)
	if err != nil {
		return 0, err
	}
	tally := o.Count(r.Outcomes)
	r.Refunds = append(r.Refunds, tally.Refunds...)
	if err := db.writePages(ctx, tx, o.Pages, before); err != nil {
		return 0, err
	}
	return tally.Reported, db.writeConfirmed(ctx, tx, tally.Confirmed)
}

// closedMonths returns the closed months among those before this one, and keeps the others open
// until the transaction ends. This month cannot be closed.
func (db *DB) closedMonths(ctx context.Context, tx *sql.Tx, outcomes []ledger.Outcome, now usage.Month) (map[usage.Month]bool, error) {
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
	if _, err := tx.ExecContext(ctx, `INSERT INTO credit_months (month, closed) SELECT `+number("month")+`, FALSE FROM `+db.dialect.rows+`
		WHERE TRUE ORDER BY 1 ON CONFLICT DO NOTHING`, rows(months)); err != nil {
		return nil, err
	}
	return closed, each(ctx, tx, func(row scanner) error {
		var month usage.Month
		var is bool
		err := row.Scan(&month, &is)
		closed[month] = is
		return err
	}, `SELECT month, closed FROM credit_months WHERE month IN (SELECT `+number("month")+` FROM `+db.dialect.rows+`) ORDER BY month`+db.dialect.share, rows(months))
}

// closeMonth closes a month: from now on, outcomes change nothing unless their charge was confirmed
// before.
func (db *DB) closeMonth(ctx context.Context, month usage.Month) error {
	_, err := db.changeOn(ctx, db.reports, func(ctx context.Context, tx *sql.Tx) error {
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

var pageColumns = column("holder") + ` AS holder, ` + number("page") + ` AS page`

// lockPages creates missing pages, locks all of them, always in the same order, and reads them. It
// returns the rows as they were.
func (db *DB) lockPages(ctx context.Context, tx *sql.Tx, pages []ledger.PageID, o *ledger.Outcomes) (map[ledger.PageID]pageRow, error) {
	all := make([]pageRow, 0, len(pages))
	for _, p := range pages {
		all = append(all, pageRow{Holder: p.Holder, Page: int64(p.Number)})
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO credit_charges (holder, page, month, marks)
		SELECT `+pageColumns+`, 0, '' FROM `+db.dialect.rows+` WHERE TRUE ORDER BY 1, 2 ON CONFLICT DO NOTHING`, rows(all)); err != nil {
		return nil, err
	}
	locked := ``
	if db.dialect.lock != "" {
		locked = db.dialect.lock + ` OF c`
	}
	o.Pages = map[ledger.PageID]*ledger.Page{}
	before := map[ledger.PageID]pageRow{}
	err := each(ctx, tx, func(row scanner) error {
		var p pageRow
		if err := row.Scan(&p.Holder, &p.Page, &p.Month, &p.Marks); err != nil {
			return err
		}
		id := ledger.PageID{Holder: p.Holder, Number: uint64(p.Page)}
		page, err := ledger.ParsePage(usage.Month(p.Month), p.Marks)
		o.Pages[id], before[id] = page, p
		return err
	}, `SELECT c.holder, c.page, c.month, c.marks FROM credit_charges c JOIN (SELECT `+pageColumns+` FROM `+db.dialect.rows+`) w
		ON w.holder = c.holder AND w.page = c.page ORDER BY c.holder, c.page`+locked, rows(all))
	if err == nil && len(before) < len(pages) {
		err = fmt.Errorf("%w: a page of charges was tidied away", errAgain)
	}
	return before, err
}

// writePages writes the pages that have changed.
func (db *DB) writePages(ctx context.Context, tx *sql.Tx, pages map[ledger.PageID]*ledger.Page, before map[ledger.PageID]pageRow) error {
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
		FROM (SELECT `+pageColumns+`, `+number("month")+` AS month, `+column("marks")+` AS marks FROM `+db.dialect.rows+`) w
		WHERE w.holder = credit_charges.holder AND w.page = credit_charges.page`, rows(changed))
	return err
}

// writeConfirmed adds to the confirmed credits. Transactions that add to the same rows have locked
// the same pages, or wait: rows are written in one order.
func (db *DB) writeConfirmed(ctx context.Context, tx *sql.Tx, confirmed map[ledger.Confirmed]int64) error {
	if len(confirmed) == 0 {
		return nil
	}
	all := make([]payerRow, 0, len(confirmed))
	for c, credits := range confirmed {
		all = append(all, payerRow{Month: int64(c.Month), User: c.User, Account: c.Account, Holder: c.Holder, Credits: credits})
	}
	_, err := tx.ExecContext(ctx, `INSERT INTO credit_confirmed (month, user_name, account, holder, credits)
		SELECT `+number("month")+`, `+column("user")+`, `+column("account")+`, `+column("holder")+`, `+number("credits")+`
		FROM `+db.dialect.rows+` WHERE TRUE ORDER BY 1, 2, 3, 4
		ON CONFLICT (month, user_name, account, holder) DO UPDATE SET credits = credit_confirmed.credits + excluded.credits`, rows(all))
	return err
}

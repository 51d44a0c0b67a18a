package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/keyporter/keyporter/credits/ledger"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/usage"
)

// errStale says that a later report of the same process has been posted, or that the process had
// ended and may have been added up: the figures of this report would count twice.
var errStale = errors.New("a later report was posted before this one, or the last one some time ago")

// Report posts what a process reports about its credits, and returns what it holds from then on. It
// is one transaction for any number of pools. If it is unknown whether a report was posted, the
// next one replaces it.
func (l *Ledger) Report(ctx context.Context, r ledger.Report) (result ledger.Result, err error) {
	_, err = l.db.Calling(store.ForCredits).Write(ctx, l.db.Reports, func(ctx context.Context, tx *sql.Tx) (err error) {
		result, err = l.post(ctx, tx, r)
		return err
	})
	if err != nil {
		return ledger.Result{}, fmt.Errorf("reporting the use of credits: %w", err)
	}
	return result, nil
}

// post reads the pools of the report under locks, has the report posted, and writes the result. The
// epoch is read before the limits, so a caller with a later epoch knows that these limits may be
// old.
func (l *Ledger) post(ctx context.Context, tx *sql.Tx, r ledger.Report) (ledger.Result, error) {
	var result ledger.Result
	if err := l.announce(ctx, tx, &r); err != nil {
		return result, err
	}
	pools, err := l.lockPools(ctx, tx, r.Touches())
	if err != nil {
		return result, err
	}
	book := ledger.Book{}
	var ms int64
	if err := tx.QueryRowContext(ctx, `SELECT `+l.db.Dialect.Now+`, (SELECT max(epoch) FROM changes), (SELECT count(*) FROM replicas live WHERE `+l.db.Dialect.Live+`)`).
		Scan(&ms, &result.Epoch, &book.Replicas); err != nil {
		return result, err
	}
	book.Now = store.FromMillis(ms)
	if err := l.readBook(ctx, tx, &r, pools, &book); err != nil {
		return result, err
	}
	if result.Reported, err = l.countOutcomes(ctx, tx, &r, usage.MonthOf(book.Now)); err != nil {
		return result, err
	}
	if result.Refunds, err = l.refund(ctx, tx, r.Refunds); err != nil {
		return result, err
	}
	days := dayRows(&r, result.Refunds, book.Usages, book.Now)
	before := map[ledger.Pool]ledger.Balance{}
	for pool, balance := range book.Pools {
		before[pool] = *balance
	}
	if result.Grants, err = book.Post(r, result.Refunds); err != nil {
		return result, err
	}
	result.Now = book.Now
	return result, errors.Join(l.writeBook(ctx, tx, &r, &book, before), l.writeDays(ctx, tx, days), l.recall(ctx, tx, r.Asks, result.Grants, ms), l.mark(ctx, tx, &book, before, result.Grants))
}

// announce puts the process on the list of holders and refuses a late report.
func (l *Ledger) announce(ctx context.Context, tx *sql.Tx, r *ledger.Report) error {
	statement := `UPDATE credit_holders SET replica = $2, seq = $3, ended = $4, reported_at = ` + l.db.Dialect.Now + `
		WHERE id = $1 AND seq < $3 AND NOT (ended AND reported_at < ` + l.db.Dialect.Now + ` - ` + fmt.Sprint(addUpAfter.Milliseconds()) + `)`
	if r.Seq == 1 {
		statement = `INSERT INTO credit_holders (id, replica, seq, ended, reported_at)
			VALUES ($1, $2, $3, $4, ` + l.db.Dialect.Now + `) ON CONFLICT DO NOTHING`
	}
	found, err := store.Affected(tx.ExecContext(ctx, statement, r.Holder, r.Replica, r.Seq, r.Last))
	if err == nil && !found && r.Seq > 1 { // the first report did not arrive
		found, err = store.Affected(tx.ExecContext(ctx, `INSERT INTO credit_holders (id, replica, seq, ended, reported_at)
			VALUES ($1, $2, $3, $4, `+l.db.Dialect.Now+`) ON CONFLICT DO NOTHING`, r.Holder, r.Replica, r.Seq, r.Last))
	}
	if err == nil && !found {
		err = errStale
	}
	return err
}

// poolRow is a pool as a row of JSON. Many rows go to the database as one parameter.
type poolRow struct {
	Month    int64  `json:"month"`
	Kind     string `json:"kind"`
	Name     string `json:"name"`
	Granted  int64  `json:"granted"`
	Leased   int64  `json:"leased"`
	Used     int64  `json:"used"`
	Refunded int64  `json:"refunded"`
	Taken    int64  `json:"taken"`
}

func rowOf(p ledger.Pool) poolRow {
	return poolRow{Month: int64(p.Month), Kind: p.Kind.String(), Name: p.Name}
}

func (r poolRow) pool() (ledger.Pool, error) {
	kind, err := usage.ParsePoolKind(r.Kind)
	return ledger.Pool{Month: usage.Month(r.Month), Kind: kind, Name: r.Name}, err
}

var poolColumns = store.Number("month") + ` AS month, ` + store.Column("kind") + ` AS kind, ` + store.Column("name") + ` AS name`

// lockPools creates missing pools and locks all of them, always in the same order. It returns them
// as one parameter.
func (l *Ledger) lockPools(ctx context.Context, tx *sql.Tx, pools []ledger.Pool) (string, error) {
	all := make([]poolRow, 0, len(pools))
	for _, p := range pools {
		all = append(all, rowOf(p))
	}
	text := store.Rows(all)
	if _, err := tx.ExecContext(ctx, `INSERT INTO credit_pools (month, kind, name)
		SELECT * FROM (SELECT `+poolColumns+` FROM `+l.db.Dialect.Rows+`) p WHERE TRUE ORDER BY month, kind, name ON CONFLICT DO NOTHING`, text); err != nil {
		return "", err
	}
	if l.db.Dialect.Lock == "" {
		return text, nil // there is one writer at a time
	}
	_, err := tx.ExecContext(ctx, `SELECT 1 FROM credit_pools p JOIN (SELECT `+poolColumns+` FROM `+l.db.Dialect.Rows+`) w
		ON w.month = p.month AND w.kind = p.kind AND w.name = p.name ORDER BY p.month, p.kind, p.name`+l.db.Dialect.Lock+` OF p`, text)
	return text, err
}

// readBook reads the pools, and the blocks and payers of the reporting process. It is a statement
// of its own, so that it sees what others committed before they released the locks.
func (l *Ledger) readBook(ctx context.Context, tx *sql.Tx, r *ledger.Report, pools string, book *ledger.Book) error {
	book.Pools, book.Blocks = map[ledger.Pool]*ledger.Balance{}, map[ledger.Pool]ledger.Block{}
	err := store.Each(ctx, tx, func(row store.Scanner) error {
		var p poolRow
		var b ledger.Balance
		var credits sql.NullInt64
		var grants, others int64
		var block ledger.Block
		if err := row.Scan(&p.Month, &p.Kind, &p.Name, &b.Granted, &b.Leased, &b.Used, &b.Refunded, &b.Sells, &credits, &grants,
			&block.Taken, &block.Used, &b.Elsewhere, &others); err != nil {
			return err
		}
		pool, err := p.pool()
		b.Plan, b.Extra, b.Lost = store.LimitOf(credits), grants, others-b.Elsewhere
		book.Pools[pool], book.Blocks[pool] = &b, block
		return err
	}, `SELECT p.month, p.kind, p.name, p.granted, p.leased, p.used, p.refunded,
			coalesce(plan.pool = p.kind, FALSE), CASE WHEN plan.pool = p.kind THEN plan.credits ELSE 0 END,
			CAST(coalesce((SELECT sum(g.credits) FROM credit_grants g WHERE g.month = p.month AND g.kind = p.kind AND g.name = p.name), 0) AS BIGINT),
			coalesce(own.taken, 0), coalesce(own.used, 0),
			CAST(coalesce((SELECT sum(b.taken - b.used) FROM credit_blocks b JOIN credit_holders h ON h.id = b.holder JOIN replicas live ON live.id = h.replica
				WHERE `+l.db.Dialect.Live+` AND b.month = p.month AND b.kind = p.kind AND b.name = p.name AND b.holder <> $2), 0) AS BIGINT),
			CAST(coalesce((SELECT sum(b.taken - b.used) FROM credit_blocks b
				WHERE b.month = p.month AND b.kind = p.kind AND b.name = p.name AND b.holder <> $2), 0) AS BIGINT)
		FROM (SELECT `+poolColumns+` FROM `+l.db.Dialect.Rows+`) w
		JOIN credit_pools p ON p.month = w.month AND p.kind = w.kind AND p.name = w.name
		LEFT JOIN credit_blocks own ON own.month = p.month AND own.kind = p.kind AND own.name = p.name AND own.holder = $2
		LEFT JOIN users u ON p.kind = 'user' AND u.name = p.name
		LEFT JOIN accounts a ON a.name = CASE p.kind WHEN 'user' THEN u.account ELSE p.name END
		LEFT JOIN plans plan ON plan.name = a.plan`, pools, r.Holder)
	if err != nil {
		return err
	}
	book.Usages = map[ledger.Payer]int64{}
	return store.Each(ctx, tx, func(row store.Scanner) error {
		var payer ledger.Payer
		var kind string
		var used int64
		if err := row.Scan(&payer.Month, &kind, &payer.User, &payer.Account, &used); err != nil {
			return err
		}
		var err error
		payer.Kind, err = usage.ParsePoolKind(kind)
		book.Usages[payer] = used
		return err
	}, `SELECT s.month, s.kind, s.user_name, s.account, s.used FROM (SELECT `+store.Number("month")+` AS month, `+store.Column("kind")+` AS kind,
			`+store.Column("user")+` AS user_name, `+store.Column("account")+` AS account FROM `+l.db.Dialect.Rows+`) w
		JOIN credit_usages s ON s.month = w.month AND s.kind = w.kind AND s.user_name = w.user_name AND s.account = w.account AND s.holder = $2`,
		store.Rows(usageRows(r.Usages)), r.Holder)
}

// payerRow is an amount that a user was charged or refunded, or that was reported, as a row of
// JSON.
type payerRow struct {
	Month   int64  `json:"month"`
	Kind    string `json:"kind"`
	User    string `json:"user"`
	Account string `json:"account"`
	Holder  string `json:"holder,omitempty"`
	Credits int64  `json:"credits"`
	Charge  string `json:"charge,omitempty"`
	Total   int64  `json:"total,omitempty"`
	Cause   string `json:"cause,omitempty"`
}

func usageRows(usages []ledger.Usage) []payerRow {
	all := make([]payerRow, 0, len(usages))
	for _, u := range usages {
		all = append(all, payerRow{Month: int64(u.Month), Kind: u.Kind.String(), User: u.User, Account: u.Account, Credits: u.Used})
	}
	return all
}

// refund records the refunds that give something back, and returns them. The pools of their payers
// are locked, so no other transaction refunds the same charges.
func (l *Ledger) refund(ctx context.Context, tx *sql.Tx, refunds []ledger.Refund) ([]ledger.Part, error) {
	if len(refunds) == 0 {
		return nil, nil
	}
	charges := make([]payerRow, 0, len(refunds))
	for _, r := range refunds {
		charges = append(charges, payerRow{Charge: r.Charge})
	}
	totals := map[string]int64{}
	err := store.Each(ctx, tx, func(row store.Scanner) error {
		var charge string
		var total int64
		err := row.Scan(&charge, &total)
		totals[charge] = total
		return err
	}, `SELECT charge, max(total) FROM credit_refunds WHERE charge IN (SELECT `+store.Column("charge")+` FROM `+l.db.Dialect.Rows+`) GROUP BY charge`,
		store.Rows(charges))
	if err != nil {
		return nil, err
	}
	parts := ledger.Parts(refunds, totals)
	if len(parts) == 0 {
		return nil, nil
	}
	rows := make([]payerRow, 0, len(parts))
	for _, p := range parts {
		rows = append(rows, payerRow{Month: int64(p.Month), User: p.User, Account: p.Account, Credits: p.Credits, Charge: p.Charge, Total: p.Total, Cause: p.Cause})
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO credit_refunds (charge, total, credits, month, user_name, account, cause, made_at)
		SELECT `+store.Column("charge")+`, `+store.Number("total")+`, `+store.Number("credits")+`, `+store.Number("month")+`, `+store.Column("user")+`, `+store.Column("account")+`, `+store.Column("cause")+`, `+l.db.Dialect.Now+`
		FROM `+l.db.Dialect.Rows+` WHERE TRUE ORDER BY 1, 2`, store.Rows(rows))
	return parts, err
}

// writeBook writes what has changed.
func (l *Ledger) writeBook(ctx context.Context, tx *sql.Tx, r *ledger.Report, book *ledger.Book, before map[ledger.Pool]ledger.Balance) error {
	var changed []poolRow
	for pool, b := range book.Pools {
		if *b != before[pool] {
			row := rowOf(pool)
			row.Granted, row.Leased, row.Used, row.Refunded = b.Granted, b.Leased, b.Used, b.Refunded
			changed = append(changed, row)
		}
	}
	var blocks []poolRow
	for _, ask := range r.Asks {
		block := book.Blocks[ask.Pool]
		row := rowOf(ask.Pool)
		row.Taken, row.Used = block.Taken, block.Used
		blocks = append(blocks, row)
	}
	for _, write := range []struct {
		rows      int
		statement string
		text      string
	}{
		{len(changed), `UPDATE credit_pools SET granted = w.granted, leased = w.leased, used = w.used, refunded = w.refunded
			FROM (SELECT ` + poolColumns + `, ` + store.Number("granted") + ` AS granted, ` + store.Number("leased") + ` AS leased, ` + store.Number("used") + ` AS used,
				` + store.Number("refunded") + ` AS refunded, $2 AS holder FROM ` + l.db.Dialect.Rows + `) w
			WHERE w.month = credit_pools.month AND w.kind = credit_pools.kind AND w.name = credit_pools.name`, store.Rows(changed)},
		{len(blocks), `INSERT INTO credit_blocks (month, kind, name, holder, taken, used, account)
			SELECT w.month, w.kind, w.name, $2, w.taken, w.used, coalesce(u.account, '')
			FROM (SELECT ` + poolColumns + `, ` + store.Number("taken") + ` AS taken, ` + store.Number("used") + ` AS used FROM ` + l.db.Dialect.Rows + `) w
			LEFT JOIN users u ON w.kind = 'user' AND u.name = w.name WHERE TRUE
			ON CONFLICT (month, kind, name, holder) DO UPDATE SET taken = excluded.taken, used = excluded.used,
				account = CASE excluded.account WHEN '' THEN credit_blocks.account ELSE excluded.account END`, store.Rows(blocks)},
		{len(r.Usages), `INSERT INTO credit_usages (month, kind, user_name, account, holder, used)
			SELECT ` + store.Number("month") + `, ` + store.Column("kind") + `, ` + store.Column("user") + `, ` + store.Column("account") + `, $2, ` + store.Number("credits") + `
			FROM ` + l.db.Dialect.Rows + ` WHERE TRUE
			ON CONFLICT (month, kind, user_name, account, holder) DO UPDATE SET used = excluded.used`, store.Rows(usageRows(r.Usages))},
	} {
		if write.rows == 0 {
			continue
		}
		if _, err := tx.ExecContext(ctx, write.statement, write.text, r.Holder); err != nil {
			return err
		}
	}
	return nil
}

// dayRow is the charges of a user of an account on a day, as a row of JSON.
type dayRow struct {
	Day      int64  `json:"day"`
	User     string `json:"user"`
	Account  string `json:"account"`
	Used     int64  `json:"used"`
	Refunded int64  `json:"refunded"`
}

// dayRows returns what a report and its refunds add to the days of users, given the usages so far.
func dayRows(r *ledger.Report, refunds []ledger.Part, usages map[ledger.Payer]int64, now time.Time) []dayRow {
	rows := map[dayRow]dayRow{} // the day, user and account → the row
	add := func(p ledger.Payer, used, refunded int64) {
		id := dayRow{Day: dayIn(p.Month, now), User: p.User, Account: p.Account}
		row := rows[id]
		rows[id] = dayRow{id.Day, id.User, id.Account, row.Used + used, row.Refunded + refunded}
	}
	for _, u := range r.Usages {
		if more := u.Used - usages[u.Payer]; more != 0 {
			add(u.Payer, more, 0)
		}
	}
	for _, refund := range refunds {
		add(refund.Payer, 0, refund.Credits)
	}
	return slices.Collect(maps.Values(rows))
}

// writeDays adds to the days of users. The pools of the users are locked.
func (l *Ledger) writeDays(ctx context.Context, tx *sql.Tx, days []dayRow) error {
	if len(days) == 0 {
		return nil
	}
	_, err := tx.ExecContext(ctx, `INSERT INTO credit_daily (user_name, day, account, used, refunded)
		SELECT `+store.Column("user")+`, `+store.Number("day")+`, `+store.Column("account")+`, `+store.Number("used")+`, `+store.Number("refunded")+` FROM `+l.db.Dialect.Rows+` WHERE TRUE
		ON CONFLICT (user_name, day, account) DO UPDATE SET used = credit_daily.used + excluded.used, refunded = credit_daily.refunded + excluded.refunded`, store.Rows(days))
	return err
}

// markRow is a pool of which a share was used, as a row of JSON.
type markRow struct {
	poolRow
	Percent int64 `json:"percent"`
	Limit   int64 `json:"limit"`
}

// mark records, once in a month, that most or all of a pool was used or lost, if webhooks want to
// be told. Only pools that were used just now cost a statement, and few of those.
func (l *Ledger) mark(ctx context.Context, tx *sql.Tx, book *ledger.Book, before map[ledger.Pool]ledger.Balance, grants []ledger.Grant) error {
	var marks []markRow
	for _, grant := range grants {
		pool := book.Pools[grant.Pool]
		if !grant.Sells || grant.Limit == usage.Unlimited || grant.Limit == 0 || pool.Used == before[grant.Pool].Used {
			continue
		}
		row := markRow{poolRow: rowOf(grant.Pool), Limit: int64(grant.Limit)}
		row.Used = grant.Used + pool.Lost
		for _, row.Percent = range []int64{80, 100} {
			if row.Used/row.Percent*100+row.Used%row.Percent*100/row.Percent >= row.Limit {
				marks = append(marks, row)
			}
		}
	}
	if len(marks) == 0 {
		return nil
	}
	_, err := tx.ExecContext(ctx, `INSERT INTO credit_marks (month, kind, name, percent, used, credits)
		SELECT m.month, m.kind, m.name, m.percent, m.used, m.credits FROM (SELECT `+poolColumns+`, `+store.Number("percent")+` AS percent,
			`+store.Number("used")+` AS used, `+store.Number("limit")+` AS credits FROM `+l.db.Dialect.Rows+`) m
		WHERE EXISTS (SELECT 1 FROM event_subscriptions s WHERE s.type = CASE m.percent WHEN 100 THEN 'credits.exhausted' ELSE 'credits.low' END)
		ORDER BY m.month, m.kind, m.name, m.percent ON CONFLICT DO NOTHING`, store.Rows(marks))
	return err
}

// recall asks the other processes for the unused credits of the pools that had too few.
func (l *Ledger) recall(ctx context.Context, tx *sql.Tx, asks []ledger.Ask, grants []ledger.Grant, at int64) error {
	var short []poolRow
	for i, grant := range grants {
		if grant.Taken < asks[i].Keep+asks[i].Need && grant.Elsewhere > 0 {
			short = append(short, rowOf(grant.Pool))
		}
	}
	if len(short) == 0 {
		return nil
	}
	slices.SortFunc(short, func(a, b poolRow) int { return strings.Compare(a.Kind+a.Name, b.Kind+b.Name) })
	_, err := tx.ExecContext(ctx, `INSERT INTO credit_recalls (month, kind, name, at) SELECT `+poolColumns+`, CAST($2 AS BIGINT)
		FROM `+l.db.Dialect.Rows+` WHERE TRUE ORDER BY 1, 2, 3 ON CONFLICT (month, kind, name) DO UPDATE SET at = excluded.at`, store.Rows(short), at)
	return err
}

// recallLife is how long a recall is valid. The caller has given up by then.
const recallLife = time.Second

// recalledTime limits reading the recalls, including the wait for a connection.
const recalledTime = time.Second

// Recalled returns the pools with a current recall. Reports wait for it, so it uses their
// connections and has a short time limit. A process that still needs credits recalls them again.
func (l *Ledger) Recalled(ctx context.Context) ([]ledger.Pool, error) {
	limited, cancel := context.WithTimeout(ctx, recalledTime)
	defer cancel()
	var pools []ledger.Pool
	err := store.Each(limited, l.db.Reports, func(row store.Scanner) error {
		var p poolRow
		if err := row.Scan(&p.Month, &p.Kind, &p.Name); err != nil {
			return err
		}
		pool, err := p.pool()
		pools = append(pools, pool)
		return err
	}, `SELECT month, kind, name FROM credit_recalls WHERE at > `+l.db.Dialect.Now+` - $1`, recallLife.Milliseconds())
	l.db.Count(ctx, store.ForRecall, err)
	if err != nil {
		return nil, fmt.Errorf("reading the recalled pools: %w", err)
	}
	return pools, nil
}

// Package ledger keeps the credits of users and accounts in the database: pools, the blocks that
// processes hold, what was used and refunded, and grants. The arithmetic of a report is a pure
// package of its own; this one locks, reads and writes.
package ledger

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/keyporter/keyporter/credits/ledger"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/feed"
	"github.com/keyporter/keyporter/usage"
)

// Ledger is the ledger in a database. It is safe for concurrent use.
type Ledger struct{ db *store.DB }

// New returns the ledger in a database.
func New(db *store.DB) *Ledger { return &Ledger{db} }

// Discrepancy is a pool whose figures differ from the sums of their parts.
type Discrepancy struct {
	Month usage.Month `json:"month"`
	Pool  string      `json:"pool"` // user or account
	Name  string      `json:"name"`
	What  []string    `json:"what"`
}

// String returns the discrepancy in one line.
func (d Discrepancy) String() string {
	return fmt.Sprintf("%s %s in %v: %s", d.Pool, d.Name, d.Month, strings.Join(d.What, "; "))
}

// Verify checks every pool of every month, in one snapshot: granted = settled + leased +
// free, none of them negative, and leased, used and refunded are the sums of the blocks, the users
// and the refunds. It returns the pools that violate this, and the number of checked pools.
func (l *Ledger) Verify(ctx context.Context) (wrong []Discrepancy, checked int, err error) {
	wrong = []Discrepancy{}
	_, err = store.List(ctx, l.db, func(row store.Scanner) (struct{}, error) {
		var d Discrepancy
		var granted, settled, leased, free, used, refunded, inBlocks, inUsages, inRefunds int64
		if err := row.Scan(&d.Month, &d.Pool, &d.Name, &granted, &settled, &leased, &free, &used, &refunded,
			&inBlocks, &inUsages, &inRefunds); err != nil {
			return struct{}{}, err
		}
		checked++
		for _, c := range []struct {
			what       string
			says, sums int64
		}{
			{"leased", leased, inBlocks}, {"used", used, inUsages}, {"refunded", refunded, inRefunds},
			{"granted", granted, settled + leased + free},
		} {
			if c.says != c.sums {
				d.What = append(d.What, fmt.Sprintf("%s is %d, but its parts are %d", c.what, c.says, c.sums))
			}
		}
		if free < 0 {
			d.What = append(d.What, fmt.Sprintf("%d credits were sold twice", -free))
		}
		if len(d.What) > 0 {
			wrong = append(wrong, d)
		}
		return struct{}{}, nil
	}, `SELECT month, kind, name, granted, settled, leased, free, used, refunded,
			CAST(in_blocks AS BIGINT), CAST(in_usages AS BIGINT), CAST(in_refunds AS BIGINT) FROM credit_ledger`)
	if err != nil {
		return nil, 0, fmt.Errorf("verifying the ledger: %w", err)
	}
	return wrong, checked, nil
}

// Balance describes the credits of a user in a month.
type Balance struct {
	User        string      `json:"user"`
	Account     string      `json:"account"`
	Pool        string      `json:"pool"` // user or account: the owner of the credits
	Month       usage.Month `json:"-"`
	Limit       usage.Limit `json:"limit"`    // of the plan and the grants
	Granted     int64       `json:"granted"`  // in addition to the plan
	Used        int64       `json:"used"`     // by all who share the credits, without refunds
	Refunded    int64       `json:"refunded"` // that came back
	Outstanding int64       `json:"outstanding"`
	Lost        int64       `json:"lost"` // part of Used: held by killed processes
	// Unreported is the sum of the user's charges without a reported outcome.
	Unreported int64 `json:"unreported"`
}

// Remaining returns the credits that are left; [Unlimited] if there is no limit.
func (b *Balance) Remaining() usage.Limit {
	if b.Limit == usage.Unlimited {
		return usage.Unlimited
	}
	return max(0, b.Limit-usage.Limit(b.Used))
}

// Balance returns the balance of a user this month. Outstanding credits are held by running
// processes, or used and not yet reported.
func (l *Ledger) Balance(ctx context.Context, user string) (Balance, error) {
	if err := store.CheckName("user", user); err != nil {
		return Balance{}, err
	}
	month, err := l.month(ctx)
	if err != nil {
		return Balance{}, err
	}
	all, err := store.List(ctx, l.db, func(row store.Scanner) (b Balance, err error) {
		var plan sql.NullInt64
		err = row.Scan(&b.User, &b.Account, &b.Pool, &plan, &b.Granted, &b.Used, &b.Refunded, &b.Outstanding, &b.Lost, &b.Unreported)
		if b.Limit = store.LimitOf(plan); b.Limit != usage.Unlimited {
			b.Limit = max(0, b.Limit+usage.Limit(b.Granted))
		}
		b.Month, b.Used = month, max(0, b.Used-b.Refunded)+b.Lost
		return b, err
	}, `SELECT u.name, a.name, p.pool, p.credits,
			CAST(coalesce((SELECT sum(credits) FROM credit_grants g WHERE g.month = $2 AND g.kind = p.pool AND g.name = w.name), 0) AS BIGINT),
			coalesce(c.used, 0), coalesce(c.refunded, 0),
			CAST(coalesce((SELECT sum(b.taken - b.used) FROM credit_blocks b JOIN credit_holders h ON h.id = b.holder JOIN replicas live ON live.id = h.replica
				WHERE `+l.db.Dialect.Live+` AND b.month = $2 AND b.kind = p.pool AND b.name = w.name), 0) AS BIGINT),
			CAST(coalesce((SELECT sum(b.taken - b.used) FROM credit_blocks b JOIN credit_holders h ON h.id = b.holder
				WHERE b.month = $2 AND b.kind = p.pool AND b.name = w.name AND h.replica NOT IN (SELECT live.id FROM replicas live WHERE `+l.db.Dialect.Live+`)), 0) AS BIGINT),
			CAST(coalesce((SELECT sum(n.credits) FROM (`+unreported(`month = $2 AND user_name = $1`, `month = $2 AND user_name = $1`)+`) n), 0) AS BIGINT)
		FROM users u JOIN accounts a ON a.name = u.account JOIN plans p ON p.name = a.plan
		JOIN (SELECT 'user' AS kind, name, name AS user_name FROM users UNION ALL SELECT 'account', account, name FROM users) w
			ON w.kind = p.pool AND w.user_name = u.name
		LEFT JOIN credit_pools c ON c.month = $2 AND c.kind = p.pool AND c.name = w.name
		WHERE u.name = $1`, user, int64(month))
	if err == nil && len(all) == 0 {
		err = fmt.Errorf("user %s: %w", user, store.ErrNotFound)
	}
	if err != nil {
		return Balance{}, fmt.Errorf("reading the credits: %w", err)
	}
	return all[0], nil
}

// unreported returns a query for the charges without a reported outcome, by user and account, of
// some users and months. It compares the charges of each process with those that were reported. Of
// a killed process more outcomes may be reported than use. Processes that ended in good
// order have reported everything and are added up.
//
// The conditions, on charges and on reported ones, are applied to the rows before they are added
// up, since SQLite would read all of them otherwise.
func unreported(charged, reported string) string {
	return `SELECT user_name, account, sum(CASE WHEN credits > 0 THEN credits ELSE 0 END) AS credits FROM (
		SELECT c.user_name, c.account, sum(c.credits) AS credits FROM (
			SELECT user_name, account, holder, used AS credits FROM credit_usages WHERE ` + charged + `
			UNION ALL SELECT user_name, account, holder, -credits FROM credit_reported WHERE ` + reported + `) c
		LEFT JOIN credit_holders h ON h.id = c.holder AND NOT h.ended
		GROUP BY c.user_name, c.account, coalesce(h.id, '')) of_each
	GROUP BY user_name, account`
}

// RefundUnreported closes the month before this one, an hour after it has ended. It refunds, in
// that month, all charges without a reported outcome; later outcomes of these charges change
// nothing. It may be repeated. It returns the number of refunded credits. If the clocks of the
// database and this machine differ by more than half an hour, it fails and does nothing: a month
// that is not over must not be closed.
func (l *Ledger) RefundUnreported(ctx context.Context) (credits int64, err error) {
	return l.refundUnreported(ctx, time.Now())
}

// maxClockOffset is the maximum difference between the clocks of the database and this machine for
// closing a month, which happens an hour after its end.
const maxClockOffset = 30 * time.Minute

func (l *Ledger) refundUnreported(ctx context.Context, machine time.Time) (credits int64, err error) {
	now, err := l.db.Now(ctx)
	if err != nil {
		return 0, err
	}
	if now.Sub(machine).Abs() > maxClockOffset {
		return 0, fmt.Errorf("the last month is not closed: the clock of the database says %v, and that of this machine %v; set the one that is wrong",
			now.Format(time.RFC3339), machine.UTC().Format(time.RFC3339))
	}
	last := usage.MonthOf(usage.MonthOf(now.Add(-time.Hour)).Start().Add(-time.Hour))
	if err := l.closeMonth(ctx, last); err != nil {
		return 0, fmt.Errorf("closing %v: %w", last, err)
	}
	refunds, err := store.List(ctx, l.db, func(row store.Scanner) (r ledger.Refund, err error) {
		r.Month, r.Cause = last, ledger.CauseUnreported
		err = row.Scan(&r.User, &r.Account, &r.Total)
		r.Charge = fmt.Sprintf("unreported %v %s %s", last, r.User, r.Account)
		return r, err
	}, `SELECT n.user_name, n.account, CAST(n.credits AS BIGINT) FROM (`+unreported(`month = $1`, `month = $1`)+`) n WHERE n.credits > 0
		AND NOT EXISTS (SELECT 1 FROM credit_refunds r WHERE r.month = $1 AND r.user_name = n.user_name AND r.account = n.account AND r.cause = '`+ledger.CauseUnreported+`')`, int64(last))
	for few := range slices.Chunk(refunds, 1000) {
		result, failed := l.Report(ctx, ledger.Report{Holder: store.NewID("unreported_"), Seq: 1, Last: true, Refunds: few})
		if failed != nil {
			return credits, failed
		}
		for _, refund := range result.Refunds {
			credits += refund.Credits
		}
	}
	return credits, err
}

// month returns the month by the clock of the database.
func (l *Ledger) month(ctx context.Context) (usage.Month, error) {
	now, err := l.db.Now(ctx)
	return usage.MonthOf(now), err
}

// MaxGrant limits a grant, so that sums stay far from the largest number.
const MaxGrant = 1_000_000_000_000

// Grant adds credits to this month's pool of a user, in addition to the plan. It returns
// once the grant is enforced on every replica.
func (l *Ledger) Grant(ctx context.Context, user string, credits int64, once feed.IdempotencyKey) (feed.Confirmation, error) {
	g := Grant{user, credits}
	if err := g.check(); err != nil {
		return feed.Confirmation{}, err
	}
	month, err := l.month(ctx)
	if err != nil {
		return feed.Confirmation{}, err
	}
	_, c, err := feed.Change(ctx, l.db, once, fmt.Sprintf("credits grant %s %d", user, credits), func(ctx context.Context, tx *sql.Tx) (bool, error) {
		return true, l.grant(ctx, tx, month, g)
	})
	if err != nil {
		err = fmt.Errorf("granting credits to user %s: %w", user, err)
	}
	return c, err
}

// Grant is credits for a user.
type Grant struct {
	User    string
	Credits int64 // 1 to [MaxGrant]
}

func (g Grant) check() error {
	if err := store.CheckName("user", g.User); err != nil {
		return err
	}
	if g.Credits < 1 || g.Credits > MaxGrant {
		return store.FieldError{Field: "credits", Err: fmt.Errorf("granting %d credits is %w: 1 to %d", g.Credits, store.ErrInvalid, int64(MaxGrant))}
	}
	return nil
}

// GrantAll is [Ledger.Grant] for several grants in one transaction and with one wait: all of them,
// or none. A user may have several. The error of a refusal is a [store.ItemError].
func (l *Ledger) GrantAll(ctx context.Context, grants []Grant, once feed.IdempotencyKey) (feed.Confirmation, error) {
	for i, g := range grants {
		if err := g.check(); err != nil {
			return feed.Confirmation{}, store.ItemError{Index: i, Err: err}
		}
	}
	month, err := l.month(ctx)
	if err != nil {
		return feed.Confirmation{}, err
	}
	_, c, err := feed.Change(ctx, l.db, once, feed.Call("credits grant", grants), func(ctx context.Context, tx *sql.Tx) (bool, error) {
		for i, g := range grants {
			if err := l.grant(ctx, tx, month, g); err != nil {
				return false, store.ItemError{Index: i, Err: err}
			}
		}
		return true, nil
	})
	if err != nil {
		err = fmt.Errorf("granting credits: %w", err)
	}
	return c, err
}

func (l *Ledger) grant(ctx context.Context, tx *sql.Tx, month usage.Month, g Grant) error {
	granted, err := store.Affected(tx.ExecContext(ctx, `INSERT INTO credit_grants (id, month, kind, name, credits, made_at)
		SELECT $1, CAST($2 AS BIGINT), p.pool, CASE p.pool WHEN 'user' THEN u.name ELSE a.name END, CAST($3 AS BIGINT), CAST($4 AS BIGINT)
		FROM users u JOIN accounts a ON a.name = u.account JOIN plans p ON p.name = a.plan WHERE u.name = $5`,
		store.NewID("grant_"), int64(month), g.Credits, store.NowMillis(), g.User))
	if err == nil && !granted {
		err = fmt.Errorf("the user was %w", store.ErrNotFound)
	}
	return err
}

// ChargeSecrets returns the secrets that sign charges, for the upstream and for the access log. The
// first of each signs new charges.
func (l *Ledger) ChargeSecrets(ctx context.Context) (upstream, log [][]byte, err error) {
	_, err = store.List(ctx, l.db, func(row store.Scanner) (struct{}, error) {
		var purpose string
		var secret []byte
		err := row.Scan(&purpose, &secret)
		if purpose == "log" {
			log = append(log, secret)
		} else {
			upstream = append(upstream, secret)
		}
		return struct{}{}, err
	}, `SELECT purpose, secret FROM charge_secrets ORDER BY id DESC`)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the secrets of charges: %w", err)
	}
	if len(upstream) == 0 || len(log) == 0 {
		return nil, nil, l.db.Emptied("charge_secrets", "no charge can be named")
	}
	return upstream, log, nil
}

// formerHolder is the holder of the summed figures of ended processes.
const formerHolder = ""

// Tidy deletes records that are no longer needed, and adds up those of processes that have ended.
func (l *Ledger) Tidy(ctx context.Context) error {
	l = New(l.db.Calling(store.ForHousekeeping))
	_, err := l.db.Write(ctx, l.db.Changes, func(ctx context.Context, tx *sql.Tx) error { return l.tidy(ctx, tx) })
	if err != nil {
		return err
	}
	if err := l.moveDays(ctx); err != nil {
		return err
	}
	return l.addUp(ctx)
}

// tidy deletes old recalls, and the charges of months whose outcomes no longer count.
func (l *Ledger) tidy(ctx context.Context, tx *sql.Tx) error {
	var ms int64
	if err := tx.QueryRowContext(ctx, `SELECT `+l.db.Dialect.Now).Scan(&ms); err != nil {
		return err
	}
	month := usage.MonthOf(store.FromMillis(ms))
	if _, err := tx.ExecContext(ctx, `DELETE FROM credit_charges WHERE month < $1`, int64(month.Previous())); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx, `DELETE FROM credit_recalls WHERE at < `+l.db.Dialect.Now+` - 60000`)
	return err
}

// moveDays gives the days before today that older builds have counted, without an account, the
// account that their user has now. It works in small steps, since there may be very many.
func (l *Ledger) moveDays(ctx context.Context) error {
	for moved := addUpRows; moved == addUpRows; {
		began := time.Now()
		if _, err := l.db.Write(ctx, l.db.Changes, func(ctx context.Context, tx *sql.Tx) (err error) {
			moved, err = l.moveSomeDays(ctx, tx)
			return err
		}); err != nil {
			return fmt.Errorf("moving the days of an older build: %w", err)
		}
		if moved == addUpRows {
			sleep(ctx, time.Since(began)) // on SQLite others have to write as well
		}
	}
	return nil
}

func (l *Ledger) moveSomeDays(ctx context.Context, tx *sql.Tx) (moved int, err error) {
	var ms int64
	if err := tx.QueryRowContext(ctx, `SELECT `+l.db.Dialect.Now).Scan(&ms); err != nil {
		return 0, err
	}
	var days []dayRow
	if err := store.Each(ctx, tx, func(row store.Scanner) error {
		var d dayRow
		err := row.Scan(&d.User, &d.Day, &d.Used, &d.Refunded)
		days = append(days, d)
		return err
	}, `DELETE FROM credit_days WHERE (user_name, day) IN (SELECT user_name, day FROM credit_days WHERE day < $1 LIMIT $2)
		RETURNING user_name, day, used, refunded`, usage.DayOf(store.FromMillis(ms)), addUpRows); err != nil || len(days) == 0 {
		return 0, err
	}
	accounts := map[string]string{}
	if err := store.Each(ctx, tx, func(row store.Scanner) error {
		var user, account string
		err := row.Scan(&user, &account)
		accounts[user] = account
		return err
	}, `SELECT name, account FROM users WHERE name IN (SELECT `+store.Column("user")+` FROM `+l.db.Dialect.Rows+`)`, store.Rows(days)); err != nil {
		return 0, err
	}
	for i := range days {
		days[i].Account = accounts[days[i].User]
	}
	return len(days), l.writeDays(ctx, tx, days)
}

const (
	// addUpRows is the number of rows of ended processes that one transaction adds up.
	addUpRows = 2000
	// addUpAfter is the minimum time since the end of a process. A process that does not know
	// whether its last report was posted repeats it within this time, with figures from its start.
	addUpAfter = time.Minute
	// addUpTime limits one round of adding up; the next one continues.
	addUpTime = 20 * time.Second
)

// addUp adds up the figures of processes that ended in good order, in small steps, and leaves the
// rest to the next call if it takes too long. It sums exactly the rows that it deletes, since other
// processes continue to confirm charges of ended ones. A day later it deletes the ended processes.
func (l *Ledger) addUp(ctx context.Context) error {
	const ended = `holder IN (SELECT id FROM credit_holders WHERE ended AND reported_at < $1)`
	limited, cancel := context.WithTimeout(ctx, addUpTime)
	defer cancel()
	for _, of := range []struct{ key, where, returns, add string }{
		{`credit_usages (month, user_name, account, kind, holder)`, ended, `month, kind, user_name, account, used`,
			`INSERT INTO credit_usages (month, user_name, account, kind, holder, used)
				SELECT ` + store.Number("month") + `, ` + store.Column("user") + `, ` + store.Column("account") + `, ` + store.Column("kind") + `, '` + formerHolder + `', CAST(sum(` + store.Number("credits") + `) AS BIGINT)
				FROM ` + l.db.Dialect.Rows + ` WHERE TRUE GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4
				ON CONFLICT (month, user_name, account, kind, holder) DO UPDATE SET used = credit_usages.used + excluded.used`},
		{`credit_reported (month, user_name, account, holder)`, ended, `month, '', user_name, account, credits`,
			`INSERT INTO credit_reported (month, user_name, account, holder, credits)
				SELECT ` + store.Number("month") + `, ` + store.Column("user") + `, ` + store.Column("account") + `, '` + formerHolder + `', CAST(sum(` + store.Number("credits") + `) AS BIGINT)
				FROM ` + l.db.Dialect.Rows + ` WHERE TRUE GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
				ON CONFLICT (month, user_name, account, holder) DO UPDATE SET credits = credit_reported.credits + excluded.credits`},
		{`credit_blocks (month, kind, name, holder)`, `taken = used AND ` + ended, `month, kind, name, '', 0`, ``},
		{`credit_holders (id)`, `ended AND reported_at + 86400000 < $1`, `0, '', '', '', 0`, ``},
	} {
		table, key, _ := strings.Cut(of.key, " ")
		remove := `DELETE FROM ` + table + ` WHERE ` + key + ` IN (SELECT ` + strings.Trim(key, "()") + ` FROM ` + table + ` WHERE ` + of.where + ` LIMIT $2) RETURNING ` + of.returns
		for moved := addUpRows; moved == addUpRows; {
			began := time.Now()
			_, err := l.db.Write(limited, l.db.Changes, func(ctx context.Context, tx *sql.Tx) (err error) {
				moved, err = l.addUpSome(ctx, tx, remove, of.add)
				return err
			})
			if err == nil {
				sleep(limited, time.Since(began)) // on SQLite others have to write as well
			}
			if limited.Err() != nil && ctx.Err() == nil {
				return nil
			}
			if err != nil {
				return fmt.Errorf("adding up the credits of processes that have ended: %w", err)
			}
		}
	}
	return nil
}

// addUpSome removes some rows, adds them to those of formerHolder, and returns their number.
func (l *Ledger) addUpSome(ctx context.Context, tx *sql.Tx, remove, add string) (moved int, err error) {
	var ms int64
	if err := tx.QueryRowContext(ctx, `SELECT `+l.db.Dialect.Now).Scan(&ms); err != nil {
		return 0, err
	}
	var all []payerRow
	if err := store.Each(ctx, tx, func(row store.Scanner) error {
		var p payerRow
		err := row.Scan(&p.Month, &p.Kind, &p.User, &p.Account, &p.Credits)
		all = append(all, p)
		return err
	}, remove, ms-addUpAfter.Milliseconds(), addUpRows); err != nil || len(all) == 0 || add == "" {
		return len(all), err
	}
	_, err = tx.ExecContext(ctx, add, store.Rows(all))
	return len(all), err
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

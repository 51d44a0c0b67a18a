package ledger

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/usage"
)

// Owner selects usage. The zero Owner is all users of all accounts. At most one field is set.
type Owner struct{ Account, User string }

// MonthUsage is the usage of a user of an account, or of a whole account, in one month. The sum
// over users and the sum over accounts are both the sum of the ledger's pools of one kind.
type MonthUsage struct {
	Month   usage.Month
	Account string
	// User is "" for a whole account, and for what no user holds: lost and outstanding credits of a
	// pool that the users of the account share.
	User       string
	Used       int64 // including refunded ones
	Refunded   int64
	Unreported int64 // of Used: charges without a reported outcome that were not refunded
	// Lost credits were in blocks of killed processes and may be used; Outstanding ones are in
	// blocks of running processes. Those of a user's own pool count for the account that the user
	// belonged to when the process last reported its block.
	Lost, Outstanding int64
}

// usagePage is the number of users or accounts in one statement, so that the first rows arrive
// early.
const usagePage = 250

// UsageByUser lists the usage in a month by user and account, in this order. At the end come the
// lost and outstanding credits of shared pools, by account.
func (l *Ledger) UsageByUser(ctx context.Context, month usage.Month, of Owner) iter.Seq2[MonthUsage, error] {
	users, pools := l.payingUsers(ctx, month, of.Account), l.openPools(ctx, month)
	switch {
	case of.User != "":
		users, pools = only(of.User), only()
	case of.Account != "":
		pools = only(of.Account)
	}
	return func(yield func(MonthUsage, error) bool) {
		_ = l.usages(ctx, month, users, usageOfUsers, []any{of.Account}, yield) && l.usages(ctx, month, pools, usageOfPools, nil, yield)
	}
}

// UsageByAccount lists the usage in a month by account.
func (l *Ledger) UsageByAccount(ctx context.Context, month usage.Month, of Owner) iter.Seq2[MonthUsage, error] {
	accounts := l.payingAccounts(ctx, month)
	if of.Account != "" {
		accounts = only(of.Account)
	}
	return func(yield func(MonthUsage, error) bool) {
		l.usages(ctx, month, accounts, usageOfAccounts, nil, yield)
	}
}

// only returns a list of some names.
func only(names ...string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for _, name := range names {
			if !yield(name, nil) {
				return
			}
		}
	}
}

// names lists names in a month, sorted. The query has the month as $1, the last name as $2 and the
// limit as $3; a further argument is $4.
func (l *Ledger) names(ctx context.Context, month usage.Month, query string, more ...any) iter.Seq2[string, error] {
	scan := func(row store.Scanner) (name string, err error) { return name, row.Scan(&name) }
	return func(yield func(string, error) bool) {
		for last := ""; ; {
			page, err := store.List(ctx, l.db, scan, query, append([]any{int64(month), last, usagePage}, more...)...)
			if err != nil {
				yield("", fmt.Errorf("listing the usage in %v: %w", month, err))
				return
			}
			for _, name := range page {
				if !yield(name, nil) {
					return
				}
			}
			if len(page) < usagePage {
				return
			}
			last = page[len(page)-1]
		}
	}
}

// payingUsers lists the users who may have usage in a month, those of one account or of all. Every
// use and every block has a pool.
func (l *Ledger) payingUsers(ctx context.Context, month usage.Month, account string) iter.Seq2[string, error] {
	if account == "" {
		return l.names(ctx, month, `SELECT name FROM credit_pools WHERE month = $1 AND kind = 'user' AND name > $2 ORDER BY name LIMIT $3`)
	}
	// Each part ends after a page, so that the whole list does not take the square of its length.
	return l.names(ctx, month, `SELECT name FROM (
			SELECT name FROM (SELECT DISTINCT user_name AS name FROM credit_usages WHERE month = $1 AND account = $4 AND used > 0 AND user_name > $2 ORDER BY user_name LIMIT $3) used
			UNION SELECT name FROM (SELECT DISTINCT user_name AS name FROM credit_refunds WHERE month = $1 AND account = $4 AND user_name > $2 ORDER BY user_name LIMIT $3) refunded
			UNION SELECT name FROM (SELECT DISTINCT name FROM credit_blocks WHERE month = $1 AND kind = 'user' AND account = $4 AND name > $2 ORDER BY name LIMIT $3) blocks
		) users_of_it ORDER BY name LIMIT $3`, account)
}

// payingAccounts lists the accounts that may have usage in a month. The first is "": that of blocks
// that only an older build has reported.
func (l *Ledger) payingAccounts(ctx context.Context, month usage.Month) iter.Seq2[string, error] {
	known := l.names(ctx, month, `SELECT name FROM (
			SELECT name FROM (SELECT name FROM credit_pools WHERE month = $1 AND kind = 'account' AND name > $2 ORDER BY name LIMIT $3) pools
			UNION SELECT account FROM (SELECT DISTINCT account FROM credit_blocks WHERE month = $1 AND kind = 'user' AND account > $2 ORDER BY account LIMIT $3) blocks
		) both_of_them ORDER BY name LIMIT $3`)
	return func(yield func(string, error) bool) {
		if !yield("", nil) {
			return
		}
		for name, err := range known {
			if !yield(name, err) {
				return
			}
		}
	}
}

// openPools lists the accounts of shared pools with credits in blocks.
func (l *Ledger) openPools(ctx context.Context, month usage.Month) iter.Seq2[string, error] {
	return l.names(ctx, month, `SELECT DISTINCT name FROM credit_blocks WHERE month = $1 AND kind = 'account' AND taken > used AND name > $2 ORDER BY name LIMIT $3`)
}

// usageSource says where the usage of some names is. They are the rows of JSON; $2 is the month.
type usageSource struct {
	group    string   // the columns of a result
	payers   string   // the condition on what users were charged and refunded; "": nothing
	pools    string   // the condition on pools that have the sums of these; "": none have
	reported string   // likewise, on reported charges
	blocks   []string // conditions on blocks; each block meets one at most
}

const (
	thisMonth = `month = $2`
	nameIn    = ` IN (SELECT name FROM wanted)`
)

var (
	usageOfUsers = usageSource{
		group:  `user_name, account`,
		payers: thisMonth + ` AND user_name` + nameIn + ` AND $3 IN ('', account)`, reported: thisMonth + ` AND user_name` + nameIn + ` AND $3 IN ('', account)`,
		blocks: []string{thisMonth + ` AND kind = 'user' AND name` + nameIn + ` AND $3 IN ('', account)`},
	}
	usageOfAccounts = usageSource{
		group:  `account`,
		payers: thisMonth + ` AND account` + nameIn,
		pools:  thisMonth + ` AND kind = 'account' AND name` + nameIn,
		// Reported charges have an index by user, none by account. Without the concatenation SQLite
		// would look for each user in each account, and without "used > 0" read the whole month.
		reported: thisMonth + ` AND account || ''` + nameIn + ` AND user_name IN (SELECT s.user_name FROM credit_usages s WHERE s.month = $2 AND s.used > 0 AND s.account` + nameIn + `)`,
		blocks:   []string{thisMonth + ` AND kind = 'user' AND account` + nameIn, thisMonth + ` AND kind = 'account' AND name` + nameIn},
	}
	usageOfPools = usageSource{
		group:  `user_name, account`,
		blocks: []string{thisMonth + ` AND kind = 'account' AND name` + nameIn},
	}
)

// usageQuery returns the query for the usage of some names.
func (l *Ledger) usageQuery(from usageSource) string {
	payers, blocks := ``, []string{}
	for _, where := range from.blocks {
		blocks = append(blocks, `SELECT kind, name, account, holder, taken, used FROM credit_blocks WHERE taken > used AND `+where)
	}
	if from.payers != "" {
		sums := `SELECT user_name, account, used, 0 AS refunded, 0 AS unreported, 0 AS lost, 0 AS outstanding FROM credit_usages WHERE ` + from.payers + `
			UNION ALL SELECT user_name, account, 0, credits, 0, 0, 0 FROM credit_refunds WHERE ` + from.payers
		if from.pools != "" { // an account may have millions of refunds
			sums = `SELECT '' AS user_name, name AS account, used, refunded, 0 AS unreported, 0 AS lost, 0 AS outstanding FROM credit_pools WHERE ` + from.pools
		}
		payers = sums + `
			UNION ALL SELECT user_name, account, 0, 0, -credits, 0, 0 FROM credit_refunds WHERE ` + from.payers + ` AND cause = 'unreported'
			UNION ALL SELECT user_name, account, 0, 0, credits, 0, 0 FROM (` + unreported(from.payers, from.reported) + `) n
			UNION ALL `
	}
	return `WITH wanted AS (SELECT ` + store.Column("name") + ` AS name FROM ` + l.db.Dialect.Rows + `)
		SELECT ` + from.group + `, CAST(sum(used) AS BIGINT), CAST(sum(refunded) AS BIGINT), CAST(sum(unreported) AS BIGINT),
			CAST(sum(lost) AS BIGINT), CAST(sum(outstanding) AS BIGINT)
		FROM (` + payers + `SELECT CASE b.kind WHEN 'user' THEN b.name ELSE '' END AS user_name, CASE b.kind WHEN 'user' THEN b.account ELSE b.name END AS account,
					0 AS used, 0 AS refunded, 0 AS unreported,
					CASE WHEN h.replica IN (SELECT live.id FROM replicas live WHERE ` + l.db.Dialect.Live + `) THEN 0 ELSE b.taken - b.used END AS lost,
					CASE WHEN h.replica IN (SELECT live.id FROM replicas live WHERE ` + l.db.Dialect.Live + `) THEN b.taken - b.used ELSE 0 END AS outstanding
				FROM (` + strings.Join(blocks, ` UNION ALL `) + `) b LEFT JOIN credit_holders h ON h.id = b.holder) parts
		GROUP BY ` + from.group + ` HAVING sum(used) <> 0 OR sum(refunded) <> 0 OR sum(lost) <> 0 OR sum(outstanding) <> 0
		ORDER BY ` + from.group
}

// usages lists the usage of some names, and reports whether to go on.
func (l *Ledger) usages(ctx context.Context, month usage.Month, names iter.Seq2[string, error], from usageSource, more []any, yield func(MonthUsage, error) bool) bool {
	type nameRow struct {
		Name string `json:"name"`
	}
	query := l.usageQuery(from)
	scan := func(row store.Scanner) (u MonthUsage, err error) {
		u.Month = month
		group := []any{&u.User, &u.Account}
		if from.group == `account` {
			group = group[1:]
		}
		return u, row.Scan(append(group, &u.Used, &u.Refunded, &u.Unreported, &u.Lost, &u.Outstanding)...)
	}
	list := func(page []nameRow) bool {
		rows, err := store.List(ctx, l.db, scan, query, append([]any{store.Rows(page), int64(month)}, more...)...)
		if err != nil {
			return yield(MonthUsage{}, fmt.Errorf("reading the usage in %v: %w", month, err)) && false
		}
		for _, u := range rows {
			if !yield(u, nil) {
				return false
			}
		}
		return true
	}
	var page []nameRow
	for name, err := range names {
		if err != nil {
			return yield(MonthUsage{}, err) && false
		}
		if page = append(page, nameRow{name}); len(page) == usagePage {
			if !list(page) {
				return false
			}
			page = page[:0]
		}
	}
	return len(page) == 0 || list(page)
}

// Known reports whether a user or an account exists, or has used credits in some months.
func (l *Ledger) Known(ctx context.Context, kind usage.PoolKind, name string, from, to usage.Month) (bool, error) {
	found, err := store.List(ctx, l.db, func(row store.Scanner) (one int, err error) { return one, row.Scan(&one) },
		`SELECT 1 FROM credit_pools WHERE month BETWEEN $1 AND $2 AND kind = $3 AND name = $4
		UNION SELECT 1 FROM users WHERE $3 = 'user' AND name = $4 UNION SELECT 1 FROM accounts WHERE $3 = 'account' AND name = $4`, int64(from), int64(to), kind.String(), name)
	if err != nil {
		return false, fmt.Errorf("looking for the usage of %v %s: %w", kind, name, err)
	}
	return len(found) > 0, nil
}

// allDays are the charges of all days. What an older build has counted, running beside this one,
// has no account.
const allDays = `(SELECT user_name, day, account, used, refunded FROM credit_daily
	UNION ALL SELECT user_name, day, '' AS account, used, refunded FROM credit_days) all_days`

// Days returns the charges of a user on each of the last n days, oldest first, by the clock
// of the database. The figures are the ledger's.
func (l *Ledger) Days(ctx context.Context, user string, n int) ([]usage.Day, error) {
	now, err := l.db.Now(ctx)
	if err != nil {
		return nil, err
	}
	today := now.UTC().Truncate(24 * time.Hour)
	first := today.AddDate(0, 0, 1-n)
	type day struct{ day, used, refunded int64 }
	found, err := store.ListLog(ctx, l.db, func(row store.Scanner) (d day, err error) {
		return d, row.Scan(&d.day, &d.used, &d.refunded)
	}, `SELECT day, CAST(sum(used) AS BIGINT), CAST(sum(refunded) AS BIGINT) FROM `+allDays+` WHERE user_name = $1 AND day >= $2 GROUP BY day`, user, usage.DayOf(first))
	if err != nil {
		return nil, fmt.Errorf("reading the days of user %s: %w", user, err)
	}
	byDay := map[int64]day{}
	for _, d := range found {
		byDay[d.day] = d
	}
	days := make([]usage.Day, n)
	for i := range days {
		date := first.AddDate(0, 0, i)
		d := byDay[usage.DayOf(date)]
		days[i] = usage.Day{Date: date, Used: d.used, Refunded: d.refunded}
	}
	return days, nil
}

// EachDay lists the charges on each day from the first to the last one, of an account, of a user,
// or of all. A day counts what was reported on it, so a use shortly before midnight may count on
// the next day. What was reported after the month of its charge counts on the last day of that
// month.
func (l *Ledger) EachDay(ctx context.Context, first, last time.Time, of Owner) iter.Seq2[usage.Day, error] {
	where, args := ``, []any{}
	switch {
	case of.User != "":
		where, args = ` AND user_name = $2`, []any{of.User}
	case of.Account != "":
		where, args = ` AND account = $2`, []any{of.Account}
	}
	return func(yield func(usage.Day, error) bool) {
		for date := first; !date.After(last); date = date.AddDate(0, 0, 1) {
			found, err := store.ListLog(ctx, l.db, func(row store.Scanner) (d usage.Day, err error) {
				d.Date = date
				return d, row.Scan(&d.Used, &d.Refunded)
			}, `SELECT CAST(coalesce(sum(used), 0) AS BIGINT), CAST(coalesce(sum(refunded), 0) AS BIGINT) FROM `+allDays+` WHERE day = $1`+where,
				slices.Concat([]any{usage.DayOf(date)}, args)...)
			if err != nil {
				yield(usage.Day{}, fmt.Errorf("reading the usage on %s: %w", date.Format(time.DateOnly), err))
				return
			}
			if !yield(found[0], nil) {
				return
			}
		}
	}
}

// dayIn returns the day for a charge of a month: today, or the month's last day.
func dayIn(month usage.Month, today time.Time) int64 {
	if usage.MonthOf(today) == month {
		return usage.DayOf(today)
	}
	return usage.DayOf(month.End().Add(-time.Hour))
}

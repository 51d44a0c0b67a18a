package directory

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/feed"
	"github.com/keyporter/keyporter/usage"
)

// ImportRow is a user of another system, with at most one key. The columns are the places of the
// fields in its line, for problems.
type ImportRow struct {
	Line                                                            int64
	UserColumn, AccountColumn, PlanColumn, KeyColumn, SubjectColumn int

	User, Kind, Status, Subject         string
	Account, AccountKind, AccountStatus string
	Plan                                string
	PlanIs                              PlanChange // how to make the plan, if it is missing
	MakesPlan                           bool

	HasKey  bool
	Digest  apikey.Digest
	Token   apikey.Token // zero if only the digest is known
	Revoked bool
	Used    int64 // credits used this month
}

// ImportOptions say how to import.
type ImportOptions struct {
	// Partial imports the rows without problems; otherwise any problem means that nothing is.
	Partial bool
	// DryRun changes nothing.
	DryRun bool
	// Several makes a service user NAME.2, NAME.3 and so on for each further live key of a user;
	// otherwise each is a problem.
	Several bool
	// Broken is the number of problems that were found before.
	Broken int64
	Month  usage.Month
}

// Imported counts what an import has made. The rest of the rows was there already.
type Imported struct {
	Rows         int64 `json:"rows"`
	Plans        int64 `json:"plans"`
	Accounts     int64 `json:"accounts"`
	Users        int64 `json:"users"`
	ServiceUsers int64 `json:"service_users"` // of Users: for further keys of a user
	Keys         int64 `json:"keys"`
	Sealed       int64 `json:"sealed"`   // of Keys: can be shown on the page
	Credited     int64 `json:"credited"` // users whose credits used so far were taken over
	Problems     int64 `json:"problems"`
}

// ImportProblem is a row that cannot be imported.
type ImportProblem struct {
	Line   int64  `json:"line"`
	Column int    `json:"column"`
	Text   string `json:"problem"`
}

// ErrProblems is the [store.ErrRefused] of an import with problems.
var ErrProblems = fmt.Errorf("%w: nothing was imported", store.ErrRefused)

// importTime bounds the transaction of an import.
const importTime = time.Hour

// errDry ends a dry run.
var errDry = errors.New("a dry run")

// Import adds rows in one transaction, which only adds: what exists stays as it is, so an import
// can be repeated. It returns when every replica accepts the keys. The function problem gets each
// problem, in the order of lines for each kind.
func (d *Directory) Import(ctx context.Context, rows iter.Seq2[ImportRow, error], o ImportOptions, broken func() int64, problem func(ImportProblem)) (done Imported, c feed.Confirmation, err error) {
	keys := NewKeys(d.db)
	committed, err := d.db.ChangeWithin(ctx, importTime, func(ctx context.Context, tx *sql.Tx) error {
		public, err := keys.sealKey(ctx, tx)
		if err != nil {
			return err
		}
		plans, err := d.copyRows(ctx, tx, rows, public, &done)
		if err != nil {
			return err
		}
		found, err := findProblems(ctx, tx, o, problem)
		if done.Problems = found + broken(); err != nil {
			return err
		}
		if done.Problems > 0 && !o.Partial {
			return ErrProblems
		}
		if err := d.insertPlans(ctx, tx, plans, &done); err != nil {
			return err
		}
		if err := d.insertRows(ctx, tx, o, &done); err != nil {
			return err
		}
		if o.DryRun {
			return errDry
		}
		return nil
	})
	if o.DryRun && errors.Is(err, errDry) {
		return done, c, nil
	}
	if err != nil {
		return done, c, fmt.Errorf("importing: %w", err)
	}
	c, err = feed.New(d.db).Enforced(ctx, committed)
	return done, c, err
}

var importColumns = []string{"line", "user_column", "account_column", "plan_column", "key_column", "subject_column",
	"user_name", "kind", "status", "subject", "account", "account_kind", "account_status", "plan", "key_id", "digest", "sealed", "revoked", "used", "base"}

// copyRows puts the rows into a table of the transaction.
func (d *Directory) copyRows(ctx context.Context, tx *sql.Tx, rows iter.Seq2[ImportRow, error], public []byte, done *Imported) (map[string]PlanChange, error) {
	plans := map[string]PlanChange{}
	if d.db.File() == "" { // for a million rows, the usual 4 MB would mean many temporary files
		if _, err := tx.ExecContext(ctx, `SELECT set_config('work_mem', '128MB', true)`); err != nil {
			return nil, err
		}
	}
	for _, statement := range []string{
		`CREATE TEMPORARY TABLE import_rows (line BIGINT, user_column BIGINT, account_column BIGINT, plan_column BIGINT, key_column BIGINT, subject_column BIGINT,
			user_name TEXT, kind TEXT, status TEXT, subject TEXT, account TEXT, account_kind TEXT, account_status TEXT, plan TEXT,
			key_id TEXT, digest BYTEA, sealed BYTEA, revoked BOOLEAN, used BIGINT, base TEXT)`,
		`CREATE TEMPORARY TABLE import_plans (name TEXT)`,
		`CREATE TEMPORARY TABLE import_problems (line BIGINT, place BIGINT, problem TEXT)`,
	} {
		if _, err := tx.ExecContext(ctx, statement); err != nil {
			return nil, err
		}
	}
	bulk, err := d.db.NewBulk(ctx, tx, "import_rows", importColumns...)
	if err != nil {
		return nil, err
	}
	for r, err := range rows {
		if err != nil {
			return nil, errors.Join(err, bulk.Close())
		}
		var id, digest, sealed any
		if r.HasKey {
			name := store.NewID("key_")
			id, digest = name, r.Digest[:]
			if public != nil && !r.Token.IsZero() && !r.Revoked {
				if sealed, err = apikey.Seal(public, r.Token, name); err != nil {
					return nil, errors.Join(err, bulk.Close())
				}
			}
		}
		if r.MakesPlan {
			plans[r.Plan] = r.PlanIs
		}
		done.Rows++
		if err := bulk.Add(r.Line, r.UserColumn, r.AccountColumn, r.PlanColumn, r.KeyColumn, r.SubjectColumn,
			orNull(r.User), r.Kind, r.Status, orNull(r.Subject), orNull(r.Account), r.AccountKind, r.AccountStatus, orNull(r.Plan), id, digest, sealed, r.Revoked, r.Used, orNull(r.User)); err != nil {
			return nil, err
		}
	}
	if err := bulk.Close(); err != nil {
		return nil, err
	}
	for name := range plans {
		if _, err := tx.ExecContext(ctx, `INSERT INTO import_plans (name) VALUES ($1)`, name); err != nil {
			return nil, err
		}
	}
	for _, statement := range []string{
		`CREATE INDEX import_rows_user ON import_rows (user_name)`, `CREATE INDEX import_rows_digest ON import_rows (digest)`,
		`CREATE INDEX import_rows_line ON import_rows (line)`, `CREATE INDEX import_rows_account ON import_rows (account)`,
		`ANALYZE import_rows`,
	} {
		if strings.HasPrefix(statement, "ANALYZE") && d.db.File() != "" {
			continue
		}
		if _, err := tx.ExecContext(ctx, statement); err != nil {
			return nil, err
		}
	}
	return plans, nil
}

func orNull(s string) any {
	if s == "" {
		return nil
	}
	return s
}

// importChecks find rows that cannot be imported: each selects the line, the column and the text.
var importChecks = []string{
	// of the keys
	`SELECT r.line, r.key_column, 'the same key as in line ' || o.line FROM import_rows r
		JOIN (SELECT digest, min(line) AS line FROM import_rows WHERE digest IS NOT NULL GROUP BY digest HAVING count(*) > 1) o ON o.digest = r.digest WHERE r.line > o.line`,
	// of the users
	`SELECT r.line, r.account_column, 'the user has another account in line ' || o.line FROM import_rows r
		JOIN (SELECT base, min(line) AS line FROM import_rows GROUP BY base HAVING count(DISTINCT account) > 1) m ON m.base = r.base
		JOIN import_rows o ON o.line = m.line WHERE r.account <> o.account`,
	`SELECT r.line, r.account_column, 'the user is in the database, and belongs to account ' || u.account FROM import_rows r
		JOIN users u ON u.name = r.user_name WHERE r.account <> u.account`,
	`SELECT r.line, r.user_column, 'a new user needs an account' FROM import_rows r
		WHERE r.base IS NOT NULL AND r.account IS NULL AND NOT EXISTS (SELECT 1 FROM users u WHERE u.name = r.base) AND NOT EXISTS (SELECT 1 FROM import_rows o WHERE o.base = r.base AND o.account IS NOT NULL)`,
	`SELECT r.line, r.subject_column, 'another user has the subject' FROM import_rows r JOIN users u ON u.subject = r.subject WHERE u.name <> r.base`,
	`SELECT r.line, r.subject_column, 'another user has the subject in line ' || o.line FROM import_rows r
		JOIN (SELECT subject, min(line) AS line FROM import_rows WHERE subject IS NOT NULL GROUP BY subject HAVING count(DISTINCT base) > 1) o ON o.subject = r.subject WHERE r.line > o.line`,
	`SELECT r.line, r.user_column, 'the name of the service user would be too long' FROM import_rows r WHERE length(r.user_name) > 128`,
	// of the accounts
	`SELECT r.line, r.plan_column, 'the account has another plan in line ' || o.line FROM import_rows r
		JOIN (SELECT account, min(line) AS line FROM import_rows WHERE plan IS NOT NULL GROUP BY account HAVING count(DISTINCT plan) > 1) m ON m.account = r.account
		JOIN import_rows o ON o.line = m.line WHERE r.plan <> o.plan`,
	`SELECT r.line, r.plan_column, 'the account is in the database, and has the plan ' || a.plan FROM import_rows r
		JOIN accounts a ON a.name = r.account WHERE r.plan <> a.plan`,
	`SELECT r.line, r.account_column, 'a new account needs a plan' FROM import_rows r
		WHERE r.account IS NOT NULL AND NOT EXISTS (SELECT 1 FROM accounts a WHERE a.name = r.account)
			AND NOT EXISTS (SELECT 1 FROM import_rows o WHERE o.account = r.account AND o.plan IS NOT NULL)`,
	`SELECT r.line, r.plan_column, 'there is no such plan, and no line says how to make it' FROM import_rows r
		WHERE r.plan IS NOT NULL AND NOT EXISTS (SELECT 1 FROM plans p WHERE p.name = r.plan) AND NOT EXISTS (SELECT 1 FROM import_plans p WHERE p.name = r.plan)`,
	// of the keys in the database
	`SELECT r.line, r.key_column, 'the key is in the database, and belongs to user ' || k.user_name FROM import_rows r
		JOIN keys k ON k.digest = r.digest WHERE k.user_name <> r.user_name`,
	`SELECT r.line, r.key_column, 'the user has another live key in the database' FROM import_rows r
		JOIN keys k ON k.user_name = r.user_name AND k.revoked_at IS NULL AND k.digest <> r.digest
		WHERE NOT r.revoked AND r.digest IS NOT NULL AND NOT EXISTS (SELECT 1 FROM keys o WHERE o.digest = r.digest)`,
}

// further are the further live keys of users, with their number.
const further = `(SELECT line, row_number() OVER (PARTITION BY base ORDER BY line) AS n FROM import_rows WHERE digest IS NOT NULL AND NOT revoked) k`

// findProblems passes on all problems, and takes their rows away.
func findProblems(ctx context.Context, tx *sql.Tx, o ImportOptions, problem func(ImportProblem)) (found int64, err error) {
	if o.Several {
		if _, err := tx.ExecContext(ctx, `UPDATE import_rows SET user_name = base || '.' || k.n, kind = 'service', subject = NULL, used = 0
			FROM `+further+` WHERE k.line = import_rows.line AND k.n > 1`); err != nil {
			return 0, err
		}
	}
	checks := importChecks
	if !o.Several {
		checks = append([]string{`SELECT r.line, r.key_column, 'the user has another live key in an earlier line: see --several-keys'
			FROM import_rows r JOIN ` + further + ` ON k.line = r.line WHERE k.n > 1`}, checks...)
	}
	for _, check := range checks {
		if _, err := tx.ExecContext(ctx, `INSERT INTO import_problems (line, place, problem) `+check); err != nil {
			return found, err
		}
		err := store.Each(ctx, tx, func(row store.Scanner) error {
			var p ImportProblem
			if err := row.Scan(&p.Line, &p.Column, &p.Text); err != nil {
				return err
			}
			found++
			problem(p)
			return nil
		}, `SELECT line, place, problem FROM import_problems ORDER BY line`)
		if err != nil {
			return found, err
		}
		for _, statement := range []string{`DELETE FROM import_rows WHERE line IN (SELECT line FROM import_problems)`, `DELETE FROM import_problems`} {
			if _, err := tx.ExecContext(ctx, statement); err != nil {
				return found, err
			}
		}
	}
	return found, nil
}

// insertPlans makes the plans that are missing.
func (d *Directory) insertPlans(ctx context.Context, tx *sql.Tx, plans map[string]PlanChange, done *Imported) error {
	for _, name := range slices.Sorted(maps.Keys(plans)) {
		_, exists, err := lockPlan(ctx, tx, name)
		if err == nil && !exists {
			done.Plans++
			_, err = d.setPlan(ctx, tx, name, plans[name])
		}
		if err != nil {
			return fmt.Errorf("plan %s: %w", name, err)
		}
	}
	return nil
}

// insertRows adds what is not there. The order of rows is that of their names, so that two imports
// do not wait for one another.
func (d *Directory) insertRows(ctx context.Context, tx *sql.Tx, o ImportOptions, done *Imported) error {
	now := store.NowMillis()
	for _, one := range []struct {
		count     *int64
		statement string
		args      []any
	}{
		{&done.Accounts, `INSERT INTO accounts (name, kind, plan, status)
			SELECT account, min(account_kind), max(plan), max(account_status) FROM import_rows r
			WHERE account IS NOT NULL AND NOT EXISTS (SELECT 1 FROM accounts a WHERE a.name = r.account) GROUP BY account ORDER BY account`, nil},
		{&done.ServiceUsers, `SELECT count(DISTINCT user_name) FROM import_rows r WHERE user_name <> base AND NOT EXISTS (SELECT 1 FROM users u WHERE u.name = r.user_name)`, nil},
		{&done.Users, `INSERT INTO users (name, kind, account, status, subject)
			SELECT n.user_name, n.kind, coalesce(n.account, (SELECT u.account FROM users u WHERE u.name = n.base), (SELECT max(o.account) FROM import_rows o WHERE o.base = n.base)),
				n.status, n.subject
			FROM (SELECT user_name, max(base) AS base, max(kind) AS kind, max(account) AS account, max(status) AS status, max(subject) AS subject
				FROM import_rows WHERE user_name IS NOT NULL GROUP BY user_name) n
			WHERE NOT EXISTS (SELECT 1 FROM users u WHERE u.name = n.user_name) ORDER BY n.user_name`, nil},
		{&done.Sealed, `SELECT count(*) FROM import_rows r WHERE sealed IS NOT NULL AND NOT EXISTS (SELECT 1 FROM keys k WHERE k.digest = r.digest)`, nil},
		{&done.Keys, `INSERT INTO keys (id, user_name, digest, sealed, imported, created_at, revoked_at)
			SELECT key_id, user_name, digest, sealed, CAST($1 AS BIGINT), CAST($2 AS BIGINT), CASE WHEN revoked THEN CAST($3 AS BIGINT) END FROM import_rows r
			WHERE digest IS NOT NULL AND NOT EXISTS (SELECT 1 FROM keys k WHERE k.digest = r.digest) ORDER BY user_name`, []any{now, now, now}},
	} {
		if one.statement[0] == 'S' {
			if err := tx.QueryRowContext(ctx, one.statement, one.args...).Scan(one.count); err != nil {
				return err
			}
			continue
		}
		result, err := tx.ExecContext(ctx, one.statement, one.args...)
		if err == nil {
			*one.count, err = result.RowsAffected()
		}
		if err != nil {
			return err
		}
	}
	credited, err := d.takeOver(ctx, tx, o.Month)
	done.Credited = credited
	return err
}

// importHolder is the holder of credits that another system has charged.
const importHolder = "import"

// takeOver charges what users have used this month in another system, once for each user and month.
func (d *Directory) takeOver(ctx context.Context, tx *sql.Tx, month usage.Month) (credited int64, err error) {
	day := int64(month)*100 + int64(month.Start().Day())
	if now := time.Now().UTC(); usage.MonthOf(now) == month {
		day = int64(month)*100 + int64(now.Day())
	}
	for _, one := range []struct {
		statement string
		args      []any
	}{
		{`CREATE TEMPORARY TABLE import_used (user_name TEXT, account TEXT, kind TEXT, name TEXT, used BIGINT)`, nil},
		{`INSERT INTO import_used SELECT u.name, u.account, p.pool, CASE p.pool WHEN 'user' THEN u.name ELSE u.account END, max(r.used)
			FROM import_rows r JOIN users u ON u.name = r.user_name JOIN accounts a ON a.name = u.account JOIN plans p ON p.name = a.plan
			WHERE r.used > 0 AND NOT EXISTS (SELECT 1 FROM credit_usages c WHERE c.month = $1 AND c.user_name = r.user_name AND c.holder = '` + importHolder + `')
			GROUP BY u.name, u.account, p.pool`, []any{int64(month)}},
		{`INSERT INTO credit_usages (month, kind, user_name, account, holder, used)
			SELECT CAST($1 AS BIGINT), kind, user_name, account, '` + importHolder + `', used FROM import_used ORDER BY user_name`, []any{int64(month)}},
		{`INSERT INTO credit_reported (month, user_name, account, holder, credits)
			SELECT CAST($1 AS BIGINT), user_name, account, '` + importHolder + `', used FROM import_used ORDER BY user_name`, []any{int64(month)}},
		{`INSERT INTO credit_pools (month, kind, name, granted, used)
			SELECT CAST($1 AS BIGINT), kind, name, CAST(sum(used) AS BIGINT), CAST(sum(used) AS BIGINT) FROM import_used WHERE TRUE GROUP BY kind, name ORDER BY kind, name
			ON CONFLICT (month, kind, name) DO UPDATE SET used = credit_pools.used + excluded.used, granted = CASE
				WHEN credit_pools.granted < credit_pools.leased + credit_pools.used + excluded.used - credit_pools.refunded THEN credit_pools.leased + credit_pools.used + excluded.used - credit_pools.refunded
				ELSE credit_pools.granted END`, []any{int64(month)}},
		{`INSERT INTO credit_daily (user_name, day, account, used, refunded)
			SELECT user_name, CAST($1 AS BIGINT), account, used, 0 FROM import_used WHERE TRUE ORDER BY user_name
			ON CONFLICT (user_name, day, account) DO UPDATE SET used = credit_daily.used + excluded.used`, []any{day}},
		{`SELECT count(*) FROM import_used`, nil},
	} {
		if one.statement[0] == 'S' {
			err := tx.QueryRowContext(ctx, one.statement).Scan(&credited)
			return credited, err
		}
		if _, err := tx.ExecContext(ctx, one.statement, one.args...); err != nil {
			return 0, err
		}
	}
	return credited, nil
}

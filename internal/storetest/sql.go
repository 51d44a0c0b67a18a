package storetest

import (
	"bytes"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/credits/ledger"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
	"github.com/keyporter/keyporter/usage"
)

// SetClock moves the clock of a database forward, for the rooms that read it.
func SetClock(db *store.DB, by time.Duration) {
	moved := *db.Dialect
	moved.Now = fmt.Sprintf("(%s + %d)", moved.Now, by.Milliseconds())
	db.Dialect = &moved
}

// SQL is a session that runs plain SQL, as an operator could.
type SQL struct {
	*testing.T
	DB *sql.DB
}

// Exec runs statements.
func (f SQL) Exec(statements ...string) {
	f.Helper()
	for _, statement := range statements {
		if _, err := f.DB.ExecContext(f.Context(), statement); err != nil {
			f.Fatalf("%s: %v", statement, err)
		}
	}
}

// Number returns the result of a query.
func (f SQL) Number(query string, args ...any) (n int64) {
	f.Helper()
	if err := f.DB.QueryRowContext(f.Context(), query, args...).Scan(&n); err != nil {
		f.Fatalf("%s: %v", query, err)
	}
	return n
}

// Newest returns the newest epoch.
func (f SQL) Newest() int64 {
	f.Helper()
	return f.Number(`SELECT max(epoch) FROM changes`)
}

// Since returns the names in the changes after an epoch, one string for each change, sorted.
func (f SQL) Since(epoch int64) []string {
	f.Helper()
	rows, err := f.DB.QueryContext(f.Context(), `SELECT what FROM changes WHERE epoch > $1 ORDER BY epoch`, epoch)
	if err != nil {
		f.Fatal(err)
	}
	defer rows.Close()
	all := []string{}
	for rows.Next() {
		var what string
		if err := rows.Scan(&what); err != nil {
			f.Fatal(err)
		}
		names := strings.Fields(what)
		slices.Sort(names)
		all = append(all, strings.Join(names, " "))
	}
	return all
}

// Names returns all names in the changes after an epoch, each once.
func (f SQL) Names(epoch int64) []string {
	f.Helper()
	names := strings.Fields(strings.Join(f.Since(epoch), " "))
	slices.Sort(names)
	return slices.Compact(names)
}

// OnOne runs statements on one connection.
func (f SQL) OnOne(statements []string) {
	f.Helper()
	conn, err := f.DB.Conn(f.Context())
	if err != nil {
		f.Fatal(err)
	}
	defer conn.Close()
	for _, statement := range statements {
		if _, err := conn.ExecContext(f.Context(), statement); err != nil {
			f.Errorf("%s: %v", statement, err)
			conn.ExecContext(f.Context(), `ROLLBACK`)
			return
		}
	}
}

// People are statements: Ada and Bob belong to acme, on the plan pro; Eve is alone, on the plan
// free. Ada has had another key.
var People = []string{
	`DELETE FROM keys`, `DELETE FROM sessions`, `DELETE FROM users`, `DELETE FROM accounts`, `DELETE FROM plans`,
	`INSERT INTO plans (name, api_access, rate_limit, rate_window, credits, pool) VALUES
		('pro', TRUE, 60, 60000, 20000, 'user'), ('free', TRUE, 60, 60000, 20000, 'user')`,
	`INSERT INTO accounts (name, kind, plan, status) VALUES ('acme', 'organization', 'pro', 'active'), ('solo', 'person', 'free', 'active')`,
	`INSERT INTO users (name, kind, account, status, subject) VALUES
		('ada', 'person', 'acme', 'active', 'sub-a'), ('bob', 'person', 'acme', 'active', NULL), ('eve', 'person', 'solo', 'active', NULL)`,
	`INSERT INTO keys (id, user_name, digest, created_at, revoked_at) VALUES ('ka', 'ada', '` + Digest('a') + `', 0, NULL),
		('kb', 'bob', '` + Digest('b') + `', 0, NULL), ('ke', 'eve', '` + Digest('e') + `', 0, NULL), ('ko', 'ada', '` + Digest('o') + `', 0, 1)`,
	`INSERT INTO sessions (digest, user_name, created_at, expires_at) VALUES
		('` + Digest('s') + `', 'ada', 0, 9), ('` + Digest('t') + `', 'bob', 0, 9)`,
}

// Digest returns 32 bytes that both databases read alike.
func Digest(b byte) string { return strings.Repeat(string(b), 32) }

// Format returns the format of keys, sessions and links.
func Format(t testing.TB) *apikey.Format {
	t.Helper()
	f, err := apikey.NewFormat(apikey.FormatConfig{Secrets: [][]byte{bytes.Repeat([]byte{7}, 32)}})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// WithAda creates a plan, an account and the user ada.
func WithAda(t testing.TB, db *store.DB) {
	t.Helper()
	_, _, err1 := directory.New(db).SetPlan(t.Context(), "pro", directory.PlanChange{}, "")
	_, _, err2 := directory.New(db).SetAccount(t.Context(), "acme", directory.AccountChange{Plan: new("pro")}, "")
	_, _, err3 := directory.New(db).SetUser(t.Context(), "ada", directory.UserChange{Account: new("acme")}, "")
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
}

// WithKeys creates revoked keys of a user, and a live one, which is the last.
func WithKeys(t testing.TB, db *store.DB, user string, ids ...string) {
	t.Helper()
	for i, id := range ids {
		var ended any
		if i < len(ids)-1 {
			ended = time.Now().Add(-time.Hour).UnixMilli()
		}
		if _, err := db.Changes.Exec(`INSERT INTO keys (id, user_name, digest, created_at, revoked_at) VALUES ($1, $2, $3, 0, $4)`,
			id, user, []byte(fmt.Sprintf("%-32.32s", user+id)), ended); err != nil {
			t.Fatal(err)
		}
	}
}

// WithUser creates another user of acme.
func WithUser(t testing.TB, db *store.DB, name string) {
	t.Helper()
	if _, _, err := directory.New(db).SetUser(t.Context(), name, directory.UserChange{Account: new("acme")}, ""); err != nil {
		t.Fatal(err)
	}
}

// RowsOf counts the rows of a table.
func RowsOf(t testing.TB, db *store.DB, table string) (n int) {
	t.Helper()
	if err := db.Changes.QueryRow(`SELECT count(*) FROM ` + table).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// Raw opens a database without the store, until the test ends.
func Raw(t *testing.T, url string) SQL {
	t.Helper()
	driver, source := "postgres", url
	if path, ok := strings.CutPrefix(url, "sqlite://"); ok {
		driver, source = "sqlite", path
	}
	db, err := sql.Open(driver, source)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return SQL{t, db}
}

// Month returns the month of the database.
func Month(t testing.TB, db *store.DB) usage.Month {
	t.Helper()
	now, err := db.Now(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return usage.MonthOf(now)
}

// UseOf returns a report of ada's use by a process that keeps nothing.
func UseOf(m usage.Month, holder string, seq, used int64, last bool) ledger.Report {
	return ledger.Report{Holder: holder, Seq: seq, Last: last,
		Asks:   []ledger.Ask{{Pool: ledger.Pool{Month: m, Name: "ada"}, Used: used, Keep: used}},
		Usages: []ledger.Usage{{Payer: ledger.Payer{Month: m, User: "ada", Account: "acme"}, Used: used}}}
}

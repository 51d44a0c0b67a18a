package directory_test

import (
	"database/sql"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/keyporter/keyporter/internal/storetest"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
)

// told returns the audit after an entry, one line for each, oldest first.
func told(t *testing.T, db *store.DB, since int64) (lines []string) {
	t.Helper()
	entries, err := directory.NewAudit(db).List(t.Context(), directory.AuditFilter{Limit: 10_000})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.ID > since {
			lines = append([]string{fmt.Sprintf("%s %s %s %s", e.Action, e.Kind, e.Name, strings.ReplaceAll(string(e.Detail), " ", ""))}, lines...)
		}
	}
	return lines
}

// Emptying a table is recorded as well, with its number of rows, even if CASCADE from another table
// empties it.
func TestTheAuditSeesATruncate(t *testing.T) {
	storetest.OnPostgres(t, func(t *testing.T, url string) {
		db := storetest.Open(t, store.Config{URL: url})
		f := storetest.SQL{T: t, DB: db.Changes}
		for _, test := range []struct{ statement, want string }{
			{`TRUNCATE sessions`, `deleted session * {"rows":2}`},
			{`TRUNCATE keys`, `deleted key * {"rows":4}`},
			{`TRUNCATE credit_grants, login_links`, ``},
			{`TRUNCATE users CASCADE`, `deleted key * {"rows":4}, deleted session * {"rows":2}, deleted user * {"rows":3}`},
			{`TRUNCATE plans CASCADE`, `deleted account * {"rows":2}, deleted key * {"rows":4}, deleted plan * {"rows":2}, deleted session * {"rows":2}, deleted user * {"rows":3}`},
			{`BEGIN; SET LOCAL session_replication_role = replica; TRUNCATE sessions; COMMIT`, `deleted session * {"rows":2}`},
		} {
			f.Exec(storetest.People...)
			before := newestAudit(t, db)
			f.Exec(test.statement)
			got := told(t, db, before)
			if s := strings.Join(slices.Sorted(slices.Values(got)), ", "); s != test.want {
				t.Errorf("%s: %s, want %s", test.statement, s, test.want)
			}
		}
	})
}

// Regardless of session settings, the audit only says that a digest was replaced, and reveals
// nothing of sealed data.
func TestTheAuditHoldsNoDigest(t *testing.T) {
	storetest.OnPostgres(t, func(t *testing.T, url string) {
		db := storetest.Open(t, store.Config{URL: url})
		f := storetest.SQL{T: t, DB: db.Changes}
		f.Exec(storetest.People...)
		before := newestAudit(t, db)
		f.Exec(`BEGIN; SET LOCAL bytea_output = 'escape';
			UPDATE keys SET digest = '` + storetest.Digest('x') + `', sealed = 'very well sealed' WHERE id = 'ka';
			INSERT INTO seal_keys (id, public, created_at) VALUES (1, '` + storetest.Digest('P') + `', 0); COMMIT`)
		got := strings.Join(told(t, db, before), "\n")
		for _, secret := range []string{"xxxx", "78787878", "aaaa", "61616161", "very", "PPPPP", "5050505050"} {
			if strings.Contains(got, secret) {
				t.Errorf("the audit tells %s:\n%s", secret, got)
			}
		}
		if !strings.Contains(got, `"digest":"replaced"`) || !strings.Contains(got, "50505050") {
			t.Errorf("the audit does not tell that a digest was replaced, and which seal key was made:\n%s", got)
		}
	})
}

// A role that may change users, but not write the audit, is recorded by its own name. This holds
// even if it has tables and functions with the same names, earlier in its search path.
func TestTheAuditSeesARoleWithoutRights(t *testing.T) {
	storetest.OnPostgres(t, func(t *testing.T, url string) {
		db := storetest.Open(t, store.Config{URL: url})
		f := storetest.SQL{T: t, DB: db.Changes}
		f.Exec(storetest.People...)
		role := fmt.Sprintf("clerk_%d", f.Number(`SELECT oid::BIGINT FROM pg_database WHERE datname = current_database()`))
		f.Exec(`CREATE ROLE `+role+` LOGIN`, `GRANT SELECT, UPDATE ON users TO `+role)
		t.Cleanup(func() {
			if _, err := db.Changes.Exec(`DROP OWNED BY ` + role + `; DROP ROLE ` + role); err != nil {
				t.Error(err)
			}
		})
		before := newestAudit(t, db)
		f.OnOne([]string{`SET SESSION AUTHORIZATION ` + role, `CREATE TEMP TABLE audit (actor TEXT, action TEXT, kind TEXT, name TEXT, detail TEXT)`,
			`CREATE FUNCTION pg_temp.audit_shown(JSONB) RETURNS JSONB LANGUAGE sql AS $$ SELECT NULL::JSONB $$`, `SET search_path = pg_temp, public`,
			`UPDATE public.users SET status = 'disabled' WHERE name = 'eve'`, `DROP TABLE pg_temp.audit`, `RESET search_path`, `RESET SESSION AUTHORIZATION`})
		entries, err := directory.NewAudit(db).List(t.Context(), directory.AuditFilter{})
		if err != nil || entries[0].ID != before+1 || entries[0].Actor != "sql:"+role || entries[0].Name != "eve" {
			t.Errorf("%+v, %v", entries[0], err)
		}
	})
}

// On SQLite our commands keep working, and act under their own name, if a row with another actor
// was left behind; and no other client acts under a name that we have left there.
func TestAnActorThatWasLeftBehind(t *testing.T) {
	t.Parallel()
	url := storetest.Databases["SQLite"](t)
	db := storetest.Open(t, store.Config{URL: url})
	storetest.SQL{T: t, DB: db.Changes}.Exec(append(storetest.People, `INSERT INTO audit_actor (id, actor) VALUES (1, 'page:mallory')`)...)
	if _, _, err := directory.New(db.As("command:boss")).SetUser(t.Context(), "ada", directory.UserChange{Status: new("disabled")}, ""); err != nil {
		t.Fatal(err)
	}
	_, _, err := directory.New(db.As("command:boss")).SetUser(t.Context(), "nobody", directory.UserChange{}, "") // a transaction that fails
	if err == nil {
		t.Error("a user without an account was made")
	}
	shell, err := sql.Open("sqlite", "file:"+strings.TrimPrefix(url, "sqlite://"))
	if err != nil {
		t.Fatal(err)
	}
	defer shell.Close()
	storetest.SQL{T: t, DB: shell}.Exec(`UPDATE users SET status = 'active' WHERE name = 'ada'`)
	entries, err := directory.NewAudit(db).List(t.Context(), directory.AuditFilter{Limit: 2})
	if err != nil || entries[0].Actor != "sql" || entries[1].Actor != "command:boss" {
		t.Errorf("%+v, %v", entries, err)
	}
}

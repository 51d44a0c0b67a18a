package store

import (
	"context"
	"database/sql"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/keyporter/keyporter/store/lease"
)

// ErrUnrecorded is returned if triggers of ours are disabled or missing, so that the change feed or
// the audit would miss changes.
var ErrUnrecorded = lease.ErrUnrecorded

// postgresTriggers lists the triggers that record changes, by table. All must fire in every
// session: ENABLE ALWAYS. The names of the change feed's triggers begin with changes_.
var postgresTriggers = []struct {
	table    string
	triggers []string
}{
	{"plans", []string{"changes_insert", "changes_update", "changes_delete", "changes_truncate", "audit_insert", "audit_update", "audit_delete", "audit_truncate"}},
	{"accounts", []string{"changes_insert", "changes_update", "changes_delete", "changes_truncate", "audit_insert", "audit_update", "audit_delete", "audit_truncate", "events_update"}},
	{"users", []string{"changes_insert", "changes_update", "changes_delete", "changes_truncate", "audit_insert", "audit_update", "audit_delete", "audit_truncate"}},
	{"keys", []string{"changes_insert", "changes_update", "changes_delete", "changes_truncate", "audit_insert", "audit_update", "audit_delete", "audit_truncate", "events_insert", "events_update", "events_delete"}},
	{"sessions", []string{"changes_update", "changes_delete", "changes_truncate", "audit_insert", "audit_update", "audit_delete", "audit_truncate"}},
	{"credit_grants", []string{"changes_insert", "changes_update", "changes_delete", "changes_truncate", "audit_insert", "audit_update", "audit_delete", "audit_truncate"}},
	{"login_links", []string{"audit_insert", "audit_update", "audit_truncate"}},
	{"seal_keys", []string{"audit_insert", "audit_update", "audit_delete", "audit_truncate"}},
	{"audit", []string{"audit_no_change"}},
	{"changes_pending", []string{"changes_commit"}},
	{"credit_recalls", []string{"credits_recall"}},
	{"credit_marks", []string{"events_insert"}},
}

// recorders describes the triggers of one kind of database.
type recorders struct {
	names []string          // TABLE.TRIGGER, on SQLite TRIGGER
	texts map[string]string // on SQLite: the statement that creates each
	// states is a query of the existing triggers: the name, whether it fires always, and whether it
	// is as the migrations made it and writes into its own schema.
	states  string
	defined string // a query of the existing triggers: the name, the definition
	// feed is a condition: the triggers of the change feed all fire.
	feed string
}

var (
	postgresRecorders = recordersOfPostgres()
	sqliteRecorders   = recordersOfSQLite()
)

// definitions returns the existing triggers: name → definition.
func (r *recorders) definitions(ctx context.Context, q querier) (map[string]string, error) {
	all := map[string]string{}
	rows, err := q.QueryContext(ctx, r.defined)
	if err != nil {
		return nil, fmt.Errorf("looking at the triggers: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var name, definition string
		if err := rows.Scan(&name, &definition); err != nil {
			return nil, fmt.Errorf("looking at the triggers: %w", err)
		}
		all[name] = definition
	}
	return all, rows.Err()
}

func recordersOfPostgres() recorders {
	const from = ` FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
		WHERE NOT t.tgisinternal AND c.relnamespace = (SELECT relnamespace FROM pg_catalog.pg_class WHERE oid = to_regclass('changes')) AND c.relname IN (%s)`
	// Renaming a schema leaves behind functions that write into one of the old name, if there is
	// one.
	const home = `EXISTS (SELECT FROM pg_catalog.pg_namespace n
		WHERE n.oid = p.pronamespace AND n.oid = c.relnamespace AND (p.proname = 'audit_refuse' OR EXISTS (SELECT FROM unnest(p.proconfig) s
			WHERE s = 'search_path=' || quote_ident(n.nspname) OR starts_with(s, 'search_path=' || quote_ident(n.nspname) || ','))))`
	// All versions of the server write each of these in the same way.
	const name, definition = `c.relname || '.' || t.tgname`, `concat_ws(' ', t.tgtype, t.tgdeferrable, t.tginitdeferred, t.tgqual IS NULL,
		array_length(t.tgattr::int2[], 1), encode(t.tgargs, 'hex'), t.tgoldtable, t.tgnewtable, p.proname, p.prosecdef,
		ARRAY(SELECT s FROM unnest(p.proconfig) s WHERE s NOT LIKE 'search_path=%%' ORDER BY 1), p.prosrc)`
	const right = home + ` AND EXISTS (SELECT FROM trigger_definitions d WHERE d.name = ` + name + ` AND d.definition = ` + definition + `)`
	var r recorders
	var all, feed []string
	triggers := 0
	for _, t := range postgresTriggers {
		all = append(all, "'"+t.table+"'")
		before := triggers
		for _, trigger := range t.triggers {
			r.names = append(r.names, t.table+"."+trigger)
			if strings.HasPrefix(trigger, "changes_") {
				triggers++
			}
		}
		if triggers > before {
			feed = append(feed, "'"+t.table+"'")
		}
	}
	r.states = fmt.Sprintf(`SELECT `+name+`, t.tgenabled = 'A', `+right+from, strings.Join(all, ", "))
	r.feed = fmt.Sprintf(`(SELECT count(*)`+from+` AND t.tgname LIKE 'changes\_%%' AND t.tgenabled = 'A' AND `+right+`) = %d`,
		strings.Join(feed, ", "), triggers)
	r.defined = fmt.Sprintf(`SELECT `+name+`, `+definition+from, strings.Join(all, ", "))
	return r
}

// sqliteTrigger matches a statement that creates a trigger, and its name.
var sqliteTrigger = regexp.MustCompile(`(?ms)^CREATE TRIGGER (\w+) .*?\bEND;`)

func recordersOfSQLite() recorders {
	r := recorders{texts: map[string]string{}}
	all, err := migrationsOf(migrationFiles, "sqlite")
	if err != nil {
		panic(err) // they are part of the program
	}
	for _, m := range all {
		for _, text := range m.texts {
			for _, match := range sqliteTrigger.FindAllStringSubmatch(text, -1) {
				r.texts[match[1]] = match[0] // a later migration overrides an earlier one
			}
		}
	}
	var feed []string
	for name := range r.texts {
		r.names = append(r.names, name)
		if strings.HasPrefix(name, "changes_") {
			feed = append(feed, "'"+name+"'")
		}
	}
	slices.Sort(r.names)
	slices.Sort(feed)
	const from = ` FROM sqlite_master t LEFT JOIN trigger_definitions d ON d.name = t.name WHERE t.type = 'trigger'`
	const right = `coalesce(d.definition = t.sql, FALSE)`
	r.states = `SELECT t.name, TRUE, ` + right + from
	r.feed = fmt.Sprintf(`(SELECT count(*)`+from+` AND `+right+` AND t.name IN (%s)) = %d`, strings.Join(feed, ", "), len(feed))
	r.defined = `SELECT name, sql FROM sqlite_master WHERE type = 'trigger'`
	return r
}

// querier is a pool, a connection or a transaction.
type querier interface {
	QueryContext(context.Context, string, ...any) (*sql.Rows, error)
}

// idleTriggers returns our triggers that do not fire in every session (off), are missing, or were
// replaced or write elsewhere (astray).
func (db *DB) idleTriggers(ctx context.Context, q querier) (off, missing, astray []string, err error) {
	rows, err := q.QueryContext(ctx, db.Dialect.recorders.states)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("looking at the triggers: %w", err)
	}
	defer rows.Close()
	always := map[string]bool{} // trigger → it fires in every session
	for rows.Next() {
		var name string
		var fires, home bool
		if err := rows.Scan(&name, &fires, &home); err != nil {
			return nil, nil, nil, fmt.Errorf("looking at the triggers: %w", err)
		}
		always[name] = fires
		if !home && slices.Contains(db.Dialect.recorders.names, name) {
			astray = append(astray, name)
		}
	}
	for _, name := range db.Dialect.recorders.names {
		fires, there := always[name]
		switch {
		case !there:
			missing = append(missing, name)
		case !fires:
			off = append(off, name)
		}
	}
	return off, missing, astray, rows.Err()
}

// CheckTriggers fails with [ErrUnrecorded] unless all triggers record changes.
func (db *DB) CheckTriggers(ctx context.Context, q querier) error {
	off, missing, astray, err := db.idleTriggers(ctx, q)
	if err != nil || len(off)+len(missing)+len(astray) == 0 {
		return err
	}
	var what, remedy = "are missing: " + some(missing), "put the schema back from a backup"
	switch {
	case db.Dialect.name != "postgres":
		if len(missing) == 0 {
			what = "were replaced: " + some(astray)
		}
		remedy = "run `keyporter migrate`, which makes them again"
	case len(missing) == 0 && len(astray) > 0:
		what = "were replaced, or their functions were, or they write into another schema (as after ALTER SCHEMA … RENAME): " + some(astray)
		remedy = "give the schema its old name again, or put it back from a backup"
	case len(missing) == 0:
		what = "are not ENABLE ALWAYS (as after pg_restore --disable-triggers): " + some(off)
		remedy = "run `keyporter migrate` as the owner of the tables, which switches them on again"
	}
	return fmt.Errorf("%w: triggers in %s %s: %s, and look at the keys: what was changed meanwhile is in no audit",
		ErrUnrecorded, db.shown, what, remedy)
}

// Recorded fails with [ErrUnrecorded] unless the change feed and the audit record all changes.
func (db *DB) Recorded(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	return db.CheckTriggers(ctx, db.Changes)
}

// recorded is CheckTriggers at the end of a change. The locks of the change keep others from
// disabling triggers of the changed tables before it ends.
func (db *DB) recorded(ctx context.Context, tx *sql.Tx) error {
	if err := db.CheckTriggers(ctx, tx); err != nil {
		return fmt.Errorf("nothing was changed: %w", err)
	}
	return nil
}

// repairTime is how long a repair waits for users of the tables.
const repairTime = 5 * time.Second

// repairTriggers enables our disabled triggers, and on SQLite recreates missing or replaced ones.
// It makes all replicas drop their caches, since changes may have gone unrecorded.
func (db *DB) repairTriggers(ctx context.Context, notice func(string, error)) error {
	off, missing, astray, err := db.idleTriggers(ctx, db.Changes)
	if err != nil {
		return err
	}
	statements := []string{}
	for _, name := range off {
		table, trigger, _ := strings.Cut(name, ".")
		statements = append(statements, fmt.Sprintf(`ALTER TABLE %s ENABLE ALWAYS TRIGGER %s`, table, trigger))
	}
	repaired := off
	everything := `INSERT INTO changes_pending (tx, what) VALUES (txid_current(), '*')`
	if db.Dialect.name != "postgres" {
		repaired = append(missing, astray...)
		for _, name := range repaired {
			statements = append(statements, `DROP TRIGGER IF EXISTS `+name, db.Dialect.recorders.texts[name])
		}
		everything = `INSERT INTO changes (what) VALUES ('*')`
	}
	if len(repaired) == 0 {
		return nil
	}
	_, err = db.Write(ctx, db.Changes, func(ctx context.Context, tx *sql.Tx) error {
		if db.Dialect.name == "postgres" {
			statements = append([]string{fmt.Sprintf(`SET LOCAL lock_timeout = %d`, repairTime.Milliseconds())}, statements...)
		}
		for _, statement := range append(statements, everything) {
			if _, err := tx.ExecContext(ctx, statement); err != nil {
				return fmt.Errorf("switching triggers on that were off: %w", err)
			}
		}
		return nil
	})
	if err == nil {
		notice("triggers that record changes were off, missing or replaced, and are on again; look at the keys", fmt.Errorf("%w: %s", ErrUnrecorded, some(repaired)))
	}
	return err
}

package store

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// versionTable records the applied migrations. It is not goose's default table, which another
// program in the same database may have.
const versionTable = "keyporter_schema"

// gooseTable is goose's default version table. Builds before the first release used it, then
// versions below [firstVersion] in ours.
const gooseTable = "goose_db_version"

// secretsTable distinguishes them from other programs that use goose.
const secretsTable = "tag_secrets"

// created matches the names that the migrations create in a schema.
var created = regexp.MustCompile(`(?m)^CREATE (?:TABLE|VIEW|SEQUENCE|(?:UNIQUE )?INDEX|FUNCTION) (\w+)`)

// ourNames returns the names that the migrations create.
func (db *DB) ourNames() (names []string, err error) {
	all, err := migrationsOf(db.schema, db.Dialect.files)
	if err != nil {
		return nil, err
	}
	for _, m := range all {
		for _, text := range m.texts {
			for _, match := range created.FindAllStringSubmatch(text, -1) {
				names = append(names, match[1])
			}
		}
	}
	return names, nil
}

// place is the location of a session in a PostgreSQL server, with its role and settings.
type place struct {
	role, database     string
	schema             string // where new tables go; "" if there is none
	tables             string // the schema of our tables as the session finds them; "" if it finds none
	path               string // the search path
	encoding, client   string
	readOnly, triggers string // the settings default_transaction_read_only and session_replication_role
}

func (db *DB) place(ctx context.Context) (p place, err error) {
	err = db.Changes.QueryRowContext(ctx, `SELECT current_user, current_database(), coalesce(current_schema(), ''),
		coalesce((SELECT n.nspname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
			WHERE c.oid = to_regclass('`+versionTable+`')), ''),
		current_setting('search_path'), pg_encoding_to_char(d.encoding), current_setting('client_encoding'),
		current_setting('default_transaction_read_only'), current_setting('session_replication_role')
		FROM pg_catalog.pg_database d WHERE d.datname = current_database()`).
		Scan(&p.role, &p.database, &p.schema, &p.tables, &p.path, &p.encoding, &p.client, &p.readOnly, &p.triggers)
	return p, err
}

// check reports what cannot work in this place, with any tables.
func (p *place) check(writes bool) error {
	switch {
	case p.encoding != "UTF8":
		return fmt.Errorf("%w: %s has the encoding %s, which cannot hold all names and texts: make one with UTF8 "+
			"(CREATE DATABASE %[2]s_utf8 TEMPLATE template0 ENCODING 'UTF8') and name it in the database URL", ErrDatabase, p.database, p.encoding)
	case p.client != "UTF8":
		return fmt.Errorf("%w: the sessions of the role %s have client_encoding %s: take that setting out of the database URL, the role and the pooler",
			ErrDatabase, p.role, p.client)
	case p.triggers == "replica":
		return fmt.Errorf("%w: the sessions of the role %s have session_replication_role = replica, so that no foreign key is checked: "+
			"ALTER ROLE %[2]s RESET session_replication_role, and take it out of the database URL", ErrDatabase, quoteName(p.role))
	case p.schema == "":
		return fmt.Errorf("%w: in %s none of the schemas of the search path (%s) exists and may be used by the role %s: "+
			"CREATE SCHEMA name AUTHORIZATION %[4]s, or GRANT USAGE ON SCHEMA name TO %[4]s; "+
			"another one is chosen by search_path=name in the database URL", ErrDatabase, p.database, p.path, quoteName(p.role))
	case p.tables != "" && p.tables != p.schema:
		return fmt.Errorf("%w: the tables are in the schema %s, but the search path (%s) puts new ones into %s: "+
			"set search_path=%[2]s in the database URL, or ALTER ROLE %[5]s SET search_path = %[2]s", ErrDatabase, p.tables, p.path, p.schema, quoteName(p.role))
	case writes && p.readOnly == "on":
		return fmt.Errorf("%w: the sessions of the role %s can only read (default_transaction_read_only): "+
			"ALTER ROLE %[2]s RESET default_transaction_read_only, and take it out of the database URL", ErrDatabase, quoteName(p.role))
	}
	return nil
}

var plainName = regexp.MustCompile(`^[a-z_][a-z0-9_$]*$`)

// quoteName quotes a name for SQL if necessary.
func quoteName(name string) string {
	if plainName.MatchString(name) {
		return name
	}
	return `"` + strings.ReplaceAll(name, `"`, `""`) + `"`
}

// foreigners rejects a database of a build before the first release, and one without our migrations
// in which another program has taken our names. It reads the names before the version, so that the
// concurrent migration of another process is not mistaken for another program.
func (db *DB) foreigners(ctx context.Context, version func() (int64, error)) error {
	names := `SELECT name FROM sqlite_master`
	if db.Dialect.name == "postgres" {
		names = `SELECT relname FROM pg_catalog.pg_class WHERE relnamespace = quote_ident(current_schema())::regnamespace
			UNION SELECT proname FROM pg_catalog.pg_proc WHERE pronamespace = quote_ident(current_schema())::regnamespace
			UNION SELECT typname FROM pg_catalog.pg_type WHERE typnamespace = quote_ident(current_schema())::regnamespace`
	}
	ours, err := db.ourNames()
	if err != nil {
		return err
	}
	there, err := scanAll(ctx, db, func(row Scanner) (name string, err error) { return name, row.Scan(&name) }, names)
	if err != nil {
		return fmt.Errorf("looking at what is in %s: %w", db.shown, err)
	}
	made, err := version()
	if err != nil || made >= firstVersion {
		return err
	}
	if made > 0 || slices.Contains(there, gooseTable) && slices.Contains(there, secretsTable) {
		return fmt.Errorf("%w: %s was made by a build of Keyporter before its first release, and cannot be migrated: "+
			"start with an empty database, or keep that older build", ErrDatabase, db.shown)
	}
	taken := slices.DeleteFunc(there, func(name string) bool { return !slices.Contains(ours, name) })
	if len(taken) == 0 {
		return nil
	}
	slices.Sort(taken)
	return db.taken(some(taken))
}

// taken rejects a database because another program has taken names in it.
func (db *DB) taken(names string) error {
	remedy := "name a file of its own for Keyporter"
	if db.Dialect.name == "postgres" {
		remedy = "give Keyporter a schema of its own (CREATE SCHEMA keyporter, and search_path=keyporter in the database URL), or a database"
	}
	return fmt.Errorf("%w: another program has taken names in %s that Keyporter needs: %s: %s", ErrDatabase, db.shown, names, remedy)
}

// some joins names, with an upper limit.
func some(names []string) string {
	const most = 6
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}

// elsewhere names the schemas of a PostgreSQL database that hold tables of ours outside the search
// path.
func (db *DB) elsewhere(ctx context.Context) string {
	if db.Dialect.name != "postgres" {
		return ""
	}
	schemas, err := scanAll(ctx, db, func(row Scanner) (name string, err error) { return name, row.Scan(&name) },
		`SELECT n.nspname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relname = $1 ORDER BY 1`, versionTable)
	if err != nil || len(schemas) == 0 {
		return ""
	}
	return fmt.Sprintf("; there are tables of Keyporter in the schema %s: is search_path=%s meant in the database URL?", some(schemas), schemas[0])
}

// mayCreate checks the requirements of a migration before it begins.
func (db *DB) mayCreate(ctx context.Context, p place) error {
	var create bool
	if err := db.Changes.QueryRowContext(ctx, `SELECT has_schema_privilege(current_schema(), 'CREATE')`).Scan(&create); err != nil {
		return err
	}
	if !create {
		return fmt.Errorf("%w: the role %s may not make tables in the schema %s of %s: GRANT CREATE ON SCHEMA %[3]s TO %[2]s, "+
			"or CREATE SCHEMA keyporter AUTHORIZATION %[2]s, and search_path=keyporter in the database URL", ErrRights, quoteName(p.role), quoteName(p.schema), p.database)
	}
	var owner string
	err := db.Changes.QueryRowContext(ctx, `SELECT coalesce(min(pg_get_userbyid(relowner)), '') FROM pg_catalog.pg_class
		WHERE oid = to_regclass('`+versionTable+`') AND NOT pg_has_role(relowner, 'USAGE')`).Scan(&owner)
	if err == nil && owner != "" {
		err = fmt.Errorf("%w: the tables belong to the role %s: run `keyporter migrate` as that one, and this as %s with --migrate=false, "+
			"or GRANT %[2]s TO %[3]s", ErrRights, quoteName(owner), quoteName(p.role))
	}
	return err
}

// serviceRights lists the rights that a service needs on each table, by their first letters.
var serviceRights = []struct{ table, rights string }{
	{versionTable, "S"}, {"trigger_definitions", "S"}, {"plans", "S"}, {"accounts", "S"}, {"users", "SU"}, {"keys", "SIU"}, {"sessions", "SIU"},
	{"login_links", "SUD"}, {"tag_secrets", "S"}, {"charge_secrets", "S"}, {"seal_keys", "SU"}, // U: to lock a row
	{"changes", "SD"}, {"changes_pending", "I"}, {"replicas", "SIUD"}, {"histories", "S"}, {"calls", "SIUD"}, {"audit", "SI"},
	{"credit_pools", "SIU"}, {"credit_holders", "SIUD"}, {"credit_blocks", "SIUD"}, {"credit_usages", "SIUD"},
	{"credit_reported", "SIUD"}, {"credit_charges", "SIUD"}, {"credit_months", "SIU"}, {"credit_refunds", "SI"}, {"credit_grants", "S"}, {"credit_recalls", "SIUD"},
	{"rate_logs", "SID"}, {"requests", "SID"}, {"request_counts", "SIUD"}, {"request_outcomes", "SIUD"}, {"credit_days", "SD"}, {"credit_daily", "SIUD"},
	{"events", "SIUD"}, {"event_endpoints", "SIUD"}, {"event_subscriptions", "SIUD"}, {"event_lease", "SU"}, {"credit_marks", "SID"},
}

// rightNames lists the rights in the order of messages.
var rightNames = []string{"SELECT", "INSERT", "UPDATE", "DELETE"}

// checkRights reports which rights of a service the role lacks, and how to grant them.
func (db *DB) checkRights(ctx context.Context, p place) error {
	var tables, rights []string
	for _, t := range serviceRights {
		for _, right := range rightNames {
			if strings.Contains(t.rights, right[:1]) {
				tables, rights = append(tables, t.table), append(rights, right)
			}
		}
	}
	lacking := map[string][]string{} // right → tables
	_, err := scanAll(ctx, db, func(row Scanner) (none struct{}, err error) {
		var table, right string
		err = row.Scan(&table, &right)
		lacking[right] = append(lacking[right], table)
		return none, err
	}, `SELECT w.t, CASE WHEN to_regclass(w.t) IS NULL THEN 'missing' WHEN row_security_active(to_regclass(w.t)::oid) THEN 'hidden' ELSE w.r END
		FROM unnest(string_to_array($1, ','), string_to_array($2, ',')) AS w (t, r)
		WHERE to_regclass(w.t) IS NULL OR row_security_active(to_regclass(w.t)::oid) OR NOT has_table_privilege(to_regclass(w.t)::oid, w.r)`,
		strings.Join(tables, ","), strings.Join(rights, ","))
	if err != nil {
		return fmt.Errorf("asking for the rights of the role %s: %w", p.role, err)
	}
	if gone := slices.Compact(lacking["missing"]); len(gone) > 0 {
		return fmt.Errorf("%w: the schema %s of %s lacks tables of ours: %s: put them back from a backup", ErrDatabase, p.schema, p.database, some(gone))
	}
	if hidden := slices.Compact(lacking["hidden"]); len(hidden) > 0 {
		return fmt.Errorf("%w: row-level security hides rows from the role %s in %s: ALTER ROLE %[2]s BYPASSRLS, or ALTER TABLE … DISABLE ROW LEVEL SECURITY",
			ErrRights, quoteName(p.role), some(hidden))
	}
	var lacks []string
	for _, right := range rightNames {
		if tables := lacking[right]; len(tables) > 0 {
			lacks = append(lacks, right+" on "+some(tables))
		}
	}
	if len(lacks) == 0 {
		return nil
	}
	return fmt.Errorf("%w: the role %s lacks rights in the schema %s of %s: %s: as the owner of the tables run GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA %[3]s TO %[2]s",
		ErrRights, quoteName(p.role), quoteName(p.schema), p.database, strings.Join(lacks, "; "))
}

// checkService reports what keeps a service from working on a database with the right schema.
func (db *DB) checkService(ctx context.Context, p place) error {
	if db.Dialect.name == "postgres" {
		if err := db.checkRights(ctx, p); err != nil {
			return err
		}
	} else if err := db.mayWrite(ctx); err != nil {
		return err
	}
	return db.CheckTriggers(ctx, db.Changes)
}

// mayWrite checks that a SQLite database can be written.
func (db *DB) mayWrite(ctx context.Context) error {
	tx, err := db.Changes.BeginTx(ctx, nil)
	if err == nil {
		_, err = tx.ExecContext(ctx, `UPDATE replicas SET seen_at = seen_at WHERE FALSE`)
		err = errors.Join(err, tx.Rollback())
	}
	if err != nil && is(err, []string{"8", "14"}) {
		return fmt.Errorf("%w: %s, or its folder, may not be written by the user of this process: %w", ErrRights, db.shown, err)
	}
	return err
}

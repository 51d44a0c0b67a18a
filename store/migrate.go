package store

import (
	"context"
	cryptorand "crypto/rand"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pressly/goose/v3"
)

//go:generate go run migrations/generate.go

// migrationFiles are the migrations: VERSION_NAME.sql for both databases, and
// VERSION_NAME.DATABASE.sql for one of them. A released file is never changed; a change of the
// schema is a new file with a higher version.
//
//go:embed migrations/*.sql
var migrationFiles embed.FS

// firstVersion is the version of the schema of the first release. Builds before it used lower ones.
const firstVersion = 100

// migrateTries is the maximum number of attempts at a migration that another process may disturb.
const migrateTries = 20

// migration is a step of the schema.
type migration struct {
	version int64
	texts   []string // SQL
}

// migrationsOf returns the migrations of a database by their versions. In each, the texts for both
// databases come first, then by name.
func migrationsOf(folder fs.FS, database string) (all []migration, err error) {
	both, err1 := fs.Glob(folder, "migrations/*.sql")
	one, err2 := fs.Glob(folder, "migrations/*."+database+".sql")
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	both = slices.DeleteFunc(both, func(file string) bool { return strings.Count(path.Base(file), ".") > 1 })
	texts := map[int64][]string{} // by version
	for _, file := range append(both, one...) {
		number, _, _ := strings.Cut(path.Base(file), "_")
		version, err := strconv.ParseInt(number, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("the migration %s does not begin with its version: %w", file, err)
		}
		text, err := fs.ReadFile(folder, file)
		if err != nil {
			return nil, err
		}
		texts[version] = append(texts[version], string(text))
	}
	for _, version := range slices.Sorted(maps.Keys(texts)) {
		all = append(all, migration{version, texts[version]})
	}
	return all, nil
}

// run executes a migration. It records the definitions of the triggers that it has changed, so that
// replicas of an older build accept them too, and of no others: somebody may have replaced those.
func (m migration) run(ctx context.Context, tx *sql.Tx, d *Dialect) error {
	before, err := d.recorders.definitions(ctx, tx)
	if err != nil {
		return err
	}
	for _, text := range m.texts {
		if _, err := tx.ExecContext(ctx, text); err != nil {
			return err
		}
	}
	if m.version == firstVersion {
		if err := makeSecrets(ctx, tx); err != nil {
			return err
		}
	}
	after, err := d.recorders.definitions(ctx, tx)
	if err != nil {
		return err
	}
	for name, definition := range after {
		if definition == before[name] {
			continue
		}
		if _, err := tx.ExecContext(ctx, `INSERT INTO trigger_definitions (name, definition) VALUES ($1, $2)
			ON CONFLICT (name) DO UPDATE SET definition = excluded.definition`, name, definition); err != nil {
			return err
		}
	}
	return nil
}

// secretSize is the size of a secret in bytes, that of the hash.
const secretSize = 32

// makeSecrets creates the secrets of this installation: for the tags in keys, and for the
// signatures of charges.
func makeSecrets(ctx context.Context, tx *sql.Tx) error {
	for _, statement := range []string{
		`INSERT INTO tag_secrets (id, secret, created_at) VALUES (1, $1, $2)`,
		`INSERT INTO charge_secrets (id, purpose, secret, created_at) VALUES (1, 'upstream', $1, $2)`,
		`INSERT INTO charge_secrets (id, purpose, secret, created_at) VALUES (2, 'log', $1, $2)`,
	} {
		secret := make([]byte, secretSize)
		cryptorand.Read(secret)
		if _, err := tx.ExecContext(ctx, statement, secret, NowMillis()); err != nil {
			return err
		}
	}
	return nil
}

func (db *DB) migrations(more ...goose.ProviderOption) (*goose.Provider, error) {
	all, err := migrationsOf(db.schema, db.Dialect.files)
	if err != nil {
		return nil, err
	}
	var steps []*goose.Migration
	for _, m := range all {
		steps = append(steps, goose.NewGoMigration(m.version, &goose.GoFunc{RunTx: func(ctx context.Context, tx *sql.Tx) error {
			return m.run(ctx, tx, db.Dialect)
		}}, nil))
	}
	return goose.NewProvider(goose.Dialect(db.Dialect.name), db.Changes, nil, append(more,
		goose.WithGoMigrations(steps...), goose.WithDisableGlobalRegistry(true), goose.WithTableName(versionTable))...)
}

// migrate brings the schema up to date. On PostgreSQL one process at a time migrates, under an
// advisory lock. On SQLite each step is a transaction that is a writer from its beginning: of two
// processes at the same step the second one fails completely, and then finds the step done.
// Disabled triggers are enabled.
func (db *DB) migrate(ctx context.Context, p place, w *waiting) error {
	if err := db.foreigners(ctx, func() (int64, error) { return db.schemaVersion(ctx) }); err != nil {
		return err
	}
	ctx, lock := newMigrationLock(ctx, w)
	defer lock.end()
	var options []goose.ProviderOption
	if db.Dialect.name == "postgres" {
		options = append(options, goose.WithSessionLocker(lock))
	}
	provider, err := db.migrations(options...)
	if err != nil {
		return fmt.Errorf("preparing the migrations: %w", err)
	}
	for try := 1; ; try++ {
		err = db.migrateOnce(ctx, p, provider)
		if err == nil || try == migrateTries || db.Dialect.name == "postgres" || ctx.Err() != nil {
			break
		}
		time.Sleep(50*time.Millisecond + rand.N(100*time.Millisecond))
	}
	if err == nil {
		err = db.repairTriggers(ctx, w.tell)
	}
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = fmt.Errorf("%w (%w)", cause, err)
	}
	if err != nil {
		return fmt.Errorf("migrating %s: %w", db.shown, err)
	}
	return nil
}

func (db *DB) migrateOnce(ctx context.Context, p place, provider *goose.Provider) error {
	current, err := db.schemaVersion(ctx)
	if err != nil {
		return err
	}
	if current >= latest(provider) {
		return nil // checkSchema reports a newer one
	}
	if db.Dialect.name == "postgres" {
		if err := db.mayCreate(ctx, p); err != nil {
			return err
		}
	}
	_, err = provider.Up(ctx)
	return err
}

// checkSchema fails unless the schema is the one that this program needs.
func (db *DB) checkSchema(ctx context.Context) error {
	provider, err := db.migrations()
	if err != nil {
		return fmt.Errorf("preparing the migrations: %w", err)
	}
	current, err := db.schemaVersion(ctx)
	if err != nil {
		return fmt.Errorf("reading the schema's version of %s: %w", db.shown, err)
	}
	switch want := latest(provider); {
	case current < want:
		if err := db.foreigners(ctx, func() (int64, error) { return current, nil }); err != nil {
			return err
		}
		return fmt.Errorf("%w: %s has schema version %d, this program needs %d%s", ErrMigration, db.shown, current, want, db.elsewhere(ctx))
	case current > want:
		return fmt.Errorf("%w: %s has schema version %d, this program knows %d: run the newer keyporter", ErrSchemaTooNew, db.shown, current, want)
	}
	return nil
}

// schemaVersion returns the last applied migration, 0 if there is none. It rejects another object
// with the name of the version table.
func (db *DB) schemaVersion(ctx context.Context) (version int64, err error) {
	there := `SELECT count(*), coalesce(sum(m.type = 'table' AND EXISTS (SELECT 1 FROM pragma_table_info(m.name) c WHERE c.name = 'version_id')), 0)
		FROM sqlite_master m WHERE m.name = '` + versionTable + `'`
	if db.Dialect.name == "postgres" {
		there = `SELECT count(*), count(*) FILTER (WHERE is_ours) FROM (
			SELECT c.relkind IN ('r', 'p') AND EXISTS (SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attname = 'version_id') AS is_ours
				FROM pg_catalog.pg_class c WHERE c.oid = to_regclass('` + versionTable + `')
			UNION ALL SELECT FALSE FROM pg_catalog.pg_type WHERE typname = '` + versionTable + `' AND typrelid = 0
				AND typnamespace = quote_ident(current_schema())::regnamespace) named`
	}
	var named, ours int
	if err := db.Changes.QueryRowContext(ctx, there).Scan(&named, &ours); err != nil || named == 0 {
		return 0, err
	}
	if ours == 0 {
		return 0, db.taken(versionTable)
	}
	err = db.Changes.QueryRowContext(ctx, `SELECT coalesce(max(version_id), 0) FROM `+versionTable).Scan(&version)
	return version, err
}

func latest(provider *goose.Provider) int64 {
	sources := provider.ListSources()
	return sources[len(sources)-1].Version
}

// Emptied rejects a database in which a table that the migrations filled is empty.
func (db *DB) Emptied(table, so string) error {
	return fmt.Errorf("%w: the table %s in %s has lost its rows, so that %s: put it back from a backup", ErrDatabase, table, db.shown, so)
}

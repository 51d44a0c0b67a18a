package store

import (
	"context"
	cryptorand "crypto/rand"
	"database/sql"
	"embed"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"time"

	"github.com/pressly/goose/v3"
)

//go:embed migrations
var migrationFiles embed.FS

// migrateTries is the maximum number of attempts at a migration that another process may disturb.
const migrateTries = 20

// tagSecretSize is the size of a tag secret in bytes, that of the hash.
const tagSecretSize = 32

// makeTagSecret is the migration that creates this installation's tag secret.
var makeTagSecret = goose.NewGoMigration(2, &goose.GoFunc{RunTx: func(ctx context.Context, tx *sql.Tx) error {
	secret := make([]byte, tagSecretSize)
	cryptorand.Read(secret)
	_, err := tx.ExecContext(ctx, `INSERT INTO tag_secrets (id, secret, created_at) VALUES (1, $1, $2)`, secret, NowMillis())
	return err
}}, nil)

// makeChargeSecrets is the migration that creates the secrets that sign charges.
var makeChargeSecrets = goose.NewGoMigration(6, &goose.GoFunc{RunTx: func(ctx context.Context, tx *sql.Tx) error {
	for i, purpose := range []string{"upstream", "log"} {
		secret := make([]byte, tagSecretSize)
		cryptorand.Read(secret)
		if _, err := tx.ExecContext(ctx, `INSERT INTO charge_secrets (id, purpose, secret, created_at) VALUES ($1, $2, $3, $4)`,
			i+1, purpose, secret, NowMillis()); err != nil {
			return err
		}
	}
	return nil
}}, nil)

// triggers is a migration that creates triggers. They have no SQL text in common.
func (db *DB) triggers(version int64, file string) *goose.Migration {
	folder := map[string]string{"postgres": "postgres", "sqlite3": "sqlite"}[db.Dialect.name]
	return goose.NewGoMigration(version, &goose.GoFunc{RunTx: func(ctx context.Context, tx *sql.Tx) error {
		text, err := migrationFiles.ReadFile("migrations/" + folder + "/" + file)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, string(text))
		return err
	}}, nil)
}

// noteTriggers is the migration that records the definitions of the triggers that earlier ones
// created.
func (db *DB) noteTriggers(version int64) *goose.Migration {
	return goose.NewGoMigration(version, &goose.GoFunc{RunTx: func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, db.Dialect.recorders.note)
		return err
	}}, nil)
}

func (db *DB) migrations(more ...goose.ProviderOption) (*goose.Provider, error) {
	files, err := fs.Sub(migrationFiles, "migrations")
	if err != nil {
		return nil, err
	}
	options := append(more,
		goose.WithGoMigrations(makeTagSecret, db.triggers(3, "00003_changes.sql"), db.triggers(5, "00005_grants.sql"), makeChargeSecrets, db.triggers(7, "00007_page.sql"), db.noteTriggers(12)),
		goose.WithDisableGlobalRegistry(true), goose.WithTableName(versionTable),
	)
	if db.Dialect.name == "postgres" {
		options = append(options, goose.WithGoMigrations(db.triggers(9, "00009_bulk.sql")))
	}
	return goose.NewProvider(goose.Dialect(db.Dialect.name), db.Changes, files, options...)
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

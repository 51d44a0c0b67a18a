package storetest

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/keyporter/keyporter/internal/parts/partstest"
	"github.com/keyporter/keyporter/store"
)

// Databases holds all databases that the store supports: name → the URL of an empty one.
var Databases = map[string]func(t testing.TB) string{
	"SQLite":        func(t testing.TB) string { return "sqlite://" + filepath.Join(t.TempDir(), "keyporter.db") },
	"PostgreSQL 16": func(t testing.TB) string { partstest.Slow(t); return partstest.Database(t, 16) },
	"PostgreSQL 18": func(t testing.TB) string { return partstest.Database(t, 18) },
}

// Migrated holds the same Databases, migrated. Each is a copy, since a migration takes half a
// second.
var Migrated = map[string]func(t testing.TB) string{
	"SQLite": func(t testing.TB) string {
		content, err := migratedFile()
		path := filepath.Join(t.TempDir(), "keyporter.db")
		if err := errors.Join(err, os.WriteFile(path, content, 0o600)); err != nil {
			t.Fatal(err)
		}
		return "sqlite://" + path
	},
	"PostgreSQL 16": func(t testing.TB) string {
		partstest.Slow(t)
		return partstest.DatabaseFrom(t, 16, "migrated", migrate)
	},
	"PostgreSQL 18": func(t testing.TB) string { return partstest.DatabaseFrom(t, 18, "migrated", migrate) },
}

func migrate(url string) error {
	db, err := store.Open(context.Background(), store.Config{URL: url, Create: true, Migrate: true})
	if err != nil {
		return err
	}
	return db.Close()
}

var migratedFile = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "keyporter-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "keyporter.db")
	if err := migrate("sqlite://" + path); err != nil {
		return nil, err
	}
	return os.ReadFile(path)
})

// OnEach runs a test on SQLite and one version of PostgreSQL, chosen at random, with the URL of a
// migrated database. KEYPORTER_LONG=1 runs it on both versions, as TestConformance always does.
func OnEach(t *testing.T, test func(t *testing.T, url string)) {
	t.Parallel()
	chosen := maps.Clone(Migrated)
	if os.Getenv("KEYPORTER_LONG") == "" {
		delete(chosen, []string{"PostgreSQL 16", "PostgreSQL 18"}[rand.IntN(2)])
	}
	each(t, chosen, test)
}

// OnEachEmpty is OnEach with the URL of an empty one.
func OnEachEmpty(t *testing.T, test func(t *testing.T, url string)) {
	t.Parallel()
	each(t, Databases, test)
}

func each(t *testing.T, all map[string]func(t testing.TB) string, test func(t *testing.T, url string)) {
	for name, database := range all {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, database(t))
		})
	}
}

// Open opens a database, created and Migrated, until the test ends.
func Open(t testing.TB, c store.Config) *store.DB {
	t.Helper()
	c.Create, c.Migrate = true, true
	db, err := store.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// OnPostgres runs a test on each version of PostgreSQL, with the URL of an empty database.
func OnPostgres(t *testing.T, test func(t *testing.T, url string)) {
	t.Parallel()
	for name, database := range Databases {
		if name != "SQLite" {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				test(t, database(t))
			})
		}
	}
}

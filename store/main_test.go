package store_test

import (
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"github.com/keyporter/keyporter/internal/parts/partstest"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(partstest.M{M: m}) }

// databases are all that the store runs on: name → the URL of an empty one.
var databases = map[string]func(t testing.TB) string{
	"SQLite":        func(t testing.TB) string { return "sqlite://" + filepath.Join(t.TempDir(), "keyporter.db") },
	"PostgreSQL 16": func(t testing.TB) string { partstest.Slow(t); return partstest.Database(t, 16) },
	"PostgreSQL 18": func(t testing.TB) string { return partstest.Database(t, 18) },
}

// onEach runs a test on each database, with the URL of an empty one.
func onEach(t *testing.T, test func(t *testing.T, url string)) {
	t.Parallel()
	for name, database := range databases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, database(t))
		})
	}
}

// open opens a database, made and migrated, until the test ends.
func open(t testing.TB, c store.Config) *store.DB {
	t.Helper()
	c.Create, c.Migrate = true, true
	db, err := store.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// Every database does the same.
func TestConformance(t *testing.T) {
	t.Parallel()
	for name, database := range databases {
		t.Run(name, func(t *testing.T) {
			if name != "SQLite" {
				partstest.Slow(t) // a database for each part of the suite
			}
			t.Parallel()
			storetest.Run(t, func(t *testing.T) *store.DB {
				return open(t, store.Config{URL: database(t)})
			})
		})
	}
}

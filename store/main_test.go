package store_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/keyporter/keyporter/internal/parts/partstest"
	"github.com/keyporter/keyporter/internal/storetest"
	"github.com/keyporter/keyporter/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(partstest.M{M: m}) }

// All databases behave alike.
func TestConformance(t *testing.T) {
	t.Parallel()
	for name, database := range storetest.Migrated {
		t.Run(name, func(t *testing.T) {
			if name != "SQLite" {
				partstest.Slow(t) // a database for each part of the suite
			}
			t.Parallel()
			storetest.Run(t, func(t *testing.T) *store.DB {
				return storetest.Open(t, store.Config{URL: database(t)})
			})
		})
	}
}

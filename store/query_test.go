package store_test

import (
	"context"
	"database/sql"
	"testing"

	"github.com/keyporter/keyporter/internal/storetest"
	"github.com/keyporter/keyporter/store"
)

// A change is made while a list is being read, on SQLite too, which has one writer: a long list for
// an operator delays no report of credits.
func TestAListDelaysNoChange(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		db := storetest.Open(t, store.Config{URL: url})
		rows, err := store.List(t.Context(), db, func(row store.Scanner) (n int64, err error) {
			if err := row.Scan(&n); err != nil {
				return 0, err
			}
			_, err = db.Write(t.Context(), db.Reports, func(ctx context.Context, tx *sql.Tx) error {
				_, err := tx.ExecContext(ctx, `UPDATE replicas SET seen_at = seen_at WHERE FALSE`)
				return err
			})
			return n, err
		}, `SELECT 1 UNION ALL SELECT 2`)
		if err != nil || len(rows) != 2 {
			t.Errorf("%d rows, %v", len(rows), err)
		}
	})
}

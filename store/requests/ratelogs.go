package requests

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/keyporter/keyporter/store"
)

// SaveRateLog stores a piece of the rate log of a stopping replica.
func (l *Log) SaveRateLog(ctx context.Context, piece []byte) error {
	_, err := l.db.Calling(store.ForRateLog).Write(ctx, l.db.Changes, func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO rate_logs (id, log, saved_at) VALUES ($1, $2, `+l.db.Dialect.Now+`)`, store.NewID("ratelog_"), piece)
		return err
	})
	if err != nil {
		return fmt.Errorf("saving a rate log: %w", err)
	}
	return nil
}

// TakeRateLogs returns the saved pieces, with the time by the clock of the database, and deletes
// them, so that only one replica takes them.
func (l *Log) TakeRateLogs(ctx context.Context) (pieces [][]byte, at time.Time, err error) {
	_, err = l.db.Calling(store.ForRateLog).Write(ctx, l.db.Changes, func(ctx context.Context, tx *sql.Tx) error {
		var ms int64
		if err := tx.QueryRowContext(ctx, `SELECT `+l.db.Dialect.Now).Scan(&ms); err != nil {
			return err
		}
		pieces, at = nil, store.FromMillis(ms)
		return store.Each(ctx, tx, func(row store.Scanner) error {
			var piece []byte
			err := row.Scan(&piece)
			pieces = append(pieces, piece)
			return err
		}, `DELETE FROM rate_logs RETURNING log`)
	})
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("taking over a rate log: %w", err)
	}
	return pieces, at, nil
}

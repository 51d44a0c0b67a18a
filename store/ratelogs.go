package store

import (
	"context"
	"database/sql"
	"fmt"
	"time"
)

// Now returns the time by the clock of the database.
func (db *DB) Now(ctx context.Context) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	var ms int64
	if err := db.changes.QueryRowContext(ctx, `SELECT `+db.dialect.now).Scan(&ms); err != nil {
		return time.Time{}, fmt.Errorf("asking for the time: %w", err)
	}
	return fromMillis(ms), nil
}

// SaveRateLog stores a piece of the rate log of a stopping replica.
func (db *DB) SaveRateLog(ctx context.Context, piece []byte) error {
	_, err := db.calling(forRateLog).changeOn(ctx, db.changes, func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO rate_logs (id, log, saved_at) VALUES ($1, $2, `+db.dialect.now+`)`, newID("ratelog_"), piece)
		return err
	})
	if err != nil {
		return fmt.Errorf("saving a rate log: %w", err)
	}
	return nil
}

// TakeRateLogs returns the saved pieces, with the time by the clock of the database, and deletes
// them, so that only one replica takes them.
func (db *DB) TakeRateLogs(ctx context.Context) (pieces [][]byte, at time.Time, err error) {
	_, err = db.calling(forRateLog).changeOn(ctx, db.changes, func(ctx context.Context, tx *sql.Tx) error {
		var ms int64
		if err := tx.QueryRowContext(ctx, `SELECT `+db.dialect.now).Scan(&ms); err != nil {
			return err
		}
		pieces, at = nil, fromMillis(ms)
		return each(ctx, tx, func(row scanner) error {
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

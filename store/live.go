package store

import (
	"context"
	"fmt"
)

// LiveReplicas counts the replicas that may answer: those whose lease has not ended.
func (db *DB) LiveReplicas(ctx context.Context) (n int, err error) {
	err = db.changes.QueryRowContext(ctx, `SELECT count(*) FROM replicas live WHERE `+db.dialect.live).Scan(&n)
	db.count(ctx, forReplicas, err)
	if err != nil {
		return 0, fmt.Errorf("counting the replicas: %w", err)
	}
	return n, nil
}

package store

import (
	"context"
	"fmt"
)

// LiveReplicas counts the replicas that may answer: those whose lease has not ended. On SQLite, where
// renewals leave no trace, it counts all that are on the list; one that has died is taken off it within a
// few minutes.
func (db *DB) LiveReplicas(ctx context.Context) (n int, err error) {
	where := ` WHERE acked >= 0 AND ` + db.dialect.now + ` - seen_at <= life`
	if db.dialect.path != "" {
		where = ` WHERE acked >= 0`
	}
	if err := db.changes.QueryRowContext(ctx, `SELECT count(*) FROM replicas`+where).Scan(&n); err != nil {
		return 0, fmt.Errorf("counting the replicas: %w", err)
	}
	return n, nil
}

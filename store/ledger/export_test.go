package ledger

import (
	"context"
	"time"

	"github.com/keyporter/keyporter/usage"
)

// Unreported returns the credits that users were charged in a month without a reported outcome.
func (l *Ledger) Unreported(ctx context.Context, month usage.Month) (credits int64, err error) {
	err = l.db.Changes.QueryRowContext(ctx, `SELECT CAST(coalesce(sum(credits), 0) AS BIGINT) FROM (`+unreported(`month = $1`, `month = $1`)+`) n`, int64(month)).Scan(&credits)
	return credits, err
}

// RefundUnreportedAt is RefundUnreported on a machine with a clock that says now.
func (l *Ledger) RefundUnreportedAt(ctx context.Context, now time.Time) (int64, error) {
	return l.refundUnreported(ctx, now)
}

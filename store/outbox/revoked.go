package outbox

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"time"

	"github.com/keyporter/keyporter/store"
)

const (
	// revokedUsedAfter is how long after the end of a user's last key a request with a revoked one
	// is worth an event.
	revokedUsedAfter = 24 * time.Hour
	// RevokedUsesEvery is how often [Outbox.AddRevokedUses] looks for such requests. It looks back
	// twice as far, since counts are saved a little later.
	RevokedUsesEvery = time.Hour
	// maxRevokedUses bounds the users of one look.
	maxRevokedUses = 1000
)

// revokedUse is a user whose programs still send a revoked key.
type revokedUse struct{ user, account string }

// AddRevokedUses adds an event for each user with recent requests with a revoked key that had ended
// more than a day before: at most one while an earlier one is kept. It reads the counts for the
// users' page, so a refusal costs the database nothing more.
func (o *Outbox) AddRevokedUses(ctx context.Context, fence int64) error {
	err := o.addRevokedUses(ctx, fence)
	if err != nil {
		err = fmt.Errorf("looking for uses of revoked keys: %w", err)
	}
	return err
}

func (o *Outbox) addRevokedUses(ctx context.Context, fence int64) error {
	now := o.db.Dialect.Now
	found, err := store.List(ctx, o.db, func(row store.Scanner) (r revokedUse, err error) { return r, row.Scan(&r.user, &r.account) },
		`SELECT c.user_name, u.account FROM (SELECT user_name, max(last_at) AS last_at FROM request_counts
				WHERE day = FALSE AND slot >= `+now+` - $1 AND ended GROUP BY user_name) c
			JOIN users u ON u.name = c.user_name
		WHERE EXISTS (SELECT 1 FROM event_subscriptions WHERE type = 'key.revoked_used')
			AND c.last_at > $2 + (SELECT max(k.revoked_at) FROM keys k WHERE k.user_name = c.user_name)
			AND NOT EXISTS (SELECT 1 FROM events e WHERE e.subject = 'user:' || c.user_name AND e.type = 'key.revoked_used')
		ORDER BY c.user_name LIMIT $3`, 2*RevokedUsesEvery.Milliseconds(), revokedUsedAfter.Milliseconds(), maxRevokedUses)
	if err != nil || len(found) == 0 {
		return err
	}
	return o.fenced(ctx, fence, func(ctx context.Context, tx *sql.Tx) error {
		for _, r := range found {
			data, err := json.Marshal(struct {
				User    string `json:"user"`
				Account string `json:"account"`
			}{r.user, r.account})
			if err != nil {
				return err
			}
			if _, err := tx.ExecContext(ctx, `INSERT INTO events (endpoint, type, subject, data)
				SELECT endpoint, type, $1, $2 FROM event_subscriptions WHERE type = 'key.revoked_used'`, "user:"+r.user, string(data)); err != nil {
				return err
			}
		}
		return nil
	})
}

// Package outbox keeps the events that webhooks are to be told. Triggers write them; one replica at
// a time delivers them, under a lease with a fence. It sends nothing itself; see the package events.
package outbox

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/keyporter/keyporter/store"
)

// Types returns the types of events, in the order of the documents.
func Types() []string {
	return []string{
		"key.created", "key.regenerated", "key.revoked", "key.revoked_used",
		"account.suspended", "account.cancelled", "account.resumed", "account.plan_changed",
		"credits.low", "credits.exhausted",
	}
}

const (
	// overtakenAfter is how long after its first attempt an event holds up the next ones of its
	// user or account.
	overtakenAfter = time.Hour
	// deliveredKept is how long delivered events are kept, and endlessKept all others.
	deliveredKept = 3 * 24 * time.Hour
	endlessKept   = 7 * 24 * time.Hour
	// marksKept is how long it is kept that the use of a pool was reported: longer than its month
	// takes reports.
	marksKept = 62 * 24 * time.Hour
	// forgottenAfter is how long nobody has delivered before nothing is written any more.
	forgottenAfter = 24 * time.Hour
	// tidyRows bounds one transaction of tidying, so that on SQLite others do not wait long.
	tidyRows = 1000
)

// ErrFenced is returned if another replica delivers now. Nothing was recorded.
var ErrFenced = errors.New("another replica has taken over the delivery of events")

// State is what has become of an event.
type State string

const (
	Pending   State = "pending"
	Delivered State = "delivered"
	Aside     State = "aside" // given up after a day of attempts, until an operator retries it
)

// Endpoint is a receiver of events.
type Endpoint struct {
	Name   string
	Target string   // differs if its URL differs, and says nothing about it
	Types  []string // of the events that it receives
}

// Event is an event for one endpoint.
type Event struct {
	ID       string // the webhook-id; the same at every attempt
	Endpoint string
	Type     string
	Subject  string // user:NAME or account:NAME
	Data     string // JSON
	At       time.Time
	State    State
	Attempts int
	Problem  string        // of the last attempt
	Trying   time.Duration // since the first attempt; 0 before it
	// OutOfOrder is set if an earlier event of the subject was not delivered, or a later one was.
	OutOfOrder bool

	seq int64
}

// Outbox is the outbox in a database. It is safe for concurrent use.
type Outbox struct{ db *store.DB }

// New returns the outbox in a database.
func New(db *store.DB) *Outbox { return &Outbox{db.Calling(store.ForEvents)} }

// Acquire takes or renews the lease of delivery for some time, by the clock of the database. Not
// held means that another replica has it.
func (o *Outbox) Acquire(ctx context.Context, holder string, life time.Duration) (fence int64, held bool, err error) {
	_, err = o.db.Write(ctx, o.db.Changes, func(ctx context.Context, tx *sql.Tx) error {
		err := tx.QueryRowContext(ctx, `UPDATE event_lease SET until = `+o.db.Dialect.Now+` + $2, holder = $1,
			fence = fence + CASE WHEN holder = $1 AND until >= `+o.db.Dialect.Now+` THEN 0 ELSE 1 END
			WHERE id = 1 AND (holder = $1 OR until < `+o.db.Dialect.Now+`) RETURNING fence`, holder, life.Milliseconds()).Scan(&fence)
		held = err == nil
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		return err
	})
	if err != nil {
		return 0, false, fmt.Errorf("taking the lease of events: %w", err)
	}
	return fence, held, nil
}

// Release gives the lease back, so that another replica takes over at once.
func (o *Outbox) Release(ctx context.Context, fence int64) error {
	return o.fenced(ctx, fence, func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `UPDATE event_lease SET until = 0 WHERE id = 1`)
		return err
	})
}

// fenced runs f in a transaction, if the lease is still the one with this fence.
func (o *Outbox) fenced(ctx context.Context, fence int64, f func(ctx context.Context, tx *sql.Tx) error) error {
	_, err := o.db.Write(ctx, o.db.Changes, func(ctx context.Context, tx *sql.Tx) error {
		var one int
		err := tx.QueryRowContext(ctx, `SELECT 1 FROM event_lease WHERE id = 1 AND fence = $1`+o.db.Dialect.Share, fence).Scan(&one)
		if errors.Is(err, sql.ErrNoRows) {
			return ErrFenced
		}
		if err != nil {
			return err
		}
		return f(ctx, tx)
	})
	return err
}

// SetEndpoints makes triggers write events for these endpoints and no others. An endpoint that was
// disabled works again if its target differs.
func (o *Outbox) SetEndpoints(ctx context.Context, fence int64, endpoints []Endpoint) error {
	err := o.fenced(ctx, fence, func(ctx context.Context, tx *sql.Tx) error {
		for _, e := range endpoints {
			if _, err := tx.ExecContext(ctx, `INSERT INTO event_endpoints (name, target) VALUES ($1, $2)
				ON CONFLICT (name) DO UPDATE SET target = excluded.target, disabled_at = CASE WHEN event_endpoints.target = excluded.target THEN event_endpoints.disabled_at END`,
				e.Name, e.Target); err != nil {
				return err
			}
		}
		if err := o.deleteOthers(ctx, tx, endpoints); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM event_subscriptions`); err != nil {
			return err
		}
		for _, e := range endpoints {
			for _, kind := range e.Types {
				if _, err := tx.ExecContext(ctx, `INSERT INTO event_subscriptions (type, endpoint) VALUES ($1, $2)`, kind, e.Name); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("setting the endpoints of webhooks: %w", err)
	}
	return nil
}

func (o *Outbox) deleteOthers(ctx context.Context, tx *sql.Tx, endpoints []Endpoint) error {
	places, names := []string{"''"}, []any{}
	for i, e := range endpoints {
		places, names = append(places, fmt.Sprintf("$%d", i+1)), append(names, e.Name)
	}
	_, err := tx.ExecContext(ctx, `DELETE FROM event_endpoints WHERE name NOT IN (`+strings.Join(places, ", ")+`)`, names...)
	return err
}

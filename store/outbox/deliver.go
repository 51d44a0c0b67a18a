package outbox

import (
	"context"
	"database/sql"
	"fmt"
	"strconv"
	"time"

	"github.com/keyporter/keyporter/store"
)

// columns are the columns of an event. They need the alias e.
func (o *Outbox) columns() string {
	return `e.seq, e.nonce, e.endpoint, e.type, e.subject, e.data, e.made_at, e.state, e.attempts, e.problem,
		CASE WHEN e.first_at IS NULL THEN 0 ELSE ` + o.db.Dialect.Now + ` - e.first_at END`
}

// outOfOrder is a condition on the event e.
const outOfOrder = `EXISTS (SELECT 1 FROM events p WHERE p.subject = e.subject AND p.endpoint = e.endpoint AND p.state IN ('pending', 'aside') AND p.seq < e.seq)
	OR EXISTS (SELECT 1 FROM events l WHERE l.subject = e.subject AND l.endpoint = e.endpoint AND l.state = 'delivered' AND l.seq > e.seq)`

func scanEvent(row store.Scanner) (e Event, err error) {
	var nonce string
	var made, trying int64
	err = row.Scan(&e.seq, &nonce, &e.Endpoint, &e.Type, &e.Subject, &e.Data, &made, &e.State, &e.Attempts, &e.Problem, &trying, &e.OutOfOrder)
	e.ID = "evt_" + strconv.FormatInt(e.seq, 10) + "_" + nonce
	e.At, e.Trying = store.FromMillis(made), time.Duration(trying)*time.Millisecond
	return e, err
}

// Ready returns at most n events whose next attempt is due, oldest attempt first. The events of one
// user or account come in their order, at most one at a time: an earlier one holds up the next ones
// until it is delivered, put aside, or an hour old since its first attempt; then while it waits for
// its next attempt they go on. A disabled endpoint has no events due.
func (o *Outbox) Ready(ctx context.Context, endpoint string, n int) ([]Event, error) {
	events, err := store.List(ctx, o.db, scanEvent, `SELECT `+o.columns()+`, `+outOfOrder+` FROM events e
		WHERE e.endpoint = $1 AND e.state = 'pending' AND e.next_at <= `+o.db.Dialect.Now+`
			AND NOT EXISTS (SELECT 1 FROM event_endpoints d WHERE d.name = e.endpoint AND d.disabled_at IS NOT NULL)
			AND NOT EXISTS (SELECT 1 FROM events p WHERE p.subject = e.subject AND p.endpoint = e.endpoint AND p.state = 'pending' AND p.seq < e.seq
				AND (p.first_at IS NULL OR p.first_at > `+o.db.Dialect.Now+` - $2 OR p.next_at <= `+o.db.Dialect.Now+`))
		ORDER BY e.next_at, e.seq LIMIT $3`, endpoint, overtakenAfter.Milliseconds(), n)
	if err != nil {
		return nil, fmt.Errorf("reading the events that are due: %w", err)
	}
	return events, nil
}

// Outcome is the result of an attempt. The next one is after Wait, unless State is not [Pending].
type Outcome struct {
	Event   Event
	State   State
	Wait    time.Duration
	Problem string // "" if it was delivered
	Gone    bool   // the endpoint wants no more events: it is disabled
}

// Record records the outcomes of attempts, unless another replica has taken over.
func (o *Outbox) Record(ctx context.Context, fence int64, outcomes []Outcome) error {
	err := o.fenced(ctx, fence, func(ctx context.Context, tx *sql.Tx) error {
		for _, out := range outcomes {
			if err := o.record(ctx, tx, out); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("recording the delivery of events: %w", err)
	}
	return nil
}

func (o *Outbox) record(ctx context.Context, tx *sql.Tx, out Outcome) error {
	now := o.db.Dialect.Now
	if _, err := tx.ExecContext(ctx, `UPDATE events SET state = $2, attempts = attempts + 1, first_at = coalesce(first_at, `+now+`), next_at = `+now+` + $3,
		ended_at = CASE WHEN $2 = 'pending' THEN NULL ELSE `+now+` END, problem = $4 WHERE seq = $1 AND state = 'pending'`,
		out.Event.seq, string(out.State), out.Wait.Milliseconds(), out.Problem); err != nil || !out.Gone {
		return err
	}
	_, err := tx.ExecContext(ctx, `UPDATE event_endpoints SET disabled_at = `+now+` WHERE name = $1 AND disabled_at IS NULL`, out.Event.Endpoint)
	return err
}

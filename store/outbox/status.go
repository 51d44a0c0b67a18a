package outbox

import (
	"context"
	"database/sql"
	"fmt"
	"iter"
	"regexp"
	"strconv"
	"time"

	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/feed"
	"github.com/keyporter/keyporter/usage"
)

// Status is the state of an endpoint.
type Status struct {
	Name           string
	Known          bool // the replica that delivers has it; else only its events are left
	Disabled       bool // it answered 410 Gone
	Pending, Aside int64
	Lag            time.Duration // age of the oldest pending event; 0 if there is none
}

// Status returns the state of all endpoints, by name.
func (o *Outbox) Status(ctx context.Context) ([]Status, error) {
	all, err := store.List(ctx, o.db, func(row store.Scanner) (s Status, err error) {
		var lag int64
		err = row.Scan(&s.Name, &s.Known, &s.Disabled, &s.Pending, &s.Aside, &lag)
		s.Lag = time.Duration(max(lag, 0)) * time.Millisecond
		return s, err
	}, `SELECT n.name, ep.name IS NOT NULL, ep.disabled_at IS NOT NULL, CAST(sum(n.pending) AS BIGINT), CAST(sum(n.aside) AS BIGINT),
			coalesce(`+o.db.Dialect.Now+` - min(n.oldest), 0)
		FROM (SELECT name, 0 AS pending, 0 AS aside, NULL AS oldest FROM event_endpoints
			UNION ALL SELECT endpoint, count(*), 0, min(made_at) FROM events WHERE state = 'pending' GROUP BY endpoint
			UNION ALL SELECT endpoint, 0, count(*), NULL FROM events WHERE state = 'aside' GROUP BY endpoint) n
		LEFT JOIN event_endpoints ep ON ep.name = n.name GROUP BY n.name, ep.name, ep.disabled_at ORDER BY n.name`)
	if err != nil {
		return nil, fmt.Errorf("reading the state of webhooks: %w", err)
	}
	return all, nil
}

// eventsOf are the events of an endpoint in a state, oldest first; "" means any.
func (o *Outbox) eventsOf(endpoint string, state State) store.Listing[Event] {
	return store.Listing[Event]{
		What: "events", Scan: scanEvent,
		Query: `SELECT ` + o.columns() + `, ` + outOfOrder + ` FROM events e
			WHERE ($1 = '' OR e.endpoint = $1) AND ($2 = '' OR e.state = $2) AND e.seq > $3 ORDER BY e.seq LIMIT $4`,
		Of: []any{endpoint, string(state)}, Start: []any{int64(0)}, Place: func(e Event) []any { return []any{e.seq} },
	}
}

// EachEvent lists the events of an endpoint in a state, oldest first; "" means any.
func (o *Outbox) EachEvent(ctx context.Context, endpoint string, state State) iter.Seq2[Event, error] {
	return o.eventsOf(endpoint, state).Each(ctx, o.db)
}

// PageOfEvents is a part of EachEvent, as [store.Listing.Page] returns it.
func (o *Outbox) PageOfEvents(ctx context.Context, endpoint string, state State, cursor string, n int) ([]Event, string, error) {
	return o.eventsOf(endpoint, state).Page(ctx, o.db, cursor, n)
}

var idForm = regexp.MustCompile(`^evt_([0-9]{1,18})_([0-9a-f]{32})$`)

// again makes an event new.
const again = `UPDATE events SET state = 'pending', attempts = 0, first_at = NULL, next_at = 0, ended_at = NULL WHERE `

// RetryEvent makes an event new, also a delivered one, so that it is sent at once with the same id.
// The error is [store.ErrNotFound] if there is none with that id.
func (o *Outbox) RetryEvent(ctx context.Context, id string, once feed.IdempotencyKey) (events int64, c feed.Confirmation, err error) {
	parts := idForm.FindStringSubmatch(id)
	if parts == nil {
		return 0, c, noSuchEvent(id)
	}
	seq, err := strconv.ParseInt(parts[1], 10, 64)
	if err != nil { // too large
		return 0, c, noSuchEvent(id)
	}
	events, c, err = feed.Once(ctx, o.db, once, "events retry "+id, func(ctx context.Context, tx *sql.Tx) (int64, error) {
		found, err := store.Affected(tx.ExecContext(ctx, again+`seq = $1 AND nonce = $2`, seq, parts[2]))
		if err == nil && !found {
			err = fmt.Errorf("the event was %w: events are kept for a few days", store.ErrNotFound)
		}
		return 1, err
	})
	if err != nil {
		return 0, c, fmt.Errorf("retrying event %s: %w", id, err)
	}
	return events, c, nil
}

// noSuchEvent is the error for an id that no event can have.
func noSuchEvent(id string) error {
	return fmt.Errorf("retrying event %.80q: the event was %w: want an id evt_…, as in a list of events", id, store.ErrNotFound)
}

// RetryEndpoint makes all events of an endpoint new that were put aside or wait after a failure, and
// enables the endpoint. The error is [store.ErrNotFound] if there is neither.
func (o *Outbox) RetryEndpoint(ctx context.Context, endpoint string, once feed.IdempotencyKey) (events int64, c feed.Confirmation, err error) {
	if err := store.CheckName("endpoint", endpoint); err != nil {
		return 0, c, err
	}
	events, c, err = feed.Once(ctx, o.db, once, "webhooks retry "+endpoint, func(ctx context.Context, tx *sql.Tx) (n int64, err error) {
		known, err := store.Affected(tx.ExecContext(ctx, `UPDATE event_endpoints SET disabled_at = NULL WHERE name = $1`, endpoint))
		if err != nil {
			return 0, err
		}
		result, err := tx.ExecContext(ctx, again+`endpoint = $1 AND (state = 'aside' OR state = 'pending' AND attempts > 0)`, endpoint)
		if err != nil {
			return 0, err
		}
		if n, err = result.RowsAffected(); err == nil && n == 0 && !known {
			err = fmt.Errorf("the endpoint was %w", store.ErrNotFound)
		}
		return n, err
	})
	if err != nil {
		return 0, c, fmt.Errorf("retrying the events of %s: %w", endpoint, err)
	}
	return events, c, nil
}

// Tidy deletes old events: three days after their delivery, and all others after seven. If nobody
// has delivered for a day, the endpoints are forgotten, so that no more events are written.
func (o *Outbox) Tidy(ctx context.Context) error {
	now := o.db.Dialect.Now
	for _, step := range []struct {
		statement string
		kept      time.Duration
	}{
		{`DELETE FROM events WHERE seq IN (SELECT seq FROM events WHERE state = 'delivered' AND ended_at < ` + now + ` - $1 LIMIT $2)`, deliveredKept},
		{`DELETE FROM events WHERE seq IN (SELECT seq FROM events WHERE seq <= (SELECT coalesce(max(seq), 0) FROM (SELECT seq FROM events WHERE made_at < ` + now + ` - $1 ORDER BY seq LIMIT $2) old) AND made_at < ` + now + ` - $1)`, endlessKept},
		{`DELETE FROM event_subscriptions WHERE $2 > 0 AND EXISTS (SELECT 1 FROM event_lease WHERE until < ` + now + ` - $1)`, forgottenAfter},
		{`DELETE FROM event_endpoints WHERE $2 > 0 AND EXISTS (SELECT 1 FROM event_lease WHERE until < ` + now + ` - $1)`, forgottenAfter},
	} {
		if err := o.tidyStep(ctx, step.statement, step.kept.Milliseconds()); err != nil {
			return fmt.Errorf("deleting old events: %w", err)
		}
	}
	at, err := o.db.Now(ctx)
	if err == nil {
		err = o.tidyStep(ctx, `DELETE FROM credit_marks WHERE (month, kind, name, percent) IN (SELECT month, kind, name, percent FROM credit_marks WHERE month < $1 LIMIT $2)`,
			int64(usage.MonthOf(at.Add(-marksKept))))
	}
	return err
}

// tidyStep repeats a deletion while it finds many rows.
func (o *Outbox) tidyStep(ctx context.Context, statement string, before int64) error {
	for ctx.Err() == nil {
		var deleted int64
		_, err := o.db.Write(ctx, o.db.Changes, func(ctx context.Context, tx *sql.Tx) error {
			result, err := tx.ExecContext(ctx, statement, before, tidyRows)
			if err == nil {
				deleted, err = result.RowsAffected()
			}
			return err
		})
		if err != nil || deleted < tidyRows {
			return err
		}
	}
	return ctx.Err()
}

package requests

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"slices"
	"time"

	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/usage"
)

// Outcome is a number of requests of a user on a day whose decision had one reason.
type Outcome struct {
	User     string `json:"user"`
	Day      int64  `json:"day"` // such as 20261124
	Reason   string `json:"reason"`
	Requests int64  `json:"requests"`
}

// AddOutcomes adds to the counts by outcome. Requests of unknown users do not count. Its writes
// need not survive a crash; if it fails, some of them may be made.
func (l *Log) AddOutcomes(ctx context.Context, all []Outcome) error {
	all = slices.Clone(all)
	for i := range all {
		all[i].User, all[i].Reason = text(all[i].User), text(all[i].Reason)
	}
	// In one order, so that replicas that add at once do not wait for each other in a circle.
	slices.SortFunc(all, func(a, b Outcome) int {
		return cmp.Or(cmp.Compare(a.User, b.User), cmp.Compare(a.Day, b.Day), cmp.Compare(a.Reason, b.Reason))
	})
	for some := range slices.Chunk(all, logRows) {
		if err := l.step(ctx, func(tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, `INSERT INTO request_outcomes (user_name, day, reason, requests)
				SELECT n.user_name, n.day, n.reason, CAST(sum(n.requests) AS BIGINT) FROM (SELECT `+store.Column("user")+` AS user_name, `+store.Number("day")+` AS day,
					`+store.Column("reason")+` AS reason, `+store.Number("requests")+` AS requests FROM `+l.db.Dialect.Rows+`) n
				WHERE n.user_name IN (SELECT name FROM users) GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
				ON CONFLICT (user_name, day, reason) DO UPDATE SET requests = request_outcomes.requests + excluded.requests`+l.db.Dialect.Lazily, store.Rows(some))
			return err
		}); err != nil {
			l.db.Count(ctx, store.ForRequestLog, err)
			return fmt.Errorf("saving the outcomes of requests: %w", err)
		}
	}
	return nil
}

// Outcomes returns the number of requests by reason on a day, of a user, or of all if user is
// empty. Some may be missing.
func (l *Log) Outcomes(ctx context.Context, day time.Time, user string) (map[string]int64, error) {
	where, args := ``, []any{usage.DayOf(day)}
	if user != "" {
		where, args = ` AND user_name = $2`, append(args, user)
	}
	found, err := store.ListLog(ctx, l.db, func(row store.Scanner) (o Outcome, err error) {
		return o, row.Scan(&o.Reason, &o.Requests)
	}, `SELECT reason, CAST(sum(requests) AS BIGINT) FROM request_outcomes WHERE day = $1`+where+` GROUP BY reason`, args...)
	if err != nil {
		return nil, fmt.Errorf("reading the outcomes of requests on %s: %w", day.Format(time.DateOnly), err)
	}
	counts := map[string]int64{}
	for _, o := range found {
		counts[o.Reason] = o.Requests
	}
	return counts, nil
}

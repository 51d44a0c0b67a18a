// Package requests keeps what the users' page shows of requests: a list of recent ones, and the
// uses of keys. It also keeps the rate log of a stopping replica for the next one. Nobody waits for
// it, and a crash may lose what it holds.
package requests

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/usage"
)

const (
	// requestsKept is the approximate number of requests kept for each user.
	requestsKept = 1000
	// trimAfter is the average number of a user's requests between deletions of the oldest ones.
	trimAfter = 100
	// slotLength is the time span of requests that are counted together.
	slotLength = 10 * time.Minute
	// slotsKept is how long slots are kept, before they are added up to days.
	slotsKept = 25 * time.Hour
	// sourcesKept is the approximate number of distinct sources for each key in a slot or day, and
	// for all ended keys of a user together: a client can send any agent.
	sourcesKept = 100
	// endedSlack is how long after the end of its key an admitted request may have begun: the
	// clocks of Envoy and the database differ, and an unreachable replica continues for its lease.
	endedSlack = 5 * time.Minute
	// logRows is the maximum number of rows in one transaction, so that on SQLite other writers do
	// not wait long.
	logRows = 100
	// tidyTime limits one round of tidying; the next one continues.
	tidyTime = 20 * time.Second
)

// DaysKept is how long the charges of a day are kept.
const DaysKept = 100 * 24 * time.Hour

// Log is the log of requests in a database. It is safe for concurrent use.
type Log struct{ db *store.DB }

// New returns the log in a database.
func New(db *store.DB) *Log { return &Log{db} }

// Count is the number of uses of a key at some time from one source.
type Count struct {
	User, KeyID    string
	Ended          bool // the key had ended, so the requests were refused
	Address, Agent string
	At             time.Time // of the last one
	Requests       int64
}

// Save stores requests. The counts are complete; the records may be only some of them. It
// uses its own connections and delays no decision. Its writes need not survive a crash.
func (l *Log) Save(ctx context.Context, records []usage.Record, counts []Count) error {
	if err := l.save(ctx, records, counts); err != nil {
		l.db.Count(ctx, store.ForRequestLog, err)
		return fmt.Errorf("saving requests: %w", err)
	}
	return nil
}

func (l *Log) save(ctx context.Context, records []usage.Record, counts []Count) error {
	for some := range slices.Chunk(countRows(counts), logRows) {
		if err := l.step(ctx, func(tx *sql.Tx) error { return l.addCounts(ctx, tx, some, ofSlots) }); err != nil {
			return err
		}
	}
	for some := range slices.Chunk(recordRows(records), logRows) {
		if err := l.step(ctx, func(tx *sql.Tx) error { return l.addRequests(ctx, tx, some) }); err != nil {
			return err
		}
	}
	return nil
}

// step runs one of many transactions of the log. It pauses for as long as it worked, since on
// SQLite others have to write as well.
func (l *Log) step(ctx context.Context, f func(*sql.Tx) error) error {
	began := time.Now()
	if err := l.db.WriteLog(ctx, f); err != nil {
		return err
	}
	select {
	case <-time.After(time.Since(began)):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// countsOf says what is added to: the value of the column day, and the condition for new rows.
type countsOf struct{ day, where string }

var (
	// A key that does not belong to the user, or did not at the time, does not count, regardless of
	// the access log.
	ofSlots = countsOf{"FALSE", `EXISTS (SELECT 1 FROM keys k WHERE k.id = n.claimed_key AND k.user_name = n.user_name
		AND CASE WHEN n.ended THEN k.revoked_at IS NOT NULL ELSE k.revoked_at IS NULL OR k.revoked_at >= n.at - ` + strconv.FormatInt(endedSlack.Milliseconds(), 10) + ` END)`}
	// Requests of deleted users do not count.
	ofDays = countsOf{"TRUE", `n.user_name IN (SELECT name FROM users)`}
)

// addCounts adds to the counts of slots, or of days. Sources of a key beyond sourcesKept are
// counted together; all ended keys of a user count as one.
func (l *Log) addCounts(ctx context.Context, tx *sql.Tx, all []requestRow, of countsOf) error {
	const group = `c.user_name = w.user_name AND c.key_id = w.key_id AND c.ended = w.ended AND c.slot = w.slot AND c.day = w.day`
	_, err := tx.ExecContext(ctx, `WITH updates AS (
			SELECT n.*, CASE WHEN n.ended THEN '' ELSE n.claimed_key END AS key_id, `+of.day+` AS day FROM (
				SELECT `+store.Column("user")+` AS user_name, `+store.Column("key")+` AS claimed_key, `+store.Number("ended")+` = 1 AS ended, `+store.Number("slot")+` AS slot,
					`+store.Column("address")+` AS address, `+store.Column("agent")+` AS agent, `+store.Number("requests")+` AS requests, `+store.Number("at")+` AS at
				FROM `+l.db.Dialect.Rows+`) n WHERE `+of.where+`),
		full_groups AS (
			SELECT w.user_name, w.key_id, w.ended, w.slot FROM (SELECT DISTINCT user_name, key_id, ended, slot, day FROM updates) w
			WHERE (SELECT count(*) FROM request_counts c WHERE `+group+`) >= $2),
		kept AS (
			SELECT w.*, f.slot IS NULL OR EXISTS (SELECT 1 FROM request_counts c WHERE `+group+` AND c.address = w.address AND c.agent = w.agent) AS known
			FROM updates w LEFT JOIN full_groups f ON f.user_name = w.user_name AND f.key_id = w.key_id AND f.ended = w.ended AND f.slot = w.slot)
		INSERT INTO request_counts (user_name, key_id, ended, slot, day, address, agent, requests, last_at)
		SELECT user_name, key_id, ended, slot, day, CASE WHEN known THEN address ELSE '' END, CASE WHEN known THEN agent ELSE '' END,
			CAST(sum(requests) AS BIGINT), max(at)
		FROM kept WHERE TRUE GROUP BY 1, 2, 3, 4, 5, 6, 7 ORDER BY 1, 2, 3, 4, 5, 6, 7
		ON CONFLICT (user_name, key_id, ended, slot, day, address, agent) DO UPDATE SET requests = request_counts.requests + excluded.requests,
			last_at = CASE WHEN excluded.last_at > request_counts.last_at THEN excluded.last_at ELSE request_counts.last_at END`+l.db.Dialect.Lazily,
		store.Rows(all), sourcesKept)
	return err
}

// addRequests adds to the recent requests, and deletes the oldest ones of some users. It omits
// requests with a key that the user never had.
func (l *Log) addRequests(ctx context.Context, tx *sql.Tx, all []requestRow) error {
	if _, err := tx.ExecContext(ctx, `INSERT INTO requests (id, user_name, key_id, at, method, path, status, reason, credits, refunded)
		SELECT `+store.Column("id")+`, `+store.Column("user")+`, `+store.Column("key")+`, `+store.Number("at")+`, `+store.Column("method")+`, `+store.Column("path")+`,
			`+store.Number("status")+`, `+store.Column("reason")+`, `+store.Number("credits")+`, `+store.Number("refunded")+`
		FROM `+l.db.Dialect.Rows+` WHERE EXISTS (SELECT 1 FROM keys k WHERE k.id = `+store.Column("key")+` AND k.user_name = `+store.Column("user")+`) ON CONFLICT DO NOTHING`+l.db.Dialect.Lazily, store.Rows(all)); err != nil {
		return err
	}
	return trimRequests(ctx, tx, all)
}

// requestRow is a record or a count as a row of JSON.
type requestRow struct {
	ID       string `json:"id,omitempty"`
	User     string `json:"user"`
	Key      string `json:"key"`
	At       int64  `json:"at"`
	Method   string `json:"method,omitempty"`
	Path     string `json:"path,omitempty"`
	Status   int    `json:"status"`
	Reason   string `json:"reason,omitempty"`
	Credits  int64  `json:"credits"`
	Refunded int64  `json:"refunded"`
	Ended    int    `json:"ended"`
	Slot     int64  `json:"slot"`
	Address  string `json:"address"`
	Agent    string `json:"agent"`
	Requests int64  `json:"requests"`
}

// recordRows returns records as rows, sorted by user and with ids that grow with time. So the rows
// of a transaction lie on few pages of the indexes; in the order of their arrival and with random
// ids, each would be on pages of its own, and each of these would be written.
func recordRows(records []usage.Record) []requestRow {
	all := make([]requestRow, 0, len(records))
	for _, r := range records {
		row := requestRow{
			ID: store.NewID(fmt.Sprintf("%012x", max(r.At.UnixMilli(), 0))), User: text(r.User), Key: text(r.KeyID), At: r.At.UnixMilli(), Method: cmp.Or(text(r.Method), "?"),
			Path: cmp.Or(text(r.Path), "/"), Status: r.Status, Reason: cmp.Or(text(r.Reason), "?"), Credits: r.Credits,
		}
		if r.Refunded {
			row.Refunded = r.Credits
		}
		all = append(all, row)
	}
	slices.SortStableFunc(all, func(a, b requestRow) int { return cmp.Or(cmp.Compare(a.User, b.User), cmp.Compare(a.At, b.At)) })
	return all
}

func countRows(counts []Count) []requestRow {
	all := make([]requestRow, 0, len(counts))
	for _, c := range counts {
		row := requestRow{
			User: text(c.User), Key: text(c.KeyID), Slot: slotOf(c.At).UnixMilli(), Address: text(c.Address), Agent: text(c.Agent),
			Requests: c.Requests, At: c.At.UnixMilli(),
		}
		if c.Ended {
			row.Ended = 1
		}
		all = append(all, row)
	}
	return all
}

// text makes a text acceptable to both databases: PostgreSQL has no NUL.
func text(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}

func slotOf(t time.Time) time.Time { return t.Truncate(slotLength) }

// trimRequests deletes the oldest requests of users, on average once in trimAfter requests of each.
func trimRequests(ctx context.Context, tx *sql.Tx, records []requestRow) error {
	due := map[string]bool{}
	for _, r := range records {
		if rand.N(trimAfter) == 0 {
			due[r.User] = true
		}
	}
	for user := range due {
		if _, err := tx.ExecContext(ctx, `DELETE FROM requests WHERE user_name = $1 AND at < (
			SELECT at FROM requests WHERE user_name = $1 ORDER BY at DESC LIMIT 1 OFFSET $2)`, user, requestsKept-1); err != nil {
			return err
		}
	}
	return nil
}

// List returns at most n requests of a user before a cursor, newest first, and the cursor for
// the next page, "" if there is none. An empty cursor begins with the newest request; a malformed
// one is [store.ErrInvalid].
func (l *Log) List(ctx context.Context, user, before string, n int) (records []usage.Record, next string, err error) {
	at, id, err := parseCursor(before)
	if err != nil {
		return nil, "", err
	}
	var cursors []string
	records, err = store.ListLog(ctx, l.db, func(row store.Scanner) (r usage.Record, err error) {
		var at int64
		var id string
		err = row.Scan(&id, &r.User, &r.KeyID, &at, &r.Method, &r.Path, &r.Status, &r.Reason, &r.Credits, &r.Refunded)
		r.At = store.FromMillis(at)
		cursors = append(cursors, strconv.FormatInt(at, 36)+"."+id)
		return r, err
	}, `SELECT id, user_name, key_id, at, method, path, status, reason, credits, refunded > 0 FROM requests
		WHERE user_name = $1 AND (at < $2 OR at = $2 AND id < $3) ORDER BY at DESC, id DESC LIMIT $4`, user, at, id, n+1)
	if err != nil {
		return nil, "", fmt.Errorf("reading the requests of user %s: %w", user, err)
	}
	if len(records) > n {
		records, next = records[:n], cursors[n-1]
	}
	return records, next, nil
}

// parseCursor reads the beginning of a page of requests.
func parseCursor(s string) (at int64, id string, err error) {
	if s == "" {
		return 1<<62 - 1, "", nil
	}
	millis, id, _ := strings.Cut(s, ".")
	at, err = strconv.ParseInt(millis, 36, 64)
	if _, malformed := hex.DecodeString(id); err != nil || malformed != nil || len(id) > 32 {
		return 0, "", fmt.Errorf("the place to go on from is %w: take the one of an earlier answer", store.ErrInvalid)
	}
	return at, id, nil
}

// KeyUsage returns the use of a key.
func (l *Log) KeyUsage(ctx context.Context, user, keyID string) (usage.KeyUsage, error) {
	return l.usage(ctx, `user_name = $1 AND key_id = $2 AND NOT ended AND slot >= $5`, user, keyID, time.Time{})
}

// EndedKeyUsage returns the attempts with ended keys of a user since a moment.
func (l *Log) EndedKeyUsage(ctx context.Context, user string, since time.Time) (usage.KeyUsage, error) {
	return l.usage(ctx, `user_name = $1 AND (ended AND $2 = '') AND last_at >= $5`, user, "", since)
}

func (l *Log) usage(ctx context.Context, of, user, keyID string, since time.Time) (u usage.KeyUsage, err error) {
	at := time.Now()
	hour, day, from := slotOf(at.Add(-time.Hour)).UnixMilli(), slotOf(at.Add(-24*time.Hour)).UnixMilli(), int64(0)
	if !since.IsZero() {
		from = since.UnixMilli()
	}
	found, err := store.ListLog(ctx, l.db, func(row store.Scanner) (u usage.KeyUsage, err error) {
		var last int64
		err = row.Scan(&u.LastHour, &u.LastDay, &u.Addresses, &u.Agents, &u.All, &last, &u.Address, &u.Agent)
		if last > 0 {
			u.Last = store.FromMillis(last)
		}
		return u, err
	}, `WITH mine AS (SELECT slot, day, address, agent, requests, last_at FROM request_counts WHERE `+of+`)
		SELECT CAST(coalesce(sum(CASE WHEN slot >= $3 AND NOT day THEN requests ELSE 0 END), 0) AS BIGINT),
			CAST(coalesce(sum(CASE WHEN slot >= $4 AND NOT day THEN requests ELSE 0 END), 0) AS BIGINT),
			count(DISTINCT CASE WHEN slot >= $4 AND NOT day AND address <> '' THEN address END),
			count(DISTINCT CASE WHEN slot >= $4 AND NOT day AND address <> '' THEN agent END),
			CAST(coalesce(sum(requests), 0) AS BIGINT), coalesce(max(last_at), 0),
			coalesce((SELECT address FROM mine WHERE address <> '' ORDER BY last_at DESC, address, agent LIMIT 1), ''),
			coalesce((SELECT agent FROM mine WHERE address <> '' ORDER BY last_at DESC, address, agent LIMIT 1), '')
		FROM mine`, user, keyID, hour, day, from)
	if err != nil {
		return usage.KeyUsage{}, fmt.Errorf("reading the use of keys of user %s: %w", user, err)
	}
	return found[0], nil
}

// Tidy deletes rows older than the retention, and adds up slots older than a day. It works
// in small steps on the connections of the log, and leaves the rest to the next call if it takes
// too long.
func (l *Log) Tidy(ctx context.Context, retention time.Duration) error {
	limited, cancel := context.WithTimeout(ctx, tidyTime)
	defer cancel()
	err := l.tidy(limited, time.Now(), retention)
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		err = nil // the next call continues
	}
	l.db.Count(ctx, store.ForRequestLog, err)
	return err
}

func (l *Log) tidy(ctx context.Context, at time.Time, retention time.Duration) error {
	const slot = `user_name, key_id, ended, slot, day, address, agent`
	for _, step := range []struct {
		statement string
		before    int64
	}{
		{`DELETE FROM requests WHERE id IN (SELECT id FROM requests WHERE at < $1 LIMIT $2)`, at.Add(-retention).UnixMilli()},
		{`DELETE FROM request_counts WHERE (` + slot + `) IN (SELECT ` + slot + ` FROM request_counts WHERE day IN (TRUE, FALSE) AND slot < $1 AND last_at < $1 LIMIT $2)`,
			at.Add(-retention).UnixMilli()},
		{`DELETE FROM request_outcomes WHERE (user_name, day, reason) IN (SELECT user_name, day, reason FROM request_outcomes WHERE day < $1 LIMIT $2)`,
			usage.DayOf(at.Add(-retention))},
		{`DELETE FROM credit_daily WHERE (user_name, day, account) IN (SELECT user_name, day, account FROM credit_daily WHERE day < $1 LIMIT $2)`, usage.DayOf(at.Add(-DaysKept))},
		{`DELETE FROM credit_days WHERE (user_name, day) IN (SELECT user_name, day FROM credit_days WHERE day < $1 LIMIT $2)`, usage.DayOf(at.Add(-DaysKept))},
	} {
		if err := l.inSteps(ctx, func(tx *sql.Tx) (int64, error) {
			result, err := tx.ExecContext(ctx, step.statement, step.before, logRows)
			if err != nil {
				return 0, err
			}
			return result.RowsAffected()
		}); err != nil {
			return fmt.Errorf("deleting old requests: %w", err)
		}
	}
	if err := l.inSteps(ctx, func(tx *sql.Tx) (int64, error) {
		return l.addUpSlots(ctx, tx, slotOf(at.Add(-slotsKept)).UnixMilli())
	}); err != nil {
		return fmt.Errorf("adding up the requests of a day: %w", err)
	}
	return nil
}

// inSteps repeats f, each time in a transaction of its own, until it touches fewer than logRows
// rows.
func (l *Log) inSteps(ctx context.Context, f func(*sql.Tx) (int64, error)) error {
	for {
		touched := int64(0)
		if err := l.step(ctx, func(tx *sql.Tx) (err error) { touched, err = f(tx); return err }); err != nil || touched < logRows {
			return err
		}
	}
}

// addUpSlots adds some slots up to days, and returns their number. Sources with many requests come
// first, before too many sources are known for each to be kept apart.
func (l *Log) addUpSlots(ctx context.Context, tx *sql.Tx, before int64) (int64, error) {
	const slot = `user_name, key_id, ended, slot, day, address, agent`
	var all []requestRow
	if err := store.Each(ctx, tx, func(row store.Scanner) error {
		var r requestRow
		var ended bool
		err := row.Scan(&r.User, &r.Key, &ended, &r.Slot, &r.Address, &r.Agent, &r.Requests, &r.At)
		if ended {
			r.Ended = 1
		}
		all = append(all, r)
		return err
	}, `DELETE FROM request_counts WHERE (`+slot+`) IN (SELECT `+slot+` FROM request_counts WHERE day = FALSE AND slot < $1
			ORDER BY slot, requests DESC LIMIT $2)
		RETURNING user_name, key_id, ended, slot - slot % 86400000, address, agent, requests, last_at`, before, logRows); err != nil || len(all) == 0 {
		return 0, err
	}
	return int64(len(all)), l.addCounts(ctx, tx, all, ofDays)
}

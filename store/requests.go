package store

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/keyporter/keyporter/authz"
)

const (
	// requestsKept is how many requests of a user are kept, more or less.
	requestsKept = 1000
	// trimAfter is after how many requests of a user the oldest ones are deleted.
	trimAfter = 100
	// slotLength is the time of which requests are counted together.
	slotLength = 10 * time.Minute
	// slotsKept is how long that is kept, before it is added up to days.
	slotsKept = 25 * time.Hour
	// tidyRows is how many rows are deleted in one transaction.
	tidyRows = 5000
	// daysKept is how long what was charged on a day is kept.
	daysKept = 100 * 24 * time.Hour
)

// RequestCount is how often a key was used at some time from somewhere.
type RequestCount struct {
	User, KeyID    string
	Ended          bool // the key had ended, and was refused
	Address, Agent string
	At             time.Time // of the last one
	Requests       int64
}

// SaveRequests keeps requests, of which the counts are all, and the records perhaps only some. It has
// connections of its own and waits for nobody who decides. Nothing of it need outlive a crash.
func (db *DB) SaveRequests(ctx context.Context, records []authz.Record, counts []RequestCount) error {
	if err := db.saveRequests(ctx, records, counts); err != nil {
		db.count(ctx, "requests", err)
		return fmt.Errorf("saving requests: %w", err)
	}
	return nil
}

func (db *DB) saveRequests(ctx context.Context, records []authz.Record, counts []RequestCount) error {
	tx, err := db.logs.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if len(counts) > 0 {
		if _, err := tx.ExecContext(ctx, `INSERT INTO request_counts (user_name, key_id, ended, slot, day, address, agent, requests, last_at)
			SELECT `+column("user")+`, `+column("key")+`, `+number("ended")+` = 1, `+number("slot")+`, FALSE, `+column("address")+`, `+column("agent")+`,
				CAST(sum(`+number("requests")+`) AS BIGINT), max(`+number("at")+`)
			FROM `+db.dialect.rows+` WHERE TRUE GROUP BY 1, 2, 3, 4, 6, 7 ORDER BY 1, 2, 3, 4, 6, 7
			ON CONFLICT (user_name, key_id, ended, slot, day, address, agent) DO UPDATE SET requests = request_counts.requests + excluded.requests,
				last_at = CASE WHEN excluded.last_at > request_counts.last_at THEN excluded.last_at ELSE request_counts.last_at END`+db.dialect.lazily,
			rows(countRows(counts))); err != nil {
			return err
		}
	}
	if len(records) > 0 {
		if _, err := tx.ExecContext(ctx, `INSERT INTO requests (id, user_name, key_id, at, method, path, status, reason, credits, refunded)
			SELECT `+column("id")+`, `+column("user")+`, `+column("key")+`, `+number("at")+`, `+column("method")+`, `+column("path")+`,
				`+number("status")+`, `+column("reason")+`, `+number("credits")+`, `+number("refunded")+` = 1
			FROM `+db.dialect.rows+` WHERE TRUE ON CONFLICT DO NOTHING`+db.dialect.lazily, rows(recordRows(records))); err != nil {
			return err
		}
		if err := trimRequests(ctx, tx, records); err != nil {
			return err
		}
	}
	return tx.Commit()
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
	Refunded int    `json:"refunded"`
	Ended    int    `json:"ended"`
	Slot     int64  `json:"slot"`
	Address  string `json:"address"`
	Agent    string `json:"agent"`
	Requests int64  `json:"requests"`
}

func recordRows(records []authz.Record) []requestRow {
	all := make([]requestRow, 0, len(records))
	for _, r := range records {
		row := requestRow{
			ID: newID(""), User: text(r.User), Key: text(r.KeyID), At: r.At.UnixMilli(), Method: cmp.Or(text(r.Method), "?"),
			Path: cmp.Or(text(r.Path), "/"), Status: r.Status, Reason: cmp.Or(text(r.Reason), "?"), Credits: r.Credits,
		}
		if r.Refunded {
			row.Refunded = 1
		}
		all = append(all, row)
	}
	return all
}

func countRows(counts []RequestCount) []requestRow {
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

// text is what both databases take: PostgreSQL has no NUL.
func text(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}

func slotOf(t time.Time) time.Time { return t.Truncate(slotLength) }

// trimRequests deletes the oldest requests of users, on average once in trimAfter requests of each.
func trimRequests(ctx context.Context, tx *sql.Tx, records []authz.Record) error {
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

// Requests returns at most n requests of a user, newest first, that came before a cursor, and the cursor of
// those before them: "" if there are none. An empty cursor begins with the newest; one that is none of ours
// is [ErrInvalid].
func (db *DB) Requests(ctx context.Context, user, before string, n int) (records []authz.Record, next string, err error) {
	at, id, err := parseCursor(before)
	if err != nil {
		return nil, "", err
	}
	var cursors []string
	records, err = list(ctx, db, func(row scanner) (r authz.Record, err error) {
		var at int64
		var id string
		err = row.Scan(&id, &r.User, &r.KeyID, &at, &r.Method, &r.Path, &r.Status, &r.Reason, &r.Credits, &r.Refunded)
		r.At = fromMillis(at)
		cursors = append(cursors, strconv.FormatInt(at, 36)+"."+id)
		return r, err
	}, `SELECT id, user_name, key_id, at, method, path, status, reason, credits, refunded FROM requests
		WHERE user_name = $1 AND (at < $2 OR at = $2 AND id < $3) ORDER BY at DESC, id DESC LIMIT $4`, user, at, id, n+1)
	if err != nil {
		return nil, "", fmt.Errorf("reading the requests of user %s: %w", user, err)
	}
	if len(records) > n {
		records, next = records[:n], cursors[n-1]
	}
	return records, next, nil
}

// parseCursor reads where a page of requests begins.
func parseCursor(s string) (at int64, id string, err error) {
	if s == "" {
		return 1<<62 - 1, "", nil
	}
	millis, id, _ := strings.Cut(s, ".")
	at, err = strconv.ParseInt(millis, 36, 64)
	if _, malformed := hex.DecodeString(id); err != nil || malformed != nil || len(id) > 32 {
		return 0, "", fmt.Errorf("the place to go on from is %w: take the one of an earlier answer", ErrInvalid)
	}
	return at, id, nil
}

// KeyUsage is what was done with a key, or with several. Of the last hour and day it is true to ten
// minutes.
type KeyUsage struct {
	LastHour, LastDay int64     // requests
	Addresses, Agents int64     // different ones, in the last day
	All               int64     // requests, as far as they are remembered
	Last              time.Time // zero: never
	Address, Agent    string    // of the last one
}

// KeyUsage returns what was done with a key.
func (db *DB) KeyUsage(ctx context.Context, user, keyID string) (KeyUsage, error) {
	return db.usage(ctx, `user_name = $1 AND key_id = $2 AND NOT ended AND slot >= $5`, user, keyID, time.Time{})
}

// EndedKeyUsage returns how often ended keys of a user were tried since a moment.
func (db *DB) EndedKeyUsage(ctx context.Context, user string, since time.Time) (KeyUsage, error) {
	return db.usage(ctx, `user_name = $1 AND (ended AND $2 = '') AND last_at >= $5`, user, "", since)
}

func (db *DB) usage(ctx context.Context, of, user, keyID string, since time.Time) (u KeyUsage, err error) {
	at := time.Now()
	hour, day, from := slotOf(at.Add(-time.Hour)).UnixMilli(), slotOf(at.Add(-24*time.Hour)).UnixMilli(), int64(0)
	if !since.IsZero() {
		from = since.UnixMilli()
	}
	found, err := list(ctx, db, func(row scanner) (u KeyUsage, err error) {
		var last int64
		err = row.Scan(&u.LastHour, &u.LastDay, &u.Addresses, &u.Agents, &u.All, &last, &u.Address, &u.Agent)
		if last > 0 {
			u.Last = fromMillis(last)
		}
		return u, err
	}, `WITH mine AS (SELECT slot, day, address, agent, requests, last_at FROM request_counts WHERE `+of+`)
		SELECT CAST(coalesce(sum(CASE WHEN slot >= $3 AND NOT day THEN requests ELSE 0 END), 0) AS BIGINT),
			CAST(coalesce(sum(CASE WHEN slot >= $4 AND NOT day THEN requests ELSE 0 END), 0) AS BIGINT),
			count(DISTINCT CASE WHEN slot >= $4 AND NOT day THEN address END), count(DISTINCT CASE WHEN slot >= $4 AND NOT day THEN agent END),
			CAST(coalesce(sum(requests), 0) AS BIGINT), coalesce(max(last_at), 0),
			coalesce((SELECT address FROM mine ORDER BY last_at DESC LIMIT 1), ''), coalesce((SELECT agent FROM mine ORDER BY last_at DESC LIMIT 1), '')
		FROM mine`, user, keyID, hour, day, from)
	if err != nil {
		return KeyUsage{}, fmt.Errorf("reading the use of keys of user %s: %w", user, err)
	}
	return found[0], nil
}

// TidyRequests deletes what is older than the retention, and adds up what is older than a day. It does so in
// small steps, on the connections of the log.
func (db *DB) TidyRequests(ctx context.Context, retention time.Duration) error {
	at := time.Now()
	old := at.Add(-retention).UnixMilli()
	midnight := `slot - slot % 86400000`
	for _, step := range []string{
		`DELETE FROM requests WHERE id IN (SELECT id FROM requests WHERE at < $1 LIMIT $2)`,
		`DELETE FROM request_counts WHERE (user_name, key_id, ended, slot, day, address, agent) IN
			(SELECT user_name, key_id, ended, slot, day, address, agent FROM request_counts WHERE last_at < $1 AND slot < $1 LIMIT $2)`,
	} {
		if err := db.inSteps(ctx, step, old, tidyRows); err != nil {
			return fmt.Errorf("deleting old requests: %w", err)
		}
	}
	if _, err := db.logs.ExecContext(ctx, `DELETE FROM credit_days WHERE day < $1`, dayOf(at.Add(-daysKept))); err != nil {
		return fmt.Errorf("deleting old days: %w", err)
	}
	slots := slotOf(at.Add(-slotsKept)).UnixMilli()
	for {
		more, err := db.addUpSlots(ctx, midnight, slots)
		if err != nil {
			return fmt.Errorf("adding up the requests of a day: %w", err)
		}
		if !more {
			return nil
		}
	}
}

// inSteps repeats a statement until it touches nothing.
func (db *DB) inSteps(ctx context.Context, statement string, args ...any) error {
	for {
		result, err := db.logs.ExecContext(ctx, statement, args...)
		if err != nil {
			return err
		}
		if n, err := result.RowsAffected(); err != nil || n == 0 {
			return err
		}
	}
}

// addUpSlots adds some slots up to days, and reports whether there may be more.
func (db *DB) addUpSlots(ctx context.Context, midnight string, before int64) (more bool, err error) {
	tx, err := db.logs.BeginTx(ctx, nil)
	if err != nil {
		return false, err
	}
	defer tx.Rollback()
	var all []requestRow
	if err := each(ctx, tx, func(row scanner) error {
		var r requestRow
		var ended bool
		err := row.Scan(&r.User, &r.Key, &ended, &r.Slot, &r.Address, &r.Agent, &r.Requests, &r.At)
		if ended {
			r.Ended = 1
		}
		all = append(all, r)
		return err
	}, `DELETE FROM request_counts WHERE (user_name, key_id, ended, slot, day, address, agent) IN
			(SELECT user_name, key_id, ended, slot, day, address, agent FROM request_counts WHERE NOT day AND slot < $1 LIMIT $2)
		RETURNING user_name, key_id, ended, `+midnight+`, address, agent, requests, last_at`, before, tidyRows); err != nil || len(all) == 0 {
		return false, err
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO request_counts (user_name, key_id, ended, slot, day, address, agent, requests, last_at)
		SELECT `+column("user")+`, `+column("key")+`, `+number("ended")+` = 1, `+number("slot")+`, TRUE, `+column("address")+`, `+column("agent")+`,
			CAST(sum(`+number("requests")+`) AS BIGINT), max(`+number("at")+`)
		FROM `+db.dialect.rows+` WHERE TRUE GROUP BY 1, 2, 3, 4, 6, 7 ORDER BY 1, 2, 3, 4, 6, 7
		ON CONFLICT (user_name, key_id, ended, slot, day, address, agent) DO UPDATE SET requests = request_counts.requests + excluded.requests,
			last_at = CASE WHEN excluded.last_at > request_counts.last_at THEN excluded.last_at ELSE request_counts.last_at END`, rows(all)); err != nil {
		return false, err
	}
	return len(all) == tidyRows, tx.Commit()
}

// CreditDay is what a user was charged on a day, in UTC.
type CreditDay struct {
	Date           time.Time
	Used, Refunded int64
}

// CreditDays returns what a user was charged on each of the last n days, oldest first, by the clock of the
// database. The figures are the ledger's.
func (db *DB) CreditDays(ctx context.Context, user string, n int) ([]CreditDay, error) {
	now, err := db.Now(ctx)
	if err != nil {
		return nil, err
	}
	today := now.UTC().Truncate(24 * time.Hour)
	first := today.AddDate(0, 0, 1-n)
	type day struct{ day, used, refunded int64 }
	found, err := list(ctx, db, func(row scanner) (d day, err error) {
		return d, row.Scan(&d.day, &d.used, &d.refunded)
	}, `SELECT day, used, refunded FROM credit_days WHERE user_name = $1 AND day >= $2`, user, dayOf(first))
	if err != nil {
		return nil, fmt.Errorf("reading the days of user %s: %w", user, err)
	}
	byDay := map[int64]day{}
	for _, d := range found {
		byDay[d.day] = d
	}
	days := make([]CreditDay, n)
	for i := range days {
		date := first.AddDate(0, 0, i)
		d := byDay[dayOf(date)]
		days[i] = CreditDay{Date: date, Used: d.used, Refunded: d.refunded}
	}
	return days, nil
}

// dayOf is a day in UTC as a number such as 20261124.
func dayOf(t time.Time) int64 {
	t = t.UTC()
	return int64(t.Year()*10000 + int(t.Month())*100 + t.Day())
}

// dayIn is the day on which something of a month is counted: today, or the month's last.
func dayIn(month authz.Month, today time.Time) int64 {
	if authz.MonthOf(today) == month {
		return dayOf(today)
	}
	return dayOf(month.End().Add(-time.Hour))
}

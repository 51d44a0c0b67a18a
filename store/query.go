package store

import (
	"cmp"
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"
)

// Scanner is a single row or a row of many.
type Scanner interface{ Scan(into ...any) error }

// List runs a query and scans each row.
func List[T any](ctx context.Context, db *DB, scan func(Scanner) (T, error), query string, args ...any) ([]T, error) {
	all, err := scanAll(ctx, db, scan, query, args...)
	db.Count(ctx, ForList, err)
	return all, err
}

func scanAll[T any](ctx context.Context, db *DB, scan func(Scanner) (T, error), query string, args ...any) ([]T, error) {
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	return scanAllOn(ctx, db.lists, scan, query, args...)
}

func scanAllOn[T any](ctx context.Context, pool *sql.DB, scan func(Scanner) (T, error), query string, args ...any) ([]T, error) {
	rows, err := pool.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	all := []T{}
	for rows.Next() {
		one, err := scan(rows)
		if err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return all, rows.Err()
}

// ListLog is List on the connections of the log, so that a slow log delays only its readers.
func ListLog[T any](ctx context.Context, db *DB, scan func(Scanner) (T, error), query string, args ...any) ([]T, error) {
	ctx, cancel := context.WithTimeout(ctx, logSilence)
	defer cancel()
	all, err := scanAllOn(ctx, db.logs, scan, query, args...)
	db.Count(ctx, ForRequestLog, err)
	return all, err
}

// Each calls f for every row of a query.
func Each(ctx context.Context, q querier, f func(Scanner) error, query string, args ...any) error {
	result, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer result.Close()
	for result.Next() {
		if err := f(result); err != nil {
			return err
		}
	}
	return result.Err()
}

// Affected reports whether a statement changed any row.
func Affected(result sql.Result, err error) (bool, error) {
	if err != nil {
		return false, err
	}
	n, err := result.RowsAffected()
	return n > 0, err
}

// LookUp reads one row. The caller may leave while it waits for a connection. After that the
// statement continues: the driver discards the connection of a cancelled statement, so callers that
// leave could use up all of them.
func (db *DB) LookUp(caller context.Context, query string, id any, into ...any) error {
	err := db.lookUp(caller, query, id, into...)
	db.Count(caller, ForLookup, err)
	// a caller that left proves nothing about the database
	if !errors.Is(caller.Err(), context.Canceled) {
		db.lookedUp.note(err)
	}
	return err
}

func (db *DB) lookUp(caller context.Context, query string, id any, into ...any) error {
	waiting, cancel := context.WithTimeout(caller, lookupTimeout)
	defer cancel()
	asking, end := context.WithTimeout(context.WithoutCancel(caller), lookupTimeout)
	defer end()
	for {
		conn, err := db.lookups.Conn(waiting)
		if err != nil {
			return err
		}
		err = conn.QueryRowContext(asking, query, id).Scan(into...)
		conn.Close()
		if !errors.Is(err, driver.ErrBadConn) {
			return err
		}
		// It had ended while it was idle, and the next one may have as well.
	}
}

// Now returns the time by the clock of the database.
func (db *DB) Now(ctx context.Context) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	var ms int64
	if err := db.Changes.QueryRowContext(ctx, `SELECT `+db.Dialect.Now).Scan(&ms); err != nil {
		return time.Time{}, fmt.Errorf("asking for the time: %w", err)
	}
	return FromMillis(ms), nil
}

// pageSize is the number of rows read at a time.
const pageSize = 1000

// Pages reads a list of any length in pages, each with its own time limit. It holds no connection,
// and at most one page in memory, while the caller processes rows. The query returns the rows after
// a place, given by the arguments $1 and so on, and ends with LIMIT and the next argument; after
// returns the place of a row. Concurrent changes may or may not be seen.
func Pages[T any](ctx context.Context, db *DB, what string, scan func(Scanner) (T, error), query string, place []any, after func(T) []any) iter.Seq2[T, error] {
	return PagesOf(ctx, db, pageSize, what, scan, query, place, after)
}

// PagesOf is [Pages] with smaller pages.
func PagesOf[T any](ctx context.Context, db *DB, size int, what string, scan func(Scanner) (T, error), query string, place []any, after func(T) []any) iter.Seq2[T, error] {
	size = min(size, pageSize)
	return func(yield func(T, error) bool) {
		for {
			page, err := List(ctx, db, scan, query, append(place, size)...)
			if err != nil {
				yield(*new(T), fmt.Errorf("listing %s: %w", what, err))
				return
			}
			for _, one := range page {
				if !yield(one, nil) {
					return
				}
			}
			if len(page) < size {
				return
			}
			place = after(page[len(page)-1])
		}
	}
}

// Listing is a list of any length in an order of its own, read as a whole or in pages.
type Listing[T any] struct {
	What string // in errors
	Scan func(Scanner) (T, error)
	// Query returns the rows after a place. Its first arguments are Of, the next ones the place,
	// and the last one is its LIMIT.
	Query string
	Of    []any
	Start []any // the place before the first row; each part is a string or an int64
	Place func(T) []any
	Size  int // rows read at a time; 0: 1000
}

// Each lists all rows, as [Pages] does.
func (l Listing[T]) Each(ctx context.Context, db *DB) iter.Seq2[T, error] {
	return PagesOf(ctx, db, cmp.Or(l.Size, pageSize), l.What, l.Scan, l.Query, l.at(l.Start), func(row T) []any { return l.at(l.Place(row)) })
}

// Page returns at most n rows after a cursor, and the cursor of the rows after them, "" if there
// are none. The cursor "" is the beginning. A cursor that is none is [ErrInvalid]. Concurrent
// changes move no other row to another page.
func (l Listing[T]) Page(ctx context.Context, db *DB, cursor string, n int) (rows []T, next string, err error) {
	place := l.Start
	if cursor != "" {
		if place, err = parseCursor(cursor, l.Start); err != nil {
			return nil, "", fmt.Errorf("listing %s: %w", l.What, err)
		}
	}
	rows, err = List(ctx, db, l.Scan, l.Query, append(l.at(place), n+1)...)
	if err != nil {
		return nil, "", fmt.Errorf("listing %s: %w", l.What, err)
	}
	if len(rows) > n {
		rows = rows[:n]
		next, err = newCursor(l.Place(rows[n-1]))
	}
	return rows, next, err
}

// at returns the arguments of the query for the rows after a place.
func (l Listing[T]) at(place []any) []any { return slices.Concat(l.Of, place) }

// ErrCursor is the [ErrInvalid] of a cursor that no page has given.
var ErrCursor = fmt.Errorf("the cursor is %w: take the one of an earlier answer", ErrInvalid)

// maxCursor bounds a cursor, in bytes; the longest place has two names and a charge.
const maxCursor = 2 << 10

// newCursor returns a place as text. It is opaque to callers, and no secret.
func newCursor(place []any) (string, error) {
	text, err := json.Marshal(place)
	return base64.RawURLEncoding.EncodeToString(text), err
}

// parseCursor reads a place with parts of the same types as those of start.
func parseCursor(cursor string, start []any) ([]any, error) {
	text, err := base64.RawURLEncoding.DecodeString(cursor)
	var parts []json.RawMessage
	if err != nil || len(cursor) > maxCursor || json.Unmarshal(text, &parts) != nil || len(parts) != len(start) {
		return nil, ErrCursor
	}
	place := make([]any, len(parts))
	for i, part := range parts {
		var number int64
		var words string
		switch start[i].(type) {
		case int64:
			err = json.Unmarshal(part, &number)
			place[i] = number
		default:
			err = json.Unmarshal(part, &words)
			place[i] = words
		}
		// PostgreSQL has no text with NUL
		if err != nil || strings.ContainsRune(words, 0) {
			return nil, ErrCursor
		}
	}
	return place, nil
}

// ConvertPage converts each element of a [Listing.Page].
func ConvertPage[T, U any](rows []T, next string, err error, what func(T) U) ([]U, string, error) {
	converted := make([]U, len(rows))
	for i, row := range rows {
		converted[i] = what(row)
	}
	return converted, next, err
}

// Convert converts each element of a list.
func Convert[T, U any](rows iter.Seq2[T, error], what func(T) U) iter.Seq2[U, error] {
	return func(yield func(U, error) bool) {
		for one, err := range rows {
			if !yield(what(one), err) {
				return
			}
		}
	}
}

// Collect collects a list.
func Collect[T any](rows iter.Seq2[T, error]) ([]T, error) {
	found := []T{}
	for one, err := range rows {
		if err != nil {
			return nil, err
		}
		found = append(found, one)
	}
	return found, nil
}

package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"iter"
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
	return scanAllOn(ctx, db.Changes, scan, query, args...)
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

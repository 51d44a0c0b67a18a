package store

import (
	"context"
	"fmt"
	"iter"
	"math"
)

// pageSize is the number of rows read at a time.
const pageSize = 1000

// pages reads a list of any length in pages, each with its own time limit. It holds no connection,
// and at most one page in memory, while the caller processes rows. The query returns the rows after
// a place, given by the arguments $1 and so on, and ends with LIMIT and the next argument; after
// returns the place of a row. Concurrent changes may or may not be seen.
func pages[T any](ctx context.Context, db *DB, what string, scan func(scanner) (T, error), query string, place []any, after func(T) []any) iter.Seq2[T, error] {
	return pagesOf(ctx, db, pageSize, what, scan, query, place, after)
}

// pagesOf is pages with another page size.
func pagesOf[T any](ctx context.Context, db *DB, size int, what string, scan func(scanner) (T, error), query string, place []any, after func(T) []any) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for {
			page, err := list(ctx, db, scan, query, append(place, size)...)
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

// as converts each element of a list.
func as[T, U any](rows iter.Seq2[T, error], what func(T) U) iter.Seq2[U, error] {
	return func(yield func(U, error) bool) {
		for one, err := range rows {
			if !yield(what(one), err) {
				return
			}
		}
	}
}

// all collects a list.
func all[T any](rows iter.Seq2[T, error]) ([]T, error) {
	found := []T{}
	for one, err := range rows {
		if err != nil {
			return nil, err
		}
		found = append(found, one)
	}
	return found, nil
}

// EachPlan lists all plans by name.
func (db *DB) EachPlan(ctx context.Context) iter.Seq2[Plan, error] {
	return pages(ctx, db, "plans", scanPlan, planColumns+` WHERE name > $1 ORDER BY name LIMIT $2`, []any{""}, func(p Plan) []any { return []any{p.Name} })
}

// EachAccount lists all accounts by name.
func (db *DB) EachAccount(ctx context.Context) iter.Seq2[Account, error] {
	return pages(ctx, db, "accounts", scanAccount, accountColumns+` WHERE name > $1 ORDER BY name LIMIT $2`, []any{""}, func(a Account) []any { return []any{a.Name} })
}

// EachUser lists all users by name.
func (db *DB) EachUser(ctx context.Context) iter.Seq2[User, error] {
	return pages(ctx, db, "users", scanUser, userColumns+` WHERE name > $1 ORDER BY name LIMIT $2`, []any{""}, func(u User) []any { return []any{u.Name} })
}

// EachKey lists the keys of a user, or of all users if the name is empty, including revoked ones,
// by user and newest first.
func (db *DB) EachKey(ctx context.Context, user string) iter.Seq2[Key, error] {
	if user != "" {
		if err := checkName("user", user); err != nil {
			return func(yield func(Key, error) bool) { yield(Key{}, fmt.Errorf("listing keys: %w", err)) }
		}
	}
	type row struct {
		Key
		created int64 // as stored; fromMillis may change CreatedAt
	}
	scan := func(s scanner) (r row, err error) {
		r.Key, err = scanKey(scanInto(func(into ...any) error { return s.Scan(append(into, &r.created)...) }))
		return r, err
	}
	rows := pages(ctx, db, "keys", scan, `SELECT id, user_name, created_at, revoked_at, created_at FROM keys
		WHERE ($1 = '' OR user_name = $1) AND user_name >= $2
			AND (user_name > $2 OR created_at < $3 OR created_at = $3 AND id > $4)
		ORDER BY user_name, created_at DESC, id LIMIT $5`, []any{user, "", int64(math.MaxInt64), ""},
		func(r row) []any { return []any{user, r.User, r.created, r.ID} })
	return as(rows, func(r row) Key { return r.Key })
}

package directory

import (
	"context"
	"fmt"
	"iter"
	"math"

	"github.com/keyporter/keyporter/store"
)

// EachPlan lists all plans by name.
func (d *Directory) EachPlan(ctx context.Context) iter.Seq2[Plan, error] {
	return store.Pages(ctx, d.db, "plans", scanPlan, planColumns+` WHERE name > $1 ORDER BY name LIMIT $2`, []any{""}, func(p Plan) []any { return []any{p.Name} })
}

// EachAccount lists all accounts by name.
func (d *Directory) EachAccount(ctx context.Context) iter.Seq2[Account, error] {
	return store.Pages(ctx, d.db, "accounts", scanAccount, accountColumns+` WHERE name > $1 ORDER BY name LIMIT $2`, []any{""}, func(a Account) []any { return []any{a.Name} })
}

// EachUser lists all users by name.
func (d *Directory) EachUser(ctx context.Context) iter.Seq2[User, error] {
	return store.Pages(ctx, d.db, "users", scanUser, userColumns+` WHERE name > $1 ORDER BY name LIMIT $2`, []any{""}, func(u User) []any { return []any{u.Name} })
}

// EachKey lists the keys of a user, or of all users if the name is empty, including revoked ones,
// by user and newest first.
func (d *Directory) EachKey(ctx context.Context, user string) iter.Seq2[Key, error] {
	if user != "" {
		if err := store.CheckName("user", user); err != nil {
			return func(yield func(Key, error) bool) { yield(Key{}, fmt.Errorf("listing keys: %w", err)) }
		}
	}
	type row struct {
		Key
		created int64 // as stored; fromMillis may change CreatedAt
	}
	scan := func(s store.Scanner) (r row, err error) {
		r.Key, err = scanKey(scanInto(func(into ...any) error { return s.Scan(append(into, &r.created)...) }))
		return r, err
	}
	rows := store.Pages(ctx, d.db, "keys", scan, `SELECT id, user_name, created_at, revoked_at, created_at FROM keys
		WHERE ($1 = '' OR user_name = $1) AND user_name >= $2
			AND (user_name > $2 OR created_at < $3 OR created_at = $3 AND id > $4)
		ORDER BY user_name, created_at DESC, id LIMIT $5`, []any{user, "", int64(math.MaxInt64), ""},
		func(r row) []any { return []any{user, r.User, r.created, r.ID} })
	return store.Convert(rows, func(r row) Key { return r.Key })
}

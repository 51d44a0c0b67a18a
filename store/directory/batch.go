package directory

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/feed"
	"github.com/keyporter/keyporter/store/lease"
)

// UserSet is an item of [Directory.SetUsers].
type UserSet struct {
	Name   string
	Change UserChange
}

// SetUsers is [Directory.SetUser] for several users in one transaction and with one wait: all of
// them, or none. The error of a refusal is a [store.ItemError].
func (d *Directory) SetUsers(ctx context.Context, sets []UserSet, once feed.IdempotencyKey) ([]User, feed.Confirmation, error) {
	if err := checkNames("name", sets, func(s UserSet) string { return s.Name }); err != nil {
		return nil, feed.Confirmation{}, fmt.Errorf("setting users: %w", err)
	}
	singly := false // after a refusal, to find the item that caused it
	users, c, err := feed.Change(ctx, d.db, once, feed.Call("users set", sets), func(ctx context.Context, tx *sql.Tx) ([]User, error) {
		if singly {
			return each(sets, func(s UserSet) (User, error) { return d.setUser(ctx, tx, s.Name, s.Change) })
		}
		users, err := d.setUsers(ctx, tx, sets)
		if d.db.Dialect.Duplicate(err) || d.db.Dialect.Dangling(err) {
			singly, err = true, fmt.Errorf("%w (%w)", store.ErrAgain, err)
		}
		return users, err
	})
	if err != nil {
		err = fmt.Errorf("setting users: %w", err)
	}
	return users, c, err
}

// setUsers is setUser with a statement for all.
func (d *Directory) setUsers(ctx context.Context, tx *sql.Tx, sets []UserSet) ([]User, error) {
	found, err := d.lockUsers(ctx, tx, sets)
	if err != nil {
		return nil, err
	}
	var created, changed []User
	users, err := each(sets, func(s UserSet) (User, error) {
		fresh, err := newUser(s.Name, s.Change)
		if err != nil {
			return fresh, err
		}
		old, exists := found[s.Name]
		user, err := d.changed(fresh, old, exists, s.Change)
		switch {
		case !exists:
			created = append(created, user)
		case user != old:
			changed = append(changed, user)
		}
		return user, err
	})
	if err != nil {
		return nil, err
	}
	const from = ` FROM (SELECT name, kind, account, status, nullif(subject, '') AS subject FROM `
	rows := `(SELECT ` + store.Column("name") + ` AS name, ` + store.Column("kind") + ` AS kind, ` + store.Column("account") + ` AS account, ` +
		store.Column("status") + ` AS status, ` + store.Column("subject") + ` AS subject FROM ` + d.db.Dialect.Rows + `) rows_of_json) w`
	if len(changed) > 0 {
		if _, err := tx.ExecContext(ctx, `UPDATE users SET kind = w.kind, account = w.account, status = w.status, subject = w.subject`+from+rows+
			` WHERE w.name = users.name`, store.Rows(changed)); err != nil {
			return nil, err
		}
	}
	if len(created) == 0 {
		return users, nil
	}
	result, err := tx.ExecContext(ctx, `INSERT INTO users (name, kind, account, status, subject) SELECT name, kind, account, status, subject`+from+rows+
		` WHERE TRUE ORDER BY name ON CONFLICT (name) DO NOTHING`, store.Rows(created))
	if err != nil {
		return nil, err
	}
	n, err := result.RowsAffected()
	return users, orAgain(n == int64(len(created)), err)
}

// lockUsers is lockWhole for several users, always in the same order.
func (d *Directory) lockUsers(ctx context.Context, tx *sql.Tx, sets []UserSet) (map[string]User, error) {
	names := make([]User, 0, len(sets))
	for _, s := range sets {
		names = append(names, User{Name: s.Name})
	}
	where := ` WHERE name IN (SELECT ` + store.Column("name") + ` FROM ` + d.db.Dialect.Rows + `) ORDER BY name`
	if d.db.Dialect.Lock != "" {
		if err := store.Each(ctx, tx, func(row store.Scanner) error { return row.Scan(new(string)) }, `SELECT name FROM users`+where+d.db.Dialect.Lock, store.Rows(names)); err != nil {
			return nil, err
		}
	}
	found := map[string]User{}
	return found, store.Each(ctx, tx, func(row store.Scanner) error {
		user, err := scanUser(row)
		found[user.Name] = user
		return err
	}, userColumns+where, store.Rows(names))
}

// CreateKeys is [Keys.CreateKeyOnce] for several users in one transaction and with one wait: for
// all of them, or for none. The error of a refusal is a [store.ItemError].
func (k *Keys) CreateKeys(ctx context.Context, users []string, format *apikey.Format, once feed.IdempotencyKey) ([]Key, []apikey.Token, feed.Confirmation, error) {
	tokens := make([]apikey.Token, len(users))
	for i := range tokens {
		tokens[i] = format.Generate()
	}
	keys, c, err := k.ofUsers(ctx, "keys create", users, once, func(ctx context.Context, tx *sql.Tx, i int) (Key, error) {
		return k.createKey(ctx, tx, users[i], tokens[i])
	})
	if err != nil && !errors.Is(err, lease.ErrUnconfirmed) {
		err = fmt.Errorf("creating keys: %w", err)
	}
	if len(keys) == 0 || c.Repeated {
		tokens = make([]apikey.Token, len(users))
	}
	return keys, tokens, c, err
}

// RevokeKeys is [Keys.RevokeKey] for several users in one transaction and with one wait: for all of
// them, or for none. The error of a refusal is a [store.ItemError].
func (k *Keys) RevokeKeys(ctx context.Context, users []string, once feed.IdempotencyKey) ([]Key, feed.Confirmation, error) {
	keys, c, err := k.ofUsers(ctx, "keys revoke", users, once, func(ctx context.Context, tx *sql.Tx, i int) (Key, error) {
		return k.revokeKey(ctx, tx, users[i])
	})
	if err != nil {
		err = fmt.Errorf("revoking keys: %w", err)
	}
	return keys, c, err
}

// ofUsers makes one change of the keys of several users. It locks them in one order, so that two
// batches do not lock each other out.
func (k *Keys) ofUsers(ctx context.Context, operation string, users []string, once feed.IdempotencyKey, f func(ctx context.Context, tx *sql.Tx, i int) (Key, error)) ([]Key, feed.Confirmation, error) {
	if err := checkNames("user", users, func(name string) string { return name }); err != nil {
		return nil, feed.Confirmation{}, err
	}
	order := make([]int, len(users))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(users[a], users[b]) })
	return feed.Change(ctx, k.db, once, feed.Call(operation, users), func(ctx context.Context, tx *sql.Tx) ([]Key, error) {
		keys := make([]Key, len(users))
		for _, i := range order {
			var err error
			if keys[i], err = f(ctx, tx, i); err != nil {
				return nil, store.ItemError{Index: i, Err: err}
			}
		}
		return keys, nil
	})
}

// checkNames rejects names of users that are none, and a name that occurs twice.
func checkNames[T any](field string, items []T, nameOf func(T) string) error {
	seen := map[string]bool{}
	for i, item := range items {
		name := nameOf(item)
		if err := store.CheckName("user", name); err != nil {
			return store.ItemError{Index: i, Err: store.FieldError{Field: field, Err: err}}
		}
		if seen[name] {
			return store.ItemError{Index: i, Err: store.FieldError{Field: field, Err: fmt.Errorf("%w: the batch names user %s twice", store.ErrInvalid, name)}}
		}
		seen[name] = true
	}
	return nil
}

// each returns the results of all items, or the error of the first one that has one.
func each[In, Out any](items []In, f func(In) (Out, error)) ([]Out, error) {
	all := make([]Out, len(items))
	for i, item := range items {
		var err error
		if all[i], err = f(item); err != nil {
			return nil, store.ItemError{Index: i, Err: err}
		}
	}
	return all, nil
}

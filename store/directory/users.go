package directory

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"iter"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/feed"
)

// User is the owner of keys: a person or a service of an account.
type User struct {
	Name    string `json:"name"`
	Kind    string `json:"kind"` // "person" or "service"
	Account string `json:"account"`
	Status  string `json:"status"` // "active" or "disabled"
	// Subject names the user in tokens of the provider's web app; "" if there is none.
	Subject string `json:"subject"`
}

// UserChange holds the fields to change; nil leaves a field as it is.
type UserChange struct {
	Kind    *string `flag:"kind"`
	Account *string `flag:"account"`
	Status  *string `flag:"status"`
	Subject *string `flag:"subject"`
}

func (u *User) apply(c UserChange) {
	set(&u.Kind, c.Kind)
	set(&u.Account, c.Account)
	set(&u.Status, c.Status)
	set(&u.Subject, c.Subject)
}

func (u *User) check() error {
	return errors.Join(oneOf("kind", u.Kind, "person", "service"), oneOf("status", u.Status, "active", "disabled"), CheckSubject(u.Subject))
}

// maxSubject is the maximum length of a subject in bytes, as in OpenID Connect.
const maxSubject = 255

// CheckSubject returns an error if a user cannot have this subject. The empty one is none.
func CheckSubject(s string) error {
	if len(s) > maxSubject || !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl) {
		return store.FieldError{Field: "subject", Err: fmt.Errorf("the subject is %w: at most %d bytes of text without control characters", store.ErrInvalid, maxSubject)}
	}
	return nil
}

// SetUser creates a user, if c names an account, or changes the fields in c. If the user existed,
// it returns once no replica decides by the old state.
func (d *Directory) SetUser(ctx context.Context, name string, change UserChange, once feed.IdempotencyKey) (User, feed.Confirmation, error) {
	if err := d.checkNew("user", name); err != nil {
		return User{}, feed.Confirmation{}, err
	}
	user, c, err := feed.Change(ctx, d.db, once, d.named("user set", name, change), func(ctx context.Context, tx *sql.Tx) (User, error) {
		return d.setUser(ctx, tx, name, change)
	})
	if err != nil {
		err = fmt.Errorf("setting user %s: %w", name, err)
	}
	return user, c, err
}

func (d *Directory) setUser(ctx context.Context, tx *sql.Tx, name string, change UserChange) (User, error) {
	user, err := d.trySetUser(ctx, tx, name, change)
	if d.db.Dialect.Duplicate(err) {
		err = FixableError{fmt.Errorf("another user with the subject %q %w", user.Subject, store.ErrExists), ReleaseSubject, name}
	}
	if d.db.Dialect.Dangling(err) {
		err = FixableError{fmt.Errorf("account %s: %w", user.Account, store.ErrNotFound), CreateAccount, user.Account}
	}
	return user, err
}

func (d *Directory) trySetUser(ctx context.Context, tx *sql.Tx, name string, c UserChange) (User, error) {
	fresh, err := newUser(name, c)
	if err != nil {
		return fresh, err
	}
	found, exists, err := d.lockWhole(ctx, tx, name)
	if err != nil {
		return fresh, err
	}
	user, err := d.changed(fresh, found, exists, c)
	switch {
	case err != nil || exists && user == found:
		return user, err
	case !exists:
		created, err := store.Affected(tx.ExecContext(ctx, `INSERT INTO users (name, kind, account, status, subject)
			VALUES ($1, $2, $3, $4, nullif($5, '')) ON CONFLICT (name) DO NOTHING`, name, user.Kind, user.Account, user.Status, user.Subject))
		return user, orAgain(created, err)
	}
	_, err = tx.ExecContext(ctx, `UPDATE users SET kind = $2, account = $3, status = $4, subject = nullif($5, '') WHERE name = $1`,
		name, user.Kind, user.Account, user.Status, user.Subject)
	return user, err
}

// newUser returns the user whom a change creates, and checks every field of the change.
func newUser(name string, c UserChange) (User, error) {
	user := User{Name: name, Kind: "person", Status: "active"}
	user.apply(c)
	if err := user.check(); err != nil {
		return user, err
	}
	if c.Account != nil {
		if err := store.CheckName("account", *c.Account); err != nil {
			return user, store.FieldError{Field: "account", Err: err}
		}
	}
	return user, nil
}

// changed returns a user after a change: fresh, the new one, unless there is one already.
func (d *Directory) changed(fresh, found User, exists bool, c UserChange) (User, error) {
	switch err := d.on.check(exists, found.Version, noUser(fresh.Name)); {
	case err != nil:
		return fresh, err
	case !exists && c.Account == nil:
		return fresh, store.FieldError{Field: "account", Err: fmt.Errorf("%w: a new user needs an account", store.ErrInvalid)}
	case !exists:
		return fresh, nil
	}
	found.apply(c)
	return found, nil
}

// lockUser makes every change to a user and their belongings wait for this transaction, and reports
// whether the user exists.
func lockUser(ctx context.Context, db *store.DB, tx *sql.Tx, name string) (bool, error) {
	var found string
	err := tx.QueryRowContext(ctx, `SELECT name FROM users WHERE name = $1`+db.Dialect.Lock, name).Scan(&found)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}

// lockWhole is lockUser, and reads the user.
func (d *Directory) lockWhole(ctx context.Context, tx *sql.Tx, name string) (user User, exists bool, err error) {
	if exists, err = lockUser(ctx, d.db, tx, name); err != nil || !exists {
		return user, exists, err
	}
	user, err = scanUser(tx.QueryRowContext(ctx, userColumns+` WHERE name = $1`, name))
	return user, true, err
}

// Version differs if anything of the user differs.
func (u User) Version() string { return versionOf(u) }

// User returns a user, or [store.ErrNotFound].
func (d *Directory) User(ctx context.Context, name string) (User, error) {
	if err := store.CheckName("user", name); err != nil {
		return User{}, err
	}
	user, err := find(ctx, d.db, scanUser, noUser(name), userColumns+` WHERE name = $1`, name)
	if err != nil {
		err = fmt.Errorf("finding user %s: %w", name, err)
	}
	return user, err
}

func noUser(name string) error {
	return FixableError{fmt.Errorf("the user was %w", store.ErrNotFound), CreateUser, name}
}

const userColumns = `SELECT name, kind, account, status, coalesce(subject, '') FROM users`

func scanUser(row store.Scanner) (u User, err error) {
	return u, row.Scan(&u.Name, &u.Kind, &u.Account, &u.Status, &u.Subject)
}

// EachUser lists all users by name.
func (d *Directory) EachUser(ctx context.Context) iter.Seq2[User, error] {
	return UsersOf("", "").Each(ctx, d.db)
}

// UsersOf are the users of an account and with a subject, by name. An empty account or subject is
// any.
func UsersOf(account, subject string) store.Listing[User] {
	return store.Listing[User]{
		What: "users", Scan: scanUser,
		Query: userColumns + ` WHERE ($1 = '' OR account = $1) AND ($2 = '' OR subject = $2) AND name > $3 ORDER BY name LIMIT $4`,
		Of:    []any{account, subject}, Start: []any{""}, Place: func(u User) []any { return []any{u.Name} },
	}
}

// Users lists all users by name.
func (d *Directory) Users(ctx context.Context) ([]User, error) {
	return store.Collect(d.EachUser(ctx))
}

// DeleteUser deletes a user with their keys and sessions.
func (d *Directory) DeleteUser(ctx context.Context, name string, once feed.IdempotencyKey) (feed.Confirmation, error) {
	return d.delete(ctx, "user", name, once, func(ctx context.Context, tx *sql.Tx) (bool, error) {
		if err := holds(ctx, tx, d.on, name, d.lockWhole); err != nil {
			return false, err
		}
		if locked, err := lockUser(ctx, d.db, tx, name); err != nil || !locked {
			return false, err
		}
		for _, statement := range []string{
			`DELETE FROM requests WHERE user_name = $1`,
			`DELETE FROM request_counts WHERE user_name = $1`,
			`DELETE FROM request_outcomes WHERE user_name = $1`,
			`DELETE FROM login_links WHERE user_name = $1`,
			`DELETE FROM sessions WHERE user_name = $1`,
			`DELETE FROM keys WHERE user_name = $1`,
			`DELETE FROM users WHERE name = $1`,
		} {
			if _, err := tx.ExecContext(ctx, statement, name); err != nil {
				return false, err
			}
		}
		return true, nil
	})
}

// UserPlan returns a user with their plan, and whether their account is active, or
// [store.ErrNotFound].
func (d *Directory) UserPlan(ctx context.Context, name string) (User, Plan, bool, error) {
	type row struct {
		user   User
		plan   Plan
		active bool
	}
	if err := store.CheckName("user", name); err != nil {
		return User{}, Plan{}, false, err
	}
	found, err := store.List(ctx, d.db, func(s store.Scanner) (r row, err error) {
		r.plan, err = scanPlan(scanInto(func(into ...any) error {
			return s.Scan(append([]any{&r.user.Name, &r.user.Kind, &r.user.Account, &r.user.Status, &r.user.Subject, &r.active}, into...)...)
		}))
		return r, err
	}, `SELECT u.name, u.kind, u.account, u.status, coalesce(u.subject, ''), a.status = 'active',
			p.name, p.api_access, p.rate_limit, p.rate_window, p.credits, p.pool
		FROM users u JOIN accounts a ON a.name = u.account JOIN plans p ON p.name = a.plan WHERE u.name = $1`, name)
	if err == nil && len(found) == 0 {
		err = noUser(name)
	}
	if err != nil {
		return User{}, Plan{}, false, fmt.Errorf("finding user %s: %w", name, err)
	}
	return found[0].user, found[0].plan, found[0].active, nil
}

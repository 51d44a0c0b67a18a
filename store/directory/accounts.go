package directory

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/feed"
)

// Account is the paying party: a person or an organization with one plan.
type Account struct {
	Name   string `json:"name"`
	Kind   string `json:"kind"` // "person" or "organization"
	Plan   string `json:"plan"`
	Status string `json:"status"` // "active", "suspended" or "cancelled"
}

// AccountChange holds the fields to change; nil leaves a field as it is.
type AccountChange struct {
	Kind   *string `flag:"kind"`
	Plan   *string `flag:"plan"`
	Status *string `flag:"status"`
}

func (a *Account) apply(c AccountChange) {
	set(&a.Kind, c.Kind)
	set(&a.Plan, c.Plan)
	set(&a.Status, c.Status)
}

func (a *Account) check() error {
	return errors.Join(
		oneOf("kind", a.Kind, "person", "organization"),
		oneOf("status", a.Status, "active", "suspended", "cancelled"),
	)
}

// oneOf returns an error unless the value is one of the possible ones.
func oneOf(what, value string, possible ...string) error {
	if slices.Contains(possible, value) {
		return nil
	}
	return store.FieldError{Field: what, Err: fmt.Errorf("%s %q is %w: want %s", what, value, store.ErrInvalid, strings.Join(possible, ", "))}
}

// SetAccount creates an account, if c names a plan, or changes the fields in c. It returns once no
// replica decides by the old state.
func (d *Directory) SetAccount(ctx context.Context, name string, change AccountChange, once feed.IdempotencyKey) (Account, feed.Confirmation, error) {
	if err := d.checkNew("account", name); err != nil {
		return Account{}, feed.Confirmation{}, err
	}
	account, c, err := feed.Change(ctx, d.db, once, d.named("account set", name, change), func(ctx context.Context, tx *sql.Tx) (Account, error) {
		account, err := d.setAccount(ctx, tx, name, change)
		if d.db.Dialect.Dangling(err) {
			err = FixableError{fmt.Errorf("plan %s: %w", account.Plan, store.ErrNotFound), CreatePlan, account.Plan}
		}
		return account, err
	})
	if err != nil {
		err = fmt.Errorf("setting account %s: %w", name, err)
	}
	return account, c, err
}

func (d *Directory) setAccount(ctx context.Context, tx *sql.Tx, name string, c AccountChange) (account Account, err error) {
	account = Account{Name: name, Kind: "person", Status: "active"}
	account.apply(c)
	if err := account.check(); err != nil {
		return account, err
	}
	if c.Plan != nil {
		if err := store.CheckName("plan", *c.Plan); err != nil {
			return account, store.FieldError{Field: "plan", Err: err}
		}
	}
	found, exists, err := lockAccount(ctx, tx, name)
	if err == nil {
		err = d.on.check(exists, found.Version, errNoAccount)
	}
	switch {
	case err != nil:
		return account, err
	case !exists && c.Plan == nil:
		return account, store.FieldError{Field: "plan", Err: fmt.Errorf("%w: a new account needs a plan", store.ErrInvalid)}
	case !exists:
		created, err := store.Affected(tx.ExecContext(ctx, `INSERT INTO accounts (name, kind, plan, status)
			VALUES ($1, $2, $3, $4) ON CONFLICT (name) DO NOTHING`, name, account.Kind, account.Plan, account.Status))
		return account, orAgain(created, err)
	}
	account = found
	account.apply(c)
	if account == found {
		return account, nil
	}
	_, err = tx.ExecContext(ctx, `UPDATE accounts SET kind = $2, plan = $3, status = $4 WHERE name = $1`,
		name, account.Kind, account.Plan, account.Status)
	return account, err
}

// lockAccount locks an account and reads it, if it exists.
func lockAccount(ctx context.Context, tx *sql.Tx, name string) (account Account, exists bool, err error) {
	if exists, err = store.Affected(tx.ExecContext(ctx, `UPDATE accounts SET name = name WHERE name = $1`, name)); err != nil || !exists {
		return account, exists, err
	}
	account, err = scanAccount(tx.QueryRowContext(ctx, accountColumns+` WHERE name = $1`, name))
	return account, true, err
}

// Version differs if anything of the account differs.
func (a Account) Version() string { return versionOf(a) }

var errNoAccount = fmt.Errorf("the account was %w", store.ErrNotFound)

// Account returns an account, or [store.ErrNotFound].
func (d *Directory) Account(ctx context.Context, name string) (Account, error) {
	if err := store.CheckName("account", name); err != nil {
		return Account{}, err
	}
	account, err := find(ctx, d.db, scanAccount, errNoAccount, accountColumns+` WHERE name = $1`, name)
	if err != nil {
		err = fmt.Errorf("finding account %s: %w", name, err)
	}
	return account, err
}

const accountColumns = `SELECT name, kind, plan, status FROM accounts`

func scanAccount(row store.Scanner) (a Account, err error) {
	return a, row.Scan(&a.Name, &a.Kind, &a.Plan, &a.Status)
}

// EachAccount lists all accounts by name.
func (d *Directory) EachAccount(ctx context.Context) iter.Seq2[Account, error] {
	return AccountsOf("").Each(ctx, d.db)
}

// AccountsOf are the accounts with a plan by name, or all if the plan is "".
func AccountsOf(plan string) store.Listing[Account] {
	return store.Listing[Account]{
		What: "accounts", Scan: scanAccount, Query: accountColumns + ` WHERE ($1 = '' OR plan = $1) AND name > $2 ORDER BY name LIMIT $3`,
		Of: []any{plan}, Start: []any{""}, Place: func(a Account) []any { return []any{a.Name} },
	}
}

// Accounts lists all accounts by name.
func (d *Directory) Accounts(ctx context.Context) ([]Account, error) {
	return store.Collect(d.EachAccount(ctx))
}

// DeleteAccount deletes an account without users.
func (d *Directory) DeleteAccount(ctx context.Context, name string, once feed.IdempotencyKey) (feed.Confirmation, error) {
	return d.delete(ctx, "account", name, once, func(ctx context.Context, tx *sql.Tx) (bool, error) {
		if err := holds(ctx, tx, d.on, name, lockAccount); err != nil {
			return false, err
		}
		if err := mustBeFree(ctx, tx, "users belong to it", `SELECT count(*), min(name) FROM users WHERE account = $1`, name); err != nil {
			return false, err
		}
		return store.Affected(tx.ExecContext(ctx, `DELETE FROM accounts WHERE name = $1`, name))
	})
}

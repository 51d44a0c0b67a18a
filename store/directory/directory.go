// Package directory keeps plans, accounts, users, their keys, sessions and login links, and the
// audit of changes to them. It stores digests of keys, never keys. [Lookups] serves the decisions,
// all else operators and the user's page. A method that changes what a decision depends on returns
// only once no replica decides by the old state.
package directory

import (
	"context"

	"github.com/keyporter/keyporter/store"
)

// Directory is the plans, accounts and users in a database. It is safe for concurrent use.
type Directory struct {
	db *store.DB
	on Condition // of changes
	// holdsKey reports whether a name holds a key of another system; nil: none does.
	holdsKey func(name string) bool
}

// New returns the directory in a database. The actor of the database is the author of changes, for
// the audit, here and in all other types.
func New(db *store.DB) *Directory { return &Directory{db: db} }

// Provided returns the same directory, with a precondition for each change.
func (d *Directory) Provided(c Condition) *Directory { return &Directory{d.db, c, d.holdsKey} }

// Refusing returns the same directory, which also refuses new names that hold a key of another
// system, as far as holdsKey can tell. A key entered as a name by mistake would be stored and shown
// in the clear.
func (d *Directory) Refusing(holdsKey func(name string) bool) *Directory {
	return &Directory{d.db, d.on, holdsKey}
}

// checkNew rejects the name of a plan, account or user that may not be given.
func (d *Directory) checkNew(kind, name string) error {
	if d.holdsKey != nil && d.holdsKey(name) {
		return store.LooksLikeKey(kind)
	}
	return store.CheckName(kind, name)
}

// scanInto adapts a function to Scanner, for rows with columns that another Scanner reads.
type scanInto func(into ...any) error

func (s scanInto) Scan(into ...any) error { return s(into...) }

// find returns the one row of a query, or missing.
func find[T any](ctx context.Context, db *store.DB, scan func(store.Scanner) (T, error), missing error, query, name string) (T, error) {
	rows, err := store.List(ctx, db, scan, query, name)
	if err == nil && len(rows) == 0 {
		err = missing
	}
	if err != nil {
		return *new(T), err
	}
	return rows[0], nil
}

// Package directory keeps plans, accounts, users, their keys, sessions and login links, and the
// audit of changes to them. It stores digests of keys, never keys. [Lookups] serves the decisions,
// all else operators and the user's page. A method that changes what a decision depends on returns
// only once no replica decides by the old state.
package directory

import (
	"github.com/keyporter/keyporter/store"
)

// Directory is the plans, accounts and users in a database. It is safe for concurrent use.
type Directory struct{ db *store.DB }

// New returns the directory in a database. The actor of the database is the author of changes, for
// the audit, here and in all other types.
func New(db *store.DB) *Directory { return &Directory{db} }

// scanInto adapts a function to Scanner, for rows with columns that another Scanner reads.
type scanInto func(into ...any) error

func (s scanInto) Scan(into ...any) error { return s(into...) }

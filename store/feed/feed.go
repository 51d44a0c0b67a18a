// Package feed is the change feed of a database, for those that make changes and those that follow
// them: it confirms that a change is enforced on every replica, keeps the list of replicas, and
// tells a replica about changes. What a lease is, and why a cache under it is right, is in package
// lease.
package feed

import "github.com/keyporter/keyporter/store"

// Feed is the change feed of a database, as operators and the housekeeping see it. It is safe for
// concurrent use.
type Feed struct{ db *store.DB }

// New returns the change feed of a database.
func New(db *store.DB) *Feed { return &Feed{db} }

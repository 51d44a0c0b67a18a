// Package operations is what an operator can do. A command and an HTTP handler parse, call one of
// these operations, and print: validation, idempotency, the wait until every replica enforces a
// change, and the author in the audit are the same for both. The result of an operation is the JSON
// that both print, with the confirmation of a change that waits for the replicas; [KindOf]
// classifies its errors. The package parses and prints nothing.
package operations

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
	"github.com/keyporter/keyporter/store/feed"
	"github.com/keyporter/keyporter/store/lease"
)

// Operator carries out operations on a database. It is safe for concurrent use, and so is
// everything that it returns.
type Operator struct {
	db       *store.DB
	holdsKey func(string) bool // see Refusing
}

// By returns the operator whom the audit names as the author of changes, such as command:root.
func By(actor string, db *store.DB) Operator { return Operator{db: db.As(actor)} }

// Refusing returns the same operator, to whom no name is given that holds a key of another system.
func (o Operator) Refusing(holdsKey func(name string) bool) Operator {
	o.holdsKey = holdsKey
	return o
}

// directory returns the plans, accounts and users.
func (o Operator) directory() *directory.Directory { return directory.New(o.db).Refusing(o.holdsKey) }

// Committed is a change that was made. Its JSON has the confirmation beside the fields of the
// result, a struct.
type Committed[T any] struct {
	Result       T
	Confirmation feed.Confirmation // how far the wait got
	// Unconfirmed is why not every replica is known to enforce the change; nil if all do. The
	// result is valid in any case, and must be shown: the change is not made again.
	Unconfirmed error
}

// committed separates a change that is not confirmed from one that failed.
func committed[T any](result T, done feed.Confirmation, err error) (Committed[T], error) {
	if err != nil && !errors.Is(err, lease.ErrUnconfirmed) {
		return Committed[T]{}, err
	}
	return Committed[T]{result, done, err}, nil
}

// MarshalJSON implements [json.Marshaler].
func (c Committed[T]) MarshalJSON() ([]byte, error) { return beside(c.Result, c.Enforcement()) }

// Value returns the result, of any type.
func (c Committed[T]) Value() any { return c.Result }

// Enforcement returns how far the change is enforced.
func (c Committed[T]) Enforcement() Enforcement {
	return Enforcement{
		Confirmed: c.Unconfirmed == nil,
		Replicas:  ReplicaCounts{c.Confirmation.Total, c.Confirmation.Acknowledged, c.Confirmation.Expired},
		TookMS:    c.Confirmation.Took.Milliseconds(),
	}
}

// Enforcement is the JSON of a [feed.Confirmation].
type Enforcement struct {
	Confirmed bool          `json:"confirmed"` // no replica decides by the old state any more
	Replicas  ReplicaCounts `json:"replicas"`
	TookMS    int64         `json:"took_ms"`
}

// ReplicaCounts counts the replicas that enforce a change. The total is 0 if none is running, or if
// none had to be told.
type ReplicaCounts struct {
	Total        int `json:"total"`
	Acknowledged int `json:"acknowledged"`
	Expired      int `json:"expired"`
}

// beside merges the fields of two structs into one JSON object, those of the first before those of
// the second.
func beside(first, second any) ([]byte, error) {
	a, err := json.Marshal(first)
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(second)
	if err != nil {
		return nil, err
	}
	return append(append(a[:len(a)-1], ','), b[1:]...), nil
}

// Page is a part of a list, in the order of the list.
type Page[T any] struct {
	Items []T     `json:"items"`
	Next  *string `json:"next_cursor"` // the cursor of the next part; null if this is the last one
}

// MaxPage is the maximum number of items in a [Page].
const MaxPage = 1000

// checkPage rejects a number of items that no page has.
func checkPage(n int) error {
	if n < 1 || n > MaxPage {
		return FieldError{"limit", fmt.Sprintf("want 1 to %d", MaxPage)}
	}
	return nil
}

func newPage[T any](items []T, next string, err error) (Page[T], error) {
	if err != nil {
		return Page[T]{}, err
	}
	p := Page[T]{Items: items}
	if next != "" {
		p.Next = &next
	}
	return p, nil
}

// pageOf reads a page of a listing.
func pageOf[T any](ctx context.Context, db *store.DB, rows store.Listing[T], cursor string, n int) (Page[T], error) {
	if err := checkPage(n); err != nil {
		return Page[T]{}, err
	}
	return newPage(rows.Page(ctx, db, cursor, n))
}

// Deleted is what was deleted.
type Deleted struct {
	Kind string `json:"deleted"` // plan, account or user
	Name string `json:"name"`
}

// orNil returns nil for the zero time.
func orNil(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

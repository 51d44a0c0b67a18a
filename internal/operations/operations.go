// Package operations is what an operator can do. A command and an HTTP handler parse, call one of
// these operations, and print: validation, idempotency, the wait until every replica enforces a
// change, and the author in the audit are the same for both. The result of an operation is the JSON
// that both print, with the confirmation of a change that waits for the replicas; [KindOf]
// classifies its errors. The package parses and prints nothing.
package operations

import (
	"encoding/json"
	"errors"
	"time"

	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/feed"
	"github.com/keyporter/keyporter/store/lease"
)

// Operator carries out operations on a database. It is safe for concurrent use, and so is
// everything that it returns.
type Operator struct{ db *store.DB }

// By returns the operator whom the audit names as the author of changes, such as command:root.
func By(actor string, db *store.DB) Operator { return Operator{db.As(actor)} }

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
func (c Committed[T]) MarshalJSON() ([]byte, error) {
	return beside(c.Result, confirmation{
		Confirmed: c.Unconfirmed == nil,
		Replicas:  replicas{c.Confirmation.Total, c.Confirmation.Acknowledged, c.Confirmation.Expired},
		TookMS:    c.Confirmation.Took.Milliseconds(),
	})
}

// confirmation is the JSON of a [feed.Confirmation].
type confirmation struct {
	Confirmed bool     `json:"confirmed"`
	Replicas  replicas `json:"replicas"`
	TookMS    int64    `json:"took_ms"`
}

// replicas counts the replicas that enforce a change.
type replicas struct {
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

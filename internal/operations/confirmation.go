// Package operations is what an operator can do beyond a single call of the store: make keys,
// sessions and links in the format of the configuration, show a user, list replicas, set up and
// rotate the seal key. Each is a function that a command or an HTTP handler calls; its result is
// the JSON that both return. Validation, idempotency, the barrier and the audit are the store's. It
// parses and prints nothing.
package operations

import (
	"encoding/json"
	"errors"

	"github.com/keyporter/keyporter/store/feed"
	"github.com/keyporter/keyporter/store/lease"
)

// Confirmed separates an unconfirmed change, whose result must still be shown, from a failed one.
func Confirmed(err error) (failed, unconfirmed error) {
	if errors.Is(err, lease.ErrUnconfirmed) {
		return nil, err
	}
	return err, nil
}

// confirmation is what the result of a change that takes something away says about it.
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

// WithConfirmation returns the JSON of a result, a struct, with the confirmation of its change
// beside its fields. The error unconfirmed comes from [Confirmed].
func WithConfirmation(result any, done feed.Confirmation, unconfirmed error) (json.RawMessage, error) {
	return beside(result, confirmation{
		Confirmed: unconfirmed == nil,
		Replicas:  replicas{done.Total, done.Acknowledged, done.Expired},
		TookMS:    done.Took.Milliseconds(),
	})
}

// beside merges the fields of two structs into one JSON object, those of the first before those of
// the second.
func beside(first, second any) (json.RawMessage, error) {
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

package operations

import (
	"errors"

	"github.com/keyporter/keyporter/store"
)

// Kind classifies the error of an operation, for exit statuses and HTTP statuses.
type Kind uint8

// The kinds of errors. Nothing was changed, except that after Failed it may be unknown; the text of
// the error says so.
const (
	Failed   Kind = iota // the database did not do it
	Invalid              // an argument is not allowed
	NotFound             // something that was named does not exist
	Exists               // what was to be made exists already
	InUse                // something else needs what was to be deleted
	Refused              // the state of the directory, or a rate, does not allow it
)

// KindOf returns the kind of an error, which is not nil.
func KindOf(err error) Kind {
	for _, k := range kinds {
		if errors.Is(err, k.error) {
			return k.kind
		}
	}
	return Failed
}

// kinds lists the answers of the store.
var kinds = []struct {
	error error
	kind  Kind
}{
	{store.ErrInvalid, Invalid},
	{store.ErrNotFound, NotFound},
	{store.ErrExists, Exists},
	{store.ErrInUse, InUse},
	{store.ErrRefused, Refused},
}

// refusal is an error with a kind of its own.
type refusal struct {
	kind error // of kinds
	error
}

func (r refusal) Is(target error) bool { return target == r.kind }

func (r refusal) Unwrap() error { return r.error }

// FieldError is an [Invalid] value of a field.
type FieldError struct {
	Field string // as in JSON; a flag has the same name
	Why   string
}

func (e FieldError) Error() string { return e.Field + ": " + e.Why }

// Is reports that the error is [Invalid].
func (e FieldError) Is(target error) bool { return target == store.ErrInvalid }

package directory

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"github.com/keyporter/keyporter/store"
)

// Condition is the precondition of a change of a plan, an account or a user. The zero Condition
// always holds. A call that is repeated with its idempotency key is not checked again.
type Condition struct {
	Exists  bool   // it exists; else the error is [store.ErrNotFound]
	Absent  bool   // it does not exist; else the error is [ErrChanged]
	Version string // it exists, and its method Version returns this; else [ErrChanged]
}

// ErrChanged is the [store.ErrRefused] of a condition that does not hold.
var ErrChanged = fmt.Errorf("%w: it is no longer as it was when it was read: read it again", store.ErrRefused)

// check returns nil if the condition holds for a row; missing is the error if there should be one.
func (c Condition) check(exists bool, version func() string, missing error) error {
	switch {
	case c.Absent && exists, c.Version != "" && (!exists || version() != c.Version):
		return ErrChanged
	case c.Exists && !exists:
		return missing
	}
	return nil
}

// String returns the condition as part of the name of a call.
func (c Condition) String() (words string) {
	if c.Exists {
		words += " if it exists"
	}
	if c.Absent {
		words += " if it does not exist"
	}
	if c.Version != "" {
		words += fmt.Sprintf(" if it is %q", c.Version)
	}
	return words
}

// versionOf returns a text that differs if the row differs.
func versionOf(row any) string {
	text, err := json.Marshal(row)
	if err != nil {
		panic("directory: a row does not encode: " + err.Error()) // it has texts and numbers only
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:12])
}

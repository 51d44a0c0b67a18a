// Package nowait marks the context of a call that may not wait. Whatever would wait on behalf of
// such a call gives up instead, and the caller repeats the whole call where it may wait.
package nowait

import (
	"context"
	"errors"
)

// ErrWouldWait is the result of a call that may not wait and would have to. The call has had no
// effect.
var ErrWouldWait = errors.New("the call would have to wait")

// mark is the key of the context's value, which is an attempt.
type mark struct{}

type attempt uint8

const (
	first  attempt = iota + 1 // may not wait
	second                    // may wait
)

// Context returns a context for calls that may not wait. All of them can share it.
func Context(parent context.Context) context.Context {
	return context.WithValue(parent, mark{}, first)
}

// Repetition returns a context for the repetition of a call that would have had to wait after its
// look-up.
func Repetition(parent context.Context) context.Context {
	return context.WithValue(parent, mark{}, second)
}

// Err returns [ErrWouldWait] if a call may not wait, and nil otherwise. Code calls it before it
// waits for another goroutine or machine, and before it has any effect.
func Err(ctx context.Context) error {
	if ctx.Value(mark{}) == first {
		return ErrWouldWait
	}
	return nil
}

// Repeated reports whether ctx is of [Repetition]. A metric of steps that need not wait leaves out
// those of a repetition, because the first attempt has counted them.
func Repeated(ctx context.Context) bool { return ctx.Value(mark{}) == second }

package envoy

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// lazyDeadline is a context with a deadline, like one of [context.WithDeadline]. It creates its
// timer on the first wait, and an answer from memory waits for nothing.
type lazyDeadline struct {
	context.Context // of the call
	end             time.Time

	once    sync.Once
	waiting atomic.Pointer[waiting] // nil until the first wait
}

type waiting struct {
	context.Context
	cancel context.CancelFunc
}

// Deadline implements [context.Context].
func (b *lazyDeadline) Deadline() (time.Time, bool) { return b.end, true }

// Done implements [context.Context].
func (b *lazyDeadline) Done() <-chan struct{} {
	b.once.Do(func() {
		ctx, cancel := context.WithDeadline(b.Context, b.end)
		b.waiting.Store(&waiting{ctx, cancel})
	})
	return b.waiting.Load().Done()
}

// Err implements [context.Context].
func (b *lazyDeadline) Err() error {
	if w := b.waiting.Load(); w != nil {
		return w.Err()
	}
	return b.at(time.Now())
}

// at returns the result of Err at a given time.
func (b *lazyDeadline) at(now time.Time) error {
	if err := b.Context.Err(); err != nil {
		return err
	}
	if !now.Before(b.end) {
		return context.DeadlineExceeded
	}
	return nil
}

// Value implements [context.Context]. The package context recognizes its own contexts by a value.
func (b *lazyDeadline) Value(key any) any {
	if w := b.waiting.Load(); w != nil {
		return w.Value(key)
	}
	return b.Context.Value(key)
}

// release ends all waits that are left.
func (b *lazyDeadline) release() {
	if w := b.waiting.Load(); w != nil {
		w.cancel()
	}
}

package envoy

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// bound is a context with an end, like one of [context.WithDeadline]. Its timer is made when somebody first
// waits for it, which nobody does on the way to an answer from memory.
type bound struct {
	context.Context // of the call
	end             time.Time

	once    sync.Once
	waiting atomic.Pointer[waiting] // since somebody waits
}

type waiting struct {
	context.Context
	cancel context.CancelFunc
}

// Deadline implements [context.Context].
func (b *bound) Deadline() (time.Time, bool) { return b.end, true }

// Done implements [context.Context].
func (b *bound) Done() <-chan struct{} {
	b.once.Do(func() {
		ctx, cancel := context.WithDeadline(b.Context, b.end)
		b.waiting.Store(&waiting{ctx, cancel})
	})
	return b.waiting.Load().Done()
}

// Err implements [context.Context].
func (b *bound) Err() error {
	if w := b.waiting.Load(); w != nil {
		return w.Err()
	}
	return b.at(time.Now())
}

// at returns what Err does at a moment.
func (b *bound) at(now time.Time) error {
	if err := b.Context.Err(); err != nil {
		return err
	}
	if !now.Before(b.end) {
		return context.DeadlineExceeded
	}
	return nil
}

// Value implements [context.Context]. The package context finds its own kind of context by one.
func (b *bound) Value(key any) any {
	if w := b.waiting.Load(); w != nil {
		return w.Value(key)
	}
	return b.Context.Value(key)
}

// release ends the wait of all who still do.
func (b *bound) release() {
	if w := b.waiting.Load(); w != nil {
		w.cancel()
	}
}

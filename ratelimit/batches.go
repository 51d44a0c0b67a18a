package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

const (
	// batchesUnderWay is the maximum number of batches in flight: one on its way to the server and
	// one on its way back. The next batch gathers meanwhile.
	batchesUnderWay = 2
	// maxBatch is the maximum number of attempts in a batch. The server does nothing else while it
	// runs one.
	maxBatch = 100
)

// batches sends attempts to a server in batches: attempts that arrive while the server is busy
// share the next batch. A single caller does not wait. Its methods are safe for concurrent use.
type batches struct {
	ask  func(context.Context, *batch) ([]Verdict, error)
	free chan struct{} // one slot for each batch in flight

	mu   sync.Mutex
	next *batch // guarded by mu; nil: nobody waits
}

// batch is a group of attempts on one memory of the server.
type batch struct {
	identity string
	attempts []Attempt
	done     chan struct{} // closed once verdicts or err is set
	verdicts []Verdict
	err      error
}

func newBatches(ask func(context.Context, *batch) ([]Verdict, error)) *batches {
	return &batches{ask: ask, free: make(chan struct{}, batchesUnderWay)}
}

// admit asks about one attempt. The first caller of a batch sends it for all of its members. It
// waits at most timeout for a free slot, and at most timeout again for the answer.
func (b *batches) admit(timeout time.Duration, identity string, a Attempt) (Verdict, error) {
	mine, i := b.join(identity, a)
	if i > 0 {
		<-mine.done
	} else {
		b.lead(timeout, mine)
	}
	if mine.err != nil {
		return Verdict{}, mine.err
	}
	return mine.verdicts[i], nil
}

// join adds an attempt to the next batch and returns its index there.
func (b *batches) join(identity string, a Attempt) (*batch, int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.next == nil || b.next.identity != identity || len(b.next.attempts) == maxBatch {
		b.next = &batch{identity: identity, done: make(chan struct{})}
	}
	b.next.attempts = append(b.next.attempts, a)
	return b.next, len(b.next.attempts) - 1
}

// errNotAsked is the error of a batch that was never sent.
var errNotAsked = errors.New("the server was not asked")

// lead sends a batch as soon as a slot is free.
func (b *batches) lead(timeout time.Duration, mine *batch) {
	defer close(mine.done)
	mine.err = errNotAsked
	patience := time.NewTimer(timeout)
	defer patience.Stop()
	select {
	case b.free <- struct{}{}:
		defer func() { <-b.free }()
	case <-patience.C:
		b.close(mine)
		mine.err = fmt.Errorf("%w: it is busy with others: %w", errNotAsked, context.DeadlineExceeded)
		return
	}
	b.close(mine)
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	mine.verdicts, mine.err = b.ask(ctx, mine)
}

// close stops further attempts from joining a batch.
func (b *batches) close(mine *batch) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.next == mine {
		b.next = nil
	}
}

package meter

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

const (
	// batchesUnderWay is how many batches are under way at once: one on the way there, one on the way back. While
	// they are, the next one gathers.
	batchesUnderWay = 2
	// maxBatch is how many attempts are in a batch at most. Their server does nothing else meanwhile.
	maxBatch = 100
)

// batches asks a server about many attempts at once: those that come while it is busy with the ones before. Who
// comes alone does not wait. The methods may be called from many goroutines.
type batches struct {
	ask  func(context.Context, *batch) ([]Verdict, error)
	free chan struct{} // has room for each batch that is under way

	mu   sync.Mutex
	next *batch // guarded by mu; nil: nobody waits
}

// batch is a few attempts on one memory of the server.
type batch struct {
	identity string
	attempts []Attempt
	done     chan struct{} // is closed with the verdicts, or the error
	verdicts []Verdict
	err      error
}

func newBatches(ask func(context.Context, *batch) ([]Verdict, error)) *batches {
	return &batches{ask: ask, free: make(chan struct{}, batchesUnderWay)}
}

// admit asks about one attempt. The one that comes first asks for all of its batch. It waits at most for the timeout until
// it may, and as long for the answer.
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

// join adds an attempt to the next batch, and returns its place there.
func (b *batches) join(identity string, a Attempt) (*batch, int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.next == nil || b.next.identity != identity || len(b.next.attempts) == maxBatch {
		b.next = &batch{identity: identity, done: make(chan struct{})}
	}
	b.next.attempts = append(b.next.attempts, a)
	return b.next, len(b.next.attempts) - 1
}

// errNotAsked stands where nothing else has become of a batch.
var errNotAsked = errors.New("the server was not asked")

// lead asks for a batch as soon as it may.
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

// close lets nobody else join a batch.
func (b *batches) close(mine *batch) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.next == mine {
		b.next = nil
	}
}

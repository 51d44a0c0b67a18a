// Package cache answers look-ups from memory for a short time: a bounded LRU in front of a store.
// It holds what a key resolves to, never a decision. An answer is used for at most [Config.MaxAge],
// counted from before its read was sent, so a change is in force everywhere that long after its commit.
package cache

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyporter/keyporter/apikey"
)

// The ways in which the cache itself keeps a look-up from being answered.
var (
	// ErrBusy is returned when as many reads are running as may, and none of them ended in time.
	ErrBusy = errors.New("cache: too many reads are running")
	// ErrStale is returned when an answer came so late that it may not be used any more.
	ErrStale = errors.New("cache: the read took longer than its answer may be used")
)

// Config says what a [Cache] reads from and how long it believes it. All fields but Find may be left
// zero; a number or duration that is not positive is replaced by its default.
type Config[V any] struct {
	// Find reads one value. It should respect ctx: a read that does not keeps its place among the
	// Fills until it returns. Required.
	Find func(ctx context.Context, d apikey.Digest) (V, error)
	// Negative reports whether an error of Find is an answer, such as "no such key", that may be kept.
	// All other errors are passed on and never kept, as are all if it is nil.
	Negative func(error) bool

	Size         int // values kept; 100,000 by default
	NegativeSize int // negative answers kept, apart, so that a flood of them evicts no value; 10,000 by default

	MaxAge      time.Duration // how long a value is used after its read was sent; 1 s by default
	NegativeAge time.Duration // the same for a negative answer; 1 s by default

	Fills       int           // reads that may run at the same time; 8 by default
	FillTimeout time.Duration // how long one may take, and how long a caller waits for its turn; 900 ms by default, MaxAge at most

	Name    string                // the label "cache" of the metrics
	Metrics prometheus.Registerer // none if nil; two caches on one registry need two names
}

// withDefaults returns c with its defaults filled in.
func (c Config[V]) withDefaults() Config[V] {
	c.Size = positiveOr(c.Size, 100_000)
	c.NegativeSize = positiveOr(c.NegativeSize, 10_000)
	c.MaxAge = positiveOr(c.MaxAge, time.Second)
	c.NegativeAge = min(positiveOr(c.NegativeAge, time.Second), c.MaxAge)
	c.Fills = positiveOr(c.Fills, 8)
	c.FillTimeout = min(positiveOr(c.FillTimeout, 900*time.Millisecond), c.MaxAge)
	if c.Negative == nil {
		c.Negative = func(error) bool { return false }
	}
	return c
}

func positiveOr[T int | time.Duration](n, otherwise T) T {
	if n > 0 {
		return n
	}
	return otherwise
}

// Cache is a cache of values by digest. It is safe for concurrent use. A value is shared by all who
// find it: do not change what it points to.
type Cache[V any] struct {
	config  Config[V]
	metrics *metrics
	values  *lru.Cache[apikey.Digest, entry[V]]
	answers *lru.Cache[apikey.Digest, entry[error]] // the negative ones

	slots chan struct{} // holds one element per running read
	close sync.Once

	// mu makes the end of a read one step: its answer is stored when its flight is gone.
	mu      sync.Mutex
	flights map[apikey.Digest]*flight[V] // digest → the read that may be joined
}

// entry is something read, and when the read was sent.
type entry[T any] struct {
	value T
	sent  time.Time
}

// flight is a read that several callers wait for. Its answer may be looked at once done is closed.
type flight[V any] struct {
	sent     time.Time
	done     chan struct{}
	value    V
	err      error
	negative bool // err is an answer
}

// New returns a Cache. It panics when its metrics are registered already.
func New[V any](c Config[V]) *Cache[V] {
	c = c.withDefaults()
	cache := &Cache[V]{
		config:  c,
		values:  newLRU[entry[V]](c.Size),
		answers: newLRU[entry[error]](c.NegativeSize),
		slots:   make(chan struct{}, c.Fills),
		flights: map[apikey.Digest]*flight[V]{},
	}
	cache.metrics = newMetrics(c.Metrics, c.Name, func() int { return cache.values.Len() + cache.answers.Len() })
	return cache
}

func newLRU[V any](size int) *lru.Cache[apikey.Digest, V] {
	cache, err := lru.New[apikey.Digest, V](size)
	if err != nil {
		panic(err) // cannot be: the size is positive
	}
	return cache
}

// Find returns the value of d: from memory, from a read that is running already, or from one of its
// own. The error is one of Config.Find, [ErrBusy], [ErrStale], or that of ctx. Find returns when ctx is
// done; a read that others may wait for goes on.
func (c *Cache[V]) Find(ctx context.Context, d apikey.Digest) (V, error) {
	value, result, err := c.cached(d)
	if result == none {
		value, result, err = c.miss(ctx, d)
	}
	c.metrics.count(result)
	return value, err
}

// cached returns what is known about d, or the result none.
func (c *Cache[V]) cached(d apikey.Digest) (value V, _ result, _ error) {
	if e, ok := c.values.Get(d); ok && time.Since(e.sent) <= c.config.MaxAge {
		return e.value, hit, nil
	}
	if e, ok := c.answers.Get(d); ok && time.Since(e.sent) <= c.config.NegativeAge {
		return value, negative, e.value
	}
	return value, none, nil
}

func (c *Cache[V]) miss(ctx context.Context, d apikey.Digest) (V, result, error) {
	c.mu.Lock()
	f := c.joinable(d)
	c.mu.Unlock()
	if f != nil {
		return c.wait(ctx, f, shared)
	}
	return c.read(ctx, d)
}

// joinable returns the read of d that is running, unless it is too old to be of use. The caller
// holds mu.
func (c *Cache[V]) joinable(d apikey.Digest) *flight[V] {
	if f := c.flights[d]; f != nil && time.Since(f.sent) <= c.config.MaxAge {
		return f
	}
	return nil
}

// read waits for its turn and reads d, unless somebody else has read it, or does so, by then.
func (c *Cache[V]) read(ctx context.Context, d apikey.Digest) (V, result, error) {
	late := c.takeSlot(ctx)
	c.mu.Lock()
	value, result, err := c.cached(d)
	f := c.joinable(d)
	begin := result == none && f == nil && late == nil
	if begin {
		f = &flight[V]{sent: time.Now(), done: make(chan struct{})}
		c.flights[d] = f
	}
	c.mu.Unlock()
	if begin {
		go c.fill(ctx, d, f)
		return c.wait(ctx, f, miss)
	}
	if late == nil {
		<-c.slots
	}
	switch {
	case result != none:
		return value, result, err
	case f != nil:
		return c.wait(ctx, f, shared)
	}
	return value, busy, late
}

// takeSlot waits until one more read may run, but not for ever.
func (c *Cache[V]) takeSlot(ctx context.Context) error {
	select {
	case c.slots <- struct{}{}:
		return nil
	default:
	}
	limit := time.NewTimer(c.config.FillTimeout)
	defer limit.Stop()
	select {
	case c.slots <- struct{}{}:
		return nil
	case <-limit.C:
		return ErrBusy
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrBusy, context.Cause(ctx))
	}
}

// fill is the goroutine of a read. Callers come and go; it ends with Config.Find.
func (c *Cache[V]) fill(ctx context.Context, d apikey.Digest, f *flight[V]) {
	defer func() { <-c.slots }()
	defer c.finish(d, f)
	defer func() {
		if r := recover(); r != nil {
			f.err = fmt.Errorf("cache: the read panicked with a %T", r) // the value could quote anything
		}
	}()
	f.err = errors.New("cache: the read ended without an answer") // unless Find returns
	ctx, cancel := context.WithDeadline(context.WithoutCancel(ctx), f.sent.Add(c.config.FillTimeout))
	defer cancel()
	f.value, f.err = c.config.Find(ctx, d)
	f.negative = f.err != nil && c.config.Negative(f.err)
}

// finish stores the answer of a read if it may still be used, and hands it to all who wait.
func (c *Cache[V]) finish(d apikey.Digest, f *flight[V]) {
	c.mu.Lock()
	if c.flights[d] == f {
		delete(c.flights, d)
	}
	age := time.Since(f.sent)
	switch {
	case age > c.config.MaxAge:
	case f.err == nil:
		c.values.Add(d, entry[V]{f.value, f.sent})
	case f.negative:
		c.answers.Add(d, entry[error]{f.err, f.sent})
	}
	c.mu.Unlock()
	c.metrics.seconds.Observe(age.Seconds())
	close(f.done)
}

// wait returns the answer of a read, with the result given if there is one.
func (c *Cache[V]) wait(ctx context.Context, f *flight[V], answered result) (none V, _ result, _ error) {
	limit := time.NewTimer(c.config.MaxAge - time.Since(f.sent))
	defer limit.Stop()
	select {
	case <-f.done:
	case <-limit.C:
		return none, stale, ErrStale
	case <-ctx.Done():
		return none, failed, fmt.Errorf("waiting for a read: %w", context.Cause(ctx))
	}
	switch {
	case f.err != nil && !f.negative:
		return none, failed, f.err
	case time.Since(f.sent) > c.config.MaxAge:
		return none, stale, ErrStale
	case f.negative:
		return none, answered, f.err
	}
	return f.value, answered, nil
}

// Close waits for the reads that run, which end within FillTimeout where Find respects its context,
// and lets no more begin: later, what is not in memory is [ErrBusy].
func (c *Cache[V]) Close() {
	c.close.Do(func() {
		for range cap(c.slots) {
			c.slots <- struct{}{}
		}
	})
}

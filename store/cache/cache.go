// Package cache answers look-ups from memory: a bounded LRU in front of a store, under a lease. It
// holds what a key resolves to, never a decision. An answer is validated on use, not when it is
// stored: without a lease, or after a change that touches it, it is read again. So an answer that
// was being read during a change is never used, regardless of the caller that waited for it.
package cache

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyporter/keyporter/nowait"
	"github.com/keyporter/keyporter/store/lease"
)

// The errors of a look-up that come from the cache.
var (
	// ErrBusy is returned when the maximum number of reads was running and none ended in time.
	ErrBusy = errors.New("cache: too many reads are running")
	// ErrStale is returned when every attempt to read a value was overtaken by a change.
	ErrStale = errors.New("cache: what was read had changed by then")
	// ErrRead is returned, with the reason, when the store does not answer, or not in time.
	ErrRead = errors.New("the database does not answer")
)

// Found is an answer of a store.
type Found[V any] struct {
	Value   V
	Origin  lease.Origin // what the answer rests on
	Expires time.Time    // by this machine's clock; never if zero
}

// Config says what a [Cache] reads from, and under which lease. Find and Lease are required; a
// number or duration that is not positive is replaced by its default.
type Config[K comparable, V any] struct {
	// Find reads one value. It should respect ctx: a read that ignores it occupies one of the Fills
	// until it returns. If the error is Negative, only the Origin.Epoch of the result counts.
	Find func(ctx context.Context, k K) (Found[V], error)
	// Negative reports whether an error of Find is an answer that may be kept, such as "no such
	// key". All other errors are passed on and never kept. If Negative is nil, no error is kept.
	Negative func(error) bool
	Lease    *lease.Lease
	// Admit decides, under the lease, whether a value that is not in memory may be read. Its error
	// is the result of the look-up. It may wait, unless ctx is of [nowait.Context]. The leave that
	// it returns is called once after the read, if it takes place, or else soon. Nil: all may be.
	Admit func(ctx context.Context, k K) (leave func(), _ error)

	Size int // values kept; 100,000 by default
	// NegativeSize is the number of negative answers kept, separately so that a flood of them
	// evicts no value; 10,000 by default.
	NegativeSize int

	Fills int // reads that may run at the same time; 8 by default
	// FillTimeout limits one read, and the time a caller waits for its turn; 900 ms by default.
	FillTimeout time.Duration

	Name    string                // the label "cache" of the metrics
	Metrics prometheus.Registerer // none if nil; two caches on one registry need two names
}

// withDefaults returns c with its defaults filled in.
func (c Config[K, V]) withDefaults() Config[K, V] {
	c.Size = positiveOr(c.Size, 100_000)
	c.NegativeSize = positiveOr(c.NegativeSize, 10_000)
	c.Fills = positiveOr(c.Fills, 8)
	c.FillTimeout = positiveOr(c.FillTimeout, 900*time.Millisecond)
	if c.Admit == nil {
		c.Admit = func(context.Context, K) (func(), error) { return func() {}, nil }
	}
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

// Cache maps keys, such as digests, to values. It is safe for concurrent use. All callers that find
// a value share it: do not modify what it points to.
type Cache[K comparable, V any] struct {
	config  Config[K, V]
	metrics *metrics
	values  *lru.Cache[K, *entry[V]]
	answers *lru.Cache[K, *entry[error]] // negative answers

	slots chan struct{} // holds one element per running read
	close sync.Once

	// mu makes the end of a read atomic: once its flight is gone, its answer is stored.
	mu      sync.Mutex
	flights map[K]*flight[V] // key → the read that may be joined
}

// entry is a stored answer.
type entry[T any] struct {
	value   T
	stamp   lease.Stamp
	expires time.Time
}

// flight is a read that several callers wait for. Its result may be read once done is closed.
type flight[V any] struct {
	reading lease.Reading
	done    chan struct{}
	leave   func() // of Config.Admit
	found   Found[V]
	err     error
	answer  bool // there is one: the value, or a negative error
	stamp   lease.Stamp
}

// New returns a Cache. It panics if its metrics are already registered.
func New[K comparable, V any](c Config[K, V]) *Cache[K, V] {
	c = c.withDefaults()
	cache := &Cache[K, V]{
		config:  c,
		values:  newLRU[K, *entry[V]](c.Size),
		answers: newLRU[K, *entry[error]](c.NegativeSize),
		slots:   make(chan struct{}, c.Fills),
		flights: map[K]*flight[V]{},
	}
	cache.metrics = newMetrics(c.Metrics, c.Name, func() int { return cache.values.Len() + cache.answers.Len() })
	return cache
}

func newLRU[K comparable, V any](size int) *lru.Cache[K, V] {
	cache, err := lru.New[K, V](size)
	if err != nil {
		panic(err) // impossible: the size is positive
	}
	return cache
}

// readTries is the maximum number of reads in one look-up of a value that changes during each read.
const readTries = 4

// Find returns the value of k: from memory, from a read that is already running, or from a read of
// its own. The error is a negative answer of Config.Find, [ErrRead], [ErrBusy], [ErrStale] or
// [lease.ErrNotHeld]. Find returns when ctx is done; a read that others may wait for continues.
// With a context of [nowait.Context], it answers from memory or returns [nowait.ErrWouldWait].
func (c *Cache[K, V]) Find(ctx context.Context, k K) (V, error) {
	value, result, err := c.find(ctx, k)
	again := (result == hit || result == negative) && nowait.Repeated(ctx) // is counted already
	if !again && !errors.Is(err, nowait.ErrWouldWait) {
		c.metrics.count(result)
	}
	return value, err
}

func (c *Cache[K, V]) find(ctx context.Context, k K) (none V, _ result, _ error) {
	for range readTries { // rule 1: lease
		// Check the lease before each use of an answer: it must be held at that moment.
		if err := c.config.Lease.Hold(ctx); err != nil {
			return none, unleased, err
		}
		if value, result, err := c.cached(k); result != absent {
			return value, result, err
		}
		leave, err := c.config.Admit(ctx, k)
		if err != nil {
			return none, c.refusal(err), err
		}
		if err := nowait.Err(ctx); err != nil {
			leave()
			return none, absent, err
		}
		f, result, err := c.read(ctx, k, leave)
		if err != nil {
			return none, result, err
		}
		if f == nil {
			continue // another caller has just read it
		}
		if value, err, ok := c.landed(f); ok {
			return value, result, err
		}
	}
	return none, stale, ErrStale
}

// cached returns the stored answer for k, or the result absent. The caller holds the lease.
func (c *Cache[K, V]) cached(k K) (value V, _ result, _ error) {
	if e, ok := c.values.Get(k); ok && c.config.Lease.Fresh(&e.stamp) && !expired(e.expires) { // rule 4: values
		return e.value, hit, nil
	}
	if e, ok := c.answers.Get(k); ok && c.config.Lease.Fresh(&e.stamp) { // rule 4: negative answers
		return value, negative, e.value
	}
	return value, absent, nil
}

func expired(at time.Time) bool { return !at.IsZero() && !time.Now().Before(at) }

// landed returns the answer of a finished read, if it may be used. It checks the lease first, then
// whether anything the answer rests on has changed.
func (c *Cache[K, V]) landed(f *flight[V]) (none V, _ error, ok bool) {
	if !c.config.Lease.Held() || !c.config.Lease.Fresh(&f.stamp) || expired(f.found.Expires) { // rule 5: shared reads
		return none, nil, false
	}
	if f.err != nil {
		return none, f.err, true
	}
	return f.found.Value, nil, true
}

// refusal is the result of a look-up that Config.Admit has refused.
func (c *Cache[K, V]) refusal(err error) result {
	if c.config.Negative(err) {
		return negative
	}
	return busy
}

// read waits for a running read of k, or starts one. The flight is nil if others read k while this
// caller waited for its turn. It calls leave when its own read has ended, or if there is none.
func (c *Cache[K, V]) read(ctx context.Context, k K, leave func()) (*flight[V], result, error) {
	if f := c.running(k); f != nil {
		leave()
		return c.wait(ctx, f, shared)
	}
	late := c.takeSlot(ctx)
	c.mu.Lock()
	_, known, _ := c.cached(k)
	f := c.flights[k]
	begin := known == absent && f == nil && late == nil
	if begin {
		f = &flight[V]{reading: c.config.Lease.Read(), done: make(chan struct{}), leave: leave}
		c.flights[k] = f
	}
	c.mu.Unlock()
	if begin {
		go c.fill(ctx, k, f)
		return c.wait(ctx, f, miss)
	}
	leave()
	if late == nil {
		<-c.slots
	}
	switch {
	case known != absent:
		return nil, known, nil
	case f != nil:
		return c.wait(ctx, f, shared)
	}
	return nil, busy, late
}

func (c *Cache[K, V]) running(k K) *flight[V] {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.flights[k]
}

// takeSlot waits until one more read may run, for FillTimeout at most.
func (c *Cache[K, V]) takeSlot(ctx context.Context) error {
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

// fill is the goroutine of a read. It outlives its callers and ends with Config.Find.
func (c *Cache[K, V]) fill(ctx context.Context, k K, f *flight[V]) {
	began := time.Now()
	defer func() { <-c.slots }()
	defer f.leave()
	defer func() { c.finish(k, f, time.Since(began)) }()
	defer func() {
		if r := recover(); r != nil {
			f.err = fmt.Errorf("cache: the read panicked with a %T", r) // the value could quote anything
		}
	}()
	f.err = errors.New("cache: the read ended without an answer") // unless Find returns
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.config.FillTimeout)
	defer cancel()
	f.found, f.err = c.config.Find(ctx, k)
	if f.err != nil {
		f.found = Found[V]{Origin: lease.Origin{Epoch: f.found.Origin.Epoch}} // rests on everything
	}
	f.answer = f.err == nil || c.config.Negative(f.err)
	f.stamp = f.reading.Stamp(f.found.Origin)
}

// finish stores the answer of a read if nothing it rests on has changed, and hands it to all
// waiting callers.
func (c *Cache[K, V]) finish(k K, f *flight[V], took time.Duration) {
	c.mu.Lock()
	delete(c.flights, k)
	switch {
	case !f.answer:
	case !c.config.Lease.Fresh(&f.stamp):
		c.metrics.discarded.Inc()
	case f.err == nil:
		c.values.Add(k, &entry[V]{f.found.Value, f.stamp, f.found.Expires})
	default:
		c.answers.Add(k, &entry[error]{value: f.err, stamp: f.stamp})
	}
	c.mu.Unlock()
	c.metrics.seconds.Observe(took.Seconds())
	close(f.done)
}

// wait waits for a read to end and returns it with the given result.
func (c *Cache[K, V]) wait(ctx context.Context, f *flight[V], ended result) (*flight[V], result, error) {
	select {
	case <-f.done:
	case <-ctx.Done():
		return nil, failed, fmt.Errorf("%w: waiting for a read: %w", ErrRead, context.Cause(ctx))
	}
	if !f.answer {
		return nil, failed, fmt.Errorf("%w: %w", ErrRead, f.err)
	}
	return f, ended, nil
}

// Close waits for the running reads, which end within FillTimeout if Find respects its context, and
// lets none begin after that. From then on a look-up that memory cannot answer fails with
// [ErrBusy].
func (c *Cache[K, V]) Close() {
	c.close.Do(func() {
		for range cap(c.slots) {
			c.slots <- struct{}{}
		}
	})
}

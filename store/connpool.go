package store

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"
)

// A connPool supplies a *sql.DB of PostgreSQL with connections. It is a [driver.Connector] whose
// Connect waits for a free connection. Attempts to connect run in the background, with a time limit
// of their own: an attempt continues after impatient callers have left, and the next caller finds
// its connection.
type connPool struct {
	all     *connections
	purpose purpose
	open    func(context.Context) (*link, error)
	ctx     context.Context // of its attempts
	cancel  context.CancelFunc
	running sync.WaitGroup // attempts, and connections that are being closed

	// The following fields are guarded by all.mu.
	free    []*link // free for longest first
	waiting []*waiter
	live    int // free, lent, or being checked
	opening map[*attempt]struct{}
	failed  error       // the latest attempt's error; nil after a success
	retry   *time.Timer // for the next attempt after a failed one
	pause   time.Duration
	hedge   *time.Timer // for one more attempt beside slow ones
	patient time.Duration
	closed  bool
}

// attempt is an attempt to connect.
type attempt struct{ cancel context.CancelFunc }

// waiter is one call of Connect.
type waiter struct{ told chan told }

type told struct {
	link *link
	err  error
}

// link is a connection of a pool.
type link struct {
	session
	wire net.Conn  // below it
	ends time.Time // not lent after that
	free time.Time // since when
}

// session is what the driver's connections can do.
type session interface {
	driver.Conn
	driver.QueryerContext
	driver.ExecerContext
	driver.ConnPrepareContext
	driver.ConnBeginTx
	driver.Pinger
	driver.Validator
	driver.SessionResetter
	driver.NamedValueChecker
}

// lent is a link in use by database/sql. Closing it gives it back to the pool.
type lent struct {
	session
	pool *connPool
	link *link
}

// Close implements [driver.Conn].
func (l *lent) Close() error {
	l.pool.giveBack(l.link)
	return nil
}

const (
	firstPause = 50 * time.Millisecond // after a failed attempt
	longPause  = time.Second
	// firstPatience is the time after which another attempt starts beside slow ones, which may wait
	// for a lost answer. It doubles each time.
	firstPatience = 500 * time.Millisecond
	longPatience  = 2 * time.Second
	// fullPause is the pause if the server has no more connections.
	fullPause = 500 * time.Millisecond
	// askTimeout is the time limit for a connection to prove that it is alive.
	askTimeout = time.Second
)

var errClosed = errors.New("the connections are closed")

// Connect implements [driver.Connector]. It returns an attempt's error, unless the server has no
// more connections: then it waits for an existing one.
func (p *connPool) Connect(ctx context.Context) (driver.Conn, error) {
	p.all.mu.Lock()
	if p.closed {
		p.all.mu.Unlock()
		return nil, errClosed
	}
	if l := p.take(); l != nil {
		p.all.mu.Unlock()
		return p.lend(l), nil
	}
	w := &waiter{told: make(chan told, 1)}
	p.waiting = append(p.waiting, w)
	p.fill()
	p.all.mu.Unlock()
	select {
	case t := <-w.told:
		if t.err != nil {
			return nil, t.err
		}
		return p.lend(t.link), nil
	case <-ctx.Done():
		return nil, p.leave(w, ctx.Err())
	}
}

// Driver implements [driver.Connector].
func (p *connPool) Driver() driver.Driver { return nil }

// Close implements [io.Closer]: the *sql.DB calls it when it is closed.
func (p *connPool) Close() error {
	p.all.mu.Lock()
	p.closed = true
	p.all.remove(p)
	for _, timer := range []*time.Timer{p.retry, p.hedge} {
		if timer != nil {
			timer.Stop()
		}
	}
	for _, l := range p.free {
		p.discard(l)
	}
	p.free = nil
	p.tell(errClosed)
	p.all.mu.Unlock()
	p.cancel()
	p.running.Wait()
	return nil
}

func (p *connPool) lend(l *link) *lent { return &lent{session: l.session, pool: p, link: l} }

// leave removes w from the waiting callers. A connection that arrives for it at the same moment
// goes to the next one.
func (p *connPool) leave(w *waiter, cause error) error {
	p.all.mu.Lock()
	p.waiting = slices.DeleteFunc(p.waiting, func(other *waiter) bool { return other == w })
	failed := p.failed
	p.all.mu.Unlock()
	select {
	case t := <-w.told: // no more results arrive for w
		if t.link != nil {
			p.giveBack(t.link)
		}
	default:
	}
	if failed != nil {
		return fmt.Errorf("no connection to the database: %w (%w)", failed, cause)
	}
	return fmt.Errorf("no connection to the database yet: %w", cause)
}

// The methods below are called with all.mu held.

// take returns the connection that has been free for longest, or nil. So each is used now and then,
// and a dead one is found.
func (p *connPool) take() *link {
	for len(p.free) > 0 {
		l := p.free[0]
		p.free = slices.Delete(p.free, 0, 1)
		if !p.ended(l) {
			return l
		}
		p.discard(l)
	}
	return nil
}

// ended reports whether a connection must not be used any more. The connections of a pool that is
// kept full are replaced one after the other.
func (p *connPool) ended(l *link) bool {
	if p.live > p.size() && p.live > 1 {
		return true
	}
	return time.Now().After(l.ends) && (!p.kept() || p.live > 1 && p.live >= p.size())
}

// offer gives a connection to the caller that has waited for longest.
func (p *connPool) offer(l *link) {
	switch {
	case p.closed || p.ended(l):
		p.discard(l)
		p.fill()
	case len(p.waiting) > 0:
		w := p.waiting[0]
		p.waiting = slices.Delete(p.waiting, 0, 1)
		w.told <- told{link: l}
	default:
		l.free = time.Now()
		p.free = append(p.free, l)
	}
}

// discard ends a connection that is neither free nor lent. Once the pool is closed, only goroutines
// that Close waits for may call it.
func (p *connPool) discard(l *link) {
	p.live--
	p.running.Go(func() { l.Close() })
}

// size returns how many connections this pool may have.
func (p *connPool) size() int { return p.all.counts()[p.purpose] }

// kept reports whether the pool keeps its connections open in advance.
func (p *connPool) kept() bool {
	return p.all.keeping && (p.purpose == forLookups || p.purpose == forReports)
}

// want returns how many connections there should be.
func (p *connPool) want() int {
	if p.kept() {
		return p.size()
	}
	// At least one: the server may have a free one by now.
	return min(max(p.size(), 1), p.live-len(p.free)+len(p.waiting))
}

// fill starts as many attempts as are due. After a failure it starts one at a time, until one
// succeeds.
func (p *connPool) fill() {
	for !p.closed && p.live+len(p.opening) < p.want() {
		if p.failed != nil && (len(p.opening) > 0 || p.retry != nil) {
			break
		}
		p.begin()
	}
	p.doubt()
}

func (p *connPool) begin() {
	ctx, cancel := context.WithCancel(p.ctx)
	a := &attempt{cancel}
	p.opening[a] = struct{}{}
	p.running.Go(func() { p.connect(ctx, a) })
}

// doubt starts one more attempt if the running ones are slow.
func (p *connPool) doubt() {
	if p.hedge != nil || p.closed || len(p.opening) == 0 || p.live >= p.want() {
		return
	}
	p.patient = min(max(2*p.patient, firstPatience), longPatience)
	p.hedge = time.AfterFunc(p.patient, func() {
		p.all.mu.Lock()
		defer p.all.mu.Unlock()
		p.hedge = nil
		if !p.closed && len(p.opening) > 0 && p.live < p.want() {
			p.begin()
		}
		p.fill()
	})
}

// tell fails all waiting callers.
func (p *connPool) tell(err error) {
	for _, w := range p.waiting {
		w.told <- told{err: err}
	}
	p.waiting = nil
}

// again makes the next attempt after a pause.
func (p *connPool) again(pause time.Duration) {
	if p.retry == nil && !p.closed {
		p.retry = time.AfterFunc(pause, func() {
			p.all.mu.Lock()
			defer p.all.mu.Unlock()
			p.retry = nil
			p.fill()
		})
	}
}

// The methods below are called without all.mu, unless stated otherwise.

// connect is one attempt.
func (p *connPool) connect(ctx context.Context, a *attempt) {
	l, err := p.open(ctx)
	p.all.mu.Lock()
	defer p.all.mu.Unlock()
	needed := ctx.Err() == nil
	a.cancel()
	delete(p.opening, a)
	switch {
	case err == nil:
		p.opened(l)
	case needed:
		p.refused(err)
	}
}

// opened is called with all.mu held, as is refused.
func (p *connPool) opened(l *link) {
	p.all.attempts.WithLabelValues(p.purpose.String(), "opened").Inc()
	p.live++
	p.failed, p.pause, p.patient = nil, 0, 0
	p.offer(l)
	p.fill()
	if p.live >= p.want() {
		for a := range p.opening { // they are not needed any more
			a.cancel()
			delete(p.opening, a) // a caller that wants one more does not wait for its end
		}
	}
}

func (p *connPool) refused(err error) {
	p.failed = err
	if errors.Is(err, errFull) {
		p.all.attempts.WithLabelValues(p.purpose.String(), "full").Inc()
		p.all.full(err)
		p.again(fullPause)
		return
	}
	p.all.attempts.WithLabelValues(p.purpose.String(), "failed").Inc()
	if p.live == 0 && len(p.opening) == 0 {
		p.tell(err) // otherwise one of those may still succeed
	}
	p.pause = min(max(2*p.pause, firstPause), longPause)
	p.again(p.pause)
}

// giveBack takes a connection back from its user. If it is broken, the others may be as well.
func (p *connPool) giveBack(l *link) {
	valid := l.IsValid()
	p.all.mu.Lock()
	closed := p.closed
	switch {
	case closed:
		p.live--
	case valid:
		p.offer(l)
	default:
		p.lost(l)
	}
	p.all.mu.Unlock()
	if closed {
		l.Close() // here, since pool.Close may no longer wait
	}
}

// lost ends a broken connection and has all free ones checked. It is called with all.mu held.
func (p *connPool) lost(l *link) {
	p.discard(l)
	p.fill()
	for _, other := range p.all.pools {
		other.ask(0)
	}
}

// ask checks the connections that have been free for at least the given time. It is called with
// all.mu held.
func (p *connPool) ask(free time.Duration) {
	rest := p.free[:0]
	for _, l := range p.free {
		if time.Since(l.free) < free {
			rest = append(rest, l)
			continue
		}
		p.running.Go(func() {
			lives := l.lives(p.ctx)
			p.all.mu.Lock()
			defer p.all.mu.Unlock()
			if lives {
				p.offer(l)
				return
			}
			p.lost(l)
		})
	}
	clear(p.free[len(rest):])
	p.free = rest
}

// lives reports whether the server answers on this connection.
func (l *link) lives(ctx context.Context) bool {
	defer context.AfterFunc(ctx, func() { l.wire.Close() })()
	if err := l.wire.SetDeadline(time.Now().Add(askTimeout)); err != nil {
		return false
	}
	if err := l.Ping(context.WithoutCancel(ctx)); err != nil {
		return false
	}
	return l.wire.SetDeadline(time.Time{}) == nil
}

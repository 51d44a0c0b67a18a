package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lib/pq"
	"github.com/prometheus/client_golang/prometheus"
)

// purpose is the kind of work that some of the connections to PostgreSQL are reserved for.
type purpose int

const (
	forLookups purpose = iota
	forLeases
	forReports
	forChanges
	forListening
	forLogs
	purposeCount
)

func (p purpose) String() string {
	return [...]string{"lookups", "lease", "credits", "changes", "announcements", "requests"}[p]
}

// purposeOrder lists the purposes of the first connection, the second one, and so on.
var purposeOrder = [...]purpose{
	forLookups, forLeases, forReports, forChanges, forListening, forLogs,
	forLookups, forLookups, forChanges, forLeases, forLookups, forReports, forLookups,
	forChanges, forLookups, forLogs, forLookups, forChanges, forLookups,
}

// The bounds of [Config.Connections].
const (
	MinConnections     = int(purposeCount)
	DefaultConnections = len(purposeOrder)
	MaxConnections     = 1000
)

// ConnectionCounts holds the number of connections for each purpose.
type ConnectionCounts [purposeCount]int

// DivideConnections divides connections among their purposes. Beyond the default, one in three is
// for changes and two are for look-ups.
func DivideConnections(connections int) (counts ConnectionCounts) {
	for i := range connections {
		switch {
		case i < len(purposeOrder):
			counts[purposeOrder[i]]++
		case i%3 == 0:
			counts[forChanges]++
		default:
			counts[forLookups]++
		}
	}
	return counts
}

// Lookups returns the number of connections for look-ups.
func (all ConnectionCounts) Lookups() int { return all[forLookups] }

// String returns the number of connections for each purpose.
func (all ConnectionCounts) String() string {
	texts := make([]string, len(all))
	for p, n := range all {
		texts[p] = fmt.Sprintf("%s %d", purpose(p), n)
	}
	return strings.Join(texts, ", ")
}

// connections holds the connections of one process to PostgreSQL: a connection pool for each
// purpose, within what the server grants.
type connections struct {
	attempts *prometheus.CounterVec
	refused  chan error // a refusal that nobody has received yet

	mu      sync.Mutex
	pools   []*connPool // guarded by mu, as are the other fields and the state of the pools
	most    int         // the maximum for this process
	granted int         // how many of them the server grants, as far as is known
	refusal error       // why that is fewer than most; nil if it is not
	raise   *time.Timer
	waits   time.Duration // before one more is tried
	again   bool          // refused since the last try
	listens bool          // announcements arrive
	keeping bool          // connections that requests wait for are opened in advance
	closed  bool
}

// errFull says that the server has no more connections for this process.
var errFull = errors.New("the server has no more connections for this user or database")

// The pauses before the pools try for one more connection after a refusal. The first is short,
// since the server also refuses bursts of new connections; later ones grow.
const (
	soonTried   = 500 * time.Millisecond
	rarelyTried = 30 * time.Second
)

func newConnections(most int) *connections {
	if most == 0 {
		most = DefaultConnections
	}
	return &connections{most: most, granted: most, refused: make(chan error, 1), attempts: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "keyporter_database_attempts_total",
		Help: "Attempts to connect to PostgreSQL, by purpose and result: opened, failed, full (the server had no more connections).",
	}, []string{"purpose", "result"})}
}

// The methods below are called with mu held.

func (c *connections) counts() ConnectionCounts { return DivideConnections(c.granted) }

func (c *connections) remove(p *connPool) {
	c.pools = slices.DeleteFunc(c.pools, func(other *connPool) bool { return other == p })
}

// full records that the server has refused a connection, and divides the existing ones anew: a pool
// with more than its number now closes spare connections.
func (c *connections) full(err error) {
	granted := 0
	if c.listens {
		granted++
	}
	for _, p := range c.pools {
		granted += p.live
	}
	c.granted, c.refusal, c.again = min(c.most, max(granted, int(purposeCount)-2)), err, true
	for _, p := range c.pools {
		p.trim()
	}
	select {
	case c.refused <- err:
	default:
	}
	if c.raise == nil {
		c.waits = soonTried
		c.tryLater()
	}
}

func (c *connections) tryLater() {
	if c.closed {
		return
	}
	c.again = false
	c.raise = time.AfterFunc(c.waits, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.raise = nil
		if c.again {
			c.waits = min(2*c.waits, rarelyTried)
		} else {
			c.waits = soonTried
		}
		c.granted = min(c.granted+1, c.most)
		if c.granted == c.most && !c.again {
			c.refusal = nil
			return
		}
		for _, p := range c.pools {
			p.fill()
		}
		c.tryLater()
	})
}

// trim closes free connections that must not be used any more.
func (p *connPool) trim() {
	p.free = slices.DeleteFunc(p.free, func(l *link) bool {
		ended := p.ended(l)
		if ended {
			p.discard(l)
		}
		return ended
	})
	p.fill()
}

// The methods below are called without mu.

// pool returns connections for one purpose.
func (c *connections) pool(server *target, use purpose, silence time.Duration) *sql.DB {
	p := &connPool{all: c, purpose: use, opening: map[*attempt]struct{}{}, open: func(ctx context.Context) (*link, error) { return server.open(ctx, silence) }}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	c.mu.Lock()
	c.pools = append(c.pools, p)
	c.mu.Unlock()
	pool := sql.OpenDB(p)
	pool.SetMaxIdleConns(-1) // all are given back at once
	return pool
}

// listen receives the state of the connection for announcements.
func (c *connections) listen(event pq.ListenerEventType, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch event {
	case pq.ListenerEventConnected, pq.ListenerEventReconnected:
		c.listens = true
	case pq.ListenerEventDisconnected:
		c.listens = false
	case pq.ListenerEventConnectionAttemptFailed:
		c.listens = false
		if code(err) == tooManyConnections {
			c.full(fmt.Errorf("%w: %w", errFull, err))
		}
	}
}

func (c *connections) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if c.raise != nil {
		c.raise.Stop()
	}
}

const (
	keepInterval = time.Second
	// askAfter is how long a connection is free before it is checked.
	askAfter = 10 * time.Second
)

// keep fills the pools that requests wait for, and checks all pools.
func (c *connections) keep() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.keeping = true
	for _, p := range c.pools {
		p.trim()
		p.ask(askAfter)
	}
}

// complete reports whether each pool that requests wait for has all the connections it can get.
func (c *connections) complete() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.pools {
		if p.kept() && (p.live == 0 || p.live < p.size() && p.failed == nil) {
			return false
		}
	}
	return c.keeping
}

// Collect implements [prometheus.Collector].
func (c *connections) Collect(into chan<- prometheus.Metric) {
	c.attempts.Collect(into)
	c.mu.Lock()
	defer c.mu.Unlock()
	var open ConnectionCounts
	if c.listens {
		open[forListening] = 1
	}
	for _, p := range c.pools {
		open[p.purpose] += p.live
	}
	for p := range purposeCount {
		into <- prometheus.MustNewConstMetric(openConnections, prometheus.GaugeValue, float64(open[p]), p.String())
	}
	into <- prometheus.MustNewConstMetric(grantedConnections, prometheus.GaugeValue, float64(c.granted))
}

// Describe implements [prometheus.Collector].
func (c *connections) Describe(into chan<- *prometheus.Desc) {
	c.attempts.Describe(into)
	into <- openConnections
	into <- grantedConnections
}

var (
	openConnections = prometheus.NewDesc("keyporter_database_connections",
		"Open connections to PostgreSQL, by purpose.", []string{"purpose"}, nil)
	grantedConnections = prometheus.NewDesc("keyporter_database_connections_granted",
		"How many connections this replica may have: --database-connections, or what PostgreSQL grants, if that is less.", nil, nil)
)

// Connections describes the connections of this process.
type Connections struct {
	// Failing is how long all look-ups have failed, 0 if the last one succeeded; Problem is why.
	Failing time.Duration
	Problem error
	// Refused is why the server grants fewer connections than this process may have; nil if it does
	// not.
	Refused       error
	Granted, Most int
}

// Connections returns the state of the connections of this process.
func (db *DB) Connections() Connections {
	failing, problem := db.lookedUp.failing()
	result := Connections{Failing: failing, Problem: problem}
	if c := db.connections; c != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		result.Refused, result.Granted, result.Most = c.refusal, c.granted, c.most
	}
	return result
}

// Keep opens the connections that requests wait for in advance, and reopens lost ones. Without
// other look-ups it calls lookUp every second, which makes one, so that [DB.Connections] reports
// what a request would get. It returns when ctx ends.
func (db *DB) Keep(ctx context.Context, lookUp func(context.Context) error) {
	tick := time.NewTicker(keepInterval)
	defer tick.Stop()
	for ctx.Err() == nil {
		c := db.connections
		if c != nil {
			c.keep()
		}
		// A file does not disappear by itself, so it is tested only after a request has failed.
		if failing, _ := db.lookedUp.failing(); failing > 0 || c != nil && !db.lookedUp.lately(keepInterval) {
			_ = lookUp(ctx) // recorded
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// AwaitConnections waits until the connections of [DB.Keep] are open and a look-up succeeds.
func (db *DB) AwaitConnections(ctx context.Context, lookUp func(context.Context) error) error {
	for {
		c := db.connections
		if (c == nil || c.complete()) && lookUp(ctx) == nil {
			return nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			_, problem := db.lookedUp.failing()
			return errors.Join(ctx.Err(), problem)
		}
	}
}

// lookedUp records how recent look-ups ended.
type lookedUp struct {
	mu      sync.Mutex
	last    time.Time // the last success; guarded by mu, as are the other fields
	since   time.Time // when failures began; zero: the last look-up succeeded
	problem error
}

func (l *lookedUp) note(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil {
		l.last, l.since, l.problem = time.Now(), time.Time{}, nil
		return
	}
	if l.since.IsZero() {
		l.since = time.Now()
	}
	l.problem = err
}

func (l *lookedUp) failing() (time.Duration, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.since.IsZero() {
		return 0, nil
	}
	return max(time.Since(l.since), 1), l.problem
}

// lately reports whether a look-up succeeded within some time.
func (l *lookedUp) lately(within time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.since.IsZero() && time.Since(l.last) < within
}

// Package store keeps plans, accounts, users, keys and sessions in PostgreSQL or SQLite, with one
// SQL text for both. It stores digests of keys, never keys. Look-ups serve the cache in front of
// the store; everything else serves operators and the user's page. A method that changes what a
// decision depends on returns only once no replica decides by the old state.
package store

import (
	"cmp"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyporter/keyporter/store/lease"
)

// The errors of calls that the database itself did not fail. The text of an error says what failed,
// where, and what to do.
var (
	ErrNotFound = errors.New("not found")
	ErrExists   = errors.New("exists already")
	ErrInUse    = errors.New("in use")
	ErrInvalid  = errors.New("invalid")
	ErrDatabase = errors.New("database") // the URL or the file cannot be used
	// ErrRights is returned when the database role lacks a required right.
	ErrRights    = errors.New("rights in the database")
	ErrMigration = errors.New("the database needs `keyporter migrate`")
	// ErrSchemaTooNew is returned by [Open] if a newer program has migrated the database.
	ErrSchemaTooNew = errors.New("the database is newer than this program")
	// ErrReplica is returned when the server is a standby, which may answer from an old state.
	ErrReplica = errors.New("the server is a read replica: name the primary in the database URL")
	// ErrConflict is returned when other changes collided with this one until its time was over.
	ErrConflict = errors.New("other changes to the database are in the way; nothing was changed: try again")
	// ErrUnknownOutcome is returned when the connection broke during a commit: the change may or
	// may not have been made.
	ErrUnknownOutcome = errors.New("the connection broke while the change was being saved; it may have been made or not: look before you repeat it")
	// ErrUnconfirmed is returned together with a valid result when the change was made, but the
	// call ended before it was certain that no replica decides by the old state.
	ErrUnconfirmed = lease.ErrUnconfirmed
)

const (
	lookupTimeout  = time.Second      // a look-up, including the wait for a connection
	changeTimeout  = 10 * time.Second // a change or a list, including the wait for locks
	migrateTimeout = time.Minute      // includes the wait for another migrating process
)

// Config says which database to open and how.
type Config struct {
	// URL is postgres://… or sqlite://PATH; sqlite:///PATH is absolute. Required.
	URL string
	// Create creates the file of a missing SQLite database, readable by its owner only.
	Create bool
	// Migrate brings the schema up to date. Several processes may do so at once.
	Migrate bool
	// Service makes Open check everything a service needs: rights, and triggers that record
	// changes.
	Service bool
	// Patience is how long Open waits for a database that is not reachable yet; negative: until the
	// context ends. An error that waiting cannot resolve ends the wait at once.
	Patience time.Duration
	// Notice receives what Open waits for and what it has repaired; the error is nil when the wait
	// is over. Open repeats a notice only after a pause. None if nil.
	Notice func(what string, why error)
	// Connections is the total number of connections to PostgreSQL for this process; each kind of
	// work has its share of them (see [SharesOf]). [DefaultConnections] if 0.
	Connections int
	// Metrics registers keyporter_store_errors_total, keyporter_barrier_seconds,
	// keyporter_lookups_failing_seconds and keyporter_database_*. None if nil.
	Metrics prometheus.Registerer

	// set by tests; otherwise the system resolves
	resolve func(ctx context.Context, host string) ([]netip.Addr, error)
}

// DB is a database. It is safe for concurrent use.
type DB struct {
	lookups *sql.DB // short reads for decisions
	changes *sql.DB // everything else, so that a busy operator leaves look-ups their connections
	// reports of credits, which requests may wait for; on SQLite the same as changes
	reports *sql.DB
	logs    *sql.DB // the request log, for which nobody waits
	dialect *dialect
	// lookedUp records how look-ups end.
	lookedUp *lookedUp
	// actor is the author of changes, for the audit.
	actor  string
	errors *prometheus.CounterVec
	// operation is the purpose of all calls, in metrics; if "", each call names its own.
	operation string
	// barriers measures how long changes waited for the replicas.
	barriers prometheus.Histogram
}

// The purposes of calls to the database.
const (
	forLookup       = "lookup"        // of a key, a session or a subject, for a decision
	forLease        = "lease"         // renews it, and follows changes
	forCredits      = "credit_report" // to the ledger
	forRecall       = "credit_recall" // reads which credits other replicas recall
	forRequestLog   = "request_log"   // writes, reads and tidies the page's list of requests
	forRateLog      = "rate_log"      // keeps it over a restart
	forReplicas     = "replicas"      // reads their list
	forBarrier      = "barrier"       // waits until a change is enforced everywhere
	forHousekeeping = "housekeeping"  // deletes what is no longer needed, and calls the roll
	forChange       = "change"        // all other changes, by the page or by a command
	forList         = "list"          // all other reads
)

var operations = []string{
	forLookup, forLease, forCredits, forRecall, forRequestLog, forRateLog, forReplicas, forBarrier, forHousekeeping, forChange, forList,
}

// Open opens a database, and checks or migrates its schema.
func Open(ctx context.Context, c Config) (*DB, error) {
	db, err := connect(c)
	if err != nil {
		return nil, err
	}
	db.errors = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "keyporter_store_errors_total",
		Help: "Calls to the database that failed, by what they are for.",
	}, []string{"operation"})
	for _, operation := range operations {
		db.errors.WithLabelValues(operation)
	}
	db.barriers = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name:    "keyporter_barrier_seconds",
		Help:    "How long this process waited, after a change or a roll call, until it was in force on every replica.",
		Buckets: []float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30},
	})
	if c.Metrics != nil {
		err := errors.Join(c.Metrics.Register(db.errors), c.Metrics.Register(db.barriers), c.Metrics.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "keyporter_lookups_failing_seconds",
			Help: "For how long no look-up in the database has come off; 0 if the last one did.",
		}, func() float64 { return db.Connections().Failing.Seconds() })))
		if all := db.dialect.connections; all != nil {
			err = errors.Join(err, c.Metrics.Register(all))
		}
		if err != nil {
			db.Close()
			return nil, fmt.Errorf("registering the store's metrics: %w", err)
		}
	}
	if err := db.prepare(ctx, c); err != nil {
		db.Close()
		return nil, err
	}
	return db, nil
}

// prepareOnce checks that the database answers, and has the schema and everything else that this
// program needs.
func (db *DB) prepareOnce(ctx context.Context, c Config, w *waiting) error {
	if err := db.connects(ctx, w); err != nil {
		return fmt.Errorf("connecting to %s: %w", db.dialect.shown, err)
	}
	var p place
	if db.dialect.name == "postgres" {
		var err error
		if p, err = db.place(ctx); err != nil {
			return fmt.Errorf("looking at %s: %w", db.dialect.shown, err)
		}
		if err := p.check(c.Migrate || c.Service); err != nil {
			return err
		}
	}
	if c.Migrate {
		if err := db.migrate(ctx, p, w); err != nil {
			return err
		}
	}
	limited, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	err := db.checkSchema(limited)
	if forbidden(err) {
		err = cmp.Or(db.checkRights(limited, p), err)
	}
	if err == nil && c.Service {
		err = db.checkService(limited, p)
	}
	return err
}

// connects retries until the database answers. The first connections to a new SQLite file change
// its journal mode, and SQLite lets none of several that do so at once wait for the others.
func (db *DB) connects(ctx context.Context, w *waiting) error {
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	for {
		err := db.firstPing(ctx, w)
		if err == nil || !db.dialect.collided(err) {
			return err
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return err
		}
	}
}

// firstPing waits for a connection, and reports at once if the server has none to spare.
func (db *DB) firstPing(ctx context.Context, w *waiting) error {
	var refused chan error
	if all := db.dialect.connections; all != nil {
		refused = all.refused
	}
	answer := make(chan error, 1)
	go func() { answer <- db.changes.PingContext(ctx) }()
	for {
		select {
		case err := <-answer:
			return err
		case why := <-refused:
			w.repeat("waiting for the database", why)
		}
	}
}

// As returns the same database with actor as the author of its changes in the audit, such as
// page:ada or command:root.
func (db *DB) As(actor string) *DB {
	acting := *db
	acting.actor = actor
	return &acting
}

// calling returns the same database, whose calls are counted for an operation.
func (db *DB) calling(operation string) *DB {
	calling := *db
	calling.operation = operation
	return &calling
}

func (db *DB) acting() string { return cmp.Or(db.actor, serviceActor) }

// unsynced counts the commits that PostgreSQL reported as made although no standby has them.
func (db *DB) unsynced() int64 {
	if db.dialect.server == nil {
		return 0
	}
	return db.dialect.server.unsynced.Load()
}

// Close closes all connections.
func (db *DB) Close() error {
	if all := db.dialect.connections; all != nil {
		all.close()
	}
	return errors.Join(db.lookups.Close(), db.changes.Close(), db.reports.Close(), db.logs.Close())
}

// Ping reports whether the database answers.
func (db *DB) Ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	return db.lookups.PingContext(ctx)
}

// namePattern keeps names safe in a header, a label and a path.
var namePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@+-]{0,127}$`)

// keyShape matches a key with any prefix, and a session. A key entered as a name by mistake would
// be stored and shown in the clear. A key whose prefix does not end in '_' or '-' is not
// recognised.
var keyShape = regexp.MustCompile(`^[A-Za-z0-9_-]{0,15}[_-][0-9a-f]{48}$`)

func checkName(kind, name string) error {
	if keyShape.MatchString(name) {
		return fmt.Errorf("the %s name is %w: it looks like a key", kind, ErrInvalid)
	}
	if !namePattern.MatchString(name) {
		return fmt.Errorf("%s name %q is %w: 1 to 128 letters, digits and . _ @ + -, the first a letter or digit", kind, name, ErrInvalid)
	}
	return nil
}

// tries is the maximum number of attempts at a change that collides with others.
const tries = 5

// errAgain ends a transaction that should be rolled back and repeated.
var errAgain = errors.New("collided with another change")

// change runs f in a transaction, and again if it collided with another one. f runs under a context
// of its own. Its result counts only if change returns no error.
func (db *DB) change(ctx context.Context, f func(ctx context.Context, tx *sql.Tx) error) error {
	_, err := db.changeAt(ctx, f)
	return err
}

// changeAt is change, and returns an epoch not before that of the change. A change that the change
// feed or the audit would miss is not made: the error is [ErrUnrecorded].
func (db *DB) changeAt(ctx context.Context, f func(ctx context.Context, tx *sql.Tx) error) (lease.Epoch, error) {
	return db.changeOn(ctx, db.changes, func(ctx context.Context, tx *sql.Tx) error {
		if err := f(ctx, tx); err != nil {
			return err
		}
		return db.recorded(ctx, tx)
	})
}

func (db *DB) changeOn(ctx context.Context, pool *sql.DB, f func(ctx context.Context, tx *sql.Tx) error) (lease.Epoch, error) {
	limited, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	for try := 1; ; try++ {
		committed, err := db.changeOnce(limited, pool, f)
		if err == nil {
			return committed, nil
		}
		again := errors.Is(err, errAgain) || db.dialect.collided(err)
		if again && try < tries && limited.Err() == nil {
			continue
		}
		switch {
		case errors.Is(err, ErrUnknownOutcome):
		case again:
			err = fmt.Errorf("%w (%w)", ErrConflict, err)
		case limited.Err() != nil && ctx.Err() == nil:
			err = fmt.Errorf("the database did not finish within %v; nothing was changed: %w", changeTimeout, err)
		}
		db.count(ctx, forChange, err)
		return 0, err
	}
}

// serviceActor is the default actor: the service itself.
const serviceActor = "service"

// changeOnce runs f in a transaction. The context ends statements and waits, but not the commit:
// PostgreSQL reports success for a commit that is cancelled while it waits for a standby. The epoch
// is read on the same connection, because another one may lead to a server that is no longer the
// primary.
func (db *DB) changeOnce(ctx context.Context, pool *sql.DB, f func(ctx context.Context, tx *sql.Tx) error) (committed lease.Epoch, err error) {
	conn, err := pool.Conn(ctx)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	tx, err := conn.BeginTx(context.WithoutCancel(ctx), nil)
	if errors.Is(err, driver.ErrBadConn) {
		return 0, fmt.Errorf("%w (%w)", errAgain, err) // it had ended while it was idle
	}
	if err != nil {
		return 0, err
	}
	defer tx.Rollback()
	// Repeated here, since behind a pooler this may be another server connection.
	if _, err := tx.ExecContext(ctx, db.dialect.durably, db.acting()); err != nil {
		return 0, err
	}
	if err := f(ctx, tx); err != nil {
		return 0, err
	}
	if db.dialect.acted != "" {
		if _, err := tx.ExecContext(ctx, db.dialect.acted); err != nil {
			return 0, err
		}
	}
	if err := errors.Join(ctx.Err(), db.dialect.sameFile()); err != nil {
		return 0, err
	}
	if err := db.commit(tx); err != nil {
		return 0, err
	}
	if err := db.dialect.sameFile(); err != nil {
		return 0, fmt.Errorf("%w (%w)", ErrUnknownOutcome, err)
	}
	if err := conn.QueryRowContext(context.WithoutCancel(ctx), `SELECT max(epoch) FROM changes`).Scan(&committed); err != nil {
		return unknown, nil
	}
	return committed, nil
}

// unknown is the epoch of a committed change if it could not be read.
const unknown lease.Epoch = -1

// commit distinguishes three outcomes: committed, certainly not committed, and unknown.
func (db *DB) commit(tx *sql.Tx) error {
	before := db.unsynced()
	err := tx.Commit()
	if err == nil && db.unsynced() != before {
		err = errors.New("the server gave up waiting for its standby")
	}
	if err == nil || db.dialect.refused(err) {
		return err
	}
	return fmt.Errorf("%w (%w)", ErrUnknownOutcome, err)
}

// count counts an error, unless it is an answer or the caller has left. The operation of the
// database, if any, takes precedence.
func (db *DB) count(ctx context.Context, operation string, err error) {
	if err != nil && !isAnswer(err) && !errors.Is(ctx.Err(), context.Canceled) {
		db.errors.WithLabelValues(cmp.Or(db.operation, operation)).Inc()
	}
}

// isAnswer reports whether an error is a refusal of ours. The database has done its work then.
func isAnswer(err error) bool {
	for _, answer := range []error{ErrNotFound, ErrExists, ErrInUse, ErrInvalid} {
		if errors.Is(err, answer) {
			return true
		}
	}
	return errors.As(err, new(TooOftenError)) || errors.As(err, new(ReplacedError))
}

// now returns the time as it is stored, in Unix milliseconds.
func now() int64 { return time.Now().UnixMilli() }

// fromMillis reads a stored time. Plain SQL or a made-up access log may have written one that no
// text can hold; it becomes the nearest possible time, so that it does not break the list it is in.
func fromMillis(ms int64) time.Time {
	return time.UnixMilli(min(max(ms, firstMillis), lastMillis)).UTC()
}

// The bounds of times in RFC 3339, and so in JSON: the years 0 to 9999.
var (
	firstMillis = time.Date(0, 1, 1, 0, 0, 0, 0, time.UTC).UnixMilli()
	lastMillis  = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC).UnixMilli() - 1
)

// list runs a query and scans each row.
func list[T any](ctx context.Context, db *DB, scan func(scanner) (T, error), query string, args ...any) ([]T, error) {
	all, err := scanAll(ctx, db, scan, query, args...)
	db.count(ctx, forList, err)
	return all, err
}

func scanAll[T any](ctx context.Context, db *DB, scan func(scanner) (T, error), query string, args ...any) ([]T, error) {
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	return scanAllOn(ctx, db.changes, scan, query, args...)
}

func scanAllOn[T any](ctx context.Context, pool *sql.DB, scan func(scanner) (T, error), query string, args ...any) ([]T, error) {
	rows, err := pool.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	all := []T{}
	for rows.Next() {
		one, err := scan(rows)
		if err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return all, rows.Err()
}

// scanner is a single row or a row of many.
type scanner interface{ Scan(into ...any) error }

// Package store opens a database, PostgreSQL or SQLite, and runs transactions in it. It knows the
// two databases, the schema and its migrations. The packages beside it know the tables, with one
// SQL text for both databases wherever they agree.
package store

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// The errors of calls that the database itself did not fail. The text of an error says what failed,
// where, and what to do.
var (
	ErrNotFound = errors.New("not found")
	ErrExists   = errors.New("exists already")
	ErrInUse    = errors.New("in use")
	ErrInvalid  = errors.New("invalid")
	// ErrRefused is matched by errors of the packages beside this one that are answers, too, and
	// say more than a text.
	ErrRefused  = errors.New("refused")
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
)

// FieldError is an [ErrInvalid] about one field of a change.
type FieldError struct {
	Field string // as in JSON
	Err   error
}

func (e FieldError) Error() string { return e.Err.Error() }

// Unwrap returns the error that names the permitted values.
func (e FieldError) Unwrap() error { return e.Err }

// ItemError is the error of one item of a batch. Nothing of the batch was done.
type ItemError struct {
	Index int // from 0 on
	Err   error
}

func (e ItemError) Error() string { return fmt.Sprintf("items[%d]: %v", e.Index, e.Err) }

// Unwrap returns the error without the index.
func (e ItemError) Unwrap() error { return e.Err }

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
	// Connections is the total number of connections to PostgreSQL for this process;
	// [DivideConnections] reserves some for each kind of work. [DefaultConnections] if 0.
	Connections int
	// Metrics registers keyporter_store_errors_total, keyporter_barrier_seconds,
	// keyporter_lookups_failing_seconds and keyporter_database_*. None if nil.
	Metrics prometheus.Registerer

	// Set by tests; otherwise the system resolves, and the migrations are those of this program.
	resolve func(ctx context.Context, host string) ([]netip.Addr, error)
	schema  fs.FS
}

// DB is a database. It is safe for concurrent use.
type DB struct {
	// These are for the packages beside this one, and never change.

	// Changes is for all that has no connections of its own below, so that a busy operator leaves
	// look-ups theirs.
	Changes *sql.DB
	// Reports is for reports of credits, which requests may wait for; on SQLite the same as
	// Changes.
	Reports *sql.DB
	Dialect *Dialect
	// Barriers measures how long changes waited for the replicas.
	Barriers prometheus.Histogram

	lookups *sql.DB // short reads for decisions
	lists   *sql.DB // reads of any length for operators; on PostgreSQL the same as Changes
	logs    *sql.DB // the request log, for which nobody waits
	shown   string  // the URL without its password, for messages
	// A PostgreSQL database: the server, and the connections to it. Nil for SQLite.
	server      *target
	connections *connections
	file        *databaseFile // of a SQLite database; nil for PostgreSQL
	// lookedUp records how look-ups end.
	lookedUp *lookedUp
	// actor is the author of changes, for the audit.
	actor  string
	errors *prometheus.CounterVec
	schema fs.FS // the migrations
	// operation is the purpose of all calls, in metrics; if "", each call names its own.
	operation Operation
}

// Operation is the purpose of calls to the database, in metrics.
type Operation string

const (
	ForLookup       Operation = "lookup"        // of a key, a session or a subject, for a decision
	ForLease        Operation = "lease"         // renews it, and follows changes
	ForCredits      Operation = "credit_report" // to the ledger
	ForRecall       Operation = "credit_recall" // reads which credits other replicas recall
	ForRequestLog   Operation = "request_log"   // writes, reads and tidies the page's list of requests
	ForRateLog      Operation = "rate_log"      // keeps it over a restart
	ForReplicas     Operation = "replicas"      // reads their list
	ForBarrier      Operation = "barrier"       // waits until a change is enforced everywhere
	ForHousekeeping Operation = "housekeeping"  // deletes what is no longer needed, and calls the roll
	ForEvents       Operation = "events"        // reads what webhooks are to be told, and records what they were told
	ForChange       Operation = "change"        // all other changes, by the page or by a command
	ForList         Operation = "list"          // all other reads
)

var operations = []Operation{
	ForLookup, ForLease, ForCredits, ForRecall, ForRequestLog, ForRateLog, ForReplicas, ForBarrier, ForHousekeeping, ForEvents, ForChange, ForList,
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
		db.errors.WithLabelValues(string(operation))
	}
	db.Barriers = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name:    "keyporter_barrier_seconds",
		Help:    "How long this process waited, after a change or a roll call, until every replica enforced it.",
		Buckets: []float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30},
	})
	if c.Metrics != nil {
		err := errors.Join(c.Metrics.Register(db.errors), c.Metrics.Register(db.Barriers), c.Metrics.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "keyporter_lookups_failing_seconds",
			Help: "For how long no look-up in the database has come off; 0 if the last one did.",
		}, func() float64 { return db.Connections().Failing.Seconds() })))
		if all := db.connections; all != nil {
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
		return fmt.Errorf("connecting to %s: %w", db.shown, err)
	}
	var p place
	if db.Dialect.name == "postgres" {
		var err error
		if p, err = db.place(ctx); err != nil {
			return fmt.Errorf("looking at %s: %w", db.shown, err)
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
		if err == nil || !db.Dialect.collided(err) {
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
	if all := db.connections; all != nil {
		refused = all.refused
	}
	answer := make(chan error, 1)
	go func() { answer <- db.Changes.PingContext(ctx) }()
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

// Calling returns the same database, whose calls are counted for an operation, unless they are
// already counted for another.
func (db *DB) Calling(operation Operation) *DB {
	calling := *db
	calling.operation = cmp.Or(db.operation, operation)
	return &calling
}

// Actor returns the author of changes.
func (db *DB) Actor() string { return cmp.Or(db.actor, serviceActor) }

// unsynced counts the commits that PostgreSQL reported as made although no standby has them.
func (db *DB) unsynced() int64 {
	if db.server == nil {
		return 0
	}
	return db.server.unsynced.Load()
}

// Close closes all connections.
func (db *DB) Close() error {
	if all := db.connections; all != nil {
		all.close()
	}
	return errors.Join(db.lookups.Close(), db.lists.Close(), db.Changes.Close(), db.Reports.Close(), db.logs.Close())
}

// Ping reports whether the database answers.
func (db *DB) Ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	return db.lookups.PingContext(ctx)
}

// Count counts an error, unless it is an answer or the caller has left. The operation of the
// database, if any, takes precedence.
func (db *DB) Count(ctx context.Context, operation Operation, err error) {
	if err != nil && !IsAnswer(err) && !errors.Is(ctx.Err(), context.Canceled) {
		db.errors.WithLabelValues(string(cmp.Or(db.operation, operation))).Inc()
	}
}

// IsAnswer reports whether an error is a refusal of ours. The database has done its work then.
func IsAnswer(err error) bool {
	for _, answer := range []error{ErrNotFound, ErrExists, ErrInUse, ErrInvalid, ErrRefused} {
		if errors.Is(err, answer) {
			return true
		}
	}
	return false
}

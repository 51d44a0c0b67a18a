package store

import (
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/lib/pq"
	"modernc.org/sqlite"
)

// Dialect holds all differences between the SQL of the two databases. It is a constant: live state
// is on the connections.
type Dialect struct {
	name  string // goose's name of it
	files string // its name in the names of migrations
	// Codes of the driver's errors.
	unique, foreign, collision []string
	// recorders are the triggers that record changes.
	recorders *recorders

	Now string // the clock of the database in Unix milliseconds, as SQL
	// Lock ends a query that locks its rows against other changes. SQLite has one writer at a time.
	Lock string
	// Share ends a query of rows that must not change before the transaction has ended.
	Share string
	// Live is a condition: the replica with this alias may answer, as far as is known. On SQLite,
	// where renewals leave no trace, this is true for all replicas on the list; a dead one is
	// removed from it within two minutes.
	Live string
	// Rows is the rows of JSON in the parameter $1, as a table e with one column: value.
	Rows string
	// Recording is a condition: the triggers of the change feed all fire.
	Recording string
	// Durable is columns of a SELECT or a RETURNING that make the commit of their transaction
	// durable; "" if every commit is.
	Durable string
	// Lazily ends a statement whose commit need not wait for the disk.
	Lazily string
	// durably begins a transaction with a durable commit, by the actor $1.
	durably string
	// briefly begins a transaction that waits for locks only briefly, and loses its own locks if
	// its process hangs.
	briefly string
	// acted ends a transaction, if there is something to clean up.
	acted string
}

const (
	// connectionLife is how long a connection is used: after a failover the name leads elsewhere.
	connectionLife = 15 * time.Minute
	// changeSilence is how long the server may send nothing to a waiting operator before the
	// connection is given up as half open; for look-ups it is lookupTimeout. It exceeds
	// changeTimeout, since a statement may wait for a lock, and it limits a commit.
	changeSilence = 15 * time.Second
	// logSilence is the same for the request log, parts of which may be lost.
	logSilence = 3 * time.Second
)

// connect prepares the pools of the database in c. It does not contact a server yet.
func connect(c Config) (*DB, error) {
	db, err := connectTo(c)
	if err != nil {
		return nil, err
	}
	if db.schema = c.schema; db.schema == nil {
		db.schema = migrationFiles
	}
	if db.logs, err = db.pool(forLogs, logSilence); err != nil {
		return nil, err
	}
	return db, nil
}

func connectTo(c Config) (*DB, error) {
	switch scheme, _, _ := strings.Cut(c.URL, "://"); scheme {
	case "postgres", "postgresql":
		return connectPostgres(c)
	case "sqlite":
		return connectSQLite(c)
	}
	return nil, fmt.Errorf("%w: the URL begins neither with postgres:// nor with sqlite://", ErrDatabase)
}

// LeasePool opens connections of their own for a lease. A connection on which a PostgreSQL server
// is silent for that long is given up.
func (db *DB) LeasePool(silence time.Duration) (*sql.DB, error) { return db.pool(forLeases, silence) }

// pool opens further connections. A connection on which a PostgreSQL server is silent for that long
// is given up.
func (db *DB) pool(p purpose, silence time.Duration) (*sql.DB, error) {
	if db.file != nil {
		return db.file.pool(silence)
	}
	return db.connections.pool(db.server, p, silence), nil
}

// code returns the code of a driver's error, or "".
func code(err error) string {
	if e := (*pq.Error)(nil); errors.As(err, &e) {
		return string(e.Code)
	}
	if e := (*sqlite.Error)(nil); errors.As(err, &e) {
		return fmt.Sprint(e.Code())
	}
	return ""
}

func is(err error, codes []string) bool {
	c := code(err)
	for _, one := range codes {
		if c == one {
			return true
		}
	}
	return false
}

// Duplicate reports whether a row with the same unique value exists.
func (d *Dialect) Duplicate(err error) bool { return is(err, d.unique) }

// Dangling reports whether a row refers to a missing one, or is referred to.
func (d *Dialect) Dangling(err error) bool { return is(err, d.foreign) }

func (d *Dialect) collided(err error) bool { return is(err, d.collision) }

// refused reports whether the database itself rejected a commit, so that it was certainly not made.
func (d *Dialect) refused(err error) bool {
	if e := (*sqlite.Error)(nil); errors.As(err, &e) {
		const ioError, primary = 10, 0xff
		return e.Code()&primary != ioError
	}
	c := code(err)
	for _, unclear := range []string{"08", "40003", "57P", "58", "XX"} { // lost, unknown, shut down, broken
		if strings.HasPrefix(c, unclear) {
			return false
		}
	}
	return c != ""
}

package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/lib/pq"
	"modernc.org/sqlite"
)

// dialect holds all differences between the two databases.
type dialect struct {
	name  string // goose's name of it
	shown string // the database's URL without its password, for messages
	// Codes of the driver's errors.
	unique, foreign, collision []string
	// pool opens further connections. A connection on which a PostgreSQL server is silent for that
	// long is given up.
	pool func(share share, silence time.Duration) (*sql.DB, error)

	now string // the clock of the database in Unix milliseconds, as SQL
	// The statements of Registry.Register, Registry.Renew and Registry.News.
	register, renew, news string
	// touch makes a change that touches nothing.
	touch string
	// lock ends a query that locks its rows against other changes. SQLite has one writer at a time.
	lock string
	// share ends a query of rows that must not change before the transaction has ended.
	share string
	// live is a condition: the replica with this alias may answer, as far as is known. On SQLite,
	// where renewals leave no trace, this is true for all replicas on the list; a dead one is
	// removed from it within two minutes.
	live string
	// rows is the rows of JSON in the parameter $1, as a table e with one column: value.
	rows string
	// lazily ends a statement whose commit need not wait for the disk.
	lazily string
	// durably begins a transaction with a durable commit, by the actor $1.
	durably string
	// briefly begins a transaction that waits for locks only briefly, and loses its own locks if
	// its process hangs.
	briefly string
	// acted ends a transaction, if there is something to clean up.
	acted string

	server      *target      // of a PostgreSQL database; nil for SQLite
	connections *connections // to the server

	path string      // of the file of a SQLite database
	file os.FileInfo // its identity when it was opened
	gone atomic.Bool // another file has been there since
}

const (
	// connectionLife is how long a connection is used: after a failover the name leads elsewhere.
	connectionLife = 15 * time.Minute
	// The connections to a SQLite database, which are cheap.
	sqliteLookups, sqliteLogs = 8, 2
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
	if db.logs, err = db.dialect.pool(logShare, logSilence); err != nil {
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

func connectPostgres(c Config) (*DB, error) {
	shown := MaskURL(c.URL)
	dsn, err := postgresDSN(c.URL)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrDatabase, shown, err)
	}
	server, err := newTarget(dsn)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrDatabase, shown, err)
	}
	if c.resolve != nil {
		server.resolve = c.resolve
	}
	if err := server.checkFiles(); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrDatabase, shown, err)
	}
	all := newConnections(c.Connections)
	db := &DB{lookedUp: &lookedUp{}, dialect: &dialect{
		name: "postgres", shown: shown, server: server, connections: all,
		unique: []string{"23505"}, foreign: []string{"23503", "23001"}, collision: []string{"40001", "40P01"},
		now:      "changes_now()",
		register: registerPostgres, renew: renewPostgres, news: newsPostgres,
		touch:  `INSERT INTO changes_pending (tx, what) VALUES (txid_current(), '')`,
		lock:   ` FOR NO KEY UPDATE`,
		share:  ` FOR SHARE`,
		live:   `live.acked >= 0 AND changes_now() - live.seen_at <= live.life`,
		rows:   `json_array_elements(CAST($1 AS JSON)) AS e(value)`,
		lazily: ` RETURNING set_config('synchronous_commit', 'off', true)`,
		// A process that is stopped halfway loses its locks.
		durably: `SELECT ` + durable(true) + `, pg_catalog.set_config('idle_in_transaction_session_timeout', '2000', true),
			pg_catalog.set_config('keyporter.actor', $1, true)`,
		briefly: `SELECT pg_catalog.set_config('lock_timeout', '1000', true), pg_catalog.set_config('statement_timeout', '3000', true),
			pg_catalog.set_config('idle_in_transaction_session_timeout', '2000', true)`,
		pool: func(s share, silence time.Duration) (*sql.DB, error) { return all.pool(server, s, silence), nil },
	}}
	db.changes = all.pool(server, changeShare, changeSilence)
	db.reports = all.pool(server, reportShare, lookupTimeout)
	db.lookups = all.pool(server, lookupShare, lookupTimeout)
	return db, nil
}

func connectSQLite(c Config) (*DB, error) {
	path := strings.TrimPrefix(c.URL, "sqlite://")
	if path == "" || strings.HasPrefix(path, ":") {
		return nil, fmt.Errorf("%w: %s names no file: want sqlite://PATH", ErrDatabase, c.URL)
	}
	if err := sqliteFile(path, c.Create); err != nil {
		return nil, err
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDatabase, err)
	}
	const pragmas = "&_pragma=foreign_keys(1)&_pragma=journal_mode(wal)&_pragma=synchronous(full)"
	file := "file:" + (&url.URL{Path: path}).EscapedPath() + "?mode=rw" + pragmas
	source := file + "&_pragma=busy_timeout(5000)"
	lookups, err := sql.Open("sqlite", source+"&_pragma=query_only(1)")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDatabase, err)
	}
	changes, err := sql.Open("sqlite", source+"&_txlock=immediate")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDatabase, err)
	}
	db := &DB{lookups: lookups, changes: changes, reports: changes, lookedUp: &lookedUp{}, dialect: &dialect{
		name: "sqlite3", shown: "sqlite://" + path,
		unique: []string{"2067", "1555"}, foreign: []string{"787", "1811"}, collision: []string{"5", "261", "517"},
		now:      "CAST(unixepoch('subsec') * 1000 AS INTEGER)",
		path:     path,
		register: registerSQLite, renew: renewSQLite, news: newsSQLite,
		touch: `INSERT INTO changes (what) VALUES ('')`,
		live:  `live.acked >= 0`,
		// json_each would write each row as text again, and each column would parse it
		rows:    `jsonb_each($1) AS e`,
		durably: `REPLACE INTO audit_actor (id, actor) VALUES (1, $1)`, // replaces a leftover row
		acted:   `DELETE FROM audit_actor`,
		pool: func(_ share, silence time.Duration) (*sql.DB, error) {
			// These writes need not survive a power cut, and should not wait for the disk.
			pool, err := sql.Open("sqlite", fmt.Sprintf("%s&_pragma=synchronous(normal)&_pragma=busy_timeout(%d)&_txlock=immediate",
				file, silence.Milliseconds()))
			if err == nil {
				pool.SetMaxOpenConns(sqliteLogs)
				pool.SetConnMaxLifetime(connectionLife)
			}
			return pool, err
		},
	}}
	if db.dialect.file, err = os.Stat(path); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDatabase, err)
	}
	lookups.SetMaxOpenConns(sqliteLookups)
	lookups.SetMaxIdleConns(sqliteLookups)
	lookups.SetConnMaxLifetime(connectionLife)
	changes.SetMaxOpenConns(1) // one writer at a time in any case
	changes.SetConnMaxLifetime(connectionLife)
	return db, nil
}

// sqliteFile checks that the file of a database exists, or creates it.
func sqliteFile(path string, create bool) error {
	info, err := os.Stat(path)
	switch {
	case err == nil && info.IsDir():
		return fmt.Errorf("%w: %s is a directory", ErrDatabase, path)
	case err == nil:
		return nil
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: %w", ErrDatabase, err)
	case !create:
		return fmt.Errorf("%w: there is no file %s; `keyporter serve` and `keyporter migrate` make one", ErrDatabase, path)
	}
	// The file holds the secret of the tags, so only its owner may read it.
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("%w: making the file: %w", ErrDatabase, err)
	}
	return file.Close()
}

// errReplaced says that the open file is no longer the database.
var errReplaced = errors.New("was replaced while it was open")

// sameFile fails once the file of a SQLite database is no longer the one that was opened, and while
// that is unknown.
func (d *dialect) sameFile() error {
	if d.file == nil {
		return nil
	}
	now, err := os.Stat(d.path)
	switch {
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%w: %w", ErrDatabase, err)
	case err != nil || !os.SameFile(d.file, now):
		d.gone.Store(true)
	}
	if d.gone.Load() {
		return fmt.Errorf("%w: the file %s %w", ErrDatabase, d.path, errReplaced)
	}
	return nil
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

func (d *dialect) duplicate(err error) bool { return is(err, d.unique) }
func (d *dialect) dangling(err error) bool  { return is(err, d.foreign) }
func (d *dialect) collided(err error) bool  { return is(err, d.collision) }

// refused reports whether the database itself rejected a commit, so that it was certainly not made.
func (d *dialect) refused(err error) bool {
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

// durable returns two columns of a SELECT. They make commits durable if the server's default may
// lose them (`off`, or `local`, which does not wait for the standby), and make the server report
// when it stops waiting. The settings hold for the session or, if a pooler owns that, until the
// transaction ends.
func durable(transaction bool) string {
	return fmt.Sprintf(`pg_catalog.set_config('synchronous_commit', CASE WHEN pg_catalog.current_setting('synchronous_commit')
		IN ('off', 'local') THEN 'on' ELSE pg_catalog.current_setting('synchronous_commit') END, %[1]t),
		pg_catalog.set_config('client_min_messages', 'warning', %[1]t)`, transaction)
}

// inRecovery asks whether the server is a standby, and makes commits durable.
func inRecovery(ctx context.Context, conn driver.Conn) (bool, error) {
	rows, err := conn.(driver.QueryerContext).QueryContext(ctx,
		`SELECT pg_catalog.pg_is_in_recovery(), `+durable(false), nil)
	if err != nil {
		return false, err
	}
	defer rows.Close()
	row := make([]driver.Value, 3)
	if err := rows.Next(row); err != nil {
		return false, err
	}
	recovering, ok := row[0].(bool)
	if !ok {
		return false, errors.New("the server does not say whether it is a primary")
	}
	return recovering, nil
}

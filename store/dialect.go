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

// dialect is all in which the two databases differ.
type dialect struct {
	name  string // as goose calls it
	shown string // the database's URL without its password, for messages
	// Codes of the driver's errors.
	unique, foreign, collision []string
	// pool opens further connections, which a PostgreSQL server may keep waiting for as long as that.
	pool func(share share, silence time.Duration) (*sql.DB, error)

	now string // the clock of the database in Unix milliseconds, as SQL
	// The statements of Registry.Register, Registry.Renew and Registry.News.
	register, renew, news string
	// touch makes a change that touches nothing.
	touch string
	// lock ends a query of a row for which other changes are to wait. SQLite has one writer at a time.
	lock string
	// share ends a query of a row that must not change before the transaction has ended.
	share string
	// live is a condition: the replica of this alias may answer, as far as can be told. On SQLite renewals
	// leave no trace, and all that are on the list may; who has died is taken off it within two minutes.
	live string
	// rows is the rows of JSON in the parameter $1, as a table e with one column: value.
	rows string
	// lazily ends a statement whose commit need not wait for the disk.
	lazily string
	// durably begins a transaction whose commit must be, by the actor $1.
	durably string
	// briefly begins one that waits for no lock for long, and gives up its own where its process hangs.
	briefly string
	// acted ends one, if anything has to be put away.
	acted string

	server      *target      // of a PostgreSQL database; nil: it is a SQLite one
	connections *connections // to it

	path string      // of the file of a SQLite database
	file os.FileInfo // and which one it was when it was opened
	gone atomic.Bool // another one has been there since
}

const (
	// connectionLife is how long a connection is used: after a fail-over the name leads elsewhere.
	connectionLife = 15 * time.Minute
	// The connections to a SQLite database, which are cheap.
	sqliteLookups, sqliteLogs = 8, 2
	// changeSilence is how long the server may keep a waiting operator waiting, with no byte sent,
	// before the connection is given up as half open; for look-ups it is lookupTimeout. Longer than
	// changeTimeout, since a statement may wait for a lock, and it bounds a commit.
	changeSilence = 15 * time.Second
	// logSilence is the same for the log of requests, of which a part may be lost.
	logSilence = 3 * time.Second
)

// connect prepares the pools of the database that c names. It does not talk to a server yet.
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
		// And a process that is stopped in the middle gives up what it has locked.
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
		touch:   `INSERT INTO changes (what) VALUES ('')`,
		live:    `live.acked >= 0`,
		rows:    `jsonb_each($1) AS e`,                                 // json_each would write each row as text again, to be read once for each column
		durably: `REPLACE INTO audit_actor (id, actor) VALUES (1, $1)`, // also where somebody has left a row
		acted:   `DELETE FROM audit_actor`,
		pool: func(_ share, silence time.Duration) (*sql.DB, error) {
			// What is written here need not outlive a power cut, and should not wait for the disk.
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

// sqliteFile checks that the file of a database is there, or makes it.
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
	// The file holds the secret of the tags, so that it is its owner's alone.
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("%w: making the file: %w", ErrDatabase, err)
	}
	return file.Close()
}

// errReplaced says that what is open is not the database any more.
var errReplaced = errors.New("was replaced while it was open")

// sameFile fails once the file of a SQLite database is another one than the one that was opened, and
// while that cannot be told.
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

// refused reports whether the database itself said no, so that a commit was certainly not made.
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

// durable is two columns of a SELECT, which make commits durable where the server's default is that they
// may be lost (`off`, or `local`, which does not wait for the standby), and have it say when it gives up
// waiting. They hold for the session or, where that belongs to a pooler, until the transaction ends.
func durable(transaction bool) string {
	return fmt.Sprintf(`pg_catalog.set_config('synchronous_commit', CASE WHEN pg_catalog.current_setting('synchronous_commit')
		IN ('off', 'local') THEN 'on' ELSE pg_catalog.current_setting('synchronous_commit') END, %[1]t),
		pg_catalog.set_config('client_min_messages', 'warning', %[1]t)`, transaction)
}

// inRecovery asks whether the server only follows another one, and makes what is committed durable.
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

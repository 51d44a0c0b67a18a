package store

import (
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"
)

var sqliteDialect = Dialect{
	name: "sqlite3", files: "sqlite",
	unique: []string{"2067", "1555"}, foreign: []string{"787", "1811"}, collision: []string{"5", "261", "517"},
	recorders: &sqliteRecorders,
	Now:       "CAST(unixepoch('subsec') * 1000 AS INTEGER)",
	Recording: sqliteRecorders.feed,
	Live:      `live.acked >= 0`,
	// json_each would write each row as text again, and each column would parse it
	Rows:    `jsonb_each($1) AS e`,
	durably: `REPLACE INTO audit_actor (id, actor) VALUES (1, $1)`, // replaces a leftover row
	acted:   `DELETE FROM audit_actor`,
}

// The connections to a SQLite database, which are cheap.
const sqliteLookups, sqliteLists, sqliteLogs = 8, 2, 2

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
	lists, err := sql.Open("sqlite", source+"&_pragma=query_only(1)")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDatabase, err)
	}
	changes, err := sql.Open("sqlite", source+"&_txlock=immediate")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDatabase, err)
	}
	db := &DB{lookups: lookups, lists: lists, Changes: changes, Reports: changes, Dialect: &sqliteDialect, shown: "sqlite://" + path,
		lookedUp: &lookedUp{}, file: &databaseFile{path: path, source: file}}
	if db.file.identity, err = os.Stat(path); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDatabase, err)
	}
	lookups.SetMaxOpenConns(sqliteLookups)
	lookups.SetMaxIdleConns(sqliteLookups)
	lookups.SetConnMaxLifetime(connectionLife)
	lists.SetMaxOpenConns(sqliteLists)
	lists.SetConnMaxLifetime(connectionLife)
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

// File returns the path of the file of a SQLite database; "" for PostgreSQL.
func (db *DB) File() string {
	if db.file == nil {
		return ""
	}
	return db.file.path
}

// databaseFile is the open file of a SQLite database.
type databaseFile struct {
	path     string
	source   string      // the file and its settings, for the driver
	identity os.FileInfo // when it was opened
	gone     atomic.Bool // another file has been there since
}

// pool opens further connections. These writes need not survive a power cut, and should not wait
// for the disk.
func (f *databaseFile) pool(silence time.Duration) (*sql.DB, error) {
	pool, err := sql.Open("sqlite", fmt.Sprintf("%s&_pragma=synchronous(normal)&_pragma=busy_timeout(%d)&_txlock=immediate",
		f.source, silence.Milliseconds()))
	if err == nil {
		pool.SetMaxOpenConns(sqliteLogs)
		pool.SetConnMaxLifetime(connectionLife)
	}
	return pool, err
}

// ErrReplaced says that the open file is no longer the database.
var ErrReplaced = errors.New("was replaced while it was open")

// SameFile fails once the file of a SQLite database is no longer the one that was opened, and while
// that is unknown.
func (db *DB) SameFile() error {
	f := db.file
	if f == nil {
		return nil
	}
	now, err := os.Stat(f.path)
	switch {
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%w: %w", ErrDatabase, err)
	case err != nil || !os.SameFile(f.identity, now):
		f.gone.Store(true)
	}
	if f.gone.Load() {
		return fmt.Errorf("%w: the file %s %w", ErrDatabase, f.path, ErrReplaced)
	}
	return nil
}

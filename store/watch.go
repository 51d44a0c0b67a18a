package store

import (
	"context"
	"database/sql"
	"path/filepath"
	"runtime"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/keyporter/keyporter/store/lease"
)

// How soon a process notices what another one writes to a SQLite database.
const (
	// pollInterval is how often it looks while something is written, and where the system does not tell.
	pollInterval = 10 * time.Millisecond
	// quietInterval is how often it looks while the system says that nothing is, should that not be so.
	quietInterval = 500 * time.Millisecond
	// settling is for how long after a write a commit may follow that can be read: it is written before, and waits for
	// the disk in between.
	settling = time.Second
)

// watchFile watches a SQLite database. Its data version differs when another connection has written. Where the
// system tells of writes it looks rarely while there are none: a process that has nothing to do uses nothing.
func (r *Registry) watchFile(ctx context.Context, hint func(lease.Epoch)) {
	look := versionWatch{registry: r, hint: hint, last: -1}
	defer look.close()
	written := newWriteWatch(r.db.dialect.path)
	defer written.close()
	next := time.NewTimer(pollInterval)
	defer next.Stop()
	quiet := time.Now().Add(settling)
	soon := func() {
		now := time.Now()
		if now.After(quiet) {
			next.Reset(pollInterval)
		}
		quiet = now.Add(settling)
	}
	for {
		select {
		case <-written.told():
			soon()
		case <-written.lost():
			soon()
		case <-next.C:
			look.look(ctx)
			if written.tells() && time.Now().After(quiet) {
				next.Reset(quietInterval)
			} else {
				next.Reset(pollInterval)
			}
		case <-ctx.Done():
			return
		}
	}
}

// versionWatch looks at the data version of a SQLite database.
type versionWatch struct {
	registry *Registry
	hint     func(lease.Epoch)
	conn     *sql.Conn // nil: none yet
	last     int64     // what it was, or -1
}

func (w *versionWatch) look(ctx context.Context) {
	if w.registry.sameFile() != nil {
		w.hint(0)
		return
	}
	version, err := w.version(ctx)
	if err != nil {
		w.close()
	}
	if version != w.last {
		w.last = version
		w.hint(0)
		w.registry.replica.Recall()
	}
}

// version returns the data version, or -1 where it cannot be read.
func (w *versionWatch) version(ctx context.Context) (version int64, err error) {
	if w.conn == nil {
		if w.conn, err = w.registry.pool.Conn(ctx); err != nil {
			return -1, err
		}
	}
	if err := w.conn.QueryRowContext(ctx, `PRAGMA data_version`).Scan(&version); err != nil {
		return -1, err
	}
	return version, nil
}

func (w *versionWatch) close() {
	if w.conn != nil {
		w.conn.Close()
		w.conn = nil
	}
}

// writeWatch tells when a database, or a file beside it, may have been written. Reading is not told. On systems other
// than Linux it tells nothing: there the watcher opens the files that it watches, and with a file that is closed a process
// loses all its locks on it, SQLite's too (https://sqlite.org/howtocorrupt.html, 2.2).
type writeWatch struct{ watcher *fsnotify.Watcher } // nil: the system does not tell

func newWriteWatch(database string) writeWatch {
	if runtime.GOOS != "linux" {
		return writeWatch{}
	}
	if real, err := filepath.EvalSymlinks(database); err == nil {
		database = real // SQLite keeps its log where the file is
	}
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return writeWatch{}
	}
	if err := watcher.Add(filepath.Dir(database)); err != nil {
		watcher.Close()
		return writeWatch{}
	}
	return writeWatch{watcher}
}

func (w writeWatch) tells() bool { return w.watcher != nil }

// told returns a channel with something in it after a write.
func (w writeWatch) told() <-chan fsnotify.Event {
	if w.watcher == nil {
		return nil
	}
	return w.watcher.Events
}

// lost returns a channel with something in it where there may have been writes that are not told.
func (w writeWatch) lost() <-chan error {
	if w.watcher == nil {
		return nil
	}
	return w.watcher.Errors
}

func (w writeWatch) close() {
	if w.watcher != nil {
		w.watcher.Close()
	}
}

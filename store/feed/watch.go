package feed

import (
	"context"
	"database/sql"
	"path/filepath"
	"runtime"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/keyporter/keyporter/store/lease"
)

// How soon a process notices another one's writes to a SQLite database.
const (
	// pollInterval is the time between two looks during writes, and always if the system reports no
	// writes.
	pollInterval = 10 * time.Millisecond
	// quietInterval is the time between two looks while the system reports no writes, in case it
	// misses some.
	quietInterval = 500 * time.Millisecond
	// settling is the maximum time from a write to a readable commit: the data is written before
	// the commit, which waits for the disk in between.
	settling = time.Second
)

// watchFile watches a SQLite database, whose data version changes when another connection has
// written. If the system reports writes, it looks rarely between them, so that an idle process uses
// almost no CPU.
func (r *Registry) watchFile(ctx context.Context, hint func(lease.Epoch)) {
	look := versionWatch{registry: r, hint: hint, last: -1}
	defer look.close()
	written := newWriteWatch(r.db.File())
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

// versionWatch watches the data version of a SQLite database.
type versionWatch struct {
	registry *Registry
	hint     func(lease.Epoch)
	conn     *sql.Conn // nil: none yet
	query    *sql.Stmt // on conn, since reading the statement takes longer than its answer
	last     int64     // the last version, or -1
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

// version returns the data version, or -1 if it cannot be read.
func (w *versionWatch) version(ctx context.Context) (version int64, err error) {
	if w.conn == nil {
		if w.conn, err = w.registry.pool.Conn(ctx); err != nil {
			return -1, err
		}
		if w.query, err = w.conn.PrepareContext(ctx, `PRAGMA data_version`); err != nil {
			return -1, err
		}
	}
	if err := w.query.QueryRowContext(ctx).Scan(&version); err != nil {
		return -1, err
	}
	return version, nil
}

func (w *versionWatch) close() {
	if w.query != nil {
		w.query.Close()
		w.query = nil
	}
	if w.conn != nil {
		w.conn.Close()
		w.conn = nil
	}
}

// writeWatch reports that a database, or a file beside it, may have been written. It does not
// report reads. On systems other than Linux it reports nothing: there the watcher opens the files
// it watches, and closing any of them would drop all locks of the process on that file, including
// SQLite's (https://sqlite.org/howtocorrupt.html, 2.2).
type writeWatch struct{ watcher *fsnotify.Watcher } // nil: the system reports no writes

func newWriteWatch(database string) writeWatch {
	if runtime.GOOS != "linux" {
		return writeWatch{}
	}
	if real, err := filepath.EvalSymlinks(database); err == nil {
		database = real // SQLite keeps its log next to the real file
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

// told returns a channel that receives an event after a write.
func (w writeWatch) told() <-chan fsnotify.Event {
	if w.watcher == nil {
		return nil
	}
	return w.watcher.Events
}

// lost returns a channel that receives an error if writes may have gone unreported.
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

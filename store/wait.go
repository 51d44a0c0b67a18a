package store

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"syscall"
	"time"

	"github.com/lib/pq"
)

// The pauses between attempts to reach a database, and between notices of that: the first notice
// comes at once, a new reason after noticePause, and the same reason after noticeAgain.
const (
	waitPause   = 500 * time.Millisecond
	noticePause = 5 * time.Second
	noticeAgain = 30 * time.Second
)

// waiting is the patience of one call of Open, and its notices.
type waiting struct {
	patience time.Duration
	notice   func(string, error)
	began    time.Time
	said     string    // the last reason
	saidAt   time.Time // zero: nothing reported
}

func newWaiting(c Config) *waiting {
	w := &waiting{patience: c.Patience, notice: c.Notice, began: time.Now()}
	if w.notice == nil {
		w.notice = func(string, error) {}
	}
	return w
}

// tell passes on a single notice.
func (w *waiting) tell(what string, why error) { w.notice(what, why) }

// repeat reports what Open waits for, unless it did so just now.
func (w *waiting) repeat(what string, why error) {
	since, changed := time.Since(w.saidAt), why.Error() != w.said
	if w.saidAt.IsZero() || changed && since >= noticePause || since >= noticeAgain {
		w.said, w.saidAt = why.Error(), time.Now()
		w.notice(what, why)
	}
}

// over reports that the wait has ended.
func (w *waiting) over(what string) {
	if !w.saidAt.IsZero() {
		w.notice(what, nil)
		w.saidAt = time.Time{}
	}
}

// ends reports whether the patience is exhausted.
func (w *waiting) ends() bool { return w.patience >= 0 && time.Since(w.began) >= w.patience }

// prepare prepares the database, and waits for one that is not reachable yet.
func (db *DB) prepare(ctx context.Context, c Config) error {
	w := newWaiting(c)
	for {
		err := db.prepareOnce(ctx, c, w)
		if err == nil {
			w.over("the database is there")
			return nil
		}
		if !mayPass(err) || w.ends() || ctx.Err() != nil {
			return err
		}
		w.repeat("waiting for the database", err)
		select {
		case <-time.After(waitPause + rand.N(waitPause)):
		case <-ctx.Done():
			return err
		}
	}
}

// mayPass reports whether an error passes once the database, or the network, is up. An unknown
// error counts as a mistake.
func mayPass(err error) bool {
	for _, mistake := range []any{new(*tls.CertificateVerificationError), new(x509.HostnameError), new(x509.UnknownAuthorityError), new(x509.CertificateInvalidError)} {
		if errors.As(err, mistake) {
			return false
		}
	}
	if e := (*pq.Error)(nil); errors.As(err, &e) {
		// Lost connections, no room, shutting down or starting up, a lock that was not available.
		for _, class := range []string{"08", "53", "57P", "55P03"} {
			if strings.HasPrefix(string(e.Code), class) {
				return true
			}
		}
		return false
	}
	if e := (*net.OpError)(nil); errors.As(err, &e) {
		// not "remote error", which comes from TLS
		return e.Op == "dial" || e.Op == "read" || e.Op == "write"
	}
	for _, passing := range []error{io.EOF, io.ErrUnexpectedEOF, driver.ErrBadConn, sql.ErrConnDone, context.DeadlineExceeded, syscall.ECONNRESET, syscall.EPIPE} {
		if errors.Is(err, passing) {
			return true
		}
	}
	resolving := (*net.DNSError)(nil)
	return errors.As(err, &resolving)
}

// forbidden reports whether the database has refused something for lack of rights.
func forbidden(err error) bool { return code(err) == "42501" }

// IsMistake reports whether an error cannot be resolved by waiting: missing rights, a wrong
// password or database, a read-only file.
func IsMistake(err error) bool {
	c := code(err)
	for _, class := range []string{"42501", "25006", "28", "3D", "42P01"} {
		if strings.HasPrefix(c, class) {
			return true
		}
	}
	// SQLite: read-only, not a database
	return errors.Is(err, ErrRights) || is(err, []string{"8", "26"})
}

// migrationLock is the lock that a process holds while it migrates a PostgreSQL database. It
// implements goose's lock.SessionLocker. If Open has unlimited patience, the time limit of a
// migration excludes the wait for the lock.
type migrationLock struct {
	waiting *waiting
	limit   *time.Timer
	cancel  context.CancelCauseFunc
}

// newMigrationLock returns a context that ends when a migration takes too long.
func newMigrationLock(ctx context.Context, w *waiting) (context.Context, *migrationLock) {
	l := &migrationLock{waiting: w}
	ctx, l.cancel = context.WithCancelCause(ctx)
	l.limit = time.AfterFunc(migrateTimeout, func() {
		l.cancel(fmt.Errorf("it takes longer than %v", migrateTimeout))
	})
	return ctx, l
}

func (l *migrationLock) end() {
	l.limit.Stop()
	l.cancel(nil)
}

// The lock: 'KEYP' and a number. The lock of the commits is number 1.
const migrationLockKey = `1262836048, 2`

// lockNotice is the wait for the lock after which the first notice is due.
const lockNotice = time.Second

// SessionLock waits for the lock.
func (l *migrationLock) SessionLock(ctx context.Context, conn *sql.Conn) error {
	if l.waiting.patience < 0 {
		l.limit.Stop()
		defer l.limit.Reset(migrateTimeout)
	}
	holder := ""
	for began := time.Now(); ; {
		var locked bool
		if err := conn.QueryRowContext(ctx, `SELECT pg_try_advisory_lock(`+migrationLockKey+`)`).Scan(&locked); err != nil {
			return fmt.Errorf("taking the lock for migrations: %w", err)
		}
		if locked {
			l.waiting.over("the lock for migrations is free")
			return nil
		}
		if time.Since(began) >= lockNotice {
			holder = lockHolder(ctx, conn)
			l.waiting.repeat("waiting for the lock for migrations", fmt.Errorf("%s holds it", holder))
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("waiting for the lock for migrations, which %s holds: %w", cmp.Or(holder, "another session"), ctx.Err())
		}
	}
}

// lockHolder describes the holder of the lock, as far as the role may see it.
func lockHolder(ctx context.Context, conn *sql.Conn) string {
	var pid int
	var who string
	err := conn.QueryRowContext(ctx, `SELECT l.pid, concat_ws(' ', a.usename, a.application_name, a.client_addr) FROM pg_catalog.pg_locks l
		LEFT JOIN pg_catalog.pg_stat_activity a USING (pid)
		WHERE l.locktype = 'advisory' AND l.granted AND (l.classid, l.objid) = (`+migrationLockKey+`) AND l.objsubid = 2
			AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()) LIMIT 1`).Scan(&pid, &who)
	if err != nil {
		return "another session"
	}
	return strings.TrimSpace(fmt.Sprintf("the session with PID %d (%s)", pid, cmp.Or(who, "unknown")))
}

// SessionUnlock releases the lock.
func (l *migrationLock) SessionUnlock(ctx context.Context, conn *sql.Conn) error {
	var unlocked bool
	err := conn.QueryRowContext(context.WithoutCancel(ctx), `SELECT pg_advisory_unlock(`+migrationLockKey+`)`).Scan(&unlocked)
	if err == nil && !unlocked {
		err = errors.New("the connection is another one than before, as behind a pooler in transaction mode: migrate over a connection to PostgreSQL itself")
	}
	if err != nil {
		return fmt.Errorf("giving back the lock for migrations: %w", err)
	}
	return nil
}

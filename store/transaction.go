package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"time"

	"github.com/keyporter/keyporter/store/lease"
)

// tries is the maximum number of attempts at a change that collides with others.
const tries = 5

// ErrAgain ends a transaction that should be rolled back and repeated.
var ErrAgain = errors.New("collided with another change")

// Change runs f in a transaction, and again if it collided with another one. f runs under a context
// of its own. Its result counts only if Change returns no error, together with an epoch not before
// that of the change. A change that the change feed or the audit would miss is not made: the error
// is [ErrUnrecorded].
func (db *DB) Change(ctx context.Context, f func(ctx context.Context, tx *sql.Tx) error) (lease.Epoch, error) {
	return db.Write(ctx, db.Changes, func(ctx context.Context, tx *sql.Tx) error {
		if err := f(ctx, tx); err != nil {
			return err
		}
		return db.recorded(ctx, tx)
	})
}

// ChangeWithin is Change with a time limit of its own, for a change of any size. It runs f once: a
// collision with another change is [ErrConflict].
func (db *DB) ChangeWithin(ctx context.Context, limit time.Duration, f func(ctx context.Context, tx *sql.Tx) error) (lease.Epoch, error) {
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	pool := db.Changes
	if db.connections != nil { // its connections give up on a server that is silent for a while
		patient, err := db.pool(forChanges, limit)
		if err != nil {
			return 0, err
		}
		defer patient.Close()
		pool = patient
	}
	committed, err := db.changeOnce(limited, pool, func(ctx context.Context, tx *sql.Tx) error {
		if err := f(ctx, tx); err != nil {
			return err
		}
		return db.recorded(ctx, tx)
	})
	if errors.Is(err, ErrAgain) || db.Dialect.collided(err) {
		err = fmt.Errorf("%w (%w)", ErrConflict, err)
	}
	if err != nil {
		db.Count(ctx, ForChange, err)
	}
	return committed, err
}

// Write is Change on one kind of connections, for what neither the change feed nor the audit
// records.
func (db *DB) Write(ctx context.Context, pool *sql.DB, f func(ctx context.Context, tx *sql.Tx) error) (lease.Epoch, error) {
	limited, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	for try := 1; ; try++ {
		committed, err := db.changeOnce(limited, pool, f)
		if err == nil {
			return committed, nil
		}
		again := errors.Is(err, ErrAgain) || db.Dialect.collided(err)
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
		db.Count(ctx, ForChange, err)
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
		return 0, fmt.Errorf("%w (%w)", ErrAgain, err) // it had ended while it was idle
	}
	if err != nil {
		return 0, err
	}
	defer tx.Rollback()
	// Repeated here, since behind a pooler this may be another server connection.
	if _, err := tx.ExecContext(ctx, db.Dialect.durably, db.Actor()); err != nil {
		return 0, err
	}
	if err := f(ctx, tx); err != nil {
		return 0, err
	}
	if db.Dialect.acted != "" {
		if _, err := tx.ExecContext(ctx, db.Dialect.acted); err != nil {
			return 0, err
		}
	}
	if err := errors.Join(ctx.Err(), db.SameFile()); err != nil {
		return 0, err
	}
	if err := db.commit(tx); err != nil {
		return 0, err
	}
	if err := db.SameFile(); err != nil {
		return 0, fmt.Errorf("%w (%w)", ErrUnknownOutcome, err)
	}
	if err := conn.QueryRowContext(context.WithoutCancel(ctx), `SELECT max(epoch) FROM changes`).Scan(&committed); err != nil {
		return UnknownEpoch, nil
	}
	return committed, nil
}

// UnknownEpoch is the epoch of a committed change if it could not be read.
const UnknownEpoch lease.Epoch = -1

// commit distinguishes three outcomes: committed, certainly not committed, and unknown.
func (db *DB) commit(tx *sql.Tx) error {
	err := db.Synced(tx.Commit)
	if err == nil || db.Dialect.refused(err) {
		return err
	}
	return fmt.Errorf("%w (%w)", ErrUnknownOutcome, err)
}

// Synced runs f, which writes, and fails if the server reported the commit as made although no
// standby has it.
func (db *DB) Synced(f func() error) error {
	before := db.unsynced()
	err := f()
	if err == nil && db.unsynced() != before {
		err = errors.New("the server gave up waiting for its standby")
	}
	return err
}

// WriteLog runs f in a transaction of the log. It waits only briefly for others, and makes others
// wait only briefly.
func (db *DB) WriteLog(ctx context.Context, f func(*sql.Tx) error) error {
	tx, err := db.logs.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if db.Dialect.briefly != "" {
		if _, err := tx.ExecContext(ctx, db.Dialect.briefly); err != nil {
			return err
		}
	}
	if err := f(tx); err != nil {
		return err
	}
	return tx.Commit()
}

package feed

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/lease"
)

// RollCall makes a change that touches nothing and waits until it is acknowledged. Replicas that
// stay silent until their lease has ended are taken off the list.
func (f *Feed) RollCall(ctx context.Context) (lease.Confirmation, error) {
	f = New(f.db.Calling(store.ForHousekeeping))
	committed, err := f.call(ctx)
	if err != nil {
		return lease.Confirmation{}, err
	}
	return f.barrier(ctx, committed)
}

// call makes a change that touches nothing, and returns its epoch.
func (f *Feed) call(ctx context.Context) (lease.Epoch, error) {
	committed, err := f.db.Change(ctx, func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, statementsOf(f.db).touch)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("calling the roll: %w", err)
	}
	return committed, nil
}

// Tidy deletes records that are no longer needed: old changes that all replicas but long absent
// ones have followed, and calls that will not be repeated.
func (f *Feed) Tidy(ctx context.Context) error {
	db := f.db.Calling(store.ForHousekeeping)
	_, err := db.Write(ctx, db.Changes, func(ctx context.Context, tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `DELETE FROM changes WHERE epoch < (SELECT max(epoch) FROM changes) - $1`, maxUpdates); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `DELETE FROM calls WHERE made_at < $1`, store.NowMillis()-idempotencyKeyLife.Milliseconds())
		return err
	})
	return err
}

// AcceptHistory lets replicas continue that stopped because the history of the database was
// rewritten, and waits until they do.
func (f *Feed) AcceptHistory(ctx context.Context) (lease.Confirmation, error) {
	committed, err := f.db.Change(ctx, func(ctx context.Context, tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `INSERT INTO histories (id, accepted_at) VALUES ($1, $2)`, store.NewID("history_"), store.NowMillis()); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, statementsOf(f.db).touch)
		return err
	})
	if err != nil {
		return lease.Confirmation{}, fmt.Errorf("accepting the history: %w", err)
	}
	return f.barrier(ctx, committed)
}

// ReplicaStatus is the entry of a replica on the list.
type ReplicaStatus struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	Address string `json:"address"`
	Version string `json:"version"`
	// the hash of its route table; "" if its program does not report one
	Routes    string        `json:"routes"`
	StartedAt time.Time     `json:"started_at"`
	Epoch     lease.Epoch   `json:"epoch"` // it has applied all changes up to this; -1: none
	Lag       int64         `json:"lag"`   // how many changes it has not applied
	Life      time.Duration `json:"-"`
	// Silent is the time since its last write, by the clock of the database. On PostgreSQL that is
	// its last renewal; on SQLite its last change, since renewals only read there.
	Silent time.Duration `json:"-"`
	polls  bool          // on SQLite
}

// answerTime is the time limit for live replicas on this machine to answer a roll call, once it is
// committed.
const answerTime = 300 * time.Millisecond

// Replicas lists the replicas by name, and returns the newest epoch. On SQLite, where renewals
// leave no trace, it first calls the roll, without taking any replica off the list.
func (f *Feed) Replicas(ctx context.Context) ([]ReplicaStatus, lease.Epoch, error) {
	if f.db.File() != "" {
		calling := New(f.db.Calling(store.ForHousekeeping))
		committed, err := calling.call(ctx)
		if err != nil {
			return nil, 0, err
		}
		short, cancel := context.WithTimeout(ctx, answerTime)
		defer cancel()
		if _, err := calling.barrier(short, committed); err != nil && !errors.Is(err, lease.ErrUnconfirmed) {
			return nil, 0, err
		}
	}
	var newest lease.Epoch
	replicas, err := store.List(ctx, f.db.Calling(store.ForReplicas), func(row store.Scanner) (s ReplicaStatus, err error) {
		var started, silent, life int64
		err = row.Scan(&s.ID, &s.Name, &s.Address, &s.Version, &s.Routes, &started, &s.Epoch, &s.Lag, &life, &silent, &newest)
		s.StartedAt, s.polls = store.FromMillis(started), f.db.File() != ""
		s.Life, s.Silent = time.Duration(life)*time.Millisecond, time.Duration(silent)*time.Millisecond
		return s, err
	}, `SELECT r.id, r.name, r.address, r.version, r.routes, r.started_at, r.acked, (SELECT count(*) FROM changes WHERE epoch > r.acked),
		r.life, `+f.db.Dialect.Now+` - r.seen_at, (SELECT max(epoch) FROM changes) FROM replicas r ORDER BY r.name, r.started_at, r.id`)
	if err == nil && len(replicas) == 0 {
		err = f.db.Changes.QueryRowContext(ctx, `SELECT max(epoch) FROM changes`).Scan(&newest)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("listing the replicas: %w", err)
	}
	return replicas, newest, nil
}

// Live reports whether the replica was heard of recently: on PostgreSQL within its lease, on SQLite
// at the roll call. A replica that is not live has ended, is unreachable, or refuses to continue;
// its log says which.
func (s *ReplicaStatus) Live() bool {
	if s.Epoch < 0 || s.polls && s.Lag > 0 {
		return false
	}
	return s.polls || s.Silent <= s.Life
}

// Left returns the minimum time its lease still lasts, and whether that is known.
func (s *ReplicaStatus) Left() (time.Duration, bool) {
	return max(0, s.Life-s.Silent), !s.polls
}

// LiveReplicas counts the replicas that may answer: those whose lease has not ended.
func (f *Feed) LiveReplicas(ctx context.Context) (n int, err error) {
	err = f.db.Changes.QueryRowContext(ctx, `SELECT count(*) FROM replicas live WHERE `+f.db.Dialect.Live).Scan(&n)
	f.db.Count(ctx, store.ForReplicas, err)
	if err != nil {
		return 0, fmt.Errorf("counting the replicas: %w", err)
	}
	return n, nil
}

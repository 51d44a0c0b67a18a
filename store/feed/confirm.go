package feed

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/lease"
)

// Confirmation says on how many replicas a change is enforced. With [lease.ErrUnconfirmed] it says
// how far the wait got.
type Confirmation struct {
	lease.Confirmation
	// Repeated says that an earlier call had the same idempotency key. This call changed nothing,
	// and the earlier change is enforced everywhere.
	Repeated bool
}

// IdempotencyKey names a call. A second call with the same key changes nothing, returns
// the result of the first one without its secret, and waits again until it is enforced everywhere.
// No key if "". Keys are kept for a week.
type IdempotencyKey string

// ErrKeyReused is the [store.ErrInvalid] of an idempotency key that names another call.
var ErrKeyReused = fmt.Errorf("the idempotency key is %w: it was used for another call", store.ErrInvalid)

const (
	maxIdempotencyKey  = 255
	idempotencyKeyLife = 7 * 24 * time.Hour
)

func (o IdempotencyKey) check() error {
	if len(o) > maxIdempotencyKey || strings.ContainsFunc(string(o), func(r rune) bool { return r <= ' ' || r > '~' }) {
		return fmt.Errorf("the idempotency key is %w: 1 to %d visible ASCII characters without blanks", store.ErrInvalid, maxIdempotencyKey)
	}
	return nil
}

// Of scopes the key to a name, so that it never equals a key of another name. The name has no
// blanks and is much shorter than a key may be.
func (o IdempotencyKey) Of(name string) (IdempotencyKey, error) {
	if err := o.check(); err != nil || o == "" {
		return "", err
	}
	whole := IdempotencyKey(name + ":" + string(o))
	if len(whole) > maxIdempotencyKey {
		sum := sha256.Sum256([]byte(o))
		whole = IdempotencyKey(name + "::" + hex.EncodeToString(sum[:]))
	}
	return whole, nil
}

// made begins a key that was made for a call without one.
const made = "keyporter~"

// NewIdempotencyKey returns a key for a call without one, so that a change that is not confirmed can
// be waited for. Nobody can have sent it before, and it is forgotten once the change is confirmed.
func NewIdempotencyKey() IdempotencyKey { return IdempotencyKey(made + rand.Text()) }

// isMade reports whether the key, perhaps of somebody, is one of NewIdempotencyKey.
func (o IdempotencyKey) isMade() bool { return strings.Contains(":"+string(o), ":"+made) }

// Change runs f in a transaction and waits until its result is enforced on every replica.
// The operation names the call with all its arguments. The result is valid if the error is nil or
// [lease.ErrUnconfirmed].
func Change[T any](ctx context.Context, db *store.DB, once IdempotencyKey, operation string, f func(context.Context, *sql.Tx) (T, error)) (result T, c Confirmation, err error) {
	result, c, committed, err := change(ctx, db, once, operation, f)
	if err != nil {
		return result, c, err
	}
	c.Confirmation, err = New(db).barrier(ctx, committed)
	if err == nil && once.isMade() {
		forget(ctx, db, once)
	}
	return result, c, err
}

// forget deletes a call that nobody will repeat. If that fails, it is deleted with the others.
func forget(ctx context.Context, db *store.DB, once IdempotencyKey) {
	_, _ = db.Changes.ExecContext(ctx, `DELETE FROM calls WHERE id = $1`+db.Dialect.Lazily, string(once))
}

// Call names a call with arguments of any size, for [Change].
func Call(operation string, arguments any) string {
	text, err := json.Marshal(arguments)
	if err != nil {
		panic("feed: arguments do not encode: " + err.Error()) // they are texts and numbers
	}
	sum := sha256.Sum256(text)
	return operation + " " + hex.EncodeToString(sum[:16])
}

// Once is [Change] without the wait, for changes that are enforced when they are committed: no
// replica can have known another state, as with a secret that was made just now.
func Once[T any](ctx context.Context, db *store.DB, once IdempotencyKey, operation string, f func(context.Context, *sql.Tx) (T, error)) (T, Confirmation, error) {
	began := time.Now()
	result, c, _, err := change(ctx, db, once, operation, f)
	if err == nil && once.isMade() {
		forget(ctx, db, once)
	}
	c.Took = time.Since(began)
	return result, c, err
}

// Enforced waits until every replica enforces a change that was committed with this epoch.
func (f *Feed) Enforced(ctx context.Context, committed lease.Epoch) (c Confirmation, err error) {
	c.Confirmation, err = f.barrier(ctx, committed)
	return c, err
}

// change makes a change once, and returns its epoch.
func change[T any](ctx context.Context, db *store.DB, once IdempotencyKey, operation string, f func(context.Context, *sql.Tx) (T, error)) (result T, c Confirmation, committed lease.Epoch, err error) {
	if err := once.check(); err != nil {
		return result, c, 0, err
	}
	refused := false
	committed, err = db.Change(ctx, func(ctx context.Context, tx *sql.Tx) (err error) {
		if c.Repeated, err = repeated(ctx, tx, once, operation, &result); err != nil || c.Repeated {
			return err
		}
		result, err = f(ctx, tx)
		// the same call, a moment earlier, may be in the way
		if once != "" && !once.isMade() && !refused && store.IsAnswer(err) {
			refused = true
			return fmt.Errorf("%w (%w)", store.ErrAgain, err)
		}
		if err != nil {
			return err
		}
		return New(db).remember(ctx, tx, once, operation, result)
	})
	if err != nil {
		return *new(T), Confirmation{}, 0, err
	}
	return result, c, committed, nil
}

// repeated looks for an earlier call with the same key. It writes, so that the following commit is
// durable no earlier than that of the first call.
func repeated(ctx context.Context, tx *sql.Tx, once IdempotencyKey, operation string, result any) (bool, error) {
	if once == "" {
		return false, nil
	}
	var earlier, text string
	err := tx.QueryRowContext(ctx, `UPDATE calls SET id = id WHERE id = $1 RETURNING operation, result`, string(once)).Scan(&earlier, &text)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return false, nil
	case err != nil:
		return false, err
	case earlier != operation:
		return false, fmt.Errorf("%w: %s", ErrKeyReused, earlier)
	}
	return true, json.Unmarshal([]byte(text), result)
}

func (f *Feed) remember(ctx context.Context, tx *sql.Tx, once IdempotencyKey, operation string, result any) error {
	if once == "" {
		return nil
	}
	text, err := json.Marshal(result)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO calls (id, operation, result, made_at) VALUES ($1, $2, $3, $4)`,
		string(once), operation, string(text), store.NowMillis())
	if f.db.Dialect.Duplicate(err) {
		return fmt.Errorf("%w (%w)", store.ErrAgain, err) // the same call, a moment earlier
	}
	return err
}

// barrierTimeout ends the wait if the list of replicas cannot be read. It exceeds the longest
// lease.
const barrierTimeout = 45 * time.Second

// barrier waits until everything committed up to an epoch is enforced on every replica.
func (f *Feed) barrier(ctx context.Context, committed lease.Epoch) (lease.Confirmation, error) {
	if committed == store.UnknownEpoch {
		return lease.Confirmation{}, fmt.Errorf("%w: the connection broke after the change was made", lease.ErrUnconfirmed)
	}
	ctx, cancel := context.WithTimeout(ctx, barrierTimeout)
	defer cancel()
	began := time.Now()
	barrier := lease.Barrier{Roster: roster{f.db}}
	c, err := barrier.Wait(ctx, committed) // rule 8: barrier
	f.db.Barriers.Observe(time.Since(began).Seconds())
	return c, err
}

// roster implements [lease.Roster].
type roster struct{ db *store.DB }

func (r roster) Roster(ctx context.Context) (roll lease.Roll, err error) {
	roll.Members, err = store.List(ctx, r.db.Calling(store.ForBarrier), func(row store.Scanner) (m lease.Member, err error) {
		var id sql.NullString
		var acked, life sql.NullInt64
		err = row.Scan(&roll.Newest, &id, &acked, &life)
		return lease.Member{ID: id.String, Acked: lease.Epoch(acked.Int64), Life: time.Duration(life.Int64) * time.Millisecond}, err
	}, `SELECT newest.epoch, r.id, r.acked, r.life FROM (SELECT max(epoch) AS epoch FROM changes) newest LEFT JOIN replicas r ON TRUE`)
	if err != nil {
		return lease.Roll{}, fmt.Errorf("reading the list of replicas: %w", err)
	}
	if len(roll.Members) == 1 && roll.Members[0].ID == "" {
		roll.Members = nil // the list is empty
	}
	return roll, nil
}

func (r roster) Fence(ctx context.Context, epoch lease.Epoch, ids []string) error {
	for _, id := range ids {
		if _, err := r.db.Changes.ExecContext(ctx, `DELETE FROM replicas WHERE id = $1 AND acked < $2`, id, int64(epoch)); err != nil {
			return fmt.Errorf("taking a silent replica off the list: %w", err)
		}
	}
	return nil
}

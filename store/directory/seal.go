package directory

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/store"
)

// SetSealKey stores the public half of the sealing key pair; from then on keys are kept sealed. An
// existing one is kept, and the error is [store.ErrExists].
func (k *Keys) SetSealKey(ctx context.Context, public []byte) error {
	if _, err := apikey.Seal(public, apikey.Token{}, ""); err != nil {
		return fmt.Errorf("setting the seal key: it is %w: %w", store.ErrInvalid, err)
	}
	_, err := k.db.Change(ctx, func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO seal_keys (id, public, created_at) VALUES (1, $1, $2)`, public, store.NowMillis())
		if k.db.Dialect.Duplicate(err) {
			return fmt.Errorf("a seal key %w, and keys may be sealed to it", store.ErrExists)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("setting the seal key: %w", err)
	}
	return nil
}

// SealKey returns the public half of the sealing key pair, or [store.ErrNotFound].
func (k *Keys) SealKey(ctx context.Context) ([]byte, error) {
	keys, err := store.List(ctx, k.db, func(row store.Scanner) (public []byte, err error) {
		return public, row.Scan(&public)
	}, `SELECT public FROM seal_keys`)
	if err != nil {
		return nil, fmt.Errorf("reading the seal key: %w", err)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("a seal key was %w", store.ErrNotFound)
	}
	return keys[0], nil
}

// SealedKey returns the live key of a user with its sealed copy, nil if none is kept, or
// [store.ErrNotFound].
func (k *Keys) SealedKey(ctx context.Context, user string) (Key, []byte, error) {
	if err := store.CheckName("user", user); err != nil {
		return Key{}, nil, err
	}
	var sealed []byte
	keys, err := store.List(ctx, k.db, func(row store.Scanner) (Key, error) {
		return scanKey(scanInto(func(into ...any) error { return row.Scan(append(into, &sealed)...) }))
	}, `SELECT `+keyColumns+`, sealed FROM keys WHERE user_name = $1 AND revoked_at IS NULL`, user)
	if err == nil && len(keys) == 0 {
		err = fmt.Errorf("a live key was %w", store.ErrNotFound)
	}
	if err != nil {
		return Key{}, nil, fmt.Errorf("finding the key of user %s: %w", user, err)
	}
	return keys[0], sealed, nil
}

// ReplaceSealKey replaces the public half that new keys are sealed to. It fails with
// [store.ErrNotFound] if old is not the current one. When it returns, nothing more is sealed to the
// old one.
func (k *Keys) ReplaceSealKey(ctx context.Context, old, public []byte) error {
	if _, err := apikey.Seal(public, apikey.Token{}, ""); err != nil {
		return fmt.Errorf("replacing the seal key: it is %w: %w", store.ErrInvalid, err)
	}
	_, err := k.db.Change(ctx, func(ctx context.Context, tx *sql.Tx) error {
		replaced, err := store.Affected(tx.ExecContext(ctx, `UPDATE seal_keys SET public = $2, created_at = $3 WHERE id = 1 AND public = $1`, old, public, store.NowMillis()))
		if err == nil && !replaced {
			err = fmt.Errorf("the public half that was to be replaced was %w: another rotation may be under way", store.ErrNotFound)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("replacing the seal key: %w", err)
	}
	return nil
}

// resealBatch is the number of keys sealed again in one transaction, with a round trip for each.
const resealBatch = 100

// Reseal seals live keys again. The function reseal gets a sealed copy and the id of its key, and
// returns the new copy, or nil to keep the old one. Reseal returns the number of replaced copies.
// Copies that change concurrently stay as they are. An error of reseal ends it; finished batches
// are kept.
func (k *Keys) Reseal(ctx context.Context, reseal func(sealed []byte, id string) ([]byte, error)) (done int, err error) {
	for after := ""; ; {
		type copyOf struct {
			id     string
			sealed []byte
		}
		batch, err := store.List(ctx, k.db, func(row store.Scanner) (c copyOf, err error) {
			return c, row.Scan(&c.id, &c.sealed)
		}, `SELECT id, sealed FROM keys WHERE id > $1 AND revoked_at IS NULL AND sealed IS NOT NULL ORDER BY id LIMIT $2`, after, resealBatch)
		if err != nil {
			return done, fmt.Errorf("reading sealed keys: %w", err)
		}
		if len(batch) == 0 {
			return done, nil
		}
		fresh := map[string][]byte{}
		for _, c := range batch {
			if fresh[c.id], err = reseal(c.sealed, c.id); err != nil {
				return done, fmt.Errorf("sealing key %s again: %w", c.id, err)
			}
		}
		changed := 0
		if _, err := k.db.Change(ctx, func(ctx context.Context, tx *sql.Tx) error {
			changed = 0
			for _, c := range batch {
				if fresh[c.id] == nil {
					continue
				}
				replaced, err := store.Affected(tx.ExecContext(ctx, `UPDATE keys SET sealed = $3 WHERE id = $1 AND sealed = $2`, c.id, c.sealed, fresh[c.id]))
				if err != nil {
					return err
				}
				if replaced {
					changed++
				}
			}
			return nil
		}); err != nil {
			return done, fmt.Errorf("sealing keys again: %w", err)
		}
		done += changed
		after = batch[len(batch)-1].id
	}
}

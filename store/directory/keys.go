package directory

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"iter"
	"math"
	"time"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/feed"
	"github.com/keyporter/keyporter/store/lease"
)

// Keys is the keys of users in a database, and the public key that copies of them are sealed to. It
// is safe for concurrent use.
type Keys struct{ db *store.DB }

// NewKeys returns the keys in a database.
func NewKeys(db *store.DB) *Keys { return &Keys{db} }

// Key describes a key without the key itself.
type Key struct {
	ID        string     `json:"id"` // public
	User      string     `json:"user"`
	CreatedAt time.Time  `json:"created_at"`
	RevokedAt *time.Time `json:"revoked_at"` // nil while the key is live
	Imported  bool       `json:"imported"`   // another system made it; see key_formats
}

// CreateKey makes a key for a user without one. The plaintext is returned and not kept, except for
// a copy sealed to the public seal key, if there is one. CreateKey returns once the key works on
// every replica.
func (k *Keys) CreateKey(ctx context.Context, user string, format *apikey.Format) (Key, apikey.Token, error) {
	key, token, _, err := k.CreateKeyOnce(ctx, user, format, "")
	return key, token, err
}

// CreateKeyOnce is CreateKey with an idempotency key. A repeated call returns the zero Token, since
// only the first one returned the key.
func (k *Keys) CreateKeyOnce(ctx context.Context, user string, format *apikey.Format, once feed.IdempotencyKey) (Key, apikey.Token, feed.Confirmation, error) {
	token := format.Generate()
	key, c, err := feed.Change(ctx, k.db, once, "key create "+user, func(ctx context.Context, tx *sql.Tx) (Key, error) {
		return k.createKey(ctx, tx, user, token)
	})
	if err != nil && !errors.Is(err, lease.ErrUnconfirmed) {
		err = fmt.Errorf("creating a key for user %s: %w", user, err)
	}
	if key.ID == "" || c.Repeated {
		token = apikey.Token{}
	}
	return key, token, c, err
}

func (k *Keys) createKey(ctx context.Context, tx *sql.Tx, user string, token apikey.Token) (Key, error) {
	if err := mustLockUser(ctx, k.db, tx, user); err != nil {
		return Key{}, err
	}
	key, err := k.insertKey(ctx, tx, user, token, store.NowMillis())
	if k.db.Dialect.Duplicate(err) {
		err = FixableError{fmt.Errorf("a live key %w", store.ErrExists), RegenerateKey, user}
	}
	return key, err
}

// Rate limits how often something is done. The zero Rate sets no limit.
type Rate struct {
	N   int // times
	Per time.Duration
}

// TooOftenError is returned when a rate is exhausted.
type TooOftenError struct{ Until time.Time }

func (e TooOftenError) Error() string {
	return "done too often; it can be done again at " + e.Until.Format(time.RFC3339)
}

// Is reports that the error is a refusal.
func (e TooOftenError) Is(target error) bool { return target == store.ErrRefused }

// RegenerateKey revokes the live key of a user and makes a new one. The error is a [TooOftenError]
// if the user has made as many keys as the rate allows. RegenerateKey returns once the old key
// opens nothing any more. With [lease.ErrUnconfirmed] the new key is valid and returned. A repeated
// call returns the zero Token, since only the first one returned the key.
func (k *Keys) RegenerateKey(ctx context.Context, user string, format *apikey.Format, rate Rate, once feed.IdempotencyKey) (Key, apikey.Token, feed.Confirmation, error) {
	return k.ReplaceKey(ctx, user, "", format, rate, once)
}

// ReplacedError is returned if the key to be replaced is no longer live, but another one is.
type ReplacedError struct{ By Key }

func (e ReplacedError) Error() string {
	return "the key was replaced at " + e.By.CreatedAt.Format(time.RFC3339) + " by " + e.By.ID
}

// Is reports that the error is a refusal.
func (e ReplacedError) Is(target error) bool { return target == store.ErrRefused }

// ReplaceKey is [Keys.RegenerateKey] for the key with the given id only: if another one is
// live, the error is a [ReplacedError] and nothing is changed. The empty id means any live key.
func (k *Keys) ReplaceKey(ctx context.Context, user, id string, format *apikey.Format, rate Rate, once feed.IdempotencyKey) (Key, apikey.Token, feed.Confirmation, error) {
	token := format.Generate()
	operation := "key regenerate " + user
	if id != "" {
		operation += " in place of " + id
	}
	key, c, err := feed.Change(ctx, k.db, once, operation, func(ctx context.Context, tx *sql.Tx) (Key, error) {
		ended, err := k.endKey(ctx, tx, user)
		if errors.Is(err, errNoKey) {
			err = FixableError{err, CreateKey, user}
		}
		if err != nil {
			return Key{}, err
		}
		if id != "" && ended.ID != id { // the rollback makes the ended key live again
			return Key{}, ReplacedError{By: ended}
		}
		if err := rate.check(ctx, tx, `SELECT created_at AS at FROM keys WHERE user_name = $1 AND created_at > $2 ORDER BY created_at DESC LIMIT $3`, user); err != nil {
			return Key{}, err
		}
		return k.insertKey(ctx, tx, user, token, ended.RevokedAt.UnixMilli())
	})
	if err != nil {
		err = fmt.Errorf("regenerating the key of user %s: %w", user, err)
	}
	if key.ID == "" || c.Repeated {
		token = apikey.Token{}
	}
	return key, token, c, err
}

// check counts the actions of a user while their row is locked. The argument when is a query for
// the times of the newest $3 actions after $2.
func (p Rate) check(ctx context.Context, tx *sql.Tx, when, user string) error {
	if p.N == 0 {
		return nil
	}
	since := store.NowMillis() - p.Per.Milliseconds()
	var made, first int64
	err := tx.QueryRowContext(ctx, `SELECT count(*), coalesce(min(at), 0) FROM (`+when+`) recent`, user, since, p.N).Scan(&made, &first)
	if err == nil && made >= int64(p.N) {
		err = TooOftenError{Until: store.FromMillis(first).Add(p.Per)}
	}
	return err
}

// RevokeKey revokes the live key of a user. It returns once the key opens nothing any more.
func (k *Keys) RevokeKey(ctx context.Context, user string, once feed.IdempotencyKey) (Key, feed.Confirmation, error) {
	key, c, err := feed.Change(ctx, k.db, once, "key revoke "+user, func(ctx context.Context, tx *sql.Tx) (Key, error) {
		return k.revokeKey(ctx, tx, user)
	})
	if err != nil {
		err = fmt.Errorf("revoking the key of user %s: %w", user, err)
	}
	return key, c, err
}

func (k *Keys) revokeKey(ctx context.Context, tx *sql.Tx, user string) (Key, error) {
	key, err := k.endKey(ctx, tx, user)
	if errors.Is(err, errNoKey) {
		err = fmt.Errorf("%w: there is nothing to revoke", err)
	}
	return key, err
}

// errNoKey is the [store.ErrNotFound] of a user's live key.
var errNoKey = fmt.Errorf("a live key was %w", store.ErrNotFound)

// endKey revokes the live key of a user and erases its sealed copy. The error is errNoKey if there
// is none.
func (k *Keys) endKey(ctx context.Context, tx *sql.Tx, user string) (Key, error) {
	if err := mustLockUser(ctx, k.db, tx, user); err != nil {
		return Key{}, err
	}
	key, err := scanKey(tx.QueryRowContext(ctx, `UPDATE keys SET revoked_at = $2, sealed = NULL
		WHERE user_name = $1 AND revoked_at IS NULL
		RETURNING `+keyColumns, user, store.NowMillis()))
	if errors.Is(err, sql.ErrNoRows) {
		return Key{}, errNoKey
	}
	return key, err
}

func mustLockUser(ctx context.Context, db *store.DB, tx *sql.Tx, user string) error {
	if err := store.CheckName("user", user); err != nil {
		return err
	}
	locked, err := lockUser(ctx, db, tx, user)
	if err == nil && !locked {
		return noUser(user)
	}
	return err
}

// insertKey adds a live key. A key that is made at the millisecond at which the former one ended
// replaces it: events say so.
func (k *Keys) insertKey(ctx context.Context, tx *sql.Tx, user string, token apikey.Token, at int64) (Key, error) {
	id := store.NewID("key_")
	var sealed []byte
	public, err := k.sealKey(ctx, tx)
	if err != nil {
		return Key{}, err
	}
	if public != nil {
		if sealed, err = apikey.Seal(public, token, id); err != nil {
			return Key{}, err
		}
	}
	digest := token.Digest()
	return scanKey(tx.QueryRowContext(ctx, `INSERT INTO keys (id, user_name, digest, sealed, created_at)
		VALUES ($1, $2, $3, $4, $5) RETURNING `+keyColumns,
		id, user, digest[:], sealed, at))
}

// sealKey returns the public seal key, or nil if none is set up. A rotation waits for the
// transaction, so it finds everything that was sealed to the old key.
func (k *Keys) sealKey(ctx context.Context, tx *sql.Tx) (public []byte, err error) {
	err = tx.QueryRowContext(ctx, `SELECT public FROM seal_keys WHERE id = 1`+k.db.Dialect.Share).Scan(&public)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	return public, err
}

// keyColumns are what scanKey scans.
const keyColumns = `id, user_name, created_at, revoked_at, imported IS NOT NULL`

func scanKey(row store.Scanner) (Key, error) {
	var k Key
	var created int64
	var revoked sql.NullInt64
	if err := row.Scan(&k.ID, &k.User, &created, &revoked, &k.Imported); err != nil {
		return Key{}, err
	}
	k.CreatedAt = store.FromMillis(created)
	if revoked.Valid {
		at := store.FromMillis(revoked.Int64)
		k.RevokedAt = &at
	}
	return k, nil
}

// EachKey lists the keys of a user, or of all users if the name is empty, including revoked ones,
// by user and newest first.
func (k *Keys) EachKey(ctx context.Context, user string) iter.Seq2[Key, error] {
	if user != "" {
		if err := store.CheckName("user", user); err != nil {
			return func(yield func(Key, error) bool) { yield(Key{}, fmt.Errorf("listing keys: %w", err)) }
		}
	}
	return store.Convert(keysOf(user).Each(ctx, k.db), keyRow.key)
}

// PageOfKeys is a part of EachKey, as [store.Listing.Page] returns it.
func (k *Keys) PageOfKeys(ctx context.Context, user, cursor string, n int) (keys []Key, next string, err error) {
	rows, next, err := keysOf(user).Page(ctx, k.db, cursor, n)
	return store.ConvertPage(rows, next, err, keyRow.key)
}

type keyRow struct {
	Key
	created int64 // as stored; store.FromMillis may change CreatedAt
}

func (r keyRow) key() Key { return r.Key }

func keysOf(user string) store.Listing[keyRow] {
	return store.Listing[keyRow]{
		What: "keys",
		Scan: func(s store.Scanner) (r keyRow, err error) {
			r.Key, err = scanKey(scanInto(func(into ...any) error { return s.Scan(append(into, &r.created)...) }))
			return r, err
		},
		Query: `SELECT ` + keyColumns + `, created_at FROM keys
			WHERE ($1 = '' OR user_name = $1) AND user_name >= $2
				AND (user_name > $2 OR created_at < $3 OR created_at = $3 AND id > $4)
			ORDER BY user_name, created_at DESC, id LIMIT $5`,
		Of: []any{user}, Start: []any{"", int64(math.MaxInt64), ""},
		Place: func(r keyRow) []any { return []any{r.User, r.created, r.ID} },
	}
}

// Keys lists the keys of a user, or of all users if the name is empty, including revoked ones,
// newest first.
func (k *Keys) Keys(ctx context.Context, user string) ([]Key, error) {
	return store.Collect(k.EachKey(ctx, user))
}

// LiveKey returns the live key of a user, or [store.ErrNotFound].
func (k *Keys) LiveKey(ctx context.Context, user string) (Key, error) {
	if err := store.CheckName("user", user); err != nil {
		return Key{}, err
	}
	keys, err := store.List(ctx, k.db, scanKey, `SELECT `+keyColumns+` FROM keys
		WHERE user_name = $1 AND revoked_at IS NULL`, user)
	if err != nil {
		return Key{}, fmt.Errorf("finding the key of user %s: %w", user, err)
	}
	if len(keys) == 0 {
		return Key{}, fmt.Errorf("user %s has no live key: %w", user, store.ErrNotFound)
	}
	return keys[0], nil
}

// TagSecrets returns the secrets of the keyed tags in keys, the one for new keys first.
func (k *Keys) TagSecrets(ctx context.Context) ([][]byte, error) {
	secrets, err := store.List(ctx, k.db, func(row store.Scanner) (secret []byte, err error) {
		return secret, row.Scan(&secret)
	}, `SELECT secret FROM tag_secrets ORDER BY id DESC`)
	if err != nil {
		return nil, fmt.Errorf("reading the tag secrets: %w", err)
	}
	if len(secrets) == 0 {
		return nil, k.db.Emptied("tag_secrets", "no key can be recognised or made")
	}
	return secrets, nil
}

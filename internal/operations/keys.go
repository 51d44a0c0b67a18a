package operations

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
	"github.com/keyporter/keyporter/store/feed"
)

// Keys are the keys of users.
type Keys struct {
	db     *store.DB
	in     *directory.Keys
	prefix string
}

// Keys returns the operations on keys. New keys begin with prefix.
func (o Operator) Keys(prefix string) Keys { return Keys{o.db, directory.NewKeys(o.db), prefix} }

// MadeKey is a key that was made. Key is nil if an earlier call with the same idempotency key has
// shown it.
type MadeKey struct {
	ID   string  `json:"id"`
	User string  `json:"user"`
	Key  *string `json:"key"`
	Code string  `json:"code,omitempty"`
}

func newMadeKey(key directory.Key, token apikey.Token) MadeKey {
	made := MadeKey{ID: key.ID, User: key.User, Code: "key_shown_once"}
	if plain := token.Reveal(); plain != "" {
		made.Key, made.Code = &plain, ""
	}
	return made
}

// Create makes a key for a user without one. A repeated call makes no second key.
func (k Keys) Create(ctx context.Context, user string, once feed.IdempotencyKey) (Committed[MadeKey], error) {
	formats, err := ReadFormats(ctx, k.db, apikey.FormatConfig{Prefix: k.prefix})
	if err != nil {
		return Committed[MadeKey]{}, err
	}
	key, token, done, err := k.in.CreateKeyOnce(ctx, user, formats.Keys, once)
	return committed(newMadeKey(key, token), done, err)
}

// Regenerate replaces the key of a user; the one with the id replaces, unless that is "". A
// repeated call makes no second key.
func (k Keys) Regenerate(ctx context.Context, user, replaces string, once feed.IdempotencyKey) (Committed[MadeKey], error) {
	formats, err := ReadFormats(ctx, k.db, apikey.FormatConfig{Prefix: k.prefix})
	if err != nil {
		return Committed[MadeKey]{}, err
	}
	key, token, done, err := k.in.ReplaceKey(ctx, user, replaces, formats.Keys, directory.Rate{}, once)
	return committed(newMadeKey(key, token), done, err)
}

// Revoke revokes the key of a user.
func (k Keys) Revoke(ctx context.Context, user string, once feed.IdempotencyKey) (Committed[directory.Key], error) {
	return committed(k.in.RevokeKey(ctx, user, once))
}

// Each lists the keys of a user, or of all users if the name is empty, including revoked ones, by
// user and newest first.
func (k Keys) Each(ctx context.Context, user string) iter.Seq2[directory.Key, error] {
	return k.in.EachKey(ctx, user)
}

// Live returns the live key of a user.
func (k Keys) Live(ctx context.Context, user string) (directory.Key, error) {
	return k.in.LiveKey(ctx, user)
}

// Page is a part of Each: at most n keys after a cursor.
func (k Keys) Page(ctx context.Context, user, cursor string, n int) (Page[directory.Key], error) {
	if err := checkPage(n); err != nil {
		return Page[directory.Key]{}, err
	}
	return newPage(k.in.PageOfKeys(ctx, user, cursor, n))
}

// RevealedKey is a live key as clients send it.
type RevealedKey struct {
	ID   string `json:"id"`
	User string `json:"user"`
	Key  string `json:"key"`
}

// The reasons why a key cannot be revealed.
var (
	ErrNoKey    = fmt.Errorf("a live key was %w", store.ErrNotFound)
	ErrNotKept  = fmt.Errorf("%w: no sealed copy of the key is kept, or this replica has no seal key", store.ErrRefused)
	ErrUnsealed = errors.New("the sealed copy of the key does not open: does --seal-key-file belong to this database?")
)

// Unseal opens the sealed copy of the key with an id. It is safe for concurrent use. Nil opens none.
type Unseal func(sealed []byte, id string) (apikey.Token, error)

// Reveal returns the live key of a user, after recording in the audit that it is shown. The error
// matches [ErrNoKey], [ErrNotKept] or [ErrUnsealed] if there is nothing to show.
func (k Keys) Reveal(ctx context.Context, user string, unseal Unseal) (RevealedKey, error) {
	key, sealed, err := k.in.SealedKey(ctx, user)
	switch {
	case errors.Is(err, store.ErrNotFound):
		if _, err := directory.New(k.db).User(ctx, user); err != nil {
			return RevealedKey{}, err
		}
		return RevealedKey{}, ErrNoKey
	case err != nil:
		return RevealedKey{}, err
	case sealed == nil || unseal == nil:
		return RevealedKey{}, ErrNotKept
	}
	token, err := unseal(sealed, key.ID)
	if err != nil {
		return RevealedKey{}, fmt.Errorf("key %s: %w (%w)", key.ID, ErrUnsealed, err)
	}
	if err := directory.NewAudit(k.db).RecordReveal(ctx, user, key.ID, directory.Rate{}); err != nil {
		return RevealedKey{}, err
	}
	return RevealedKey{key.ID, user, token.Reveal()}, nil
}

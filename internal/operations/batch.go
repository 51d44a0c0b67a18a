package operations

import (
	"context"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/store/directory"
	"github.com/keyporter/keyporter/store/feed"
	"github.com/keyporter/keyporter/store/ledger"
)

// MaxBatch is the maximum number of items in a batch. More would share one entry of the audit, and
// might take longer than a change may.
const MaxBatch = 1000

// Batch is the results of a batch in the order of its items. A batch is one change: all of its
// items, or none.
type Batch[T any] struct {
	Items []T `json:"items"`
}

// batched is committed for a batch.
func batched[T any](items []T, done feed.Confirmation, err error) (Committed[Batch[T]], error) {
	return committed(Batch[T]{items}, done, err)
}

// SetAll is Set for several users.
func (u Users) SetAll(ctx context.Context, sets []directory.UserSet, once feed.IdempotencyKey) (Committed[Batch[directory.User]], error) {
	return batched(u.in.SetUsers(ctx, sets, once))
}

// CreateAll is Create for several users.
func (k Keys) CreateAll(ctx context.Context, users []string, once feed.IdempotencyKey) (Committed[Batch[MadeKey]], error) {
	formats, err := ReadFormats(ctx, k.db, apikey.FormatConfig{Prefix: k.prefix})
	if err != nil {
		return Committed[Batch[MadeKey]]{}, err
	}
	keys, tokens, done, err := k.in.CreateKeys(ctx, users, formats.Keys, once)
	made := make([]MadeKey, len(keys))
	for i, key := range keys {
		made[i] = newMadeKey(key, tokens[i])
	}
	return batched(made, done, err)
}

// RevokeAll is Revoke for several users.
func (k Keys) RevokeAll(ctx context.Context, users []string, once feed.IdempotencyKey) (Committed[Batch[directory.Key]], error) {
	return batched(k.in.RevokeKeys(ctx, users, once))
}

// GrantAll is Grant for several users. A user may be named several times.
func (c Credits) GrantAll(ctx context.Context, grants []Granted, once feed.IdempotencyKey) (Committed[Batch[Granted]], error) {
	all := make([]ledger.Grant, len(grants))
	for i, g := range grants {
		all[i] = ledger.Grant{User: g.User, Credits: g.Granted}
	}
	done, err := c.in.GrantAll(ctx, all, once)
	return batched(grants, done, err)
}

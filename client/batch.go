package client

import (
	"context"
	"net/http"
)

// MaxBatch is the maximum number of items in a batch.
const MaxBatch = 1000

// Batch is the results of a batch in the order of its items. A batch is one change: all of its
// items, or none. The Field of a refusal names the item by its index, such as items[3].account.
type Batch[T any] struct {
	Items []T `json:"items"`
}

// UserItem is a user of a batch, with what changes.
type UserItem struct {
	Name string `json:"name"`
	UserChange
}

// keyItem is a user of a batch of keys.
type keyItem struct {
	User string `json:"user"`
}

// GrantItem is a grant of a batch.
type GrantItem struct {
	User    string `json:"user"`
	Credits int64  `json:"credits"` // from 1 on
}

// SetUsers is [Client.SetUser] for several users, each named once.
func (c *Client) SetUsers(ctx context.Context, users []UserItem) (Changed[Batch[User]], error) {
	return change[Batch[User]](ctx, c, http.MethodPost, "/v1/users:batch", Batch[UserItem]{users})
}

// CreateKeys is [Client.CreateKey] for several users, each named once.
func (c *Client) CreateKeys(ctx context.Context, users []string) (Changed[Batch[MadeKey]], error) {
	return change[Batch[MadeKey]](ctx, c, http.MethodPost, "/v1/keys:batch-create", keysOf(users))
}

// RevokeKeys is [Client.RevokeKey] for several users, each named once.
func (c *Client) RevokeKeys(ctx context.Context, users []string) (Changed[Batch[Key]], error) {
	return change[Batch[Key]](ctx, c, http.MethodPost, "/v1/keys:batch-revoke", keysOf(users))
}

func keysOf(users []string) (all Batch[keyItem]) {
	for _, user := range users {
		all.Items = append(all.Items, keyItem{user})
	}
	return all
}

// GrantAll is [Client.GrantCredits] for several users; a user may be named several times.
func (c *Client) GrantAll(ctx context.Context, grants []GrantItem) (Changed[Batch[Granted]], error) {
	return change[Batch[Granted]](ctx, c, http.MethodPost, "/v1/credits:batch", Batch[GrantItem]{grants})
}

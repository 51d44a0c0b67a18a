package operations

import (
	"context"
	"iter"

	"github.com/keyporter/keyporter/store/directory"
	"github.com/keyporter/keyporter/store/feed"
)

// Accounts are the accounts: persons and organizations with a plan.
type Accounts struct{ in *directory.Directory }

// Accounts returns the operations on accounts.
func (o Operator) Accounts() Accounts { return Accounts{directory.New(o.db)} }

// Set creates an account, if the change names a plan, or changes what it names.
func (a Accounts) Set(ctx context.Context, name string, change directory.AccountChange, once feed.IdempotencyKey) (Committed[directory.Account], error) {
	return committed(a.in.SetAccount(ctx, name, change, once))
}

// Delete deletes an account without users.
func (a Accounts) Delete(ctx context.Context, name string, once feed.IdempotencyKey) (Committed[Deleted], error) {
	done, err := a.in.DeleteAccount(ctx, name, once)
	return committed(Deleted{"account", name}, done, err)
}

// Each lists all accounts by name.
func (a Accounts) Each(ctx context.Context) iter.Seq2[directory.Account, error] {
	return a.in.EachAccount(ctx)
}

package operations

import (
	"context"
	"iter"

	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
	"github.com/keyporter/keyporter/store/feed"
)

// Accounts are the accounts: persons and organizations with a plan.
type Accounts struct {
	db *store.DB
	in *directory.Directory
}

// Accounts returns the operations on accounts.
func (o Operator) Accounts() Accounts { return Accounts{o.db, o.directory()} }

// Provided returns the same operations, with a precondition for each change.
func (a Accounts) Provided(c directory.Condition) Accounts { return Accounts{a.db, a.in.Provided(c)} }

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

// Find returns an account.
func (a Accounts) Find(ctx context.Context, name string) (directory.Account, error) {
	return a.in.Account(ctx, name)
}

// Page lists at most n accounts with a plan, or all if the plan is "", by name after a cursor.
func (a Accounts) Page(ctx context.Context, plan, cursor string, n int) (Page[directory.Account], error) {
	return pageOf(ctx, a.db, directory.AccountsOf(plan), cursor, n)
}

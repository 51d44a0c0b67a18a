package credits

import (
	"errors"

	"github.com/keyporter/keyporter/usage"
)

// Spender is the user of a request, with the plan's credits as the decision has read them.
type Spender struct {
	User, Account string
	Pool          usage.PoolKind
	Limit         usage.Limit // the plan's credits
	Epoch         int64       // of the database state behind the decision
}

// Result is the result of an attempt to spend. The zero Result decides nothing.
type Result uint8

// The results.
const (
	Unknown   Result = iota // only the ledger knows
	Spent                   // the credits are spent
	Exhausted               // no live process has a credit to spare
)

// owner is a pool without its month.
type owner struct {
	kind usage.PoolKind
	name string
}

// ownerOf returns the owner of the credits that a request uses.
func ownerOf(p *Spender) owner {
	if p.Pool == usage.PoolAccount {
		return owner{usage.PoolAccount, p.Account}
	}
	return owner{usage.PoolUser, p.User}
}

// ErrUndecided is returned when the ledger could not say in time whether credits are left.
var ErrUndecided = errors.New("whether there are credits left could not be told in time")

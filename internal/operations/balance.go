package operations

import (
	"time"

	"github.com/keyporter/keyporter/store/ledger"
	"github.com/keyporter/keyporter/usage"
)

// Balance is the balance of a user's credits in a month.
type Balance struct {
	ledger.Balance
	Month     string      `json:"month"`
	Remaining usage.Limit `json:"remaining"`
	Resets    time.Time   `json:"resets_at"`
}

// BalanceOf returns a balance of the store as a result.
func BalanceOf(b ledger.Balance) Balance {
	return Balance{b, b.Month.String(), b.Remaining(), b.Month.End()}
}

// Posting is one line of a statement.
type Posting struct {
	At      *time.Time `json:"at"` // null for a sum
	Entry   string     `json:"entry"`
	Credits int64      `json:"credits"`
	Detail  string     `json:"detail"`
}

// PostingOf returns a posting of the ledger as a line of a statement.
func PostingOf(p ledger.Posting) Posting {
	return Posting{orNil(p.At), p.Kind, p.Credits, p.Detail}
}

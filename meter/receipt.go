package meter

import (
	"fmt"

	"github.com/keyporter/keyporter/authz"
)

type Receipt struct {
	Holder        string
	Number        uint64
	Month         authz.Month
	Cost          int64
	User, Account string
	Refund        authz.Refund
}

func (r *Receipt) Charge() string { return fmt.Sprintf("%s-%d", r.Holder, r.Number) }

type Signer struct{}

func (*Signer) Sign(Receipt) (id, receipt string)   { return "", "" }
func (*Signer) ParseID(string) (r Receipt, _ error) { return r, nil }

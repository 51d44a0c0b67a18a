package store

import (
	"context"
	"fmt"
	"strings"

	"github.com/keyporter/keyporter/authz"
)

// Discrepancy is a pool whose figures are not the sums of what they are made of.
type Discrepancy struct {
	Month authz.Month `json:"month"`
	Pool  string      `json:"pool"` // user or account
	Name  string      `json:"name"`
	What  []string    `json:"what"`
}

// String returns the discrepancy in one line.
func (d Discrepancy) String() string {
	return fmt.Sprintf("%s %s in %v: %s", d.Pool, d.Name, d.Month, strings.Join(d.What, "; "))
}

// VerifyLedger checks every pool of every month, in one snapshot: granted = settled + leased + free, none
// of them negative, and leased, used and refunded are the sums of the blocks, the users and the refunds.
// It returns the pools of which that is not true, and how many it has checked.
func (db *DB) VerifyLedger(ctx context.Context) (wrong []Discrepancy, checked int, err error) {
	_, err = list(ctx, db, func(row scanner) (struct{}, error) {
		var d Discrepancy
		var granted, settled, leased, free, used, refunded, inBlocks, inUsages, inRefunds int64
		if err := row.Scan(&d.Month, &d.Pool, &d.Name, &granted, &settled, &leased, &free, &used, &refunded,
			&inBlocks, &inUsages, &inRefunds); err != nil {
			return struct{}{}, err
		}
		checked++
		for _, c := range []struct {
			what       string
			says, sums int64
		}{
			{"leased", leased, inBlocks}, {"used", used, inUsages}, {"refunded", refunded, inRefunds},
			{"granted", granted, settled + leased + free},
		} {
			if c.says != c.sums {
				d.What = append(d.What, fmt.Sprintf("%s is %d, but its parts are %d", c.what, c.says, c.sums))
			}
		}
		if free < 0 {
			d.What = append(d.What, fmt.Sprintf("%d credits were sold twice", -free))
		}
		if len(d.What) > 0 {
			wrong = append(wrong, d)
		}
		return struct{}{}, nil
	}, `SELECT month, kind, name, granted, settled, leased, free, used, refunded,
			CAST(in_blocks AS BIGINT), CAST(in_usages AS BIGINT), CAST(in_refunds AS BIGINT) FROM credit_ledger`)
	if err != nil {
		return nil, 0, fmt.Errorf("verifying the ledger: %w", err)
	}
	return wrong, checked, nil
}

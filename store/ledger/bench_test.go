package ledger_test

import (
	"fmt"
	"testing"

	"github.com/keyporter/keyporter/credits/ledger"
	"github.com/keyporter/keyporter/internal/storetest"
	"github.com/keyporter/keyporter/store"
	storeledger "github.com/keyporter/keyporter/store/ledger"
	"github.com/keyporter/keyporter/usage"
)

// BenchmarkReport measures reports of pools that have all been used since the last report.
func BenchmarkReport(b *testing.B) {
	for name, database := range storetest.Databases {
		for _, pools := range []int{1, 100, 1000} {
			b.Run(fmt.Sprintf("%s/%d pools", name, pools), func(b *testing.B) {
				db := storetest.Open(b, store.Config{URL: database(b)})
				storetest.WithAda(b, db)
				m := storetest.Month(b, db)
				for i := 1; b.Loop(); i++ {
					r := ledger.Report{Holder: "one", Seq: int64(i)}
					for p := range pools {
						user := fmt.Sprint("user", p)
						used := int64(i - 1)
						r.Asks = append(r.Asks, ledger.Ask{Pool: ledger.Pool{Month: m, Name: user}, Used: used, Keep: used, Need: 1})
						r.Usages = append(r.Usages, ledger.Usage{Payer: ledger.Payer{Month: m, Kind: usage.PoolUser, User: user, Account: fmt.Sprint("account", p%100)}, Used: used})
					}
					if _, err := storeledger.New(db).Report(b.Context(), r); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

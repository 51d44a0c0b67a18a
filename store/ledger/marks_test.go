package ledger_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keyporter/keyporter/internal/storetest"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
	"github.com/keyporter/keyporter/store/ledger"
	"github.com/keyporter/keyporter/usage"
)

// The use of 80 and of 100 % of a pool makes one event each in a month, whatever is reported and
// granted later, and none while no webhook wants it.
func TestMostOfAPoolIsUsed(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		db := storetest.Open(t, store.Config{URL: url})
		storetest.WithAda(t, db)
		if _, _, err := directory.New(db).SetPlan(t.Context(), "pro", directory.PlanChange{Credits: new(usage.Limit(101))}, ""); err != nil {
			t.Fatal(err)
		}
		f, l, month, seq := storetest.SQL{T: t, DB: db.Changes}, ledger.New(db), storetest.Month(t, db), int64(0)
		use := func(used int64, want ...string) {
			t.Helper()
			seq++
			if _, err := l.Report(t.Context(), storetest.UseOf(month, "h", seq, used, false)); err != nil {
				t.Fatal(err)
			}
			got, err := store.List(t.Context(), db, func(row store.Scanner) (kind string, err error) { return kind, row.Scan(&kind) }, `SELECT type FROM events ORDER BY seq`)
			if diff := cmp.Diff(append([]string{}, want...), got); err != nil || diff != "" {
				t.Errorf("%d used: %v\n%s", used, err, diff)
			}
		}
		use(80)
		f.Exec(`INSERT INTO event_subscriptions (type, endpoint) VALUES ('credits.low', 'one'), ('credits.exhausted', 'one')`)
		use(80) // 79.2 %
		use(81, "credits.low")
		use(82, "credits.low")
		use(100, "credits.low")
		use(101, "credits.low", "credits.exhausted")
		f.Exec(`UPDATE plans SET credits = 1000`)
		use(500, "credits.low", "credits.exhausted")
		f.Exec(`UPDATE plans SET credits = 501`)
		use(501, "credits.low", "credits.exhausted")
		if n := f.Number(`SELECT used FROM credit_marks WHERE percent = 80`); n != 81 {
			t.Errorf("80 %% was reported at %d credits", n)
		}
	})
}

package outbox_test

import (
	"testing"
	"time"

	"github.com/keyporter/keyporter/internal/parts/partstest"
	"github.com/keyporter/keyporter/internal/storetest"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/outbox"
)

// A change of the plans of 100,000 accounts makes an event for each of them, and none without an
// endpoint. It prints what the triggers cost.
func TestAChangeOfManyAccounts(t *testing.T) {
	partstest.Slow(t)
	storetest.OnEach(t, func(t *testing.T, url string) {
		db := storetest.Open(t, store.Config{URL: url})
		f := storetest.SQL{T: t, DB: db.Changes}
		f.Exec(storetest.People...)
		f.Exec(`INSERT INTO accounts (name, kind, plan, status) WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)
			SELECT 'a' || i, 'person', 'pro', 'active' FROM n`)
		change := func(what, plan string, events int64) {
			t.Helper()
			began := time.Now()
			f.Exec(`UPDATE accounts SET plan = '` + plan + `'`)
			t.Logf("%s: %v", what, time.Since(began).Round(time.Millisecond))
			if n := f.Number(`SELECT count(*) FROM events`); n != events {
				t.Errorf("%s: %d events, want %d", what, n, events)
			}
		}
		change("a first change", "free", 0)
		change("without an endpoint", "pro", 0)
		fence := lease(t, outbox.New(db), "billing")
		change("with one endpoint", "free", 100_002)
		began := time.Now()
		if due, err := outbox.New(db).Ready(t.Context(), "billing", 32); err != nil || len(due) != 32 {
			t.Errorf("%d due, %v", len(due), err)
		}
		t.Logf("the first 32 of them were read in %v", time.Since(began).Round(time.Millisecond))
		if err := outbox.New(db).SetEndpoints(t.Context(), fence, nil); err != nil {
			t.Fatal(err)
		}
		change("again without an endpoint", "pro", 100_002)
	})
}

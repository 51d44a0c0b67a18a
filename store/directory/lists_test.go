package directory_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyporter/keyporter/internal/parts/partstest"
	"github.com/keyporter/keyporter/internal/storetest"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
	storeledger "github.com/keyporter/keyporter/store/ledger"
)

// Lists that are longer than a page return every row once, in order, with any times that plain SQL
// has written, and no more rows than requested.
func TestListsOfSeveralPages(t *testing.T) {
	partstest.Slow(t)
	storetest.OnEach(t, func(t *testing.T, url string) {
		db := storetest.Open(t, store.Config{URL: url})
		storetest.WithAda(t, db)
		const many = 2100
		this := storetest.Month(t, db)
		digest := `sha256(CAST(CAST(i AS TEXT) AS BYTEA))`
		if strings.HasPrefix(url, "sqlite") {
			digest = `randomblob(32)`
		}
		f := storetest.SQL{T: t, DB: db.Changes}
		rows := fmt.Sprintf(`WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < %d) `, many-1)
		f.Exec(rows+`INSERT INTO keys (id, user_name, digest, created_at, revoked_at)
				SELECT 'key' || i, 'ada', `+digest+`, (i % 3 - 1) * 1000000000000000000, 1 FROM n`,
			rows+fmt.Sprintf(`INSERT INTO credit_refunds (charge, total, credits, month, user_name, account, cause, made_at)
				SELECT 'charge' || (i / 2), 1 + i %% 2, 1, %d, 'ada', 'acme', 'settled', 1 + i / 2 %% 2 FROM n`, int64(this)),
			rows+`INSERT INTO audit (at, actor, action, kind, name, detail) SELECT i - 5, 'sql', 'created', 'plan', 'pro', '{}' FROM n`)
		for _, user := range []string{"ada", "eve"} {
			f.Exec(fmt.Sprintf(`INSERT INTO credit_usages (month, kind, user_name, account, holder, used) VALUES (%d, 'user', '%s', 'acme', '', 5)`, int64(this), user),
				fmt.Sprintf(`INSERT INTO credit_grants (id, month, kind, name, credits, made_at) VALUES ('%[2]s', %[1]d, 'user', '%[2]s', 1, 2)`, int64(this), user))
		}
		seen := map[string]bool{}
		for key, err := range directory.NewKeys(db).EachKey(t.Context(), "ada") {
			if err != nil || seen[key.ID] {
				t.Fatalf("after %d keys: %s again: %v", len(seen), key.ID, err)
			}
			seen[key.ID] = true
		}
		if len(seen) != many {
			t.Errorf("%d keys are listed, want %d", len(seen), many)
		}
		var postings []string
		var last time.Time
		for p, err := range storeledger.New(db).EachPosting(t.Context(), "ada", this) {
			if err != nil || p.At.Before(last) {
				t.Fatalf("after %d postings: %v, then %v: %v", len(postings), last, p.At, err)
			}
			last = p.At
			postings = append(postings, fmt.Sprint(p.Kind, " ", p.Credits, " ", p.Detail))
		}
		if len(postings) != many+2 || !strings.HasPrefix(postings[0], "used -5 account acme") || !slices.Contains(postings, "granted 1 ada") {
			t.Errorf("%d postings, the first %q; want %d", len(postings), postings[0], many+2)
		}
		slices.Sort(postings)
		if n := len(slices.Compact(postings)); n != many+2 {
			t.Errorf("%d different postings, want %d", n, many+2)
		}
		for _, limit := range []int{1, 999, 1000, 1001, many} { // and some are from before 1970
			entries, err := directory.NewAudit(db).List(t.Context(), directory.AuditFilter{Name: "pro", Limit: limit})
			if err != nil || len(entries) != limit {
				t.Errorf("%d entries of the audit, want %d: %v", len(entries), limit, err)
			}
		}
	})
}

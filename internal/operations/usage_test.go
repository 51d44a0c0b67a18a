package operations_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keyporter/keyporter/internal/operations"
	"github.com/keyporter/keyporter/internal/storetest"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/ledger"
	"github.com/keyporter/keyporter/store/requests"
	"github.com/keyporter/keyporter/usage"
)

// A query of usage means what it says, and one that could be misunderstood is refused, with the
// field that is wrong.
func TestUsageQueries(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		h := newHouse(t, url)
		now := time.Now().UTC()
		month, today := usage.MonthOf(now), now.Format(time.DateOnly)
		if _, err := ledger.New(h.db).Report(t.Context(), storetest.UseOf(month, "one", 1, 7, true)); err != nil {
			t.Fatal(err)
		}
		if err := requests.New(h.db).AddOutcomes(t.Context(), []requests.Outcome{
			{User: "ada", Day: usage.DayOf(now), Reason: "allowed", Requests: 7}, {User: "bob", Day: usage.DayOf(now), Reason: "allowed", Requests: 1},
			{User: "bob", Day: usage.DayOf(now), Reason: "rate_limited", Requests: 3},
		}); err != nil {
			t.Fatal(err)
		}
		inMonth := fmt.Sprintf(`"month":"%v","account":"acme",`, month)
		const figures = `"used":7,"refunded":0,"charged":7`
		const open = `,"unreported":7,"lost":0,"outstanding":0}`
		for _, ok := range []struct {
			name string
			q    operations.UsageQuery
			want string
		}{
			{"this month by account", operations.UsageQuery{}, `[{` + inMonth + figures + open + `]`},
			{"of one account", operations.UsageQuery{Account: "acme", From: usage.MonthOf(now.AddDate(-2, 0, 0)).String()}, `[{` + inMonth + figures + open + `]`},
			{"by user", operations.UsageQuery{GroupBy: "user"}, `[{` + inMonth + `"user":"ada",` + figures + open + `]`},
			{"of one user", operations.UsageQuery{GroupBy: "user", User: "ada", To: month.String()}, `[{` + inMonth + `"user":"ada",` + figures + open + `]`},
			{"of a user without usage", operations.UsageQuery{GroupBy: "user", User: "bob"}, `[]`},
			{"of an account without usage", operations.UsageQuery{Account: "idle"}, `[]`},
			{"last month", operations.UsageQuery{From: month.Previous().String(), To: month.Previous().String()}, `[]`},
			{"today of an account", operations.UsageQuery{GroupBy: "day", From: today, Account: "acme"}, `[{"day":"` + today + `","account":"acme",` + figures + `}]`},
			{"today", operations.UsageQuery{GroupBy: "day", From: today, To: today}, `[{"day":"` + today + `",` + figures + `,"requests_best_effort":{"allowed":8,"rate_limited":3}}]`},
			{"today of a user", operations.UsageQuery{GroupBy: "day", From: today, User: "ada"}, `[{"day":"` + today + `","user":"ada",` + figures + `,"requests_best_effort":{"allowed":7}}]`},
		} {
			if got := usageJSON(h, ok.q); got != ok.want {
				t.Errorf("%s: %s", ok.name, cmp.Diff(ok.want, got))
			}
		}
		var days []operations.UsageRow
		if err := json.Unmarshal([]byte(usageJSON(h, operations.UsageQuery{GroupBy: "day", To: month.String()})), &days); err != nil || len(days) != now.Day() {
			t.Errorf("this month has %d days until now, %v", len(days), err)
		}
		for _, wrong := range []struct {
			q     operations.UsageQuery
			field string // "": a name that nobody has
		}{
			{operations.UsageQuery{GroupBy: "plan"}, "group_by"},
			{operations.UsageQuery{From: today}, "from"},
			{operations.UsageQuery{To: "november"}, "to"},
			{operations.UsageQuery{From: "2026-13"}, "from"},
			{operations.UsageQuery{GroupBy: "day", From: "2026-02-30"}, "from"},
			{operations.UsageQuery{From: usage.MonthOf(month.End()).String()}, "from"},
			{operations.UsageQuery{From: month.String(), To: month.Previous().String()}, "from"},
			{operations.UsageQuery{From: "1999-01"}, "from"},
			{operations.UsageQuery{GroupBy: "day", From: now.AddDate(0, 0, -101).Format(time.DateOnly)}, "from"},
			{operations.UsageQuery{Account: "acme", User: "ada", GroupBy: "user"}, "user"},
			{operations.UsageQuery{User: "ada"}, "group_by"},
			{operations.UsageQuery{GroupBy: "user", User: "nobody"}, ""},
			{operations.UsageQuery{Account: "nobody"}, ""},
		} {
			_, err := store.Collect(h.by.Usage().Each(t.Context(), wrong.q))
			field, isField := err.(operations.FieldError)
			if isField != (wrong.field != "") || field.Field != wrong.field || !isField && operations.KindOf(err) != operations.NotFound {
				t.Errorf("%+v: %v", wrong.q, err)
			}
			if early := wrong.q.Check(); isField && early == nil {
				t.Errorf("%+v is refused only by the database", wrong.q)
			}
		}
	})
}

// Lists of usage end with the context of their reader.
func TestUsageEndsWithItsReader(t *testing.T) {
	h := newHouse(t, storetest.Migrated["SQLite"](t))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	rows := 0
	for _, err := range h.by.Usage().Each(ctx, operations.UsageQuery{}) {
		if rows++; err == nil {
			t.Error("a row after the end")
		}
	}
	if rows != 1 {
		t.Errorf("%d rows", rows)
	}
}

// A statement can be printed after its user or account was deleted. An unknown name has none.
func TestStatementsOutliveTheirOwners(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		h := newHouse(t, url)
		ctx, credits, month := t.Context(), h.by.Credits(), usage.Month(202511)
		for _, statement := range []string{
			`INSERT INTO credit_pools (month, kind, name, granted, used, refunded) VALUES (202511, 'user', 'gone', 100, 7, 0), (202511, 'account', 'left', 100, 7, 0)`,
			`INSERT INTO credit_usages (month, kind, user_name, account, holder, used) VALUES (202511, 'user', 'gone', 'left', 'one', 7)`,
		} {
			if _, err := h.db.Changes.Exec(statement); err != nil {
				t.Fatal(err)
			}
		}
		for _, row := range []struct {
			owner     string
			statement func(string, *usage.Month) (iter.Seq2[operations.Posting, error], usage.Month, error)
			page      func(string, *usage.Month) (operations.Page[operations.Posting], error)
		}{
			{"gone", func(name string, m *usage.Month) (iter.Seq2[operations.Posting, error], usage.Month, error) {
				return credits.Statement(ctx, name, m)
			}, func(name string, m *usage.Month) (operations.Page[operations.Posting], error) {
				return credits.StatementPage(ctx, name, m, "", 10)
			}},
			{"left", func(name string, m *usage.Month) (iter.Seq2[operations.Posting, error], usage.Month, error) {
				return credits.AccountStatement(ctx, name, m)
			}, func(name string, m *usage.Month) (operations.Page[operations.Posting], error) {
				return credits.AccountStatementPage(ctx, name, m, "", 10)
			}},
		} {
			list, of, err := row.statement(row.owner, &month)
			if err != nil || of != month {
				t.Fatalf("%s: %v, %v", row.owner, of, err)
			}
			postings, err := store.Collect(list)
			page, err2 := row.page(row.owner, &month)
			if err != nil || err2 != nil || len(postings) != 1 || postings[0].Credits != -7 || len(page.Items) != 1 || page.Items[0].Credits != -7 {
				t.Errorf("%s: %v, %v; as a page %v, %v", row.owner, postings, err, page, err2)
			}
			for _, name := range []string{"nobody", row.owner} { // the owner has nothing this month
				_, _, err := row.statement(name, nil)
				_, err2 := row.page(name, nil)
				if !errors.Is(err, store.ErrNotFound) || !errors.Is(err2, store.ErrNotFound) {
					t.Errorf("%s this month: %v, %v", name, err, err2)
				}
			}
		}
	})
}

func usageJSON(h house, q operations.UsageQuery) string {
	h.Helper()
	all, err := store.Collect(h.by.Usage().Each(h.Context(), q))
	if err != nil {
		h.Errorf("%+v: %v", q, err)
	}
	text, err := json.Marshal(all)
	if err != nil {
		h.Fatal(err)
	}
	return string(text)
}

package outbox_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keyporter/keyporter/internal/storetest"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
	"github.com/keyporter/keyporter/store/outbox"
)

// lease takes the lease, and subscribes endpoints to all types.
func lease(t *testing.T, o *outbox.Outbox, endpoints ...string) (fence int64) {
	t.Helper()
	fence, held, err := o.Acquire(t.Context(), "a", time.Minute)
	if err != nil || !held {
		t.Fatalf("held %v, %v", held, err)
	}
	var all []outbox.Endpoint
	for _, name := range endpoints {
		all = append(all, outbox.Endpoint{Name: name, Target: "t", Types: outbox.Types()})
	}
	if err := o.SetEndpoints(t.Context(), fence, all); err != nil {
		t.Fatal(err)
	}
	return fence
}

// eventsOf returns the events in their order, and deletes them.
func eventsOf(f storetest.SQL) []string {
	f.Helper()
	rows, err := f.DB.Query(`SELECT endpoint, type, subject, data FROM events ORDER BY seq, endpoint`)
	if err != nil {
		f.Fatal(err)
	}
	defer rows.Close()
	all := []string{}
	for rows.Next() {
		var endpoint, kind, subject, data string
		if err := rows.Scan(&endpoint, &kind, &subject, &data); err != nil {
			f.Fatal(err)
		}
		var fields map[string]any
		if err := json.Unmarshal([]byte(data), &fields); err != nil {
			f.Fatal(err)
		}
		text, _ := json.Marshal(fields)
		all = append(all, fmt.Sprintf("%s %s %s %s", endpoint, kind, subject, strings.ReplaceAll(string(text), `"`, "")))
	}
	rows.Close()
	f.Exec(`DELETE FROM events`)
	return all
}

// Plain SQL makes the same events as every other change, in the transaction of the change, and
// nothing in them is a secret.
func TestPlainSQLMakesEvents(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		db := storetest.Open(t, store.Config{URL: url})
		f := storetest.SQL{T: t, DB: db.Changes}
		f.Exec(storetest.People...)
		lease(t, outbox.New(db), "billing")
		key := func(id string, at int) string {
			return fmt.Sprintf(`INSERT INTO keys (id, user_name, digest, created_at) VALUES ('%s', 'ada', '%s', %d)`, id, storetest.Digest(id[1]), at)
		}
		for _, step := range []struct {
			what       string
			statements []string
			want       []string
		}{
			{"nothing that matters", []string{`UPDATE accounts SET kind = 'person'`, `UPDATE keys SET created_at = 3`, `UPDATE accounts SET plan = plan`}, nil},
			{"a revocation", []string{`UPDATE keys SET revoked_at = 5 WHERE id = 'ka'`}, []string{"key.revoked user:ada {account:acme,key_id:ka,user:ada}"}},
			{"a key later", []string{key("kx", 6)}, []string{"key.created user:ada {account:acme,key_id:kx,user:ada}"}},
			{"a key at the moment of the former one's end", []string{`UPDATE keys SET revoked_at = 7 WHERE id = 'kx'`, key("ky", 7)},
				[]string{"key.regenerated user:ada {account:acme,key_id:ky,previous_key_id:kx,user:ada}"}},
			{"a key deleted", []string{`DELETE FROM keys WHERE id IN ('kx', 'ky')`}, []string{"key.revoked user:ada {account:acme,key_id:ky,user:ada}"}},
			{"suspended", []string{`UPDATE accounts SET status = 'suspended' WHERE name = 'acme'`}, []string{"account.suspended account:acme {account:acme,previous_status:active,status:suspended}"}},
			{"resumed", []string{`UPDATE accounts SET status = 'active' WHERE name = 'acme'`}, []string{"account.resumed account:acme {account:acme,previous_status:suspended,status:active}"}},
			{"cancelled", []string{`UPDATE accounts SET status = 'cancelled' WHERE name = 'solo'`}, []string{"account.cancelled account:solo {account:solo,previous_status:active,status:cancelled}"}},
			{"another plan", []string{`UPDATE accounts SET plan = 'free' WHERE name = 'acme'`}, []string{"account.plan_changed account:acme {account:acme,plan:free,previous_plan:pro}"}},
			{"credits", []string{`INSERT INTO credit_marks (month, kind, name, percent, used, credits) VALUES (202603, 'account', 'acme', 80, 81, 100), (202603, 'account', 'acme', 100, 100, 100)`},
				[]string{"credits.low account:acme {account:acme,credits:100,month:2026-03,percent:80,used:81}", "credits.exhausted account:acme {account:acme,credits:100,month:2026-03,percent:100,used:100}"}},
		} {
			f.Exec(step.statements...)
			want := []string{}
			for _, event := range step.want {
				want = append(want, "billing "+event)
			}
			if diff := cmp.Diff(want, eventsOf(f)); diff != "" {
				t.Errorf("%s:\n%s", step.what, diff)
			}
		}
	})
}

// A regeneration is one event for each endpoint that wants it, and a change that is rolled back is
// none. Without a subscription nothing is written.
func TestEventsOfKeys(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		db := storetest.Open(t, store.Config{URL: url})
		storetest.WithAda(t, db)
		keys, f := directory.NewKeys(db), storetest.SQL{T: t, DB: db.Changes}
		first, _, err := keys.CreateKey(t.Context(), "ada", storetest.Format(t))
		if err != nil {
			t.Fatal(err)
		}
		if n := f.Number(`SELECT count(*) FROM events`); n != 0 {
			t.Errorf("%d events without an endpoint", n)
		}
		lease(t, outbox.New(db), "a", "b")
		f.Exec(`DELETE FROM event_subscriptions WHERE endpoint = 'b' AND type = 'key.regenerated'`)
		second, _, _, err := keys.RegenerateKey(t.Context(), "ada", storetest.Format(t), directory.Rate{}, "")
		if err != nil {
			t.Fatal(err)
		}
		data := fmt.Sprintf("{account:acme,key_id:%s,previous_key_id:%s,user:ada}", second.ID, first.ID)
		if diff := cmp.Diff([]string{"a key.regenerated user:ada " + data}, eventsOf(f)); diff != "" {
			t.Error(diff)
		}
		if _, _, _, err := keys.ReplaceKey(t.Context(), "ada", "key_0", storetest.Format(t), directory.Rate{}, ""); err == nil {
			t.Error("another key was replaced")
		}
		if got := eventsOf(f); len(got) > 0 {
			t.Errorf("a change that was not made has events: %v", got)
		}
	})
}

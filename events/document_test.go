package events_test

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keyporter/keyporter/events"
	"github.com/keyporter/keyporter/internal/storetest"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/outbox"
)

// Changes in a real database make exactly the bodies that docs/events.md shows, one for each type.
func TestTheEventsOfTheDocument(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		text, err := os.ReadFile("../docs/events.md")
		if err != nil {
			t.Fatal(err)
		}
		_, examples, _ := strings.Cut(string(text), "<!-- events -->\n```json\n")
		examples, _, _ = strings.Cut(examples, "```")
		want := strings.Split(strings.TrimSpace(examples), "\n")

		db := storetest.Open(t, store.Config{URL: url})
		f := storetest.SQL{T: t, DB: db.Changes}
		f.Exec(storetest.People...)
		f.Exec(`DELETE FROM keys WHERE user_name = 'ada'`)
		o := outbox.New(db)
		fence, _, err := o.Acquire(t.Context(), "a", time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		if err := o.SetEndpoints(t.Context(), fence, []outbox.Endpoint{{Name: "one", Types: outbox.Types()}}); err != nil {
			t.Fatal(err)
		}
		f.Exec(
			`INSERT INTO keys (id, user_name, digest, created_at) VALUES ('key_1', 'ada', '`+storetest.Digest('x')+`', 1)`,
			`UPDATE keys SET revoked_at = 5 WHERE id = 'key_1'`,
			`INSERT INTO keys (id, user_name, digest, created_at) VALUES ('key_2', 'ada', '`+storetest.Digest('y')+`', 5)`,
			`UPDATE keys SET revoked_at = 6 WHERE id = 'key_2'`)
		if _, err := db.Changes.Exec(`INSERT INTO request_counts (user_name, key_id, ended, slot, day, address, agent, requests, last_at)
			VALUES ('ada', '', TRUE, $1, FALSE, '', '', 1, $1)`, time.Now().UnixMilli()); err != nil {
			t.Fatal(err)
		}
		if err := o.AddRevokedUses(t.Context(), fence); err != nil {
			t.Fatal(err)
		}
		f.Exec(
			`UPDATE accounts SET status = 'suspended' WHERE name = 'acme'`,
			`UPDATE accounts SET status = 'cancelled' WHERE name = 'acme'`,
			`UPDATE accounts SET status = 'active' WHERE name = 'acme'`,
			`UPDATE accounts SET plan = 'free' WHERE name = 'acme'`,
			`INSERT INTO credit_marks (month, kind, name, percent, used, credits) VALUES (202611, 'user', 'ada', 80, 16002, 20000)`,
			`INSERT INTO credit_marks (month, kind, name, percent, used, credits) VALUES (202611, 'account', 'acme', 100, 20000, 20000)`,
			`UPDATE events SET made_at = 1795512600125`)
		var got []string
		for e, err := range o.EachEvent(t.Context(), "one", outbox.Pending) {
			if err != nil {
				t.Fatal(err)
			}
			e.OutOfOrder = false // they all wait
			body, err := events.Body(e)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, string(body))
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		if len(got) != len(outbox.Types()) {
			t.Errorf("%d types are shown, want %d", len(got), len(outbox.Types()))
		}
	})
}

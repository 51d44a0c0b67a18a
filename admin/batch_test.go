package admin_test

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/keyporter/keyporter/internal/parts/partstest"
	"github.com/keyporter/keyporter/internal/storetest"
)

// batchOf returns a body with items.
func batchOf(items ...string) string { return `{"items": [` + strings.Join(items, ",") + `]}` }

// A batch is one change: with an entry of the audit for each item, in the order of its items, or
// without any.
func TestABatchIsAllOrNothing(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		f := newFixture(t, url)
		const users, create, revoke, credits = "/v1/users:batch", "/v1/keys:batch-create", "/v1/keys:batch-revoke", "/v1/credits:batch"
		zoe, bob := `{"name": "zoe", "account": "acme"}`, `{"name": "bob", "kind": "service"}`
		before := f.entries()
		for _, row := range []struct {
			what, path, body string
			status           int
			code, field      string
		}{
			{"no items", users, `{}`, 400, "missing_field", "items"},
			{"an object", users, `{"items": {}}`, 400, "invalid_field", "items"},
			{"none", users, batchOf(), 400, "invalid_field", "items"},
			{"too many", users, batchOf(strings.Split(strings.Repeat(",{}", 1001)[1:], ",")...), 400, "invalid_field", "items"},
			{"too long", users, batchOf(zoe, `{"name": "`+strings.Repeat("a", 1<<20)+`"}`), 413, "too_large", ""},
			{"null", users, batchOf(zoe, `null`), 400, "invalid_field", "items[1]"},
			{"a field twice", users, batchOf(zoe, `{"name": "eve", "name": "eve"}`), 400, "invalid_field", "items[1]"},
			{"an unknown field", users, batchOf(zoe, `{"name": "eve", "plan": "pro"}`), 400, "unknown_field", "items[1].plan"},
			{"no name", users, batchOf(zoe, bob, `{"account": "acme"}`), 400, "missing_field", "items[2].name"},
			{"a bad status", users, batchOf(zoe, bob, `{"name": "eve", "status": "gone"}`), 400, "invalid_field", "items[2].status"},
			{"a user twice", users, batchOf(zoe, bob, zoe), 400, "invalid_field", "items[2].name"},
			{"a new user without an account", users, batchOf(zoe, `{"name": "eve"}`), 400, "invalid_field", "items[1].account"},
			{"an unknown account", users, batchOf(zoe, bob, `{"name": "eve", "account": "none"}`), 409, "missing_reference", "items[2].account"},
			{"a subject of another user", users, batchOf(zoe, `{"name": "bob", "subject": "auth0|ada"}`), 409, "exists", "items[1].subject"},
			{"a subject twice", users, batchOf(`{"name": "zoe", "account": "acme", "subject": "s"}`, `{"name": "bob", "subject": "s"}`), 409, "exists", "items[1].subject"},
			{"a second key", create, batchOf(`{"user": "bob"}`, `{"user": "ada"}`), 409, "exists", "items[1]"},
			{"a key of nobody", create, batchOf(`{"user": "bob"}`, `{"user": "none"}`), 409, "missing_reference", "items[1]"},
			{"no key to revoke", revoke, batchOf(`{"user": "ada"}`, `{"user": "bob"}`), 409, "missing_reference", "items[1]"},
			{"a grant to nobody", credits, batchOf(`{"user": "ada", "credits": 5}`, `{"user": "none", "credits": 5}`), 409, "missing_reference", "items[1]"},
			{"too small a grant", credits, batchOf(`{"user": "ada", "credits": 5}`, `{"user": "ada", "credits": 0}`), 400, "invalid_field", "items[1].credits"},
		} {
			if a := f.ask("all", "POST", row.path, row.body); a.status != row.status || a.fields["code"] != row.code || row.field != "" && a.fields["field"] != row.field {
				t.Errorf("%s: %d %s, want %d %s %s", row.what, a.status, a.body, row.status, row.code, row.field)
			}
		}
		if after := f.entries(); after != before {
			t.Errorf("refusals changed something: %d entries more", after-before)
		}
		f.must(200, "GET", "/v1/users/ada/key", "")
		f.must(404, "GET", "/v1/users/zoe", "")

		made := f.must(200, "POST", users, batchOf(zoe, bob, `{"name": "ada"}`))
		if got := fmt.Sprint(made["items"]); !strings.HasPrefix(got, "[map[account:acme kind:person name:zoe status:active subject:] map[account:acme kind:service name:bob") || f.entries() != before+2 {
			t.Errorf("%s, with %d entries", got, f.entries()-before)
		}
		// what one item gives up, a later one takes
		f.must(200, "POST", users, batchOf(`{"name": "ada", "subject": "new"}`, `{"name": "bob", "subject": "auth0|ada"}`))
		epochs := f.epochs()
		keys := f.must(200, "POST", create, batchOf(`{"user": "zoe"}`, `{"user": "bob"}`), "Idempotency-Key", "keys-1")
		if again := f.must(200, "POST", create, batchOf(`{"user": "zoe"}`, `{"user": "bob"}`), "Idempotency-Key", "keys-1"); strings.Contains(fmt.Sprint(again), "wh_") || !strings.Contains(fmt.Sprint(again), "key_shown_once") {
			t.Error("a repeated call shows the keys again")
		}
		if db := f.epochs() - epochs; url[0] == 'p' && db != 1 { // SQLite has one for each row
			t.Errorf("a batch was %d changes", db)
		}
		for i, user := range []string{"zoe", "bob"} {
			item := keys["items"].([]any)[i].(map[string]any)
			if seen := f.must(200, "POST", "/v1/keys:verify", `{"key": "`+item["key"].(string)+`"}`); item["user"] != user || seen["user"] != user || seen["valid"] != true {
				t.Errorf("the key of %s is of %v", user, seen["user"])
			}
		}
		f.must(200, "POST", credits, batchOf(`{"user": "zoe", "credits": 5}`, `{"user": "bob", "credits": 6}`, `{"user": "zoe", "credits": 7}`))
		if granted := f.must(200, "GET", "/v1/users/zoe/credits", "")["granted"]; granted != 12.0 {
			t.Errorf("%v credits were granted, want 12", granted)
		}
		f.must(200, "POST", revoke, batchOf(`{"user": "zoe"}`, `{"user": "bob"}`))
		f.must(404, "GET", "/v1/users/zoe/key", "")
	})
}

// epochs returns the number of changes in the feed.
func (f *fixture) epochs() (n int) {
	f.Helper()
	if err := f.db.Changes.QueryRowContext(f.Context(), `SELECT count(*) FROM changes`).Scan(&n); err != nil {
		f.Fatal(err)
	}
	return n
}

// 50,000 users are made in a minute, in batches of 1,000, and changed in another (make load).
func TestManyUsersAreMadeInBatches(t *testing.T) {
	partstest.Slow(t)
	storetest.OnEach(t, func(t *testing.T, url string) {
		f := newFixture(t, url)
		const size = 1000
		users, most := 3000, time.Duration(math.MaxInt64)
		if os.Getenv("KEYPORTER_LONG") != "" {
			users, most = 50_000, time.Minute
		}
		for _, status := range []string{"active", "disabled"} {
			began := time.Now()
			for first := 0; first < users; first += size {
				items := make([]map[string]string, size)
				for i := range items {
					items[i] = map[string]string{"name": fmt.Sprintf("user-%06d", first+i), "account": "acme", "status": status, "subject": fmt.Sprintf("auth0|%06d", first+i)}
				}
				body, err := json.Marshal(map[string]any{"items": items})
				if err != nil {
					t.Fatal(err)
				}
				f.must(200, "POST", "/v1/users:batch", string(body))
			}
			took := time.Since(began)
			t.Logf("%d users, now %s: %v, in batches of %d", users, status, took.Round(10*time.Millisecond), size)
			if took > most {
				t.Errorf("it took %v", took)
			}
		}
		if entries := f.entriesOf("user"); entries != 2*users+2 {
			t.Errorf("%d entries of the audit, want one for each item", entries)
		}
	})
}

// entriesOf returns the number of entries of the audit of a kind.
func (f *fixture) entriesOf(kind string) (n int) {
	f.Helper()
	if err := f.db.Changes.QueryRowContext(f.Context(), `SELECT count(*) FROM audit WHERE kind = $1`, kind).Scan(&n); err != nil {
		f.Fatal(err)
	}
	return n
}

package admin_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/internal/operations"
	"github.com/keyporter/keyporter/internal/storetest"
)

// A key is shown only where a sealed copy is kept and opens. The audit names who saw it; nothing of
// the key is in the audit or the log.
func TestAKeyIsRevealedWhereItIsKept(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		f := newFixture(t, url)
		var log bytes.Buffer
		f.log = slog.New(slog.NewTextHandler(&log, nil))
		const ada = "/v1/users/ada/key:reveal"
		refused := func(what, path string, status int, code string) {
			t.Helper()
			a := f.ask("keys", "POST", path, "")
			if a.status != status || a.fields["code"] != code || status == 503 && a.header.Get("Retry-After") == "" {
				t.Errorf("%s: %d %s, want %d %s", what, a.status, a.body, status, code)
			}
		}
		refused("no copy is kept", ada, 409, "key_not_kept")
		refused("a user without a key", "/v1/users/bob/key:reveal", 404, "no_key")
		refused("no user", "/v1/users/none/key:reveal", 404, "not_found")

		var private []byte
		keep := func(file []byte) error { private = file; return nil }
		if err := operations.By("test", f.db).Seal().Make(t.Context(), keep); err != nil {
			t.Fatal(err)
		}
		key := f.must(200, "POST", "/v1/users/ada/key:regenerate", "")["key"].(string)
		f.handler = f.newHandler(f.db)
		refused("a replica without the seal key", ada, 409, "key_not_kept")
		other, err := apikey.NewSealKey()
		if err != nil {
			t.Fatal(err)
		}
		f.unseal = other.Unseal
		f.handler = f.newHandler(f.db)
		refused("a replica with the seal key of another database", ada, 503, "key_unreadable")
		before := f.entries()
		keys, err := apikey.ParseSealKeys(private)
		if err != nil {
			t.Fatal(err)
		}
		f.unseal = keys.Unseal
		f.handler = f.newHandler(f.db)
		a := f.ask("keys", "POST", ada, "")
		if a.status != 200 || a.fields["key"] != key || a.fields["user"] != "ada" || a.header.Get("Cache-Control") != "no-store" {
			t.Errorf("%d %v", a.status, a.header)
		}
		entry := f.must(200, "GET", "/v1/audit?limit=1", "")["items"].([]any)[0].(map[string]any)
		if f.entries() != before+1 || entry["action"] != "revealed" || entry["actor"] != "api:keys" || entry["name"] != "ada" {
			t.Errorf("the audit has %v", entry)
		}
		if found := fmt.Sprint(entry, log.String()); strings.Contains(found, key) || !strings.Contains(found, "caller=keys user=ada") {
			t.Error("the log does not say who saw which key, or has the key itself")
		}
	})
}

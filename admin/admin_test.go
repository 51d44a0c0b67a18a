package admin_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyporter/keyporter/admin"
	"github.com/keyporter/keyporter/bearer"
	"github.com/keyporter/keyporter/internal/operations"
	"github.com/keyporter/keyporter/internal/storetest"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
	"github.com/keyporter/keyporter/store/feed"
)

// operation is an operation as the document names it.
type operation struct{ id, method, path, scope string }

// operations returns all operations of the document.
func (f *fixture) operations() (all []operation) {
	f.Helper()
	var document struct {
		Paths map[string]map[string]struct{ OperationID, Description string }
	}
	if err := json.Unmarshal(f.documented(), &document); err != nil {
		f.Fatal(err)
	}
	for path, methods := range document.Paths {
		for method, o := range methods {
			scope, _ := strings.CutPrefix(strings.TrimSuffix(o.Description, "."), "Needs scope ")
			all = append(all, operation{o.OperationID, strings.ToUpper(method), path, scope})
		}
	}
	if len(all) < 30 {
		f.Fatalf("only %d operations are documented", len(all))
	}
	return all
}

// isChange reports whether an operation changes what a repeated call must not change again.
func isChange(o operation) bool {
	return o.method != "GET" && !strings.HasSuffix(o.id, ".verify") && o.id != "keys.reveal"
}

// named replaces the names in a path.
var named = strings.NewReplacer("{plan}", "pro", "{account}", "acme", "{user}", "ada", "{event}", "evt_1_00000000000000000000000000000000", "{endpoint}", "billing")

// Each operation answers 401 to everybody without a token, and 403 to a token without its scope,
// whatever it names. Nothing happens then.
func TestEachOperationWantsATokenWithItsScope(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		f := newFixture(t, url)
		before := f.must(200, "GET", "/v1/audit?limit=1", "")["items"]
		for _, o := range f.operations() {
			for _, path := range []string{named.Replace(o.path), strings.NewReplacer("{plan}", "no", "{account}", "no", "{user}", "no", "{event}", "evt_no", "{endpoint}", "no").Replace(o.path)} {
				for what, header := range map[string]string{"no token": "", "a wrong one": "Bearer " + tokenOf("nobody"), "no bearer": tokenOf("all"), "another scheme": "Basic " + tokenOf("all")} {
					a := f.ask("", o.method, path, "", "Authorization", header)
					if a.status != 401 || a.fields["code"] != "unauthorized" || a.header.Get("WWW-Authenticate") == "" {
						t.Errorf("%s with %s: %d %s", o.id, what, a.status, a.body)
					}
				}
				for _, scope := range bearer.Scopes() {
					if o.scope == string(scope) || o.scope == "Needs any token" {
						continue
					}
					if a := f.ask(string(scope), o.method, path, ""); a.status != 403 || a.fields["code"] != "forbidden" {
						t.Errorf("%s with the scope %s: %d %s", o.id, scope, a.status, a.body)
					}
				}
			}
		}
		if after := f.must(200, "GET", "/v1/audit?limit=1", "")["items"]; fmt.Sprint(after) != fmt.Sprint(before) {
			t.Errorf("something was changed: %v", after)
		}
		for _, o := range f.operations() {
			if a := f.ask(o.scope, o.method, named.Replace(o.path), ""); o.scope != "Needs any token" && (a.status == 401 || a.status == 403) {
				t.Errorf("%s with its scope: %d", o.id, a.status)
			}
		}
		for _, path := range []string{"/v1/none", "/", "/v1/users/", "/v1/users/ada/", "//v1/users", "/v1/../v1/users"} {
			if a := f.ask("", "GET", path, ""); a.status != 401 {
				t.Errorf("%s without a token: %d", path, a.status)
			}
			if a := f.ask("all", "GET", path, ""); a.status != 404 || a.fields["code"] != "no_operation" {
				t.Errorf("%s: %d %s", path, a.status, a.body)
			}
		}
		if a := f.ask("all", "OPTIONS", "/v1/users/ada", "", "Origin", "https://evil.example"); a.status != 405 || a.header.Get("Allow") != "GET, PUT, PATCH, DELETE" || a.header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("a preflight: %d %v", a.status, a.header)
		}
	})
}

// changes are all changes, each possible after those before it, with another body, if there is one.
var changes = []struct{ method, path, body, other string }{
	{"PUT", "/v1/plans/gold", `{"credits": 5}`, `{"credits": 6}`},
	{"PATCH", "/v1/plans/pro", `{"pool": "account"}`, `{"pool": "user"}`},
	{"PUT", "/v1/accounts/new", `{"plan": "gold"}`, `{"plan": "pro"}`},
	{"PATCH", "/v1/accounts/idle", `{"status": "suspended"}`, `{"status": "active"}`},
	{"PUT", "/v1/users/eve", `{"account": "acme", "subject": "auth0|eve"}`, `{"account": "acme"}`},
	{"PATCH", "/v1/users/bob", `{"kind": "service"}`, `{}`},
	{"POST", "/v1/users/bob/key:create", "", ""},
	{"POST", "/v1/users/ada/key:regenerate", `{}`, `{"replaces": "key_0"}`},
	{"POST", "/v1/users/bob/key:revoke", "", ""},
	{"POST", "/v1/users/ada/sessions", `{"ttl": "1h"}`, `{"ttl": "2h"}`},
	{"POST", "/v1/users/ada/login-links", "", ""},
	{"POST", "/v1/users/ada/sessions:revoke", "", ""},
	{"POST", "/v1/users/ada/credits:grant", `{"credits": 7}`, `{"credits": 8}`},
	{"POST", "/v1/users:batch", `{"items": [{"name": "dan", "account": "acme"}, {"name": "eve", "status": "disabled"}]}`, `{"items": [{"name": "dan"}]}`},
	{"POST", "/v1/credits:batch", `{"items": [{"user": "dan", "credits": 7}, {"user": "dan", "credits": 7}]}`, `{"items": [{"user": "dan", "credits": 7}]}`},
	{"POST", "/v1/keys:batch-revoke", `{"items": [{"user": "ada"}]}`, `{"items": [{"user": "bob"}]}`},
	{"DELETE", "/v1/users/bob", "", ""},
	{"DELETE", "/v1/accounts/idle", "", ""},
	{"DELETE", "/v1/plans/spare", "", ""},
}

// A change that is called up to five times at once with one Idempotency-Key, on two replicas, is
// made once. All calls
// succeed with the same result, but for a secret, which one of them shows. The key with another
// body is a conflict.
func TestAChangeWithAnIdempotencyKeyIsMadeOnce(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		f := newFixture(t, url)
		f.other = f.newHandler(storetest.Open(t, store.Config{URL: url}))
		for i, row := range changes {
			once, times, before := f.once(), 1+i%5, f.entries()
			results := make([]answer, times)
			var all sync.WaitGroup
			for n := range results {
				all.Go(func() { results[n] = f.ask("all", row.method, row.path, row.body, "Idempotency-Key", once) })
			}
			all.Wait()
			secrets, seen := 0, map[string]bool{}
			for _, a := range append(results, f.ask("all", row.method, row.path, row.body, "Idempotency-Key", once)) {
				if a.status != 200 || a.fields["confirmed"] != true || a.header.Get("Idempotency-Key") != once {
					t.Errorf("%s %s: %d %v", row.method, row.path, a.status, a.fields["detail"])
				}
				for _, secret := range []string{"key", "cookie", "link"} {
					if a.fields[secret] != nil {
						secrets++
					}
					delete(a.fields, secret)
				}
				delete(a.fields, "code")
				delete(a.fields, "took_ms")
				seen[fmt.Sprint(a.fields)] = true
			}
			if len(seen) != 1 || secrets > 1 {
				t.Errorf("%s %s: %d results, %d secrets", row.method, row.path, len(seen), secrets)
			}
			after := f.entries()
			f.must(200, "GET", "/v1/plans", "")
			if again := f.ask("all", row.method, row.path, row.body, "Idempotency-Key", once); again.status != 200 || f.entries() != after || after == before {
				t.Errorf("%s %s again: %d, %d entries of the audit, then %d", row.method, row.path, again.status, after-before, f.entries()-after)
			}
			if row.other != "" {
				if a := f.ask("all", row.method, row.path, row.other, "Idempotency-Key", once); a.status != 409 || a.fields["code"] != "idempotency_key_reused" || a.fields["field"] != "Idempotency-Key" {
					t.Errorf("%s %s with another body: %d %v", row.method, row.path, a.status, a.fields)
				}
			}
		}
		if granted := f.must(200, "GET", "/v1/users/ada/credits", "")["granted"]; granted != 21.0 { // by three items, to the account
			t.Errorf("%v credits were granted, want 21", granted)
		}
		for _, entry := range f.must(200, "GET", "/v1/audit?limit=1000", "")["items"].([]any) {
			if actor := entry.(map[string]any)["actor"]; actor != "api:all" {
				t.Errorf("an entry by %v", actor)
			}
		}
	})
}

// entries returns the number of entries of the audit.
func (f *fixture) entries() int {
	f.Helper()
	entries, err := directory.NewAudit(f.db).List(f.Context(), directory.AuditFilter{Limit: 10_000})
	if err != nil {
		f.Fatal(err)
	}
	return len(entries)
}

// Every change can be named, so that it is made once.
func TestEveryChangeTakesAnIdempotencyKey(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		f := newFixture(t, url)
		for _, o := range f.operations() {
			a := f.ask("all", o.method, named.Replace(o.path), "", "Idempotency-Key", "with a blank")
			if takes := isChange(o); takes && (a.status != 400 || a.fields["field"] != "Idempotency-Key") && a.fields["code"] != "missing_field" {
				t.Errorf("%s takes any Idempotency-Key: %d %s", o.id, a.status, a.body)
			}
		}
		ofOne, ofOther := f.ask("write", "PUT", "/v1/plans/one", "", "Idempotency-Key", "same"), f.ask("all", "PUT", "/v1/plans/two", "", "Idempotency-Key", "same")
		if ofOne.status != 200 || ofOther.status != 200 {
			t.Errorf("one key of two callers: %d, %d", ofOne.status, ofOther.status)
		}
	})
}

// Hostile and mistaken requests get a problem that names the mistake, and change nothing.
func TestARequestThatIsNotUnderstoodIsRefused(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		f := newFixture(t, url)
		before := f.entries()
		const user, grant = "/v1/users/bob", "/v1/users/bob/credits:grant"
		for _, row := range []struct {
			what, method, target, body, header, value string
			status                                    int
			code, field                               string
		}{
			{"an unknown field", "PUT", user, `{"admin": true}`, "", "", 400, "unknown_field", "admin"},
			{"a field in other letters", "PUT", user, `{"Status": "disabled"}`, "", "", 400, "unknown_field", "Status"},
			{"a field twice", "PUT", user, `{"status": "active", "status": "disabled"}`, "", "", 400, "invalid_request", "status"},
			{"a field twice, in escapes", "PUT", user, `{"status": "active", "\u0073tatus": "disabled"}`, "", "", 400, "invalid_request", "status"},
			{"data behind the body", "PUT", user, `{} {}`, "", "", 400, "invalid_request", ""},
			{"an array", "PUT", user, `[]`, "", "", 400, "invalid_request", ""},
			{"null", "PUT", user, `null`, "", "", 400, "invalid_request", ""},
			{"half a body", "PUT", user, `{"status": "disabled"`, "", "", 400, "invalid_request", ""},
			{"no JSON", "PUT", user, `status=disabled`, "", "", 400, "invalid_request", ""},
			{"bytes that are no text", "PUT", user, "{\"subject\": \"\xff\"}", "", "", 400, "invalid_request", ""},
			{"half a character", "PUT", user, `{"subject": "\ud800"}`, "", "", 400, "invalid_field", "subject"},
			{"a control character", "PUT", user, `{"subject": "a\u0000b"}`, "", "", 400, "invalid_field", "subject"},
			{"null for a text", "PUT", user, `{"status": null}`, "", "", 400, "invalid_field", "status"},
			{"a number for a text", "PUT", user, `{"status": 1}`, "", "", 400, "invalid_field", "status"},
			{"an object for a text", "PUT", user, `{"status": {"a": "b"}}`, "", "", 400, "invalid_field", "status"},
			{"an unknown status", "PUT", user, `{"status": "gone"}`, "", "", 400, "invalid_field", "status"},
			{"a name that none can have", "PUT", user, `{"account": "a b"}`, "", "", 400, "invalid_field", "account"},
			{"another name", "PUT", user, `{"name": "ada"}`, "", "", 400, "invalid_field", "name"},
			{"a text for a number", "POST", grant, `{"credits": "5"}`, "", "", 400, "invalid_field", "credits"},
			{"a fraction", "POST", grant, `{"credits": 1.5}`, "", "", 400, "invalid_field", "credits"},
			{"too large a number", "POST", grant, `{"credits": 99999999999999999999}`, "", "", 400, "invalid_field", "credits"},
			{"a negative number", "POST", grant, `{"credits": -1}`, "", "", 400, "invalid_field", "credits"},
			{"a missing field", "POST", grant, `{}`, "", "", 400, "missing_field", "credits"},
			{"a text for a limit", "PUT", "/v1/plans/pro", `{"credits": "5"}`, "", "", 400, "invalid_field", "credits"},
			{"too high a limit", "PUT", "/v1/plans/pro", `{"rate_limit": 10001}`, "", "", 400, "invalid_field", "rate_limit"},
			{"a window that is none", "PUT", "/v1/plans/pro", `{"rate_window": "1 minute"}`, "", "", 400, "invalid_field", "rate_window"},
			{"too short a window", "PUT", "/v1/plans/pro", `{"rate_window": "1ms"}`, "", "", 400, "invalid_field", "rate_window"},
			{"an answer that is neither true nor false", "PUT", "/v1/plans/pro", `{"api_access": "true"}`, "", "", 400, "invalid_field", "api_access"},
			{"too long a session", "POST", "/v1/users/ada/sessions", `{"ttl": "2161h"}`, "", "", 400, "invalid_field", "ttl"},
			{"another type", "PUT", user, `{}`, "Content-Type", "text/plain", 415, "unsupported_media_type", ""},
			{"no type", "PUT", user, `{}`, "Content-Type", "", 415, "unsupported_media_type", ""},
			{"another encoding", "PUT", user, `{}`, "Content-Type", "application/json; charset=utf-16", 415, "unsupported_media_type", ""},
			{"a compressed body", "PUT", user, `{}`, "Content-Encoding", "gzip", 415, "unsupported_media_type", ""},
			{"a large body", "PUT", user, `{"subject": "` + strings.Repeat("a", 70_000) + `"}`, "", "", 413, "too_large", ""},
			{"a deep body", "PUT", user, `{"subject": ` + strings.Repeat("[", 30_000) + strings.Repeat("]", 30_000) + `}`, "", "", 400, "", ""},
			{"a body of a GET", "GET", user, `{}`, "", "", 400, "invalid_request", ""},
			{"an unknown parameter", "GET", "/v1/users?order=name", "", "", "", 400, "unknown_parameter", "order"},
			{"a parameter twice", "GET", "/v1/users?limit=1&limit=2", "", "", "", 400, "invalid_field", "limit"},
			{"a bad escape", "GET", "/v1/users?limit=%zz", "", "", "", 400, "invalid_request", ""},
			{"a limit of none", "GET", "/v1/users?limit=0", "", "", "", 400, "invalid_field", "limit"},
			{"a limit of too many", "GET", "/v1/users?limit=1001", "", "", "", 400, "invalid_field", "limit"},
			{"a cursor that is none", "GET", "/v1/users?cursor=abc", "", "", "", 400, "invalid_field", "cursor"},
			{"a cursor of another list", "GET", "/v1/audit?cursor=WyJhIl0", "", "", "", 400, "invalid_field", "cursor"},
			{"a subject that no text is", "GET", "/v1/users?subject=%00", "", "", "", 400, "invalid_field", "subject"},
			{"a month that is none", "GET", "/v1/users/ada/credits/statement?month=2026-13", "", "", "", 400, "invalid_field", "month"},
			{"a time that is none", "GET", "/v1/audit?since=yesterday", "", "", "", 400, "invalid_field", "since"},
			{"a name with a slash", "GET", "/v1/users/a%2Fb", "", "", "", 400, "invalid_field", "user"},
			{"an ETag without quotes", "PUT", user, `{}`, "If-Match", "abc", 400, "invalid_field", "If-Match"},
			{"a weak ETag", "PUT", user, `{}`, "If-Match", `W/"abc"`, 400, "invalid_field", "If-Match"},
			{"a condition of no change", "PATCH", user, `{}`, "If-None-Match", "*", 400, "invalid_field", "If-None-Match"},
			{"a condition of no key", "POST", "/v1/users/ada/key:regenerate", "", "If-Match", `"abc"`, 400, "invalid_field", "If-Match"},
			{"a cursor of no month", "GET", "/v1/users/ada/credits/statement?cursor=WyJhIl0", "", "", "", 400, "invalid_field", "cursor"},
			{"no user of this name", "PATCH", "/v1/users/eve", `{"kind": "service"}`, "", "", 404, "not_found", ""},
			{"a new user without an account", "PUT", "/v1/users/eve", `{}`, "", "", 400, "invalid_field", "account"},
			{"an account that there is not", "PUT", "/v1/users/eve", `{"account": "none"}`, "", "", 409, "missing_reference", "account"},
			{"an unknown plan", "PUT", "/v1/accounts/new", `{"plan": "none"}`, "", "", 409, "missing_reference", "plan"},
			{"a subject of another user", "PUT", user, `{"subject": "auth0|ada"}`, "", "", 409, "exists", "subject"},
			{"a second key", "POST", "/v1/users/ada/key:create", "", "", "", 409, "exists", ""},
			{"no key to replace", "POST", "/v1/users/bob/key:regenerate", "", "", "", 404, "not_found", ""},
			{"another key to replace", "POST", "/v1/users/ada/key:regenerate", `{"replaces": "key_0"}`, "", "", 409, "key_replaced", "replaces"},
			{"a plan in use", "DELETE", "/v1/plans/pro", "", "", "", 409, "in_use", ""},
			{"an unknown rule", "POST", "/v1/keys:verify", `{"key": "` + f.key + `", "rule": "none"}`, "", "", 400, "invalid_field", "rule"},
			{"a rule of another kind", "POST", "/v1/keys:verify", `{"key": "` + f.key + `", "rule": "open"}`, "", "", 400, "invalid_field", "rule"},
		} {
			var headers []string
			if row.header != "" {
				headers = []string{row.header, row.value}
			}
			a := f.ask("all", row.method, row.target, row.body, headers...)
			if a.status != row.status || row.code != "" && a.fields["code"] != row.code || row.field != "" && a.fields["field"] != row.field {
				t.Errorf("%s: %d %s; want %d %s %s", row.what, a.status, a.body, row.status, row.code, row.field)
			}
			if kind := a.header.Get("Content-Type"); kind != "application/problem+json" || a.fields["request_id"] != a.header.Get("X-Request-Id") || a.fields["status"] != float64(a.status) {
				t.Errorf("%s: no problem of RFC 9457: %s %s", row.what, kind, a.body)
			}
			for _, word := range []string{"json:", "strconv", "parsing", "reflect", "sql:", "pq:", "Seq"} {
				if strings.Contains(a.body, word) {
					t.Errorf("%s: the problem speaks of the program: %s", row.what, a.body)
				}
			}
		}
		if after := f.entries(); after != before {
			t.Errorf("refusals changed something: %d entries more", after-before)
		}
	})
}

// Of two callers who have read the same, one changes it, and the other learns that it has changed.
func TestAnETagKeepsTwoFromOverwritingEachOther(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		f := newFixture(t, url)
		for _, row := range []struct{ path, body, next string }{
			{"/v1/plans/spare", `{"credits": 1}`, `{"credits": 2}`},
			{"/v1/accounts/idle", `{"status": "suspended"}`, `{"status": "cancelled"}`},
			{"/v1/users/bob", `{"kind": "service"}`, `{"status": "disabled"}`},
		} {
			read := f.ask("all", "GET", row.path, "").header.Get("ETag")
			made := f.ask("all", "PATCH", row.path, row.body, "If-Match", read)
			if made.status != 200 || made.header.Get("ETag") == read || made.header.Get("ETag") != f.ask("all", "GET", row.path, "").header.Get("ETag") {
				t.Errorf("%s: %d, ETag %s after %s", row.path, made.status, made.header.Get("ETag"), read)
			}
			for _, method := range []string{"PUT", "PATCH", "DELETE"} {
				body := row.next
				if method == "DELETE" {
					body = ""
				}
				if a := f.ask("all", method, row.path, body, "If-Match", read); a.status != 412 || a.fields["code"] != "changed" {
					t.Errorf("%s %s with what was read before: %d %s", method, row.path, a.status, a.body)
				}
			}
			if a := f.ask("all", "PUT", row.path, row.next, "If-None-Match", "*"); a.status != 412 {
				t.Errorf("%s is created again: %d", row.path, a.status)
			}
			if a := f.ask("all", "PUT", row.path+"2", row.next, "If-Match", read); a.status != 412 && a.status != 400 {
				t.Errorf("what does not exist has changed: %d %s", a.status, a.body)
			}
			if a := f.ask("all", "DELETE", row.path, "", "If-Match", made.header.Get("ETag")); a.status != 200 {
				t.Errorf("%s is deleted as it was read: %d %s", row.path, a.status, a.body)
			}
		}
		f.must(200, "PUT", "/v1/users/eve", `{"account": "acme"}`, "If-None-Match", "*")
		f.must(412, "PUT", "/v1/users/eve", `{"account": "acme"}`, "If-None-Match", "*")
	})
}

// The pages of a list have all items once, in order, while others come and go.
func TestThePagesOfAListHaveEachItemOnce(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		f := newFixture(t, url)
		f.must(200, "PUT", "/v1/plans/shared", `{"pool": "account"}`)
		f.must(200, "PUT", "/v1/accounts/shared", `{"plan": "shared"}`)
		f.must(200, "PUT", "/v1/users/sam", `{"account": "shared"}`)
		for i := range 7 {
			f.must(200, "POST", "/v1/users/sam/credits:grant", `{"credits": 1.0e0}`) // JSON's 1
			f.must(200, "PUT", fmt.Sprintf("/v1/users/u%d", i), `{"account": "acme"}`)
			f.must(200, "PUT", fmt.Sprintf("/v1/accounts/a%d", i), `{"plan": "spare"}`)
			f.must(200, "PUT", fmt.Sprintf("/v1/plans/p%d", i), "")
			f.must(200, "POST", "/v1/users/ada/key:regenerate", "")
			f.must(200, "POST", "/v1/users/ada/credits:grant", `{"credits": 1}`)
		}
		for _, row := range []struct {
			list, name string
			want       int
		}{
			{"/v1/users?account=acme", "name", 9}, {"/v1/accounts?plan=spare", "name", 7}, {"/v1/plans?", "name", 10}, {"/v1/keys?user=ada", "id", 8},
			{"/v1/users?subject=auth0%7Cada", "name", 1}, {"/v1/users?account=none", "name", 0}, {"/v1/audit?name=ada&since=2020-01-01T00:00:00Z", "id", 23},
			{"/v1/users/ada/credits/statement?", "detail", 7},
			{"/v1/accounts/shared/credits/statement?", "detail", 7},
		} {
			whole := f.names(row.list+"&limit=1000", row.name)
			parts := f.names(row.list+"&limit=2", row.name)
			sorted := slices.Clone(parts)
			slices.Sort(sorted)
			if len(parts) != row.want || !slices.Equal(whole, parts) || len(slices.Compact(sorted)) != len(parts) {
				t.Errorf("%s: %v in parts, %v as a whole; want %d", row.list, parts, whole, row.want)
			}
		}
		first := f.must(200, "GET", "/v1/users?limit=3", "")
		f.must(200, "DELETE", "/v1/users/bob", "")
		f.must(200, "PUT", "/v1/users/aaa", `{"account": "acme"}`)
		rest := f.must(200, "GET", "/v1/users?limit=1000&cursor="+first["next_cursor"].(string), "")
		if n := len(rest["items"].([]any)); n != 7 || rest["next_cursor"] != nil {
			t.Errorf("%d items follow, want 7; then %v", n, rest["next_cursor"])
		}
	})
}

// names follows a list from page to page, and returns one field of each item.
func (f *fixture) names(list, field string) (all []string) {
	f.Helper()
	for cursor := ""; ; {
		target := list
		if cursor != "" {
			target += "&cursor=" + cursor
		}
		page := f.must(200, "GET", target, "")
		for _, item := range page["items"].([]any) {
			all = append(all, fmt.Sprint(item.(map[string]any)[field]))
		}
		if page["next_cursor"] == nil {
			return all
		}
		cursor = page["next_cursor"].(string)
	}
}

// A caller with the scope verify alone cannot tell an unknown, a revoked and a malformed key apart;
// one with the scope read can. A verification counts nothing, unless it may and is to charge.
func TestAVerificationTellsNoMoreThanItMay(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		f := newFixture(t, url)
		f.must(200, "POST", "/v1/users/bob/key:create", "")
		old := f.must(200, "POST", "/v1/users/bob/key:regenerate", "")["key"].(string)
		f.must(200, "POST", "/v1/users/bob/key:revoke", "")
		f.must(200, "PUT", "/v1/users/eve", `{"account": "acme"}`)
		unknown := f.must(200, "POST", "/v1/users/eve/key:create", "")["key"].(string)
		f.must(200, "DELETE", "/v1/users/eve", "")
		verify := func(caller, key, more string) answer {
			return f.ask(caller, "POST", "/v1/keys:verify", `{"key": "`+key+`"`+more+`}`, "X-Request-Id", "same")
		}
		bodies := map[string]bool{}
		for key, reason := range map[string]string{
			old: "revoked_key", unknown: "unknown_key", strings.Repeat("a", 600): "malformed_key", `\u0000`: "malformed_key", "wh_" + strings.Repeat("0", 48): "forged_key", "wh_1": "malformed_key", "": "malformed_key", f.key[:len(f.key)-1]: "malformed_key",
		} {
			a := verify("verify", key, "")
			bodies[fmt.Sprint(a.header, a.body)] = true
			if a.status != 200 || a.fields["valid"] != false || a.fields["status"] != 401.0 {
				t.Errorf("%s: %d %s", reason, a.status, a.body)
			}
			if all := verify("all", key, ""); all.fields["reason"] != reason || all.fields["valid"] != false {
				t.Errorf("with the scope read, want %s: %s", reason, all.body)
			}
		}
		if len(bodies) != 1 {
			t.Errorf("the answers differ: %v", bodies)
		}
		if a := verify("all", old, ""); a.fields["user"] != "bob" {
			t.Errorf("with the scope read a revoked key has no user: %s", a.body)
		}
		for range 5 { // the plan has 3 in a minute
			if a := verify("verify", f.key, ""); a.fields["valid"] != true || a.fields["code"] != "ok" || a.fields["user"] != "ada" || a.fields["plan"] != "pro" || a.fields["reason"] != nil {
				t.Errorf("a live key: %s", a.body)
			}
		}
		if a := verify("verify", f.key, `, "charge": true`); a.status != 403 || !strings.Contains(a.body, "scope charge") {
			t.Errorf("a charge without its scope: %d %s", a.status, a.body)
		}
		for i := range 4 {
			if i == 2 { // the same request again
				verify("all", f.key, `, "charge": true, "rule": "search", "request": "1"`)
			}
			a := verify("all", f.key, fmt.Sprintf(`, "charge": true, "rule": "search", "request": "%d"`, i))
			if a.fields["valid"] != (i < 3) || i == 3 && a.fields["code"] != "rate_limited" {
				t.Errorf("charge %d: %s", i, a.body)
			}
			if i < 3 && a.fields["charge"].(map[string]any)["credits"] != 3.0 {
				t.Errorf("a charge of the rule: %s", a.body)
			}
		}
		if a := verify("verify", f.key, ""); a.fields["valid"] != false || a.fields["status"] != 429.0 || a.fields["code"] != "rate_limited" {
			t.Errorf("a look at a key that is used up: %s", a.body)
		}
		f.must(200, "PATCH", "/v1/users/ada", `{"status": "disabled"}`)
		if a := verify("verify", f.key, ""); a.fields["valid"] != false || a.fields["status"] != 403.0 || a.fields["code"] != "api_access_required" {
			t.Errorf("a disabled user: %s", a.body)
		}
	})
}

// A caller has a rate of its own, and the name that it gives a request comes back.
func TestACallerHasARateOfItsOwn(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		f := newFixture(t, url)
		limited := 0
		for range 10 {
			a := f.ask("slow", "GET", "/v1/users/ada", "")
			if a.status == 429 {
				limited++
				if wait, err := strconv.Atoi(a.header.Get("Retry-After")); err != nil || wait < 1 || a.fields["code"] != "rate_limited" {
					t.Errorf("429 with %v: %s", a.header, a.body)
				}
			}
		}
		if limited == 0 {
			t.Error("ten requests at once passed, with two in a second")
		}
		f.must(200, "GET", "/v1/users/ada", "")
		for name, want := range map[string]bool{"order-17:a.b": true, "": false, f.key: false, "a b": false, "a\tb": false, strings.Repeat("a", 129): false, "<script>": false} {
			if got := f.ask("all", "GET", "/v1/users/ada", "", "X-Request-Id", name).header.Get("X-Request-Id"); (got == name) != want || got == "" {
				t.Errorf("the name %q became %q", name, got)
			}
		}
	})
}

// A change that not every replica is known to enforce is 202 with its result. The same call with
// the Idempotency-Key of the answer waits again, and is 200 once it is enforced.
func TestAChangeThatIsNotConfirmedIsAcceptedAndCanBeWaitedFor(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		f := newFixture(t, url)
		silent, err := feed.NewRegistry(f.db, feed.Replica{Life: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		defer silent.Close()
		id, err := silent.Register(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ctx, interrupt := context.WithCancel(t.Context())
		defer interrupt()
		go func() {
			for t.Context().Err() == nil {
				if _, err := directory.NewKeys(f.db).LiveKey(t.Context(), "bob"); err == nil {
					break
				}
				time.Sleep(time.Millisecond)
			}
			interrupt()
		}()
		a := f.within(ctx, "POST", "/v1/users/bob/key:create")
		if a.status != http.StatusAccepted || a.fields["confirmed"] != false || a.fields["key"] == nil || a.header.Get("Idempotency-Key") == "" {
			t.Errorf("not confirmed: %d, %v", a.status, a.header)
		}
		if err := silent.Leave(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		again := f.ask("all", "POST", "/v1/users/bob/key:create", "", "Idempotency-Key", a.header.Get("Idempotency-Key"))
		if again.status != 200 || again.fields["confirmed"] != true || again.fields["id"] != a.fields["id"] || again.fields["key"] != nil {
			t.Errorf("the wait: %d, %v", again.status, again.fields["detail"])
		}
		kept := 0
		f.must(200, "POST", "/v1/users/bob/key:regenerate", "")
		if err := f.db.Changes.QueryRowContext(t.Context(), `SELECT count(*) FROM calls`).Scan(&kept); err != nil || kept != 0 {
			t.Errorf("%d calls without a key of their own are remembered after they were confirmed, %v", kept, err)
		}
	})
}

// What the database does not do is 503 with a time to try again, and without a word of the
// database.
func TestAnOutageIsNoAnswer(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		f := newFixture(t, url)
		f.db.Close()
		for _, o := range f.operations() {
			if o.id == "openapi.get" {
				continue
			}
			body := ""
			switch o.id {
			case "credits.grant":
				body = `{"credits": 1}`
			case "users.batch":
				body = `{"items": [{"name": "ada"}]}`
			case "keys.create_batch", "keys.revoke_batch":
				body = `{"items": [{"user": "ada"}]}`
			case "credits.batch":
				body = `{"items": [{"user": "ada", "credits": 1}]}`
			case "keys.verify":
				body = `{"key": "` + f.key + `"}`
			}
			a := f.ask("all", o.method, named.Replace(o.path), body)
			if changes := isChange(o); changes && a.header.Get("Idempotency-Key") == "" {
				t.Errorf("%s says to repeat the call, and not with which key", o.id)
			}
			if a.status != 503 || a.header.Get("Retry-After") == "" || a.fields["code"] != "unavailable" || strings.Contains(a.body, "closed") {
				t.Errorf("%s: %d %s", o.id, a.status, a.body)
			}
		}
	})
}

// A panic is one 500. Its place is in the log, and its value, which may quote a key, is not.
func TestAPanicQuotesNothing(t *testing.T) {
	var log bytes.Buffer
	handler := admin.New(admin.Config{
		Caller: func(*http.Request) (bearer.Caller, bool) {
			return bearer.Caller{Name: "one", Scopes: bearer.Scopes(), Rate: 10}, true
		},
		Operator: func(string) operations.Operator { panic("the canary key") },
		Log:      slog.New(slog.NewTextHandler(&log, nil)),
	})
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, httptest.NewRequest("GET", "/v1/plans", nil).WithContext(t.Context()))
	if w.Code != 500 || strings.Contains(w.Body.String()+log.String(), "canary") || !strings.Contains(log.String(), "TestAPanicQuotesNothing") {
		t.Errorf("%d %s\n%s", w.Code, w.Body, &log)
	}
}

package admin_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/keyporter/keyporter/internal/parts/partstest"
	"github.com/keyporter/keyporter/internal/storetest"
)

var update = flag.Bool("update", false, "rewrite the tables in docs/api.md")

// document returns the OpenAPI document, and its operations by id.
func (f *fixture) document() (*openapi3.T, map[string]*openapi3.Operation) {
	f.Helper()
	document, err := openapi3.NewLoader().LoadFromData(f.documented())
	if err != nil {
		f.Fatal(err)
	}
	if err := document.Validate(f.Context()); err != nil {
		f.Fatal(err)
	}
	all := map[string]*openapi3.Operation{}
	for _, item := range document.Paths.Map() {
		for _, o := range item.Operations() {
			all[o.OperationID] = o
		}
	}
	return document, all
}

// strict makes a schema refuse fields that it does not have, and puts what it refers to in place of
// references. The document does neither, so that clients accept fields that are added later.
func strict(schema *openapi3.SchemaRef) {
	if schema == nil || schema.Value == nil {
		return
	}
	schema.Ref = ""
	s := schema.Value
	if len(s.Properties) > 0 {
		s.AdditionalProperties.Has = new(false)
	}
	for _, property := range s.Properties {
		strict(property)
	}
	strict(s.Items)
	for _, one := range slices.Concat(s.AnyOf, s.AllOf) {
		if s.AllOf == nil || one.Ref != "" { // a part without a name only narrows the others
			strict(one)
		}
	}
}

// Each operation answers as the document says, with exactly the fields that it names, in every
// state that a row reaches.
func TestTheAnswersAreThoseOfTheDocument(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		f := newFixture(t, url)
		_, operations := f.document()
		seen := map[string]bool{}
		for _, row := range []struct{ id, method, path, body, status string }{
			{"plans.list", "GET", "/v1/plans?limit=1", "", "200"},
			{"plans.get", "GET", "/v1/plans/pro", "", "200"},
			{"plans.get", "GET", "/v1/plans/none", "", "404"},
			{"plans.set", "PUT", "/v1/plans/pro", `{"name": "pro", "credits": "unlimited", "rate_limit": "unlimited", "rate_window": "1.5s"}`, "200"},
			{"plans.get", "GET", "/v1/plans/pro", "", "200"},
			{"plans.change", "PATCH", "/v1/plans/pro", `{"credits": 100, "rate_limit": 5, "api_access": true, "pool": "user"}`, "200"},
			{"plans.delete", "DELETE", "/v1/plans/spare", "", "200"},
			{"plans.delete", "DELETE", "/v1/plans/pro", "", "409"},
			{"accounts.list", "GET", "/v1/accounts", "", "200"},
			{"accounts.get", "GET", "/v1/accounts/acme", "", "200"},
			{"accounts.set", "PUT", "/v1/accounts/new", `{"plan": "pro", "kind": "organization"}`, "200"},
			{"accounts.change", "PATCH", "/v1/accounts/new", `{"status": "suspended"}`, "200"},
			{"accounts.delete", "DELETE", "/v1/accounts/new", "", "200"},
			{"users.list", "GET", "/v1/users?limit=1", "", "200"},
			{"users.get", "GET", "/v1/users/ada", "", "200"},
			{"users.set", "PUT", "/v1/users/eve", `{"account": "acme"}`, "200"},
			{"users.change", "PATCH", "/v1/users/eve", `{"subject": ""}`, "200"},
			{"users.overview", "GET", "/v1/users/ada/overview", "", "200"},
			{"users.overview", "GET", "/v1/users/eve/overview", "", "200"},
			{"users.batch", "POST", "/v1/users:batch", `{"items": [{"name": "dan", "account": "acme"}, {"name": "eve"}]}`, "200"},
			{"users.batch", "POST", "/v1/users:batch", `{"items": []}`, "400"},
			{"keys.create_batch", "POST", "/v1/keys:batch-create", `{"items": [{"user": "dan"}, {"user": "eve"}]}`, "200"},
			{"keys.revoke_batch", "POST", "/v1/keys:batch-revoke", `{"items": [{"user": "eve"}]}`, "200"},
			{"keys.revoke_batch", "POST", "/v1/keys:batch-revoke", `{"items": [{"user": "eve"}]}`, "409"},
			{"credits.batch", "POST", "/v1/credits:batch", `{"items": [{"user": "dan", "credits": 5}, {"user": "dan", "credits": 6}]}`, "200"},
			{"users.delete", "DELETE", "/v1/users/eve", "", "200"},
			{"users.delete", "DELETE", "/v1/users/eve", "", "404"},
			{"keys.list", "GET", "/v1/keys", "", "200"},
			{"keys.get", "GET", "/v1/users/ada/key", "", "200"},
			{"keys.create", "POST", "/v1/users/bob/key:create", "", "200"},
			{"keys.create", "POST", "/v1/users/bob/key:create", "", "409"},
			{"keys.regenerate", "POST", "/v1/users/bob/key:regenerate", "", "200"},
			{"keys.reveal", "POST", "/v1/users/bob/key:reveal", "", "409"},
			{"keys.revoke", "POST", "/v1/users/bob/key:revoke", "", "200"},
			{"keys.list", "GET", "/v1/keys?user=bob", "", "200"},
			{"keys.verify", "POST", "/v1/keys:verify", `{"key": "` + f.key + `"}`, "200"},
			{"keys.verify", "POST", "/v1/keys:verify", `{"key": "` + f.key + `", "charge": true}`, "200"},
			{"keys.verify", "POST", "/v1/keys:verify", `{"key": "none"}`, "200"},
			{"keys.verify", "POST", "/v1/keys:verify", `{}`, "400"},
			{"sessions.create", "POST", "/v1/users/ada/sessions", "", "200"},
			{"sessions.revoke", "POST", "/v1/users/ada/sessions:revoke", "", "200"},
			{"login_links.create", "POST", "/v1/users/ada/login-links", "", "200"},
			{"credits.get", "GET", "/v1/users/ada/credits", "", "200"},
			{"credits.grant", "POST", "/v1/users/ada/credits:grant", `{"credits": 5}`, "200"},
			{"credits.statement", "GET", "/v1/users/ada/credits/statement", "", "200"},
			{"credits.account_statement", "GET", "/v1/accounts/acme/credits/statement", "", "200"},
			{"credits.account_statement", "GET", "/v1/accounts/none/credits/statement", "", "404"},
			{"usage.list", "GET", "/v1/usage", "", "200"},
			{"usage.list", "GET", "/v1/usage?group_by=user", "", "200"},
			{"usage.list", "GET", "/v1/usage?group_by=day&user=ada", "", "200"},
			{"usage.list", "GET", "/v1/usage?user=ada", "", "400"},
			{"usage.list", "GET", "/v1/usage?account=none", "", "404"},
			{"ledger.verify", "POST", "/v1/ledger:verify", "", "200"},
			{"events.list", "GET", "/v1/events?state=pending&endpoint=billing", "", "200"},
			{"events.retry", "POST", "/v1/events/evt_1_00000000000000000000000000000000/delivery:retry", "", "404"},
			{"webhooks.list", "GET", "/v1/webhooks", "", "200"},
			{"webhooks.retry", "POST", "/v1/webhooks/none/delivery:retry", "", "404"},
			{"audit.list", "GET", "/v1/audit?limit=1000", "", "200"},
			{"replicas.list", "GET", "/v1/replicas", "", "200"},
			{"openapi.get", "GET", "/v1/openapi.json", "", "200"},
		} {
			seen[row.id] = true // the status has its code there, too
			o := operations[row.id]
			response := o.Responses.Value(row.status)
			if response == nil {
				t.Errorf("%s: the document has no status %s", row.id, row.status)
				continue
			}
			for _, content := range response.Value.Content {
				strict(content.Schema)
			}
			a := f.ask("all", row.method, row.path, row.body)
			if fmt.Sprint(a.status) != row.status {
				t.Errorf("%s: %d %v, want %s", row.id, a.status, a.fields["detail"], row.status)
				continue
			}
			content := response.Value.Content.Get(a.header.Get("Content-Type"))
			if content == nil {
				t.Errorf("%s: the document has no %s", row.id, a.header.Get("Content-Type"))
				continue
			}
			if err := content.Schema.Value.VisitJSON(any(a.fields), openapi3.EnableJSONSchema2020()); err != nil {
				t.Errorf("%s %s: %v", row.id, row.status, err)
			}
		}
		for id := range operations {
			if !seen[id] {
				t.Errorf("no row asks for %s", id)
			}
		}
	})
}

// The document allows exactly the preconditions that the API understands.
func TestTheDocumentKnowsPreconditions(t *testing.T) {
	f := newFixture(t, storetest.Migrated["SQLite"](t))
	_, operations := f.document()
	for _, header := range []string{"If-Match", "If-None-Match"} {
		schema := operations["plans.set"].Parameters.GetByInAndName("header", header).Schema.Value
		for _, value := range []string{"*", `"a"`, "a", `"a`, `a"`, `""`, `"a" "b"`, `"a","b"`, "**", `W/"a"`} {
			documented := schema.VisitJSON(value) == nil
			if status := f.ask("all", "PUT", "/v1/plans/pro", "", header, value).status; (status != 400) != documented {
				t.Errorf("%s: %s is answered with %d; the document allows it: %t", header, value, status, documented)
			}
		}
	}
}

// docs/api.md lists the operations and the problems as the document of the running service has
// them.
func TestDocumentsListAllOperationsOfTheAPI(t *testing.T) {
	f := newFixture(t, storetest.Migrated["SQLite"](t))
	document, _ := f.document()
	var out strings.Builder
	out.WriteString("| operation | scope | what it does |\n|---|---|---|\n")
	rows := f.operations()
	order := []string{"plans", "accounts", "users", "keys", "sessions", "login_links", "credits", "ledger", "events", "webhooks", "audit", "replicas", "openapi"}
	slices.SortFunc(rows, func(a, b operation) int {
		ofA, ofB := slices.Index(order, strings.Split(a.id, ".")[0]), slices.Index(order, strings.Split(b.id, ".")[0])
		if ofA != ofB {
			return ofA - ofB
		}
		return strings.Compare(a.path+a.method, b.path+b.method)
	})
	for _, o := range rows {
		scope := "any"
		if o.scope != "Needs any token" {
			scope = "`" + o.scope + "`"
		}
		item := document.Paths.Value(o.path).GetOperation(o.method)
		fmt.Fprintf(&out, "| `%s %s` | %s | %s%s |\n", o.method, o.path, scope, item.Summary, inputs(item))
	}
	var problem struct {
		Properties struct{ Code struct{ Enum []string } }
	}
	text, err := json.Marshal(document.Components.Schemas["Problem"].Value)
	if err == nil {
		err = json.Unmarshal(text, &problem)
	}
	if err != nil || len(problem.Properties.Code.Enum) < 20 {
		t.Fatal(err, problem)
	}
	partstest.Generated(t, "../docs/api.md", "go test ./admin -run Documents", out.String(), *update)
	page, err := os.ReadFile("../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, code := range problem.Properties.Code.Enum {
		if !strings.Contains(string(page), "`"+code+"`") {
			t.Errorf("docs/api.md does not explain the code %s", code)
		}
	}
}

// inputs lists the query's parameters and the body's fields.
func inputs(o *openapi3.Operation) string {
	var names []string
	for _, p := range o.Parameters {
		if p.Value.In == "query" {
			names = append(names, "`?"+p.Value.Name+"`")
		}
	}
	if o.RequestBody != nil {
		for name := range o.RequestBody.Value.Content["application/json"].Schema.Value.Properties {
			names = append(names, "`"+name+"`")
		}
	}
	if len(names) == 0 {
		return ""
	}
	slices.Sort(names)
	return ": " + strings.Join(names, ", ")
}

package client_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/google/go-cmp/cmp"

	"github.com/keyporter/keyporter/admin"
	"github.com/keyporter/keyporter/bearer"
	"github.com/keyporter/keyporter/client"
	"github.com/keyporter/keyporter/internal/operations"
)

// calls has, for each operation, its method with every input, and returns what it returns: of a
// list an item.
var calls = map[string]func(context.Context, *client.Client) (any, error){
	"plans.list": func(ctx context.Context, c *client.Client) (any, error) { return first(c.Plans(ctx)) },
	"plans.get":  func(ctx context.Context, c *client.Client) (any, error) { return c.Plan(ctx, "a") },
	"plans.set": func(ctx context.Context, c *client.Client) (any, error) {
		return c.SetPlan(ctx, "a", full[client.PlanChange]())
	},
	"plans.change": func(ctx context.Context, c *client.Client) (any, error) {
		return c.ChangePlan(ctx, "a", full[client.PlanChange]())
	},
	"plans.delete": func(ctx context.Context, c *client.Client) (any, error) { return c.DeletePlan(ctx, "a") },

	"accounts.list": func(ctx context.Context, c *client.Client) (any, error) { return first(c.Accounts(ctx, "a")) },
	"accounts.get":  func(ctx context.Context, c *client.Client) (any, error) { return c.Account(ctx, "a") },
	"accounts.set": func(ctx context.Context, c *client.Client) (any, error) {
		return c.SetAccount(ctx, "a", full[client.AccountChange]())
	},
	"accounts.change": func(ctx context.Context, c *client.Client) (any, error) {
		return c.ChangeAccount(ctx, "a", full[client.AccountChange]())
	},
	"accounts.delete": func(ctx context.Context, c *client.Client) (any, error) { return c.DeleteAccount(ctx, "a") },

	"users.list": func(ctx context.Context, c *client.Client) (any, error) { return first(c.Users(ctx, "a", "b")) },
	"users.get":  func(ctx context.Context, c *client.Client) (any, error) { return c.User(ctx, "a") },
	"users.set": func(ctx context.Context, c *client.Client) (any, error) {
		return c.SetUser(ctx, "a", full[client.UserChange]())
	},
	"users.change": func(ctx context.Context, c *client.Client) (any, error) {
		return c.ChangeUser(ctx, "a", full[client.UserChange]())
	},
	"users.delete":   func(ctx context.Context, c *client.Client) (any, error) { return c.DeleteUser(ctx, "a") },
	"users.overview": func(ctx context.Context, c *client.Client) (any, error) { return c.UserOverview(ctx, "a") },

	"keys.list":       func(ctx context.Context, c *client.Client) (any, error) { return first(c.Keys(ctx, "a")) },
	"keys.get":        func(ctx context.Context, c *client.Client) (any, error) { return c.Key(ctx, "a") },
	"keys.create":     func(ctx context.Context, c *client.Client) (any, error) { return c.CreateKey(ctx, "a") },
	"keys.regenerate": func(ctx context.Context, c *client.Client) (any, error) { return c.RegenerateKey(ctx, "a", "b") },
	"keys.revoke":     func(ctx context.Context, c *client.Client) (any, error) { return c.RevokeKey(ctx, "a") },
	"keys.reveal":     func(ctx context.Context, c *client.Client) (any, error) { return c.RevealKey(ctx, "a") },
	"users.batch": func(ctx context.Context, c *client.Client) (any, error) {
		return c.SetUsers(ctx, []client.UserItem{{Name: "a", UserChange: full[client.UserChange]()}})
	},
	"keys.create_batch": func(ctx context.Context, c *client.Client) (any, error) { return c.CreateKeys(ctx, []string{"a"}) },
	"keys.revoke_batch": func(ctx context.Context, c *client.Client) (any, error) { return c.RevokeKeys(ctx, []string{"a"}) },
	"credits.batch": func(ctx context.Context, c *client.Client) (any, error) {
		return c.GrantAll(ctx, []client.GrantItem{{User: "a", Credits: 1}})
	},
	"keys.verify": func(ctx context.Context, c *client.Client) (any, error) {
		return c.VerifyKey(ctx, client.Question{Key: client.NewSecret("k"), Rule: "r", Charge: true, Request: "q"})
	},
	"sessions.create":    func(ctx context.Context, c *client.Client) (any, error) { return c.CreateSession(ctx, "a", time.Hour) },
	"sessions.revoke":    func(ctx context.Context, c *client.Client) (any, error) { return c.RevokeSessions(ctx, "a") },
	"login_links.create": func(ctx context.Context, c *client.Client) (any, error) { return c.CreateLoginLink(ctx, "a") },

	"credits.get":   func(ctx context.Context, c *client.Client) (any, error) { return c.Credits(ctx, "a") },
	"credits.grant": func(ctx context.Context, c *client.Client) (any, error) { return c.GrantCredits(ctx, "a", 1) },
	"credits.statement": func(ctx context.Context, c *client.Client) (any, error) {
		return first(c.Statement(ctx, "a", "2026-11"))
	},
	"credits.account_statement": func(ctx context.Context, c *client.Client) (any, error) {
		return first(c.AccountStatement(ctx, "a", "2026-11"))
	},
	"usage.list": func(ctx context.Context, c *client.Client) (any, error) {
		q := full[client.UsageQuery]()
		if err := c.UsageCSV(ctx, io.Discard, q); err != nil {
			return nil, err
		}
		return first(c.Usage(ctx, q))
	},
	"ledger.verify": func(ctx context.Context, c *client.Client) (any, error) { return c.VerifyLedger(ctx) },
	"audit.list": func(ctx context.Context, c *client.Client) (any, error) {
		return first(c.Audit(ctx, client.AuditFilter{Name: "a", Since: time.Now()}))
	},
	"events.list": func(ctx context.Context, c *client.Client) (any, error) {
		return first(c.Events(ctx, client.EventFilter{Endpoint: "a", State: "aside"}))
	},
	"events.retry":   func(ctx context.Context, c *client.Client) (any, error) { return c.RetryEvent(ctx, "a") },
	"webhooks.list":  func(ctx context.Context, c *client.Client) (any, error) { return c.Webhooks(ctx) },
	"webhooks.retry": func(ctx context.Context, c *client.Client) (any, error) { return c.RetryWebhook(ctx, "a") },
	"replicas.list":  func(ctx context.Context, c *client.Client) (any, error) { return c.Replicas(ctx) },
	"openapi.get":    func(ctx context.Context, c *client.Client) (any, error) { return c.OpenAPI(ctx) },
}

// Every operation of the API has a method, which sends every parameter and every field that the
// document names, and whose result has every field of the answer, of the same type.
func TestTheClientIsThatOfTheDocument(t *testing.T) {
	document := documentOf(t)
	for path, item := range document.Paths.Map() {
		for method, o := range item.Operations() {
			t.Run(o.OperationID, func(t *testing.T) {
				call := calls[o.OperationID]
				if call == nil {
					t.Fatalf("%s %s has no method: add one, and a row here", method, path)
				}
				r := &recorder{match: match(path), method: method, sent: map[string]bool{}}
				c := newClient(t, r, client.Options{Attempts: 1})
				result, err := call(t.Context(), c.IfMatch(`"1"`).IfAbsent())
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(inputsOf(o), r.inputs(o)); diff != "" {
					t.Errorf("the document's inputs (-) and what was sent (+):\n%s", diff)
				}
				if diff := cmp.Diff(answerOf(o), fieldsOf(reflect.TypeOf(result))); diff != "" {
					t.Errorf("the document's answer (-) and the result (+):\n%s", diff)
				}
			})
		}
	}
	var problem struct{ Enum []any }
	problem.Enum = document.Components.Schemas["Problem"].Value.Properties["code"].Value.Enum
	for _, code := range []client.Code{client.ErrUnauthorized, client.ErrForbidden, client.ErrNotFound, client.ErrExists, client.ErrInUse, client.ErrRefused,
		client.ErrMissing, client.ErrChanged, client.ErrKeyReplaced, client.ErrReused, client.ErrRateLimited} {
		if !slices.Contains(problem.Enum, any(string(code))) {
			t.Errorf("the document has no code %s", string(code))
		}
	}
	if diff := cmp.Diff(shape(document.Components.Schemas["Problem"]), fieldsOf(reflect.TypeFor[client.Problem]())); diff != "" {
		t.Errorf("the document's problem (-) and ours (+):\n%s", diff)
	}
}

// documentOf returns the document of the API.
func documentOf(t *testing.T) *openapi3.T {
	t.Helper()
	api := httptest.NewServer(admin.New(admin.Config{
		Caller:   func(*http.Request) (bearer.Caller, bool) { return bearer.Caller{Name: "test", Rate: 100}, true },
		Operator: func(string) operations.Operator { return operations.Operator{} },
	}))
	defer api.Close()
	c, err := client.New(api.URL, client.NewSecret("token"), client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	text, err := c.OpenAPI(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	document, err := openapi3.NewLoader().LoadFromData(text)
	if err != nil {
		t.Fatal(err)
	}
	return document
}

// recorder answers each request of one operation, and records its inputs.
type recorder struct {
	match  func(path string) bool
	method string
	sent   map[string]bool // place and name of an input
}

// RoundTrip implements [http.RoundTripper].
func (s *recorder) RoundTrip(r *http.Request) (*http.Response, error) {
	if !s.match(r.URL.Path) || r.Method != s.method {
		return nil, fmt.Errorf("%s %s is another operation", r.Method, r.URL.Path)
	}
	for name := range r.URL.Query() {
		s.sent["query "+name] = true
	}
	for name := range r.Header {
		s.sent["header "+name] = true
	}
	if r.ContentLength > 0 {
		fields := map[string]json.RawMessage{}
		if err := json.NewDecoder(r.Body).Decode(&fields); err != nil {
			return nil, err
		}
		for name := range fields {
			s.sent["body "+name] = true
		}
	}
	next := `null`
	if !s.sent["query cursor"] && s.sent["query limit"] {
		next = `"c"`
	}
	return respond(200, `{"items": [{}], "next_cursor": `+next+`}`), nil
}

// inputs lists what was sent of what an operation may have: of the headers, only these.
func (s *recorder) inputs(o *openapi3.Operation) []string {
	var all []string
	for name := range s.sent {
		if header, is := strings.CutPrefix(name, "header "); is && o.Parameters.GetByInAndName("header", header) == nil {
			continue
		}
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}

// inputsOf lists the parameters and fields that a document names.
func inputsOf(o *openapi3.Operation) []string {
	var all []string
	for _, p := range o.Parameters {
		if p.Value.In != "path" {
			all = append(all, p.Value.In+" "+p.Value.Name)
		}
	}
	if o.RequestBody != nil {
		for name := range o.RequestBody.Value.Content["application/json"].Schema.Value.Properties {
			if name != "name" { // that of the path
				all = append(all, "body "+name)
			}
		}
	}
	slices.Sort(all)
	return all
}

// match returns whether a path is one of a pattern such as /v1/users/{user}.
func match(pattern string) func(string) bool {
	want := strings.Split(pattern, "/")
	return func(path string) bool {
		got := strings.Split(path, "/")
		return slices.EqualFunc(want, got, func(w, g string) bool { return w == g || w[:min(1, len(w))] == "{" })
	}
}

// answerOf lists the fields of an answer, or of an item of a list, with their types.
func answerOf(o *openapi3.Operation) []string {
	schema := o.Responses.Value("200").Value.Content["application/json"].Schema
	if items := schema.Value.Properties["items"]; items != nil && schema.Value.Properties["confirmed"] == nil {
		schema = items.Value.Items
	}
	return shape(schema)
}

func shape(schema *openapi3.SchemaRef) (all []string) {
	addSchema(&all, "", schema)
	slices.Sort(all)
	return all
}

func addSchema(all *[]string, name string, ref *openapi3.SchemaRef) {
	schema := ref.Value
	if len(schema.AnyOf) == 2 && schema.AnyOf[1].Value.Type.Is("null") {
		addSchema(all, name, schema.AnyOf[0])
		return
	}
	kind := "limit"
	for _, one := range schema.Type.Slice() {
		if one != "null" {
			kind = one
		}
	}
	switch {
	case kind == "array":
		addSchema(all, name+"[]", schema.Items)
	case len(schema.Properties) > 0:
		for field, property := range schema.Properties {
			addSchema(all, name+"."+field, property)
		}
	default:
		*all = append(*all, name+" "+kind)
	}
}

// fieldsOf lists the JSON of a type in the same way.
func fieldsOf(t reflect.Type) (all []string) {
	addType(&all, "", t)
	slices.Sort(all)
	return all
}

func addType(all *[]string, name string, t reflect.Type) {
	switch t {
	case reflect.TypeFor[client.Secret](), reflect.TypeFor[client.Span](), reflect.TypeFor[time.Time]():
		*all = append(*all, name+" string")
		return
	case reflect.TypeFor[client.Limit]():
		*all = append(*all, name+" limit")
		return
	case reflect.TypeFor[json.RawMessage]():
		*all = append(*all, name+" object")
		return
	}
	switch t.Kind() {
	case reflect.Pointer:
		addType(all, name, t.Elem())
	case reflect.Slice:
		addType(all, name+"[]", t.Elem())
	case reflect.Map:
		*all = append(*all, name+" object")
	case reflect.String:
		*all = append(*all, name+" string")
	case reflect.Bool:
		*all = append(*all, name+" boolean")
	case reflect.Struct:
		addStruct(all, name, t)
	default:
		*all = append(*all, name+" integer")
	}
}

func addStruct(all *[]string, name string, t reflect.Type) {
	if strings.HasPrefix(t.Name(), "Changed[") {
		value, _ := t.FieldByName("Value")
		addType(all, name, value.Type)
		addType(all, name, reflect.TypeFor[client.Enforcement]())
		return
	}
	for _, field := range reflect.VisibleFields(t) {
		tag, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		if tag != "" && tag != "-" && field.IsExported() {
			addType(all, name+"."+tag, field.Type)
		}
	}
}

// full returns a struct whose every field has a value.
func full[T any]() T {
	var all T
	v := reflect.ValueOf(&all).Elem()
	for i := range v.NumField() {
		if f := v.Field(i); f.Kind() == reflect.Pointer {
			f.Set(reflect.New(f.Type().Elem()))
		} else {
			f.SetString("a")
		}
	}
	return all
}

// first returns an item of a list that has two pages.
func first[T any](list iter.Seq2[T, error]) (one any, err error) {
	n := 0
	for item, err := range list {
		if err != nil {
			return nil, err
		}
		one, n = item, n+1
	}
	if n == 0 {
		return nil, fmt.Errorf("an empty list")
	}
	return one, nil
}

// respond returns an answer.
func respond(status int, body string, headers ...string) *http.Response {
	kind := "application/json"
	if status >= 400 {
		kind = "application/problem+json"
	}
	r := &http.Response{StatusCode: status, Header: http.Header{"Content-Type": {kind}}, Body: io.NopCloser(bytes.NewBufferString(body))}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	return r
}

// newClient returns a client whose requests go to a transport.
func newClient(t *testing.T, transport http.RoundTripper, o client.Options) *client.Client {
	t.Helper()
	o.HTTP = &http.Client{Transport: transport}
	c, err := client.New("https://keyporter.example", client.NewSecret("the-token"), o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

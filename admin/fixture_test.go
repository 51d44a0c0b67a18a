package admin_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	pathpkg "path"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/keyporter/keyporter/admin"
	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/bearer"
	"github.com/keyporter/keyporter/internal/operations"
	"github.com/keyporter/keyporter/internal/storetest"
	"github.com/keyporter/keyporter/meter"
	"github.com/keyporter/keyporter/ratelimit"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
)

// fixture is the API on a database with the account acme on the plan pro, and its users ada,
// with a key, and bob, without one. The plan spare is unused, and so is the account idle.
type fixture struct {
	*testing.T
	db      *store.DB
	handler http.Handler
	other   http.Handler // of another replica, which gets every second call; nil: there is none
	tokens  bearer.Named
	key     string // of ada
	unseal  operations.Unseal
	log     *slog.Logger
	calls   atomic.Int64
	codes   func() map[string]map[int][]string // of the document: method and path → status → codes
}

// tokenOf returns the token of a caller.
func tokenOf(name string) string { return "the-token-of-" + name }

// lineOf returns the line of a caller in a file with tokens.
func lineOf(name string, words ...string) string {
	sum := sha256.Sum256([]byte(tokenOf(name)))
	return name + ": " + hex.EncodeToString(sum[:]) + " " + strings.Join(words, " ") + "\n"
}

func newFixture(t *testing.T, url string) *fixture {
	t.Helper()
	f := &fixture{T: t, db: storetest.Open(t, store.Config{URL: url}), log: slog.New(slog.DiscardHandler)}
	lines := lineOf("all", "read", "write", "keys", "credits", "verify", "charge", "rate=100000") + lineOf("slow", "read", "rate=2")
	for _, scope := range bearer.Scopes() {
		lines += lineOf(string(scope), string(scope), "rate=100000")
	}
	f.codes = sync.OnceValue(f.documentedCodes)
	var err error
	if f.tokens, err = bearer.ParseNamed(lines); err != nil {
		t.Fatal(err)
	}
	f.handler = f.newHandler(f.db)
	for _, row := range [][3]string{
		{"PUT", "/v1/plans/pro", `{"rate_limit": 3}`}, {"PUT", "/v1/plans/spare", ""}, {"PUT", "/v1/accounts/acme", `{"plan": "pro"}`},
		{"PUT", "/v1/accounts/idle", `{"plan": "pro"}`}, {"PUT", "/v1/users/ada", `{"account": "acme", "subject": "auth0|ada"}`}, {"PUT", "/v1/users/bob", `{"account": "acme"}`},
	} {
		f.must(200, row[0], row[1], row[2])
	}
	f.key = f.must(200, "POST", "/v1/users/ada/key:create", "")["key"].(string)
	return f
}

// newHandler returns the API as a replica has it.
func (f *fixture) newHandler(db *store.DB) http.Handler {
	f.Helper()
	formats, err := operations.ReadFormats(f.Context(), db, apikey.FormatConfig{})
	if err != nil {
		f.Fatal(err)
	}
	lookups := directory.NewLookups(db)
	metering := meter.New(meter.Config{Limiter: ratelimit.NewMemory(nil)})
	rules, err := authz.NewRouteTable([]authz.Rule{{Name: "search", Kind: authz.KindAPIKey, Cost: 3}, {Name: "open", Kind: authz.KindPublic}})
	if err != nil {
		f.Fatal(err)
	}
	authorizer := authz.New(authz.Config{Routes: rules, Keys: formats.Keys, FindKey: lookups.FindKey, Meter: metering, Sessions: &authz.Sessions{}})
	return admin.New(admin.Config{
		Caller:   func(r *http.Request) (bearer.Caller, bool) { return f.tokens.Caller(r.Header.Values("Authorization")) },
		Operator: func(actor string) operations.Operator { return operations.By(actor, db) },
		Page:     operations.UserPage{URL: "https://api.example.com", Path: "/api"},
		Prefix:   "wh_", Authorize: authorizer.AuthorizeKey, Usage: metering.Usage, Unseal: f.unseal, Log: f.log,
	})
}

// answer is what the API answered.
type answer struct {
	status int
	header http.Header
	body   string
	fields map[string]any
}

// ask sends a request with a token and header lines as pairs.
func (f *fixture) ask(caller, method, target, body string, headers ...string) answer {
	f.Helper()
	return f.send(f.Context(), caller, method, target, body, headers...)
}

// within sends a request without a body, with all scopes, and leaves when ctx ends.
func (f *fixture) within(ctx context.Context, method, target string) answer {
	f.Helper()
	return f.send(ctx, "all", method, target, "")
}

// send sends a request whose answer is a JSON object.
func (f *fixture) send(ctx context.Context, caller, method, target, body string, headers ...string) answer {
	f.Helper()
	a := f.answer(ctx, caller, method, target, body, headers...)
	if err := json.Unmarshal([]byte(a.body), &a.fields); err != nil {
		f.Errorf("%s %s: the body is no JSON object: %v", method, target, err)
	}
	return a
}

// answer sends a request.
func (f *fixture) answer(ctx context.Context, caller, method, target, body string, headers ...string) answer {
	f.Helper()
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	if caller != "" {
		r.Header.Set("Authorization", "Bearer "+tokenOf(caller))
	}
	for i := 0; i < len(headers); i += 2 {
		if headers[i+1] == "" {
			r.Header.Del(headers[i])
			continue
		}
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	handler := f.handler
	if f.other != nil && f.calls.Add(1)%2 == 0 {
		handler = f.other
	}
	handler.ServeHTTP(w, r.WithContext(ctx))
	f.checkProblem(method, r.URL.EscapedPath(), w)
	return answer{status: w.Code, header: w.Header(), body: w.Body.String()}
}

// checkProblem compares the status and the code of any problem with what the document says of the
// operation.
func (f *fixture) checkProblem(method, path string, w *httptest.ResponseRecorder) {
	f.Helper()
	if w.Header().Get("Content-Type") != "application/problem+json" {
		return
	}
	var problem struct{ Code string }
	_ = json.Unmarshal(w.Body.Bytes(), &problem)
	for operation, codes := range f.codes() {
		if matches, _ := pathpkg.Match(operation, method+" "+path); matches && !slices.Contains(codes[w.Code], problem.Code) {
			f.Errorf("%s: the document has no %d %s", operation, w.Code, problem.Code)
		}
	}
}

// documentedCodes reads the codes of problems from the document.
func (f *fixture) documentedCodes() map[string]map[int][]string {
	r := httptest.NewRequest("GET", "/v1/openapi.json", nil)
	r.Header.Set("Authorization", "Bearer "+tokenOf("all"))
	w := httptest.NewRecorder()
	f.handler.ServeHTTP(w, r)
	type schema struct {
		AllOf []struct {
			Properties struct{ Code struct{ Enum []string } }
		}
	}
	var document struct {
		Paths map[string]map[string]struct {
			Responses map[int]struct {
				Content map[string]struct{ Schema schema }
			}
		}
	}
	if err := json.Unmarshal(w.Body.Bytes(), &document); err != nil {
		f.Error(err)
	}
	all := map[string]map[int][]string{}
	for path, methods := range document.Paths {
		for method, o := range methods {
			codes := map[int][]string{}
			for status, response := range o.Responses {
				for _, part := range response.Content["application/problem+json"].Schema.AllOf {
					codes[status] = append(codes[status], part.Properties.Code.Enum...)
				}
			}
			all[strings.ToUpper(method)+" "+anyName.ReplaceAllString(path, "?*")] = codes
		}
	}
	return all
}

// anyName matches a name in the path of an operation.
var anyName = regexp.MustCompile(`{[a-z]+}`)

// must sends a request with all scopes, which must get a status, and returns the fields.
func (f *fixture) must(status int, method, target, body string, headers ...string) map[string]any {
	f.Helper()
	a := f.ask("all", method, target, body, headers...)
	if a.status != status {
		f.Fatalf("%s %s: %d %v, want %d", method, target, a.status, a.fields["detail"], status)
	}
	return a.fields
}

// once returns an idempotency key that no other call has.
func (f *fixture) once() string { return fmt.Sprint("call-", f.calls.Add(1)) }

// documented returns the OpenAPI document.
func (f *fixture) documented() []byte {
	f.Helper()
	return []byte(f.ask("all", "GET", "/v1/openapi.json", "").body)
}

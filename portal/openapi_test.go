package portal_test

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers/legacy"

	"github.com/keyporter/keyporter/portal"
	"github.com/keyporter/keyporter/usage"
)

// The page's answers to programs match its OpenAPI file, status by status, at any path. At the
// default path the file is the one in the repository.
func TestTheAnswersAreThoseOfTheOpenAPIFile(t *testing.T) {
	for _, base := range []string{"/api", "/account/api"} {
		f := newFixture(t)
		f.path = base
		served := f.ask("GET", base+"/-/openapi.yaml", "Cookie", f.cookie).Body.Bytes()
		if file, err := os.ReadFile("openapi.yaml"); err != nil || bytes.Equal(file, served) != (base == "/api") {
			t.Errorf("%s: the file is served as it is: %v, %v", base, bytes.Equal(file, served), err)
		}
		t.Run(base, func(t *testing.T) { answersAsDocumented(t, base, served) })
	}
}

func answersAsDocumented(t *testing.T, base string, text []byte) {
	document, err := openapi3.NewLoader().LoadFromData(text)
	if err != nil {
		t.Fatal(err)
	}
	if err := document.Validate(t.Context()); err != nil {
		t.Fatal(err)
	}
	router, err := legacy.NewRouter(document)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name, method, path string
		change             func(*fixture)
		headers            []string
		status             int
	}{
		{"the overview", "GET", "", func(f *fixture) { f.busy() }, nil, 200},
		{"the overview of a user without anything", "GET", "", func(f *fixture) { f.principal.User = "bob" }, nil, 200},
		{"an overview without limits", "GET", "", func(f *fixture) {
			f.credits, f.rate = usage.Credits{Counted: true, Limit: usage.Unlimited}, usage.Rate{Limit: usage.Unlimited, Window: time.Minute}
		}, nil, 200},
		{"an overview with parts that fail", "GET", "", func(f *fixture) { f.partErr = errors.New("away") }, nil, 200},
		{"older requests", "GET", "?before=abc", func(f *fixture) { f.busy() }, nil, 200},
		{"a place in the list that is none", "GET", "?before=%21", func(f *fixture) { f.partErr = portal.ErrCursor }, nil, 400},
		{"no session", "GET", "", func(f *fixture) { f.cookie = "x=y" }, nil, 401},
		{"the store is away", "GET", "", func(f *fixture) { f.findErr = errors.New("away") }, nil, 503},
		{"a new key", "POST", "/regenerate", func(*fixture) {}, nil, 200},
		{"a new key, not confirmed", "POST", "/regenerate", func(f *fixture) { f.confirmed = false }, nil, 200},
		{"a new key, again", "POST", "/regenerate", func(f *fixture) { f.repeated = true }, []string{"Idempotency-Key", "abc"}, 200},
		{"a bad idempotency key", "POST", "/regenerate", func(f *fixture) { f.regenErr = portal.ErrIdempotencyKey }, nil, 400},
		{"another site", "POST", "/regenerate", func(*fixture) {}, []string{"Sec-Fetch-Site", "cross-site"}, 403},
		{"no key to replace", "POST", "/regenerate", func(f *fixture) { f.regenErr = portal.ErrNoKey }, nil, 409},
		{"a key that another one has replaced", "POST", "/regenerate", func(f *fixture) { f.regenErr = portal.ReplacedError{At: time.Now()} }, nil, 409},
		{"too many keys", "POST", "/regenerate", func(f *fixture) { f.regenErr = portal.TooOftenError{Until: time.Now()} }, nil, 429},
		{"a regeneration that fails", "POST", "/regenerate", func(f *fixture) { f.regenErr = errors.New("away") }, nil, 503},
		{"the key", "POST", "/-/reveal", func(*fixture) {}, nil, 200},
		{"the key from another site", "POST", "/-/reveal", func(*fixture) {}, []string{"Sec-Fetch-Site", "cross-site"}, 403},
		{"a key that is not kept", "POST", "/-/reveal", func(f *fixture) { f.sealed = nil }, nil, 409},
		{"a key that does not open", "POST", "/-/reveal", func(f *fixture) { f.sealed = []byte("other") }, nil, 503},
		{"a key that was shown very often", "POST", "/-/reveal", func(f *fixture) { f.auditErr = portal.TooOftenError{Until: time.Now()} }, nil, 429},
		{"no key to show", "POST", "/-/reveal", func(f *fixture) { f.principal.User = "bob" }, nil, 409},
	} {
		f := newFixture(t)
		f.path = base
		row.change(f)
		w := f.ask(row.method, base+row.path, append([]string{"Cookie", f.cookie}, row.headers...)...)
		if w.Code != row.status {
			t.Errorf("%s: %d, want %d", row.name, w.Code, row.status)
		}
		request, err := http.NewRequest(row.method, base+row.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		found, parameters, err := router.FindRoute(request)
		if err != nil {
			t.Fatalf("%s: %v", row.name, err)
		}
		if err := openapi3filter.ValidateResponse(t.Context(), &openapi3filter.ResponseValidationInput{
			RequestValidationInput: &openapi3filter.RequestValidationInput{Request: request, Route: found, PathParams: parameters},
			Status:                 w.Code, Header: w.Header(), Body: io.NopCloser(bytes.NewReader(w.Body.Bytes())),
			Options: &openapi3filter.Options{IncludeResponseStatus: true},
		}); err != nil {
			t.Errorf("%s: %v", row.name, err)
		}
	}
}

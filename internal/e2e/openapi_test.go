package e2e_test

import (
	"io"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers/legacy"
)

// Behind Envoy, the four operations answer as in the OpenAPI file. The page's own tests cover every
// status.
func TestTheRunningServiceAnswersAsTheOpenAPIFileSays(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../portal/openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	document, err := openapi3.NewLoader().LoadFromData(text)
	if err != nil {
		t.Fatal(err)
	}
	router, err := legacy.NewRouter(document)
	if err != nil {
		t.Fatal(err)
	}
	database := databases["SQLite"](t)
	flags, _ := sealed(t, database)
	s := start(t, stackConfig{database: database, flags: flags})
	key, cookie := s.user("ann", "small", "--credits", "2", "--rate-limit", "60"), s.session("ann")
	slow := s.user("bob", "slow", "--credits", "unlimited", "--rate-limit", "1")
	session, ofAnn, ofBob := "Cookie: "+cookie, "X-API-Key: "+key, "X-API-Key: "+slow
	const credits = "/api/v1/tiktok-shop/credits"
	for _, row := range []struct {
		name, method, path, header string
		status                     int
	}{
		{"the overview", "GET", "/api", session, 200},
		{"the overview without a session", "GET", "/api", ofAnn, 401},
		{"the key", "POST", "/api/-/reveal", session, 200},
		{"the key without a session", "POST", "/api/-/reveal", ofAnn, 401},
		{"the credits", "GET", credits, ofAnn, 200},
		{"the credits without a key", "GET", credits, session, 401},
		{"the last credits", "GET", credits, ofAnn, 200},
		{"no credits left", "GET", credits, ofAnn, 429},
		{"no limit of credits", "GET", credits, ofBob, 200},
		{"too many requests", "GET", credits, ofBob, 429},
		{"the overview after all that", "GET", "/api", session, 200},
		{"a new key", "POST", "/api/regenerate", session, 200},
		{"a new key without a session", "POST", "/api/regenerate", ofAnn, 401},
	} {
		a := s.send(request{method: row.method, target: row.path, header: []string{row.header, "Accept: application/json", "Origin: " + own, "Content-Length: 0"}})
		if a.status != row.status {
			t.Errorf("%s: %d, want %d", row.name, a.status, row.status)
		}
		asked, err := http.NewRequest(row.method, row.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		found, parameters, err := router.FindRoute(asked)
		if err != nil {
			t.Fatal(err)
		}
		if err := openapi3filter.ValidateResponse(t.Context(), &openapi3filter.ResponseValidationInput{
			RequestValidationInput: &openapi3filter.RequestValidationInput{Request: asked, Route: found, PathParams: parameters},
			Status:                 a.status, Header: a.header, Body: io.NopCloser(strings.NewReader(a.body)),
			Options: &openapi3filter.Options{IncludeResponseStatus: true},
		}); err != nil {
			t.Errorf("%s: %v", row.name, err)
		}
	}
}

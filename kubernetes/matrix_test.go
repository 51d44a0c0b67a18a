package kubernetes_test

import (
	"net/http"
	"strings"
	"testing"
)

// cell is a request through a front, and what becomes of it.
type cell struct {
	name    string
	method  string // GET if empty
	target  string
	header  []string
	status  int
	code    string // of the body of a denial by Keyporter
	reaches string // method and target that the API gets; empty: the API is not asked

	http2   bool
	http10  bool
	grpc    string // grpc-status of a denial
	user    string // whose request it is
	cost    int    // credits that it costs the user in the end
	hostile bool   // whether it reaches the API is not said, only where
}

// matrix is what every front has to do alike, with the configuration file of the manifests: keys is
// a key for each user.
func matrix(keys map[string]string) []cell {
	key, poor := keys["ann"], keys["poor"]
	return []cell{
		{name: "no key", target: "/v1/a", status: 401, code: "unauthorized"},
		{name: "a key that nobody has", target: "/v1/a", header: []string{"X-API-Key: wh_nobody"}, status: 401, code: "unauthorized"},
		{name: "a plan without API access", target: "/v1/a", header: []string{"X-API-Key: " + poor}, status: 403, code: "api_access_required"},
		{name: "a path without a rule", target: "/elsewhere", header: []string{"X-API-Key: " + key}, status: 404, code: "not_found"},
		{name: "a method that the rule does not allow", method: "POST", target: "/v1/export/a", header: []string{"X-API-Key: " + key}, status: 405, code: "method_not_allowed"},
		{name: "the key in X-API-Key", target: "/v1/a", header: []string{"X-API-Key: " + key}, status: 200, reaches: "GET /v1/a"},
		{name: "the key in lower case", target: "/v1/a", header: []string{"x-api-key: " + key}, status: 200, reaches: "GET /v1/a"},
		{name: "the key as a bearer token", target: "/v1/a", header: []string{"Authorization: Bearer " + key}, status: 200, reaches: "GET /v1/a"},
		{name: "the key in the query", target: "/v1/a?z=1&api_key=" + key + "&a=2&b&&c=%2F%20+&z=0", status: 200, reaches: "GET /v1/a?z=1&a=2&b&&c=%2F%20+&z=0"},
		{name: "a query without a key stays as it is", target: "/v1/a?z=1&&b&a=%41", header: []string{"X-API-Key: " + key}, status: 200, reaches: "GET /v1/a?z=1&&b&a=%41"},
		{name: "Basic credentials are the upstream's", target: "/v1/a", header: []string{"X-API-Key: " + key, "Authorization: Basic eDp5"}, status: 200, reaches: "GET /v1/a"},
		{name: "a POST", method: "POST", target: "/v1/a", header: []string{"X-API-Key: " + key}, status: 200, reaches: "POST /v1/a"},
		{name: "a public path", target: "/status", status: 200, reaches: "GET /status"},
		{name: "a public path with a key", target: "/status", header: []string{"X-API-Key: " + key}, status: 200, reaches: "GET /status"},
		{name: "the balance", target: "/v1/credits", header: []string{"X-API-Key: " + key}, status: 200},
		{name: "the page without a session", target: "/api", header: []string{"Accept: application/json"}, status: 401, code: "unauthorized"},
		{name: "an upstream that fails", target: "/v1/a", header: []string{"X-API-Key: " + key, "X-Test-Answer: 500"}, status: 500, reaches: "GET /v1/a"},
		{name: "a path with a dot segment", target: "/v1/x/../a", header: []string{"X-API-Key: " + key}, status: 200, reaches: "GET /v1/a"},
		{name: "a path that leaves its rule", target: "/status/../v1/a", status: 401, code: "unauthorized"},
		{name: "a semicolon", target: "/v1/a;b", header: []string{"X-API-Key: " + key}, status: 400, code: "bad_request"},
		{name: "a disguised parameter", target: "/v1/a?api%5fkey=" + key, status: 400, code: "bad_request"},
		{name: "two different keys", target: "/v1/a", header: []string{"X-API-Key: " + key, "X-API-Key: " + poor}, status: 401, code: "unauthorized"},
	}
}

// credited is what the requests of the matrix cost the user ann: those answered with 200 on key
// routes, the balance included. The one that failed costs nothing.
const credited = 9

// headers that the API gets about the user, in place of the client's.
var identity = map[string]string{"X-Keyporter-User": "ann", "X-Keyporter-Account": "ann", "X-Keyporter-Plan": "ann"}

// runMatrix sends every cell through a front.
func runMatrix(t *testing.T, s *stack, front string, cells []cell, keys map[string]string) {
	for _, c := range cells {
		t.Run(c.name, func(t *testing.T) {
			method := c.method
			if method == "" {
				method = http.MethodGet
			}
			header := append([]string{"X-Test-Id: " + c.name, "X-Keyporter-User: admin", "X-Keyporter-Plan: admin"}, c.header...)
			response, body := call(t, front, method, c.target, header...)
			if response.StatusCode != c.status || c.code != "" && !strings.Contains(body, `"code":"`+c.code+`"`) {
				t.Errorf("%d %v %s, want %d %s", response.StatusCode, response.Header, body, c.status, c.code)
			}
			checkUpstream(t, s.api.take(c.name), c, keys)
		})
	}
}

// checkUpstream checks what the API got: the request as it was sent, without keys, with the user's
// identity and not the client's.
func checkUpstream(t *testing.T, r *http.Request, c cell, keys map[string]string) {
	t.Helper()
	if r == nil {
		if c.reaches != "" {
			t.Errorf("the API was not asked, want %s", c.reaches)
		}
		return
	}
	if got := r.Method + " " + r.RequestURI; got != c.reaches {
		t.Errorf("the API got %s, want %s", got, c.reaches)
	}
	for name, values := range r.Header {
		for user, key := range keys {
			if strings.Contains(strings.Join(values, " "), key) {
				t.Errorf("the API got the key of %s in %s", user, name)
			}
		}
	}
	public := strings.HasPrefix(r.RequestURI, "/status")
	for name, want := range identity {
		if public {
			want = ""
		}
		if got := strings.Join(r.Header[name], ","); got != want {
			t.Errorf("the API got %s: %q, want %q", name, got, want)
		}
	}
}

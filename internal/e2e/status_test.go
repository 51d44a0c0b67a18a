package e2e_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"

	"github.com/keyporter/keyporter/internal/parts"
	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// statusRow is one row of the table of decisions that clients can rely on.
type statusRow struct {
	name   string
	path   string
	header string // "Name: value", or empty
	status int
	grpc   string // grpc-status for a gRPC client
	body   string
	extra  map[string]string // further headers of the answer
}

var (
	wwwAuthenticate = map[string]string{"Www-Authenticate": `Bearer realm="keyporter"`}
	invalidToken    = map[string]string{"Www-Authenticate": `Bearer realm="keyporter", error="invalid_token"`}
	retryAfter      = map[string]string{"Retry-After": "1"}
)

const (
	characterBody    = `{"success":false,"error":"The path was refused: it holds a backslash, a semicolon, a fragment, or a character that must be percent-encoded.","code":"bad_request"}`
	separatorBody    = `{"success":false,"error":"The path was refused: it encodes a separator, a percent sign or a control character.","code":"bad_request"}`
	disguisedBody    = `{"success":false,"error":"The query was refused: the name api_key is encoded, or stands behind a semicolon. Send it as api_key=KEY.","code":"bad_request"}`
	notFoundBody     = `{"success":false,"error":"Not found.","code":"not_found"}`
	methodBody       = `{"success":false,"error":"Method not allowed.","code":"method_not_allowed"}`
	unauthorizedBody = `{"success":false,"error":"Unauthorized","code":"unauthorized"}`
	accessBody       = `{"success":false,"error":"API access is not included in your plan.","code":"api_access_required"}`
	unavailableBody  = `{"success":false,"error":"Service temporarily unavailable. Please retry.","code":"unavailable"}`
)

// Every row of the table of decisions: status, headers and body, byte for byte, over HTTP/1.1,
// HTTP/2 and gRPC, through Envoy and directly.
func TestEveryRowOfTheStatusTable(t *testing.T) {
	t.Parallel()
	server := partstest.StartPostgres(t, parts.PostgresConfig{Major: 18})
	s := start(t, stackConfig{database: server.URL("postgres")})
	key := s.user("ann", "pro")
	revoked := s.user("rob", "pro")
	s.run("key", "revoke", "rob")
	disabled, suspended, free := s.user("dis", "pro"), s.user("sus", "pro"), s.user("fre", "free", "--api-access=false")
	s.run("user", "set", "dis", "--status", "disabled")
	s.run("account", "set", "sus", "--status", "suspended")
	uncached, cookie := s.user("unc", "pro"), s.session("ann")
	forged := key[:len(key)-1] + string("01"[strings.IndexByte("0", key[len(key)-1])+1])

	const api = "/api/v1/brands"
	rows := []statusRow{
		{"parameters in a path", api + ";x", "X-API-Key: " + key, 400, "3", characterBody, nil},
		{"a double encoding", "/api/v1/brands/a%2527", "X-API-Key: " + key, 400, "3", separatorBody, nil},
		{"a disguised parameter", api + "?api%5Fkey=" + key, "X-API-Key: " + key, 400, "3", disguisedBody, nil},
		{"no rule", "/admin", "X-API-Key: " + key, 404, "5", notFoundBody, nil},
		{"a rule of kind none", "/api/v1/none", "X-API-Key: " + key, 404, "5", notFoundBody, nil},
		{"no key", api, "", 401, "16", unauthorizedBody, wwwAuthenticate},
		{"a session on an API route", api, "Cookie: " + cookie, 401, "16", unauthorizedBody, wwwAuthenticate},
		{"a malformed key", api, "X-API-Key: wrong", 401, "16", unauthorizedBody, invalidToken},
		{"two keys", api, "X-API-Key: " + key + "," + key, 401, "16", unauthorizedBody, invalidToken},
		{"a forged key", api, "X-API-Key: " + forged, 401, "16", unauthorizedBody, invalidToken},
		{"a revoked key", api, "X-API-Key: " + revoked, 401, "16", unauthorizedBody, invalidToken},
		{"a key on a session route", "/api/other", "X-API-Key: " + key, 401, "16", unauthorizedBody, wwwAuthenticate},
		{"no session", "/api/other", "", 401, "16", unauthorizedBody, wwwAuthenticate},
		{"a disabled user", api, "X-API-Key: " + disabled, 403, "7", accessBody, nil},
		{"a suspended account", api, "X-API-Key: " + suspended, 403, "7", accessBody, nil},
		{"a plan without API access", api, "X-API-Key: " + free, 403, "7", accessBody, nil},
	}
	for _, row := range rows {
		s.judgeRow(t, row)
	}
	s.judgeHTTP(t, statusRow{"a method that is not allowed", "/api/v1/tiktok-shop/credits", "X-API-Key: " + key, 405, "12", methodBody,
		map[string]string{"Allow": "GET, HEAD"}}, http.MethodPost)

	server.Kill()
	s.judgeRow(t, statusRow{"the database is away", api, "X-API-Key: " + uncached, 503, "14", unavailableBody, retryAfter})
	s.replicas[0].process.Kill()
	s.judgeHTTP(t, statusRow{"Keyporter is away", api, "X-API-Key: " + key, 503, "14", unavailableBody, nil}, http.MethodGet)
	mustNotContain(t, "what Envoy and Keyporter wrote", s.written(), key, uncached, free)
}

// judgeRow judges a row on every way in.
func (s *stack) judgeRow(t *testing.T, row statusRow) {
	t.Helper()
	s.judgeHTTP(t, row, http.MethodGet)
	s.judgeHTTP(t, row, http.MethodHead)
	s.judgeStraight(t, row)
}

// judgeHTTP judges a row through Envoy: HTTP/1.1, HTTP/2 and a gRPC client.
func (s *stack) judgeHTTP(t *testing.T, row statusRow, method string) {
	t.Helper()
	var one, two http.Protocols
	one.SetHTTP1(true)
	two.SetUnencryptedHTTP2(true)
	for name, protocols := range map[string]*http.Protocols{"HTTP/1.1": &one, "HTTP/2": &two} {
		response, body := s.fetch(t, protocols, method, row, "")
		row.judge(t, name+" "+method, response, body, method)
		if got := response.Header.Get("Grpc-Status"); got != "" {
			t.Errorf("%s: %s got grpc-status %s, which only gRPC clients may", row.name, name, got)
		}
	}
	response, _ := s.fetch(t, &two, http.MethodPost, row, "application/grpc")
	status := response.Header.Get("Grpc-Status")
	if status == "" {
		status = response.Trailer.Get("Grpc-Status")
	}
	if row.status != 405 && (response.StatusCode != 200 || status != row.grpc) {
		t.Errorf("%s: a gRPC client got HTTP %d, grpc-status %q, want %s", row.name, response.StatusCode, status, row.grpc)
	}
}

func (s *stack) fetch(t *testing.T, protocols *http.Protocols, method string, row statusRow, contentType string) (*http.Response, string) {
	t.Helper()
	transport := &http.Transport{Protocols: protocols}
	defer transport.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, method, "http://"+s.front+row.path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if name, value, ok := strings.Cut(row.header, ": "); ok {
		request.Header.Set(name, value)
	}
	if contentType != "" {
		request.Header.Set("Content-Type", contentType)
		request.Header.Set("Te", "trailers")
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		t.Fatalf("%s: %v", row.name, err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatalf("%s: %v", row.name, err)
	}
	return response, string(body)
}

func (row statusRow) judge(t *testing.T, way string, response *http.Response, body, method string) {
	t.Helper()
	want := row.body
	if method == http.MethodHead {
		want = ""
	}
	if response.StatusCode != row.status || body != want {
		t.Errorf("%s, %s: %d %s, want %d %s", row.name, way, response.StatusCode, body, row.status, want)
	}
	row.judgeHeaders(t, way, response.Header)
}

func (row statusRow) judgeHeaders(t *testing.T, way string, header http.Header) {
	t.Helper()
	want := map[string]string{"Content-Type": "application/json", "Cache-Control": "no-store"}
	for name, value := range row.extra {
		want[name] = value
	}
	for name, value := range want {
		if got := header.Values(name); len(got) != 1 || got[0] != value {
			t.Errorf("%s, %s: %s is %q, want %q", row.name, way, name, got, value)
		}
	}
}

// judgeStraight judges a row without Envoy, which might have answered or repaired the request
// itself.
func (s *stack) judgeStraight(t *testing.T, row statusRow) {
	t.Helper()
	name, value, _ := strings.Cut(row.header, ": ")
	for _, form := range []string{"raw", "joined"} {
		request := &authv3.AttributeContext_HttpRequest{Method: "GET", Path: row.path}
		if form == "raw" {
			request.HeaderMap = &corev3.HeaderMap{Headers: []*corev3.HeaderValue{{Key: strings.ToLower(name), RawValue: []byte(value)}}}
		} else {
			request.Headers = map[string]string{strings.ToLower(name): value}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		response, err := newChecker(t, s.replicas[0]).client.Check(ctx, &authv3.CheckRequest{
			Attributes: &authv3.AttributeContext{Request: &authv3.AttributeContext_Request{Http: request}},
		})
		cancel()
		if err != nil {
			t.Errorf("%s, straight: %v", row.name, err)
			continue
		}
		denied := response.GetDeniedResponse()
		if response.GetStatus().GetCode() == 0 || int(denied.GetStatus().GetCode()) != row.status || denied.GetBody() != row.body {
			t.Errorf("%s, straight, %s headers: %v, want %d", row.name, form, response, row.status)
		}
		header := http.Header{}
		for _, h := range denied.GetHeaders() {
			header.Add(h.GetHeader().GetKey(), h.GetHeader().GetValue())
		}
		row.judgeHeaders(t, fmt.Sprintf("straight, %s headers", form), header)
	}
}

// Envoy's own rejections also have our JSON, and need no Check.
func TestEnvoysOwnRefusalsLookLikeOurs(t *testing.T) {
	t.Parallel()
	s := start(t, stackConfig{})
	key := s.user("ann", "pro")
	const (
		good   = "Host: api.example.com"
		path   = "The path was refused: it encodes a slash, a backslash or a zero byte, or a fragment follows it."
		form   = "The path was refused: it is neither a path nor a URL with a host."
		host   = "The header Host was refused: it is missing, or is no name or address."
		length = "The request headers were refused: they do not say in one way where the body ends."
		other  = "The path, the query or a header was refused: it holds a character that must be encoded, or is not HTTP."
	)
	for _, row := range []struct {
		target string
		lines  []string
		text   string
	}{
		{"/api/v1/brands/%2f/x", []string{good}, path},
		{"/api/v1/brands/%5c/x", []string{good}, path},
		{"/api/v1/brands/%00", []string{good}, path},
		{"/api/v1/brands#x", []string{good}, path},
		{"/api/v1/brands?a#x", []string{good}, path},
		{"*", []string{good}, form},
		{"http:///api/v1/brands", []string{good}, form},
		{"/api/v1/brands", []string{"X-Nothing: 1"}, host},
		{"/api/v1/brands", []string{"Host: a b"}, host},
		{"/api/v1/brands", []string{good, "Content-Length: 5", "Transfer-Encoding: chunked"}, length},
		{"/api/v1/brands", []string{good, "Transfer-Encoding: gzip"}, length},
		{"/api/v1/brands/\u00e9", []string{good}, other},
		{"/api/v1/brands?q=\u00e9", []string{good}, other},
		{"/api/v1/brands", []string{good, "x y: 1"}, other},
		{"/api/v1/brands", []string{good, "Content-Length: many"}, other},
	} {
		conn, err := s.dial(t, row.target, append(row.lines, "X-API-Key: "+key)...)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatalf("%s %q: %v", row.target, row.lines, err)
		}
		body, _ := io.ReadAll(answer.Body)
		if want := `{"success":false,"error":"` + row.text + `","code":"bad_request"}`; answer.StatusCode != 400 || string(body) != want {
			t.Errorf("%s %q: %d %s, want 400 %s", row.target, row.lines, answer.StatusCode, body, want)
		}
	}
	mustNotContain(t, "what Envoy and Keyporter wrote", s.written(), key)
}

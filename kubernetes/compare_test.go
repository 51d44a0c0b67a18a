package kubernetes_test

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyporter/keyporter/internal/contract"
)

// people are the users of the whole matrix and what they hold.
type people struct {
	contract.Keys // of users with credits
	eve           string

	poor, disabled, suspended, revoked, spent, hasty string // keys that open nothing

	session string // of ann, as a Cookie header's value
}

func enrol(s *stack) people {
	rich := []string{"--rate-limit", "unlimited", "--credits", "1000000"}
	p := people{
		Keys: contract.Keys{Ann: s.user("ann", rich...), Bob: s.user("bob", rich...)}, eve: s.user("eve", rich...),
		poor: s.user("poor", "--api-access=false"), disabled: s.user("disabled"), suspended: s.user("suspended"), revoked: s.user("revoked"),
		spent: s.user("spent", "--credits", "0"), hasty: s.user("hasty", "--rate-limit", "1", "--rate-window", "1h"),
	}
	s.command("user", "set", "disabled", "--status", "disabled")
	s.command("account", "set", "suspended", "--status", "suspended")
	s.command("key", "revoke", "revoked")
	var made struct{ Cookie string }
	s.decode(s.command("session", "create", "ann", "--output", "json"), &made)
	p.session = made.Cookie
	return p
}

// secrets are what the API must never see.
func (p people) secrets() []string {
	_, session, _ := strings.Cut(p.session, "=")
	return []string{p.Ann[3:], p.Bob[3:], p.eve[3:], p.poor[3:], session}
}

// wholeMatrix is the matrix of the main job, for the route table of a stack: every combination of
// places and every form of a key, statuses by HTTP/1.1, HTTP/2 and gRPC, stripping, identity,
// origins, refunds and hostile paths.
func wholeMatrix(p people) []cell {
	return slices.Concat(
		keyCells(p), statusCells(p), strippingCells(p), identityCells(p), originCells(p), refundCells(p), hostileCells(p), envoyCells(p))
}

// keyCells are the 125 combinations of places, and the forms of keys in them.
func keyCells(p people) (cells []cell) {
	const path = "/v2/brands"
	for _, row := range slices.Concat(contract.Places(path, p.Keys), contract.Authorization(path, p.Keys), contract.Repeated(path, p.Ann, 9)) {
		c := cell{name: row.Name, target: row.Target, header: row.Header, user: row.User, status: 401, code: "unauthorized"}
		if row.User != "" {
			c.status, c.code, c.cost, c.reaches = 200, "", 1, "GET "+withoutKeys(row.Target)
		}
		cells = append(cells, c)
	}
	return cells
}

var keyParameter = regexp.MustCompile(`api_key(=[^&]*)?(&|$)`)

// withoutKeys returns what the API gets of a target of the matrix, whose parameters are all simple.
func withoutKeys(target string) string {
	return strings.TrimRight(keyParameter.ReplaceAllString(target, ""), "?&")
}

// statusCells are the rows of the table of decisions, each over HTTP/1.1, HTTP/2 and gRPC.
func statusCells(p people) (cells []cell) {
	key := "X-API-Key: " + p.Ann
	for _, c := range []cell{
		{name: "a semicolon", target: "/v2/brands;x", header: []string{key}, status: 400, code: "bad_request", grpc: "3"},
		{name: "a double encoding", target: "/v2/brands/a%2527", header: []string{key}, status: 400, code: "bad_request", grpc: "3"},
		{name: "a disguised parameter", target: "/v2/brands?api%5Fkey=" + p.Ann, header: []string{key}, status: 400, code: "bad_request", grpc: "3"},
		{name: "a long path", target: "/v2/brands/" + strings.Repeat("a", 9000), header: []string{key}, status: 400, code: "bad_request", grpc: "3"},
		{name: "no rule", target: "/v2/nothing", header: []string{key}, status: 404, code: "not_found", grpc: "5"},
		{name: "another spelling of a key route", target: "/v2/Brands", header: []string{key}, status: 404, code: "not_found", grpc: "5"},
		{name: "no key", target: "/v2/brands", status: 401, code: "unauthorized", grpc: "16"},
		{name: "a session on a key route", target: "/v2/brands", header: []string{"Cookie: " + p.session}, status: 401, code: "unauthorized", grpc: "16"},
		{name: "a malformed key", target: "/v2/brands", header: []string{"X-API-Key: wrong"}, status: 401, code: "unauthorized", grpc: "16"},
		{name: "a key that nobody has", target: "/v2/brands", header: []string{"X-API-Key: wh_" + strings.Repeat("0", 48)}, status: 401, code: "unauthorized", grpc: "16"},
		{name: "a revoked key", target: "/v2/brands", header: []string{"X-API-Key: " + p.revoked}, status: 401, code: "unauthorized", grpc: "16"},
		{name: "a key on a session route", target: "/app/x", header: []string{key}, status: 401, code: "unauthorized", grpc: "16"},
		{name: "no session", target: "/app/x", status: 401, code: "unauthorized", grpc: "16"},
		{name: "a bad session", target: "/app/x", header: []string{"Cookie: __Host-keyporter_session=bad"}, status: 401, code: "unauthorized", grpc: "16"},
		{name: "a disabled user", target: "/v2/brands", header: []string{"X-API-Key: " + p.disabled}, status: 403, code: "api_access_required", grpc: "7"},
		{name: "a suspended account", target: "/v2/brands", header: []string{"X-API-Key: " + p.suspended}, status: 403, code: "api_access_required", grpc: "7"},
		{name: "a plan without API access", target: "/v2/brands", header: []string{"X-API-Key: " + p.poor}, status: 403, code: "api_access_required", grpc: "7"},
		{name: "a used-up rate limit", target: "/v2/brands", header: []string{"X-API-Key: " + p.hasty}, status: 429, code: "rate_limited", grpc: "8"},
		{name: "used-up credits", target: "/v2/brands", header: []string{"X-API-Key: " + p.spent}, status: 429, code: "credits_exhausted", grpc: "8"},
		{name: "a key", target: "/v2/brands", header: []string{key}, status: 200, reaches: "/v2/brands", user: "ann", cost: 1},
		{name: "a session", target: "/app/x", header: []string{"Cookie: " + p.session}, status: 200, reaches: "/app/x", user: "ann"},
		{name: "a public path", target: "/status", status: 200, reaches: "/status"},
		{name: "the page without a session", target: "/api", header: []string{"Accept: application/json"}, status: 401, code: "unauthorized", grpc: "16"},
		{name: "a rewritten path", target: "/v2/markalar/a?b=%20+", header: []string{key}, status: 200, reaches: "/v2/brands/a?b=%20+", user: "ann", cost: 1},
		{name: "an encoded name", target: "/v2/names/C%23", header: []string{key}, status: 200, reaches: "/v2/names/C%23", user: "ann", cost: 1},
		{name: "an encoded name where the rule allows none", target: "/v2/brands/C%23", header: []string{key}, status: 400, code: "bad_request", grpc: "3"},
	} {
		cells = append(cells, c.overEachProtocol()...)
	}
	return append(cells,
		cell{name: "a method that is not allowed", method: "DELETE", target: "/v2/read", header: []string{key}, status: 405, code: "method_not_allowed"},
		cell{name: "TRACE", method: "TRACE", target: "/v2/brands", header: []string{key}, status: 405},
		cell{name: "the balance", target: "/v1/credits", header: []string{"X-API-Key: " + p.eve}, status: 200, user: "eve", cost: 1},
		cell{name: "a rule that costs more", target: "/v1/export/a", header: []string{key}, status: 200, reaches: "GET /v1/export/a", user: "ann", cost: 25},
	)
}

// overEachProtocol returns a GET as such over HTTP/1.1 and HTTP/2, as a HEAD, and as a call of
// gRPC.
func (c cell) overEachProtocol() (cells []cell) {
	for _, way := range []struct {
		name, method string
		http2        bool
	}{{"HTTP/1.1", "GET", false}, {"HTTP/1.1", "HEAD", false}, {"HTTP/2", "GET", true}, {"HTTP/2", "HEAD", true}, {"gRPC", "POST", true}} {
		other := c
		other.name, other.method, other.http2 = c.name+", "+way.name+" "+way.method, way.method, way.http2
		other.header = slices.Clone(c.header)
		if c.reaches != "" {
			other.reaches = way.method + " " + c.reaches
		}
		if way.method != "GET" {
			other.code = ""
		}
		switch {
		case way.name != "gRPC":
			other.grpc = ""
		case c.grpc != "": // a denial: of HTTP/2, but for the status
			other.status = 200
			fallthrough
		default:
			other.header = append(other.header, "Content-Type: application/grpc", "Te: trailers")
		}
		cells = append(cells, other)
	}
	return cells
}

// strippingCells hide keys and sessions in places that the API must not see.
func strippingCells(p people) (cells []cell) {
	add := func(name, target, reaches string, header ...string) {
		cells = append(cells, cell{name: name, target: target, header: header, status: 200, reaches: "GET " + reaches, user: "ann", cost: 1})
	}
	key := "X-API-Key: " + p.Ann
	add("keys of others in later places", "/v2/brands?api_key="+p.Bob+"&a=1", "/v2/brands?a=1", key, "Authorization: Bearer "+p.Bob)
	add("a query that is odd", "/v2/brands?z=1&api_key="+p.Ann+"&a=2&b&&c=%2F%20+&z=0&=&d=%zz&e=k=b==&", "/v2/brands?z=1&a=2&b&&c=%2F%20+&z=0&=&d=%zz&e=k=b==&")
	add("an encoded key in the query", "/v2/brands?api_key=%77%68%5F"+p.Ann[3:], "/v2/brands")
	add("a query without a key", "/v2/brands?z=1&&b&a=%41&API_KEY=1&h=%61pi_key", "/v2/brands?z=1&&b&a=%41&API_KEY=1&h=%61pi_key", key)
	add("a session beside other cookies", "/v2/brands", "/v2/brands", key, "Cookie: a=1;b=\"x, y\"; "+p.session+"; c==%20")
	add("a session twice", "/v2/brands", "/v2/brands", key, "Cookie: "+p.session+"; a=1; "+p.session)
	add("a key as a WebSocket protocol", "/v2/brands", "/v2/brands", key, "Sec-WebSocket-Protocol: chat, "+p.Ann)
	add("a lookalike of the header", "/v2/brands", "/v2/brands", key, "X.Api.Key: "+p.Ann, "X!Api!Key: "+p.Ann)
	add("a header with underscores", "/v2/brands", "/v2/brands", key, "x_api_key: "+p.Ann)
	add("a deadline of a client that does not speak gRPC", "/v2/brands", "/v2/brands", key, "grpc-timeout: 1M")
	add("Envoy's own headers", "/v2/brands", "/v2/brands", key, "x-envoy-retry-on: 5xx", "x-envoy-upstream-rq-timeout-ms: 1", "x-envoy-max-retries: 9")
	cells = append(cells,
		cell{name: "a key on a public path", target: "/status?api_key=" + p.Ann + "&a=1", header: []string{key, "Cookie: " + p.session}, status: 200, reaches: "GET /status?a=1"},
		cell{name: "a key on a session route", target: "/app/x?api_key=" + p.Ann, header: []string{key, "Cookie: " + p.session + "; a=1"}, status: 200, reaches: "GET /app/x", user: "ann"})
	return cells
}

// identityCells pretend to be somebody, on routes of each kind.
func identityCells(p people) (cells []cell) {
	for _, line := range contract.IdentityHeaders() {
		for _, route := range []cell{
			{name: "a key route", target: "/v2/brands", header: []string{"X-API-Key: " + p.Ann}, user: "ann", cost: 1},
			{name: "a session route", target: "/app/x", header: []string{"Cookie: " + p.session}, user: "ann"},
			{name: "a public path", target: "/status"},
		} {
			route.header = append(route.header, line, line)
			route.name, route.status, route.reaches = line+" on "+route.name, 200, "GET "+route.target
			cells = append(cells, route)
		}
	}
	return cells
}

// originCells are preflights and requests of pages of other origins.
func originCells(p people) (cells []cell) {
	const app = "https://app.example.com"
	key := "X-API-Key: " + p.Ann
	preflight := func(name, target, origin string, status int, header ...string) {
		header = append(header, "Origin: "+origin, "Access-Control-Request-Method: GET", "Access-Control-Request-Headers: x-api-key")
		cells = append(cells, cell{name: "a preflight: " + name, method: "OPTIONS", target: target, header: header, status: status})
	}
	preflight("a key route", "/v2/brands", app, 204)
	preflight("a bad key beside it", "/v2/brands?page=2", app, 204, "X-API-Key: wh_bad")
	preflight("a rule with methods", "/v2/read", app, 204)
	preflight("the balance", "/v1/credits", app, 204)
	preflight("a public path", "/status", app, 204)
	preflight("an origin that is not listed", "/v2/brands", "https://evil.example", 204)
	preflight("an origin that begins like one", "/v2/brands", app+".evil.example", 204)
	preflight("the origin null", "/v2/brands", "null", 204)
	preflight("a path that is not canonical", "/v2/brands;x", app, 400)
	preflight("a path without a rule", "/v2/nothing", app, 404)
	preflight("a rule that has it off", "/v2/no-cors", app, 401)
	preflight("a session route", "/app/x", app, 401)
	preflight("the page", "/api", app, 401)
	preflight("one for the upstream", "/v2/own-cors?a=1&api_key="+p.Ann, app, 200, key, "Cookie: "+p.session, "x-http-method-override: DELETE", "x-keyporter-user: eve")
	cells[len(cells)-1].reaches = "OPTIONS /v2/own-cors?a=1"
	for _, c := range []cell{
		{name: "a yes", target: "/v2/brands", header: []string{key}, status: 200, reaches: "GET /v2/brands", user: "ann", cost: 1},
		{name: "no key", target: "/v2/brands", status: 401, code: "unauthorized"},
		{name: "a method that is not allowed", method: "DELETE", target: "/v2/read", header: []string{key}, status: 405, code: "method_not_allowed"},
		{name: "the balance", target: "/v1/credits", header: []string{"X-API-Key: " + p.eve}, status: 200, user: "eve", cost: 1},
		{name: "a failing upstream", target: "/v2/brands", header: []string{key, "X-Test-Answer: 500"}, status: 500, reaches: "GET /v2/brands", user: "ann"},
		{name: "what the upstream says", target: "/v2/brands", header: []string{key, "X-Test-Answer: cors"}, status: 200, reaches: "GET /v2/brands", user: "ann", cost: 1},
		{name: "a rule that has it off", target: "/v2/no-cors", header: []string{key}, status: 200, reaches: "GET /v2/no-cors", user: "ann", cost: 1},
		{name: "no rule", target: "/v2/nothing", header: []string{key}, status: 404, code: "not_found"},
	} {
		for _, origin := range []string{app, "https://evil.example"} {
			other := c
			other.name, other.header = c.name+" to "+origin, append(slices.Clone(c.header), "Origin: "+origin)
			cells = append(cells, other)
		}
	}
	return cells
}

// refundCells are charged only if the upstream does its work.
func refundCells(p people) (cells []cell) {
	for _, row := range []struct {
		answer       string
		status, cost int
	}{
		{"404", 404, 1}, {"429", 429, 1}, {"302", 302, 1}, {"500", 500, 0}, {"501", 501, 0}, {"502", 502, 0}, {"503", 503, 0}, {"504", 504, 0},
		{"reset", 503, 0}, {"grpc 14", 200, 0}, {"grpc 13", 200, 0}, {"grpc 5", 200, 1},
	} {
		for range 2 {
			cells = append(cells, cell{
				name: fmt.Sprintf("the upstream's answer %s, %d", row.answer, len(cells)%2), target: "/v2/brands", header: []string{"X-API-Key: " + p.Bob, "X-Test-Answer: " + row.answer},
				status: row.status, reaches: "GET /v2/brands", user: "bob", cost: row.cost,
			})
		}
	}
	return cells
}

// hostileCells are paths that programs read differently: whatever reaches the API is below the path
// of the rule, and costs a credit.
func hostileCells(p people) (cells []cell) {
	for _, target := range contract.HostilePaths("/v2/brands") {
		cells = append(cells, cell{name: "a hostile path", target: target, header: []string{"X-API-Key: " + p.eve}, user: "eve", hostile: true})
	}
	return cells
}

// envoyCells are requests that Envoy answers by itself.
func envoyCells(p people) []cell {
	key := "X-API-Key: " + p.Ann
	return []cell{
		{name: "a path in another form", target: "*", header: []string{key}, status: 400},
		{name: "a host that is none", target: "/v2/brands", header: []string{"Host: a b", key}, status: 400},
		{name: "two lengths", target: "/v2/brands", header: []string{key, "Content-Length: 5", "Transfer-Encoding: chunked"}, status: 400},
		{name: "a length that is none", target: "/v2/brands", header: []string{key, "Content-Length: many"}, status: 400},
		{name: "a name with a blank", target: "/v2/brands", header: []string{key, "x y: 1"}, status: 400},
		{name: "a key that would have to leave a path with lost bytes", target: "/v2/brands/a!?api_key=" + p.Ann, status: 200, reaches: "GET /v2/brands/a!", user: "ann", cost: 1},
		{name: "headers that are too large", target: "/v2/brands", header: []string{key, "x-large: " + strings.Repeat("x", 70<<10)}, status: 431},
		{name: "headers that leave no room for ours", target: "/v2/brands", header: append(manyHeaders(92), key), status: 431},
		{name: "a client of HTTP/1.0", target: "/v2/brands", header: []string{key}, http10: true, status: 200, reaches: "GET /v2/brands", user: "ann", cost: 1},
		{name: "a client that waits before it sends a body", method: "POST", target: "/v2/brands", header: []string{"Expect: 100-continue", "Content-Length: 5"}, status: 401},
	}
}

func manyHeaders(n int) (lines []string) {
	for i := range n {
		lines = append(lines, fmt.Sprintf("x-header-%d: 1", i))
	}
	return lines
}

// outcome is what becomes of a cell: one line for each thing that is seen.
type outcome struct {
	status  int
	body    string
	reached string   // method and target that the API got; empty: it was not asked
	lines   []string // all of it, sorted
}

// left out of comparisons: what differs from request to request, or says how Envoy is set up.
var (
	ofEnvoy   = regexp.MustCompile(`(?i)^(date|server|x-envoy-upstream-service-time|x-envoy-expected-rq-timeout-ms|x-envoy-external-address|x-envoy-attempt-count|x-envoy-decorator-operation|x-request-id|x-forwarded-for|content-length|x-test-id)$`)
	ofMoment  = regexp.MustCompile(`(?i)^(x-ratelimit-remaining|x-ratelimit-reset|x-credits-remaining|retry-after|x-keyporter-charge)$`)
	ofBalance = regexp.MustCompile(`"(used|remaining)":\d+`)
)

// observe sends a cell through a front.
func observe(s *stack, front, id string, c cell) (o outcome, err error) {
	method := cmp.Or(c.method, http.MethodGet)
	header := append([]string{"X-Test-Id: " + id}, c.header...)
	transmit := send
	switch {
	case c.http2:
		transmit = sendHTTP2
	case c.http10:
		transmit = sendHTTP10
	}
	response, body, err := transmit(front, method, c.target, header...)
	if err != nil {
		return o, err
	}
	o = outcome{status: response.StatusCode, body: ofBalance.ReplaceAllString(body, `"$1":N`)}
	o.lines = append(describe("the answer has", response.Header), fmt.Sprintf("the answer is %d %s", o.status, o.body))
	o.lines = append(o.lines, describe("the trailer has", response.Trailer)...)
	if r := s.api.take(id); r != nil {
		o.reached = r.Method + " " + r.RequestURI
		o.lines = append(append(o.lines, "the API got "+o.reached), describe("the API got", r.Header)...)
	}
	slices.Sort(o.lines)
	return o, nil
}

func describe(what string, header http.Header) (lines []string) {
	for name, values := range header {
		switch {
		case ofEnvoy.MatchString(name):
		case ofMoment.MatchString(name):
			lines = append(lines, fmt.Sprintf("%s %d %s", what, len(values), name))
		default:
			lines = append(lines, fmt.Sprintf("%s %s: %s", what, name, strings.Join(values, " | ")))
		}
	}
	return lines
}

func sendHTTP2(front, method, target string, header ...string) (*http.Response, string, error) {
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: &protocols, DisableCompression: true}
	defer transport.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, method, "http://"+front, nil)
	if err != nil {
		return nil, "", err
	}
	path, query, found := strings.Cut(target, "?")
	request.URL.Opaque, request.URL.RawQuery, request.URL.ForceQuery = path, query, found && query == ""
	for _, line := range header {
		name, value, _ := strings.Cut(line, ": ")
		request.Header.Add(name, value)
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return nil, "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return response, string(body), err
}

// observeAll sends all cells through a front, some at a time, and waits until what they cost is
// settled. A used-up rate limit is used up first.
func observeAll(t *testing.T, s *stack, front string, cells []cell, p people) []outcome {
	t.Helper()
	before := map[string]int{"ann": s.balance("ann").Used, "bob": s.balance("bob").Used, "eve": s.balance("eve").Used}
	call(t, front, "GET", "/v2/brands", "X-API-Key: "+p.hasty)
	outcomes := make([]outcome, len(cells))
	var workers sync.WaitGroup
	for worker := range 4 {
		workers.Go(func() {
			for i := worker; i < len(cells); i += 4 {
				var err error
				if outcomes[i], err = observe(s, front, fmt.Sprint(front, " ", i), cells[i]); err != nil {
					t.Errorf("%s, %s: %v", cells[i].name, cells[i].target, err)
				}
			}
		})
	}
	workers.Wait()
	for i, c := range cells {
		before[c.user] += c.charged(outcomes[i])
	}
	for _, user := range []string{"ann", "bob", "eve"} {
		s.usedCredits(user, before[user])
	}
	return outcomes
}

// charged returns the credits that a cell has cost, once all failures are refunded.
func (c cell) charged(o outcome) int {
	switch {
	case c.hostile && o.reached != "":
		return 1
	case c.reaches != "" && o.reached == "":
		return 0 // it was refused: a known difference, or a mistake that is reported
	}
	return c.cost
}

// mustHideSecrets requires that the API has not seen a key, a session, or who a client pretends to
// be.
func (o outcome) mustHideSecrets(t *testing.T, c cell, p people) {
	t.Helper()
	for _, line := range o.lines {
		for _, secret := range append(p.secrets(), "victim") {
			if strings.HasPrefix(line, "the API got") && strings.Contains(strings.ToLower(line), strings.ToLower(secret)) {
				t.Errorf("%s: %s", c.name, line)
			}
		}
	}
}

// mustKeepThePromise compares an outcome with the contract.
func (o outcome) mustKeepThePromise(t *testing.T, c cell) {
	t.Helper()
	report := func(format string, args ...any) {
		t.Errorf("%s, %s %s: %s\n%s", c.name, cmp.Or(c.method, "GET"), c.target, fmt.Sprintf(format, args...), strings.Join(o.lines, "\n"))
	}
	if c.hostile {
		if problem := contract.Outside("/v2/brands", strings.TrimPrefix(o.reached, "GET ")); o.reached != "" && problem != "" {
			report("it reached the API: %s", problem)
		}
		return
	}
	if o.status != c.status || c.code != "" && !strings.Contains(o.body, `"code":"`+c.code+`"`) || o.reached != c.reaches {
		report("want %d %s, and that the API gets %q", c.status, c.code, c.reaches)
	}
	if user := "the API got X-Keyporter-User: " + c.user; o.reached != "" && c.user != "" && !slices.Contains(o.lines, user) {
		report("the API does not know that it is %s", c.user)
	}
	if c.grpc != "" && !slices.ContainsFunc(o.lines, func(line string) bool { return strings.HasSuffix(line, "Grpc-Status: "+c.grpc) }) {
		report("want grpc-status %s", c.grpc)
	}
}

// difference is a way in which a front may differ from the printed configuration: a row of the
// table in docs/kubernetes.md.
type difference struct {
	name    string
	expects func(c cell, printed, front outcome) bool
}

// The rows of the table that show in the matrix. Fronts have some of them.
var (
	// Envoy's own answers have no JSON of ours.
	ownAnswers = difference{"Envoy's own answers have no JSON", func(c cell, printed, front outcome) bool {
		return printed.status == front.status && onlyTheAnswer(printed, front) && !strings.HasPrefix(front.body, "{") &&
			(ownText.MatchString(printed.body) || slices.Contains(c.header, "X-Test-Answer: reset"))
	}}
	ownText = regexp.MustCompile(`a slash, a backslash or a zero byte|or is not HTTP|neither a path nor a URL|The header Host|in one way where the body ends|headers_too_large`)

	// Where our headers do not fit beside the client's, the answer is 500.
	noRoom = difference{"500 in place of 431", func(_ cell, printed, front outcome) bool {
		return printed.status == 431 && front.status == 500 && printed.reached+front.reached == ""
	}}
	// Without raw headers, '!' may stand for a byte that was lost.
	lostBytes = difference{"no raw headers", func(c cell, printed, front outcome) bool {
		return strings.Contains(c.target, "!") && printed.status == 200 && front.status == 400 && strings.Contains(front.body, "exclamation mark")
	}}
	// The API gets a deadline that only a client of gRPC may set.
	deadlines = difference{"grpc-timeout of any client", func(_ cell, printed, front outcome) bool {
		return len(minus(printed.lines, front.lines)) == 0 && slices.Equal(minus(front.lines, printed.lines), []string{"the API got Grpc-Timeout: 1M"})
	}}
	// HTTP/1.0 is refused.
	noHTTP10 = difference{"426 for HTTP/1.0", func(c cell, printed, front outcome) bool {
		return c.http10 && front.status == 426 && front.reached == ""
	}}
	// Envoy tells a waiting client to go on before Keyporter has decided.
	earlyContinue = difference{"100 before the decision", func(_ cell, printed, front outcome) bool {
		return len(minus(printed.lines, front.lines)) == 0 && slices.Equal(minus(front.lines, printed.lines), []string{"the answer has X-Test-Before: 100 Continue"})
	}}
)

// onlyTheAnswer says that the API got the same, if anything.
func onlyTheAnswer(printed, front outcome) bool {
	lines := append(minus(printed.lines, front.lines), minus(front.lines, printed.lines)...)
	return !slices.ContainsFunc(lines, func(line string) bool { return !strings.HasPrefix(line, "the answer ") })
}

// Istio leaves escaped slashes to Keyporter, which says otherwise why it refuses them.
var keptSlashes = difference{"escaped slashes are kept", func(_ cell, printed, front outcome) bool {
	return printed.status == 400 && front.status == 400 && printed.reached+front.reached == "" && strings.Contains(front.body, "it encodes a separator")
}}

// compare sends the whole matrix through the printed configuration and through a front, both before
// the same replica. The printed one keeps every promise. The front does the same in every cell, but
// for the given differences, and shows every one of them.
func compare(t *testing.T, s *stack, front string, differences ...difference) {
	t.Helper()
	p := enrol(s)
	cells := wholeMatrix(p)
	if len(cells) < 2900 {
		t.Errorf("the matrix has only %d cells, and docs/kubernetes.md says nearly 3,000", len(cells))
	}
	printed := observeAll(t, s, s.envoy(t, func(*envoyConfig) {}), cells, p)
	others := observeAll(t, s, front, cells, p)
	seen := map[string]int{}
	for i, c := range cells {
		printed[i].mustKeepThePromise(t, c)
		printed[i].mustHideSecrets(t, c, p)
		others[i].mustHideSecrets(t, c, p)
		if slices.Equal(printed[i].lines, others[i].lines) {
			continue
		}
		if known := slices.IndexFunc(differences, func(d difference) bool { return d.expects(c, printed[i], others[i]) }); known >= 0 {
			seen[differences[known].name]++
			continue
		}
		t.Errorf("%s, %s %s\nprinted only:\n  %s\nfront only:\n  %s", c.name, cmp.Or(c.method, "GET"), c.target,
			strings.Join(minus(printed[i].lines, others[i].lines), "\n  "), strings.Join(minus(others[i].lines, printed[i].lines), "\n  "))
	}
	for _, d := range differences {
		if seen[d.name] == 0 {
			t.Errorf("not seen in any cell: %s", d.name)
		}
	}
	t.Logf("%d cells; differences: %v", len(cells), seen)
}

// minus returns the lines of a that b lacks.
func minus(a, b []string) (lines []string) {
	for _, line := range a {
		if !slices.Contains(b, line) {
			lines = append(lines, line)
		}
	}
	return lines
}

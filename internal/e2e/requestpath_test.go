package e2e_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
)

// One extra slash at the end of a path makes no difference to clients. The matching rule is the one
// for the path with the slash, then the one for paths below, then the one for the path without it.
// Envoy routes in the same order, and the upstream sees the path as sent.
func TestOneTrailingSlash(t *testing.T) {
	t.Parallel()
	s := start(t, stackConfig{})
	key, cookie := s.user("ann", "metered", "--credits", "1000"), s.session("ann")
	for _, version := range versions {
		for _, row := range []struct {
			target, header string
			status         int
			seen           string // path that the upstream receives; empty: none
		}{
			{"/api/v1/tiktok-shop/credits/", "X-API-Key: " + key, 200, ""},
			{"/api/v1/tiktok-shop/credits/?a=1", "X-API-Key: " + key, 200, ""},
			{"/api/v1/brands/", "X-API-Key: " + key, 200, "/api/v1/brands/"},
			{"/api/v1/markalar/", "X-API-Key: " + key, 200, "/api/v1/brands/"},
			{"/api/adlibrary/?x", "X-API-Key: " + key, 200, "/api/adlibrary/?x"},
			{"/api/", "Cookie: " + cookie, 200, ""},
			{"/api/-/login/", "", 200, ""},
			{"/api/v1/", "X-API-Key: " + key, 404, ""},
			{"/api/v1", "X-API-Key: " + key, 404, ""},
			{"/api/v1", "Cookie: " + cookie, 404, ""},
			{"/api/v1/tiktok-shop/credits//", "X-API-Key: " + key, 200, ""}, // Envoy merges slashes
		} {
			header := []string{"x-test-id: it"}
			if row.header != "" {
				header = append(header, row.header)
			}
			a := s.over(version, request{target: row.target, header: header})
			seen, arrived := s.upstream.take("it")
			if a.status != row.status || seen.target != row.seen || arrived != (row.seen != "") {
				t.Errorf("%s %s: %d %s, the upstream saw %q; want %d, %q", version, row.target, a.status, a.body, seen.target, row.status, row.seen)
			}
			if strings.Contains(row.target, "credits") && !strings.Contains(a.body, `"credits":{"used":`) {
				t.Errorf("%s %s: %s is not the balance", version, row.target, a.body)
			}
		}
	}
	s.balanceBecomes("ann", 12, 0)
}

// TRACE would echo the key in the body of its answer, so it is rejected on every route.
func TestTraceIsRefused(t *testing.T) {
	t.Parallel()
	s := start(t, stackConfig{})
	key, cookie := s.user("ann", "metered", "--credits", "1000"), s.session("ann")
	for _, version := range versions {
		for _, target := range []string{"/api/v1/brands", "/api/adlibrary/x", "/api/other", "/api", "/api/-/login"} {
			a := s.over(version, request{method: "TRACE", target: target, header: []string{"X-API-Key: " + key, "Cookie: " + cookie, "x-test-id: it"}})
			if _, arrived := s.upstream.take("it"); a.status != 405 || arrived || strings.Contains(a.body, key) {
				t.Errorf("%s %s: %d, arrived: %v; want 405", version, target, a.status, arrived)
			}
		}
	}
	// some parsers read it in upper case
	a := s.over("HTTP/2", request{method: "trace", target: "/api/v1/brands", header: []string{"X-API-Key: " + key, "x-test-id: it"}})
	if _, arrived := s.upstream.take("it"); a.status != 405 || arrived {
		t.Errorf("trace by HTTP/2: %d, arrived: %v; want 405", a.status, arrived)
	}
	s.chargedNothing()
}

// Deadlines are accepted only from gRPC clients. Envoy would answer other clients with 504, which
// refunds the credit, at a time of the client's choice.
func TestADeadlineIsForGRPCAlone(t *testing.T) {
	t.Parallel()
	s := start(t, stackConfig{})
	key := s.user("ann", "pro")
	for contentType, want := range map[string]bool{
		"application/grpc": true, "application/grpc+proto": true, "application/grpc-web": false, "application/json": false, "": false,
	} {
		for _, version := range versions {
			s.over(version, request{target: "/api/v1/brands", header: []string{"X-API-Key: " + key, "content-type: " + contentType, "grpc-timeout: 1M", "x-test-id: it"}})
			seen, arrived := s.upstream.take("it")
			if got := seen.header.Get("Grpc-Timeout") != ""; !arrived || got != want {
				t.Errorf("%s, content type %q: arrived: %v, with a deadline: %v, want %v", version, contentType, arrived, got, want)
			}
		}
	}
}

// A 401 says whether a key was sent, and is otherwise identical to the byte: one form for requests
// without a key and for session routes, and one for all keys that open nothing.
func TestTheTwoFormsOf401(t *testing.T) {
	t.Parallel()
	s := start(t, stackConfig{})
	key := s.user("ann", "pro")
	revoked := s.user("rob", "pro")
	s.run("key", "revoke", "rob")
	forged := key[:len(key)-1] + string("01"[strings.IndexByte("0", key[len(key)-1])+1])
	const nothing, invalid = `Bearer realm="keyporter"`, `Bearer realm="keyporter", error="invalid_token"`
	first := map[string]string{}
	for _, row := range []struct {
		name, target string
		header       []string
		want         string
	}{
		{"no key", "/api/v1/brands", nil, nothing},
		{"empty places", "/api/v1/brands?api_key=", []string{"X-API-Key: ", "Authorization: Bearer"}, nothing},
		{"another scheme", "/api/v1/brands", []string{`Authorization: Digest username="u", realm="r"`}, nothing},
		{"a session on a key route", "/api/v1/brands", []string{"Cookie: " + s.session("ann")}, nothing},
		{"no session", "/api/other", nil, nothing},
		{"a key on a session route", "/api/other", []string{"X-API-Key: " + key}, nothing},
		{"a bad session", "/api/other", []string{"Cookie: keyporter_session=bad"}, nothing},
		{"a malformed key", "/api/v1/brands", []string{"X-API-Key: wrong"}, invalid},
		{"a malformed bearer", "/api/v1/brands", []string{"Authorization: Bearer a b"}, invalid},
		{"a malformed key in the query", "/api/v1/brands?api_key=x", nil, invalid},
		{"a forged key", "/api/v1/brands", []string{"X-API-Key: " + forged}, invalid},
		{"a revoked key", "/api/v1/brands", []string{"X-API-Key: " + revoked}, invalid},
		{"two keys", "/api/v1/brands", []string{"X-API-Key: " + key + "," + key}, invalid},
		{"two keys in the query", "/api/v1/brands?api_key=" + key + "&api_key=" + key, nil, invalid},
		{"a bearer beside another scheme", "/api/v1/brands", []string{"Authorization: Basic x, Bearer " + key}, invalid},
	} {
		for _, version := range versions {
			a := s.over(version, request{target: row.target, header: row.header})
			if got := a.header.Get("Www-Authenticate"); a.status != 401 || got != row.want || a.body != bodies["unauthorized"] {
				t.Errorf("%s, %s: %d %q %s, want 401 %q", row.name, version, a.status, got, a.body, row.want)
			}
			a.header.Del("Date")
			if same := fmt.Sprint(version, a.header); first[version+row.want] == "" {
				first[version+row.want] = same
			} else if first[version+row.want] != same {
				t.Errorf("%s, %s: %s, want the bytes of others: %s", row.name, version, same, first[version+row.want])
			}
		}
	}
}

// A 400 names the rejected part of the request and the reason, quotes none of it, and is free.
func TestA400SaysWhy(t *testing.T) {
	t.Parallel()
	s := start(t, stackConfig{})
	key := s.user("ann", "metered", "--credits", "1000")
	const api = "/api/v1/brands"
	for _, row := range []struct{ target, header, want string }{
		{api + ";x", "", "The path was refused: it holds a backslash, a semicolon"},
		{api + "/a%2527", "", "The path was refused: it encodes a separator, a percent sign"},
		{api + "/%23", "", "The path was refused: it encodes a separator"},
		{api + "/%25", "", "The path was refused: it encodes a separator"},
		{api + "/%c3%28", "", "The path was refused: it encodes bytes that are not UTF-8."},
		{api + "/" + strings.Repeat("a", 9000), "", "The path was refused: it is longer than 8192 bytes."},
		{api + "?q=\xc3\xa7ay", "", "The query was refused: it holds a character that must be percent-encoded."},
		{api + "?api%5Fkey=" + key, "", "The query was refused: the name api_key is encoded"},
		{api + "?a=1;api_key=" + key, "", "The query was refused: the name api_key is encoded, or stands behind a semicolon."},
		{api, "Sec-WebSocket-Protocol: " + key, "The header sec-websocket-protocol was refused: it names no protocol but a key."},
	} {
		for _, version := range versions {
			if version == "HTTP/1.1" && strings.Contains(row.target, "\xc3") {
				row.want = "" // Envoy's own text: this is not valid HTTP/1.1
			}
			header := []string{"X-API-Key: " + key}
			if row.header != "" {
				header = append(header, row.header)
			}
			a := s.over(version, request{target: row.target, header: header})
			if a.status != 400 || !strings.Contains(a.body, `"error":"`+row.want) || !strings.Contains(a.body, `"code":"bad_request"`) || strings.Contains(a.body, key) {
				t.Errorf("%s %s: %d %s, want 400 %s", version, strings.ReplaceAll(row.target, key, "KEY"), a.status, a.body, row.want)
			}
		}
	}
	s.chargedNothing()
}

// If a rule allows it, a path may contain names such as "C#", "who?" and "100%", but nothing that
// an upstream could read as another path by decoding first, even twice.
func TestEncodedNames(t *testing.T) {
	t.Parallel()
	s := start(t, stackConfig{config: `
routes:
  - {paths: "/brands/*", kind: api_key, encoded: true}
  - {paths: "/plain/*", kind: api_key}
  - {paths: "/*", kind: public}
`})
	key := s.user("ann", "metered", "--credits", "1000")
	good := 0
	for _, row := range []struct {
		target string
		status int
	}{
		{"/brands/C%23", 200}, {"/brands/who%3F", 200}, {"/brands/who%3f/x", 200}, {"/brands/100%25", 200}, {"/brands/100%25/x", 200},
		{"/brands/%25zz", 200}, {"/brands/%25%20", 200}, {"/brands/C%23?a=%23", 200}, {"/brands/a%3Fb=1", 200}, {"/brands/%C3%A7%23", 200},
		{"/brands/%2523", 400}, {"/brands/%252e%252e", 400}, {"/brands/%25%32%65", 400}, {"/brands/%252f", 400}, {"/brands/%2525", 400},
		{"/brands/%3B", 400}, {"/brands/x%3Fapi_key=" + key, 400}, {"/brands/%3f&api_key=" + key, 400},
		{"/brands/..%23", 400}, {"/brands/..%3Fx", 400}, {"/brands/.%3F/x", 400}, {"/brands/a..%23", 200}, {"/plain/C%23", 400}, {"/plain/100%25", 400}, {"/C%23", 400}, {"/nothing/who%3F", 400},
	} {
		for _, version := range versions {
			a := s.over(version, request{target: row.target, header: []string{"X-API-Key: " + key, "x-test-id: it"}})
			seen, arrived := s.upstream.take("it")
			if a.status != row.status || arrived != (row.status == 200) || arrived && seen.target != row.target {
				t.Errorf("%s %s: %d %s, the upstream saw %q; want %d", version, strings.ReplaceAll(row.target, key, "KEY"), a.status, a.body, seen.target, row.status)
			}
			if row.status == 200 {
				good++
			}
		}
	}
	s.balanceBecomes("ann", int64(good), 0)
}

// If a front proxy sends no raw headers, a '!' in a path may stand for a byte that could not be
// forwarded. A request whose path would be overwritten is then rejected; any other one passes
// unchanged.
func TestAPathThatMayHaveLostAByte(t *testing.T) {
	t.Parallel()
	s := start(t, stackConfig{noEnvoy: true, flags: patient})
	key := s.user("ann", "pro")
	client := newChecker(t, s.replicas[0]).client
	for _, row := range []struct {
		path  string
		raw   bool
		allow bool
	}{
		{"/api/v1/brands/a!", false, true},
		{"/api/v1/brands?q=!", false, true},
		{"/api/v1/brands?q=!&api_key=" + key, false, false},
		{"/api/v1/brands/a!?api_key=" + key, false, false},
		{"/api/v1/markalar/a!", false, false},
		{"/api/v1/brands?q=x&api_key=" + key, false, true},
		{"/api/v1/brands?q=!&api_key=" + key, true, true},
		{"/api/v1/markalar/a!", true, true},
	} {
		r := &authv3.AttributeContext_HttpRequest{Method: "GET", Path: row.path}
		if row.raw {
			r.HeaderMap = &corev3.HeaderMap{Headers: []*corev3.HeaderValue{
				{Key: ":path", RawValue: []byte(row.path)}, {Key: "x-api-key", RawValue: []byte(key)},
			}}
		} else {
			r.Headers = map[string]string{":path": row.path, "x-api-key": key}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		response, err := client.Check(ctx, &authv3.CheckRequest{Attributes: &authv3.AttributeContext{Request: &authv3.AttributeContext_Request{Http: r}}})
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		denied := response.GetDeniedResponse()
		if allowed := response.GetOkResponse() != nil; allowed != row.allow || !allowed && (denied.GetStatus().GetCode() != 400 || !strings.Contains(denied.GetBody(), "exclamation mark")) {
			t.Errorf("%s, raw headers: %v: %v, want allowed: %v", strings.ReplaceAll(row.path, key, "KEY"), row.raw, response, row.allow)
		}
	}

	s.startEnvoyTo(t, s.upstream.address, "encode_raw_headers: true", "encode_raw_headers: false")
	for _, row := range []struct {
		target string
		status int
	}{
		{"/api/v1/brands?q=\xc3\xa7&api_key=" + key, 400}, {"/api/v1/brands/a!?api_key=" + key, 400}, {"/api/v1/brands/a!", 200},
	} {
		for _, version := range versions {
			a := s.over(version, request{target: row.target, header: []string{"X-API-Key: " + key, "x-test-id: it"}})
			seen, arrived := s.upstream.take("it")
			if a.status != row.status || arrived != (row.status == 200) || strings.Contains(seen.target, key) {
				t.Errorf("%s by %s: %d %s, arrived: %v; want %d", strings.ReplaceAll(row.target, key, "KEY"), version, a.status, a.body, arrived, row.status)
			}
		}
	}
}

// A page cannot add its own headers to a WebSocket, so some put their key beside the protocol. The
// key does not reach the upstream; the rest does, byte for byte. If nothing else is left, the
// client gets an explanation.
func TestAKeyBesideTheWebSocketProtocol(t *testing.T) {
	t.Parallel()
	s := start(t, stackConfig{noEnvoy: true, flags: patient})
	key := s.user("ann", "pro")
	// With upgrades configured, as by an operator of WebSocket routes.
	s.startEnvoyTo(t, s.upstream.address,
		`regex: ".*"`, `regex: "(?i)(h2c|tls/.*|http/.*)"`, "          http_filters:\n", "          upgrade_configs: [{ upgrade_type: websocket }]\n          http_filters:\n")
	for _, row := range []struct {
		name      string
		protocols []string
		want      string // value that the upstream receives
		status    int
	}{
		{"none", nil, "", 101},
		{"no key", []string{"chat, superchat"}, "chat, superchat", 101},
		{"a key behind", []string{"chat, " + key}, "chat", 101},
		{"a key before", []string{key + ", chat"}, "chat", 101},
		{"a key in the middle", []string{"chat,\t" + key + " ,superchat;q=1"}, "chat,superchat;q=1", 101},
		{"a key with a prefix", []string{"chat, bearer." + key}, "chat", 101},
		{"several headers", []string{"chat", key, "superchat"}, "chat, superchat", 101},
		{"a key alone", []string{key}, "", 400},
		{"a key and commas", []string{" , " + key + ",", key}, "", 400},
	} {
		header := []string{"X-API-Key: " + key, "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AQIDBAUGBwgJCgsMDQ4PEC==", "x-test-id: it", "x-test-answer: upgrade"}
		for _, value := range row.protocols {
			header = append(header, "Sec-WebSocket-Protocol: "+value)
		}
		a := s.send(request{target: "/api/v1/brands", header: header})
		seen, _ := s.upstream.take("it")
		if got := strings.Join(seen.header.Values("Sec-Websocket-Protocol"), ", "); a.status != row.status || got != row.want {
			t.Errorf("%s: %d, the upstream saw %q; want %d, %q", row.name, a.status, strings.ReplaceAll(got, key, "KEY"), row.status, row.want)
		}
	}
}

// hijack accepts the upgrade to a WebSocket, and closes the connection.
func hijack(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	fmt.Fprint(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	conn.Close()
}

// A request with more headers than the authorizer reads is answered with a free 431. Envoy alone
// would turn the error of a library into a 503 on every retry.
func TestACheckThatIsTooLarge(t *testing.T) {
	t.Parallel()
	s := start(t, stackConfig{noEnvoy: true, flags: patient})
	key := s.user("ann", "metered", "--credits", "1000")
	s.startEnvoyTo(t, s.upstream.address, "max_request_headers_kb: 60", "max_request_headers_kb: 8192")
	for _, version := range versions {
		// each of 32 KiB
		for _, row := range []struct{ cookies, status int }{{1, 200}, {7, 200}, {9, 431}, {40, 431}} {
			header := []string{"X-API-Key: " + key, "x-test-id: it"}
			for range row.cookies {
				header = append(header, "Cookie: a="+strings.Repeat("x", 32<<10))
			}
			a := s.over(version, request{target: "/api/v1/brands", header: header})
			_, arrived := s.upstream.take("it")
			if a.status != row.status || arrived != (row.status == 200) || row.status == 431 && a.body != `{"success":false,"error":"Request header fields too large.","code":"headers_too_large"}` {
				t.Errorf("%s, %d cookies: %d %.200s, arrived: %v; want %d", version, row.cookies, a.status, a.body, arrived, row.status)
			}
		}
	}
	s.balanceBecomes("ann", 4, 0)
}

package e2e_test

import (
	"bufio"
	"bytes"
	"cmp"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// oddRequest is a request that two programs may read differently.
type oddRequest struct {
	name   string
	raw    string // HTTP/1, with KEY, COOKIE and ID
	fields string // HTTP/2 fields, one a line, that replace or extend those of a good request
	bytes  string // HTTP/2 body
	status int    // of the first answer; 0: the connection or the stream ends without one
	seen   string // target that the upstream receives; "": none
}

// For each request, the upstream receives one or none, with the decided path and the decided
// identity, for any bytes on the wire and with both versions of HTTP.
func TestRequestsThatTwoProgramsReadDifferently(t *testing.T) {
	partstest.Slow(t)
	t.Parallel()
	s := start(t, stackConfig{})
	key, cookie := s.user("ada", "pro"), s.session("ada")
	const brands = "/api/v1/brands"
	get := func(more string) string {
		return "GET " + brands + " HTTP/1.1\r\nHost: a\r\nX-Test-Id: ID\r\nX-API-Key: KEY\r\n" + more
	}
	post := func(more string) string { return strings.Replace(get(more), "GET", "POST", 1) }
	const chunked, end = "Transfer-Encoding: chunked\r\n", "0\r\n\r\n"
	rows := []oddRequest{
		{"plain", get("\r\n"), "", "", 200, brands},
		{"two lengths", post("Content-Length: 5\r\n" + chunked + "\r\n" + end), "", "", 400, ""},
		{"chunked twice", post(chunked + chunked + "\r\n" + end), "", "", 400, ""},
		{"another coding", post("Transfer-Encoding: gzip, chunked\r\n\r\n" + end), "", "", 400, ""},
		{"identity", post("Transfer-Encoding: chunked, identity\r\n\r\n" + end), "", "", 400, ""},
		{"a vertical tab", post("Transfer-Encoding:\x0bchunked\r\n\r\n" + end), "", "", 400, ""},
		{"a blank before the colon", post("Transfer-Encoding : chunked\r\n\r\n" + end), "", "", 400, ""},
		{"a folded line", post(" Transfer-Encoding: chunked\r\n\r\n" + end), "", "", 401, ""},
		{"a line end in an extension", post(chunked + "\r\n2;x=\n3\r\nab\r\n" + end), "", "", 400, ""},
		{"line feeds between chunks", post(chunked + "\r\n2\nab\n0\n\n"), "", "", 400, ""},
		{"a chunk of 0x2", post(chunked + "\r\n0x2\r\nab\r\n" + end), "", "", 400, ""},
		{"a chunk of 2^64", post(chunked + "\r\n10000000000000000\r\nab\r\n" + end), "", "", 400, ""},
		{"a key in trailers", post(chunked + "\r\n2\r\nab\r\n0\r\nX-Keyporter-User: eve\r\nX-API-Key: z\r\n\r\n"), "", "", 200, brands},
		{"a length of +2", post("Content-Length: +2\r\n\r\nab"), "", "", 400, ""},
		{"a length twice", post("Content-Length: 2\r\nContent-Length: 2\r\n\r\nab"), "", "", 400, ""},
		{"a list of lengths", post("Content-Length: 2, 2\r\n\r\nab"), "", "", 400, ""},
		{"a length of 2^67", post("Content-Length: 99999999999999999999\r\n\r\nab"), "", "", 400, ""},
		{"a return in a value", get("X-Other: b\rX-Keyporter-User: eve\r\n\r\n"), "", "", 200, brands},
		{"a return in a name", get("X-Other\r: b\r\n\r\n"), "", "", 400, ""},
		{"a zero byte in a value", get("X-Other: \x00\r\n\r\n"), "", "", 400, ""},
		{"a line without a colon", get("X-API-Key\r\n\r\n"), "", "", 400, ""},
		{"two hosts", get("Host: b\r\n\r\n"), "", "", 400, ""},
		{"a connection that names identity", get("Connection: x-keyporter-user, x-keyporter-charge\r\n\r\n"), "", "", 200, brands},
		{"h2c", get("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"), "", "", 200, brands},
		{"what Envoy reads itself", get("x-envoy-upstream-rq-timeout-ms: 1\r\nx-envoy-original-path: /admin\r\nx-envoy-internal: true\r\n\r\n"), "", "", 200, brands},
		{"tabs in the first line", strings.Replace(get("\r\n"), "GET "+brands+" ", "GET\t"+brands+"\t", 1), "", "", 200, brands},
		{"HTTP/1.2 with chunks", strings.Replace(post(chunked+"\r\n"+end), "1.1", "1.2", 1), "", "", 400, ""},
		{"HTTP/0.9", "GET " + brands + "\r\n\r\n", "", "", 401, ""},
		{"a URL", strings.Replace(get("\r\n"), "/api", "http://u:p@b/api", 1), "", "", 200, brands},
		{"a URL of https", strings.Replace(get("\r\n"), "/api", "https://b/api", 1), "", "", 400, ""},
		{"a URL of ftp", strings.Replace(get("\r\n"), "/api", "ftp://b/api", 1), "", "", 400, ""},
		{"an asterisk", strings.Replace(get("\r\n"), "GET "+brands, "OPTIONS *", 1), "", "", 404, ""},
		{"CONNECT", strings.Replace(get("\r\n"), "GET "+brands, "CONNECT a:80", 1), "", "", 404, ""},
		{"a body that is not waited for", strings.Replace(post("Expect: 100-continue\r\nContent-Length: 99\r\n\r\n"+get("\r\n")), "KEY", "bad", 1), "", "", 401, ""},

		{name: "HTTP/2", status: 200, seen: brands},
		{name: "a host beside :authority", fields: "host: evil", status: 200, seen: brands},
		{name: ":path twice", fields: "+:path: /api"},
		{name: ":authority twice", fields: "+:authority: b"},
		{name: "a blank in :path", fields: ":path: " + brands + " HTTP/1.1"},
		{name: "a line end in :path", fields: ":path: " + brands + "\r\rx: y"},
		{name: "a fragment in :path", fields: ":path: " + brands + "#x", status: 400},
		{name: "a URL in :path", fields: ":path: http://b" + brands},
		{name: "a request in :method", fields: ":method: GET " + brands + " HTTP/1.1"},
		{name: "trace", fields: ":method: trace", status: 405},
		{name: "a WebSocket by CONNECT", fields: ":method: CONNECT\n:protocol: websocket"},
		{name: ":protocol", fields: ":protocol: websocket"},
		{name: ":status", fields: ":status: 200"},
		{name: "a URL in :scheme", fields: ":scheme: http://b/ "},
		{name: "connection", fields: "connection: x-keyporter-user"},
		{name: "transfer-encoding", fields: ":method: POST\ntransfer-encoding: chunked", bytes: end},
		{name: "upgrade", fields: "upgrade: h2c"},
		{name: "upper case", fields: "X-Other: y"},
		{name: "a colon in a name", fields: "x-other:x-keyporter-user: eve"},
		{name: "a return in a value by HTTP/2", fields: "x-other: a\rx-keyporter-user: eve"},
		{name: "a zero byte", fields: "x-other: a\x00b"},
		{name: "two keys", fields: "+x-api-key: KEY", status: 401},
		{name: "less than was announced", fields: ":method: POST\ncontent-length: 5", bytes: "abc", seen: "?"},
		{name: "more than was announced", fields: ":method: POST\ncontent-length: 3", bytes: "abcde", seen: "?"},
		{name: "a length of +3", fields: ":method: POST\ncontent-length: +3", bytes: "abc"},
		{name: "crumbs of cookies", fields: ":path: /api/brands\ncookie: a=1\n+cookie: COOKIE\n+cookie: b=2", status: 200, seen: "/api/brands"},
		{name: "a cookie twice", fields: ":path: /api/brands\ncookie: COOKIE\n+cookie: COOKIE", status: 401},
	}
	var wg sync.WaitGroup
	for i, row := range rows {
		wg.Go(func() {
			id := fmt.Sprint("odd-", i)
			named := strings.NewReplacer("KEY", key, "COOKIE", cookie, "ID", id)
			var status int
			if row.raw != "" {
				status = s.sendRaw(t, named.Replace(row.raw))
			} else {
				status = s.sendFields(t, named.Replace("x-api-key: KEY\nx-test-id: ID\n"+row.fields), row.bytes)
			}
			seen, arrived := s.upstream.take(id)
			if status != row.status || arrived && row.seen != "?" && seen.target != row.seen || !arrived && row.seen != "" && row.seen != "?" {
				t.Errorf("%s: %d, the upstream saw %q; want %d, %q", row.name, status, seen.target, row.status, row.seen)
			}
			if user := seen.header.Values("X-Keyporter-User"); arrived && !slices.Equal(user, []string{"ada"}) {
				t.Errorf("%s: the upstream saw the user %q", row.name, user)
			}
			if text := fmt.Sprint(seen); strings.Contains(text, key) || strings.Contains(text, cookie) {
				t.Errorf("%s: the upstream saw %s", row.name, text)
			}
		})
	}
	wg.Wait()
	if stray, arrived := s.upstream.take(""); arrived {
		t.Errorf("the upstream saw a request that nobody has sent: %v", stray)
	}
}

// sendRaw sends bytes and returns the status of the first answer, or 0 for none.
func (s *stack) sendRaw(t *testing.T, bytes string) int {
	conn, err := net.Dial("tcp", s.front)
	if err != nil {
		t.Error(err)
		return 0
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	io.WriteString(conn, bytes)
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0
	}
	io.Copy(io.Discard, answer.Body)
	return answer.StatusCode
}

// sendFields sends an HTTP/2 request with the fields of a good one, replaced by the given lines; a
// line with a leading plus adds a field. It returns the status, or 0 for none.
func (s *stack) sendFields(t *testing.T, lines, body string) (status int) {
	fields := [][2]string{{":method", "GET"}, {":scheme", "http"}, {":path", "/api/v1/brands"}, {":authority", "a"}}
	for line := range strings.SplitSeq(strings.Trim(lines, "\n"), "\n") {
		rest, beside := strings.CutPrefix(line, "+")
		colon := strings.LastIndex(rest, ": ")
		if strings.HasPrefix(rest, ":path: ") || strings.HasPrefix(rest, ":scheme: ") || strings.HasPrefix(rest, "x-other: ") {
			colon = 1 + strings.Index(rest[1:], ": ")
		}
		field := [2]string{rest[:colon], rest[colon+2:]}
		if i := slices.IndexFunc(fields, func(f [2]string) bool { return f[0] == field[0] }); i >= 0 && !beside {
			fields[i] = field
			continue
		}
		at := len(fields)
		if field[0][0] == ':' {
			at = 4 // before all ordinary fields
		}
		fields = slices.Insert(fields, at, field)
	}
	conn, err := net.Dial("tcp", s.front)
	if err != nil {
		t.Error(err)
		return 0
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	io.WriteString(conn, http2.ClientPreface)
	framer := http2.NewFramer(conn, conn)
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	framer.WriteSettings()
	var block bytes.Buffer
	headers := hpack.NewEncoder(&block)
	for _, f := range fields {
		headers.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: body == ""})
	if body != "" {
		framer.WriteData(1, true, []byte(body))
	}
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			return status
		}
		switch frame := frame.(type) {
		case *http2.MetaHeadersFrame:
			fmt.Sscan(frame.PseudoValue("status"), &status)
		case *http2.RSTStreamFrame, *http2.GoAwayFrame:
			return status
		}
		if h := frame.Header(); h.StreamID == 1 && h.Flags.Has(http2.FlagDataEndStream) {
			return cmp.Or(status, 0)
		}
	}
}

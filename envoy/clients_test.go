package envoy_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/bearer"
	"github.com/keyporter/keyporter/envoy"
)

// Harmless oddities of clients are accepted, behind a real Envoy with the generated configuration.
func TestOddClientsAreServed(t *testing.T) {
	p := startProxy(t, envoy.Config{}, bearer.Token{})
	t.Run("a header with an underscore in its name is dropped", p.dropsUnderscores)
	t.Run("a wish to change the protocol is ignored", p.ignoresUpgrades)
	t.Run("who asks whether to send the body is told before", p.passesExpectations)
	t.Run("HTTP/1.0 is spoken", p.speaksHTTP10)
	t.Run("HTTP/1.0 has no Transfer-Encoding", p.endsHTTP10WithChunks)
}

// Many libraries send such a header without their user's knowledge; and an upstream that reads
// x_keyporter_user as x-keyporter-user must not get it.
func (p *proxy) dropsUnderscores(t *testing.T) {
	for _, name := range []string{
		"ot-baggage-sentry-trace_id", "x_keyporter_user", "x-keyporter_user", "X_KEYPORTER-USER", "x_api_key", "x-api_key", "_", "x_request_id",
	} {
		for _, protocol := range protocols {
			if got := p.get(t, protocol, "/api/v1/brands", name+": mallory"); got != 200 {
				t.Errorf("%s by %s: %d, want 200", name, protocol, got)
				continue
			}
			for seen, values := range p.upstream.take().Header {
				if strings.Contains(seen, "_") || strings.Contains(strings.Join(values, " "), "mallory") {
					t.Errorf("%s by %s: the upstream saw %s: %q", name, protocol, seen, values)
				}
			}
		}
	}
}

// A client offers another protocol, and continues with its own if nobody takes the offer. HTTP/2
// has no such header.
func (p *proxy) ignoresUpgrades(t *testing.T) {
	for _, lines := range [][]string{
		{"TLS/1.2"}, {"tls/1.0, HTTP/2.0"}, {"TLS/1.3", "websocket"}, {"h2c"}, {"H2C"}, {"websocket"}, {"WebSocket"}, {"websocket, h2c"}, {"made-up/7"}, {""}, {","},
	} {
		headers := []string{"connection: Upgrade, HTTP2-Settings", "http2-settings: AAMAAABkAAQAoAAAAAIAAAAA", "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ=="}
		for _, line := range lines {
			headers = append(headers, "upgrade: "+line)
		}
		if got := p.get(t, "HTTP/1.1", "/api/v1/brands", headers...); got != 200 {
			t.Errorf("%q: %d, want 200", lines, got)
			continue
		}
		if seen := p.upstream.take().Header; seen.Get("upgrade") != "" || seen.Get("connection") != "" {
			t.Errorf("%q: the upstream saw %v", lines, seen)
		}
	}
}

// A client that waits for 100-continue before it sends its body is refused before it has sent it;
// else it gets the upstream's answer.
func (p *proxy) passesExpectations(t *testing.T) {
	p.upstream.answers(expecting)
	defer p.upstream.answers(nil)
	for _, row := range []struct {
		name, target, key string
		continues         bool // the client is told to go on
		status            int
	}{
		{"a bad key", "/api/v1/brands", "wrong", false, 401},
		{"a good key", "/api/v1/brands/reads", p.key.Reveal(), true, 200},
		{"an upstream that does not know of it", "/api/v1/brands/ignores", p.key.Reveal(), false, 200},
		{"an upstream that refuses it", "/api/v1/brands/refuses", p.key.Reveal(), false, 417},
	} {
		for _, protocol := range protocols {
			told, status := p.expect(t, protocol, row.target, row.key)
			if told != row.continues || status != row.status {
				t.Errorf("%s by %s: told to go on: %v, then %d; want %v, %d", row.name, protocol, told, status, row.continues, row.status)
			}
			p.upstream.take()
		}
	}
	p.page.answers(expecting)
	defer p.page.answers(nil)
	for _, row := range []struct {
		name, target, session string
		continues             bool
		status                int
	}{
		{"a user of the page", "/api/-/reads", p.key.Reveal(), true, 200},
		{"nobody's", "/api/-/reads", "", false, 401},
		{"a form that is open to everybody", "/api/-/login", "", false, 417},
	} {
		for _, protocol := range protocols {
			told, status := p.expect(t, protocol, row.target, "", "Cookie", authz.SessionCookie+"="+row.session)
			if told != row.continues || status != row.status {
				t.Errorf("%s by %s: told to go on: %v, then %d; want %v, %d", row.name, protocol, told, status, row.continues, row.status)
			}
		}
	}
}

// expecting answers as the end of a path says.
func expecting(w http.ResponseWriter, r *http.Request) {
	switch path.Base(r.URL.Path) {
	case "reads":
		if body, err := io.ReadAll(r.Body); string(body) != "hello" {
			w.WriteHeader(500)
			fmt.Fprint(w, body, err)
		}
	case "ignores":
		conn, both, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		body := make([]byte, len("hello"))
		if _, err := io.ReadFull(both, body); err == nil {
			fmt.Fprint(conn, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
		}
	case "refuses":
		w.WriteHeader(http.StatusExpectationFailed)
	}
}

// expect sends a request with Expect: 100-continue and a body. It reports whether 100-continue came
// before the body was sent, and the status of the answer.
func (p *proxy) expect(t *testing.T, protocol, target, key string, header ...string) (told bool, status int) {
	t.Helper()
	transport := &http.Transport{Protocols: speaks(protocol), ExpectContinueTimeout: 10 * time.Second}
	if path.Base(target) == "ignores" {
		transport.ExpectContinueTimeout = 100 * time.Millisecond
	}
	defer transport.CloseIdleConnections()
	var came, before atomic.Bool
	trace := &httptrace.ClientTrace{Got100Continue: func() { came.Store(true) }}
	body := io.MultiReader(readerFunc(func([]byte) (int, error) { before.Store(came.Load()); return 0, io.EOF }), strings.NewReader("hello"))
	r, err := http.NewRequestWithContext(httptrace.WithClientTrace(t.Context(), trace), http.MethodPost, "http://"+p.addr+target, body)
	if err != nil {
		t.Fatal(err)
	}
	r.ContentLength = int64(len("hello"))
	r.Header.Set("X-API-Key", key)
	r.Header.Set("Expect", "100-continue")
	for pair := range slices.Chunk(header, 2) {
		r.Header.Set(pair[0], pair[1])
	}
	answer, err := transport.RoundTrip(r)
	if err != nil {
		t.Errorf("%s by %s: %v", target, protocol, err)
		return false, 0
	}
	defer answer.Body.Close()
	if _, err := io.Copy(io.Discard, answer.Body); err != nil {
		t.Error(err)
	}
	return before.Load(), answer.StatusCode
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// Scripts, probes and old libraries speak HTTP/1.0, with Host and without.
func (p *proxy) speaksHTTP10(t *testing.T) {
	key := "x-api-key: " + p.key.Reveal()
	for _, row := range []struct {
		name    string
		request string // line, headers and body
		answers []int  // to the request, sent twice on one connection
		host    string // seen by the upstream
	}{
		{"with Host", request("GET", "Host: api.example", key), []int{200}, "api.example"},
		{"without Host", request("GET", key), []int{200}, "no-host.invalid"},
		{"keep-alive", request("GET", "Connection: keep-alive", "Host: api.example", key), []int{200, 200}, "api.example"},
		{"keep-alive, without Host", request("GET", "Connection: Keep-Alive", key), []int{200, 200}, "no-host.invalid"},
		{"with a body", request("POST", "Connection: keep-alive", "Content-Length: 5", key) + "hello", []int{200, 200}, "no-host.invalid"},
		{"a body that waits for a word, which HTTP/1.0 does not have", request("POST", "Expect: 100-continue", "Content-Length: 5", key) + "hello", []int{200}, "no-host.invalid"},
		{"a bad key", request("GET", "Connection: keep-alive", "x-api-key: wrong"), []int{401, 401}, ""},
		{"a bad key and a body that waits", request("POST", "Expect: 100-continue", "Content-Length: 5", "x-api-key: wrong"), []int{401}, ""},
	} {
		if got := p.statuses(t, row.request+row.request); !slices.Equal(got, row.answers) {
			t.Errorf("%s: %d, want %d", row.name, got, row.answers)
		}
		if seen := p.upstream.take(); (seen != nil) != (row.host != "") || seen != nil && seen.Host != row.host {
			t.Errorf("%s: the upstream saw %v, want the host %q", row.name, seen, row.host)
		}
	}
}

// An HTTP/1.0 server in between does not know chunks and may see another request in them (RFC 9112,
// 6.1): such a request is refused, and nothing that follows on the connection is served.
func (p *proxy) endsHTTP10WithChunks(t *testing.T) {
	key := "x-api-key: " + p.key.Reveal()
	next := request("GET", "Connection: keep-alive", key)
	var asking sync.WaitGroup
	for _, row := range []struct{ name, request string }{
		{"keep-alive", request("POST", "Transfer-Encoding: chunked", "Connection: keep-alive", key) + "0\r\n\r\n"},
		{"with Host", request("POST", "Host: api.example", "transfer-encoding: Chunked", "Connection: keep-alive", key) + "5\r\nhello\r\n0\r\n\r\n"},
		{"GET", request("GET", "Transfer-Encoding: chunked", "Connection: keep-alive", key) + "0\r\n\r\n"},
		{"a length too", request("POST", "Transfer-Encoding: chunked", "Content-Length: 5", "Connection: keep-alive", key) + "0\r\n\r\n"},
		{"another coding", request("POST", "Transfer-Encoding: identity", "Connection: keep-alive", key)},
		{"two codings", request("POST", "Transfer-Encoding: gzip, chunked", "Connection: keep-alive", key) + "0\r\n\r\n"},
		{"without a key", request("POST", "Transfer-Encoding: chunked", "Connection: keep-alive") + "0\r\n\r\n"},
		{"while the rest is still to come", request("POST", "Transfer-Encoding: chunked", "Connection: keep-alive", key)},
	} {
		asking.Go(func() { // concurrently, because Envoy takes a second to end each connection
			if got := p.statuses(t, row.request+next); !slices.Equal(got, []int{400}) {
				t.Errorf("%s: %d, want 400 and no more", row.name, got)
			}
		})
	}
	asking.Wait()
	if p.upstream.take() != nil {
		t.Error("the upstream was asked")
	}
	// Only Envoy itself may set these.
	for _, header := range []string{"x-keyporter-refused: 1", "x-keyporter-expect: mallory"} {
		for _, protocol := range protocols {
			if got := p.get(t, protocol, "/api/v1/brands", header); got != 200 {
				t.Errorf("%s by %s: %d, want 200", header, protocol, got)
			}
			for name, values := range p.upstream.take().Header {
				if name == "Expect" || strings.HasPrefix(name, "X-Keyporter-R") {
					t.Errorf("%s by %s: the upstream saw %s: %q", header, protocol, name, values)
				}
			}
		}
	}
}

// request returns a request of HTTP/1.0, without its body.
func request(method string, headers ...string) string {
	return method + " /api/v1/brands HTTP/1.0\r\n" + strings.Join(headers, "\r\n") + "\r\n\r\n"
}

// statuses sends requests on one connection, and returns the statuses of the answers before Envoy
// ends it. One more request, which ends every connection, is not counted.
func (p *proxy) statuses(t *testing.T, text string) (all []int) {
	t.Helper()
	conn, err := net.Dial("tcp", p.addr)
	if err != nil {
		t.Error(err)
		return nil
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	const last = "GET /nowhere HTTP/1.0\r\n\r\n"
	if _, err := io.WriteString(conn, text+last); err != nil {
		t.Error(err)
	}
	reader := bufio.NewReader(conn)
	for {
		answer, err := http.ReadResponse(reader, nil)
		if err != nil || answer.StatusCode == http.StatusNotFound {
			return all
		}
		_, _ = io.Copy(io.Discard, answer.Body)
		answer.Body.Close()
		all = append(all, answer.StatusCode)
	}
}

// protocols are the protocols that most clients speak.
var protocols = []string{"HTTP/1.1", "HTTP/2"}

// speaks makes a client of net/http speak one of them.
func speaks(protocol string) *http.Protocols {
	var only http.Protocols
	only.SetHTTP1(protocol == "HTTP/1.1")
	only.SetUnencryptedHTTP2(protocol == "HTTP/2")
	return &only
}

// get sends a request with the good key and returns the status of the answer; 0: there is none.
func (p *proxy) get(t *testing.T, protocol, target string, headers ...string) int {
	t.Helper()
	headers = append(headers, "x-api-key: "+p.key.Reveal())
	if protocol != "HTTP/2" {
		answer, _ := p.send(t, "GET "+target, headers...)
		return answer.StatusCode
	}
	transport := &http.Transport{Protocols: speaks(protocol)}
	defer transport.CloseIdleConnections()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+p.addr+target, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range headers {
		name, value, _ := strings.Cut(line, ": ")
		r.Header[name] = append(r.Header[name], value)
	}
	answer, err := transport.RoundTrip(r)
	if err != nil {
		return 0 // the stream was reset
	}
	defer answer.Body.Close()
	if _, err := io.Copy(io.Discard, answer.Body); err != nil {
		t.Error(err)
	}
	return answer.StatusCode
}

package envoy_test

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/keyporter/keyporter/envoy"
)

// What clients send without meaning to be odd does not turn them away, behind a real Envoy with the
// generated configuration.
func TestOddClientsAreServed(t *testing.T) {
	p := startProxy(t, envoy.Config{}, envoy.Token{})
	t.Run("a header with an underscore in its name is dropped", p.dropsUnderscores)
	t.Run("a wish to change the protocol is ignored", p.ignoresUpgrades)
}

// Many a library sends such a header without its user's knowledge; and an upstream that reads x_keyporter_user
// as x-keyporter-user must not get it.
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

// A client offers another protocol, and goes on with the one that it speaks where nobody takes the offer. HTTP/2
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

// protocols are those that most clients speak.
var protocols = []string{"HTTP/1.1", "HTTP/2"}

// get sends a request with the good key and returns the status of the answer; 0: there is none.
func (p *proxy) get(t *testing.T, protocol, target string, headers ...string) int {
	t.Helper()
	headers = append(headers, "x-api-key: "+p.key.Reveal())
	if protocol != "HTTP/2" {
		answer, _ := p.send(t, "GET "+target, headers...)
		return answer.StatusCode
	}
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: &protocols}
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

package envoy_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/keyporter/keyporter/bearer"
	"github.com/keyporter/keyporter/envoy/bootstrap"
)

// overHTTP is HTTP/1.1, or HTTP/2 without TLS.
func overHTTP(http2 bool) *http.Protocols {
	var p http.Protocols
	p.SetHTTP1(!http2)
	p.SetUnencryptedHTTP2(http2)
	return &p
}

// get asks for /api/v1/brands/what by a protocol, and returns the status and the body.
func get(t *testing.T, addr, what string, http2 bool) (int, string) {
	t.Helper()
	transport := &http.Transport{Protocols: overHTTP(http2)}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: time.Minute}
	answer, err := client.Get("http://" + addr + "/api/v1/brands/" + what)
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return 0, ""
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Errorf("%s: %v", what, err)
	}
	return answer.StatusCode, string(body)
}

// tellsProtocol answers with the protocol of the request, after the TLS server name.
func tellsProtocol(w http.ResponseWriter, r *http.Request) {
	if r.TLS != nil {
		fmt.Fprint(w, r.TLS.ServerName, " ")
	}
	fmt.Fprint(w, r.Proto)
}

// Clients of HTTP/1.1 and HTTP/2 reach upstreams of each scheme, whatever those speak.
func TestUpstreamsOfEachScheme(t *testing.T) {
	s := startTeller(t, bearer.Token{})
	for scheme, want := range map[string]string{"": "HTTP/1.1", "http://": "HTTP/1.1", "unix://": "HTTP/1.1", "h2c://": "HTTP/2.0"} {
		network, at := "tcp", "127.0.0.1:0"
		if scheme == "unix://" {
			dir, err := os.MkdirTemp("", "keyporter-") // t.TempDir may be too long for a socket
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(dir) })
			network, at = "unix", filepath.Join(dir, "s")
		}
		listener, err := net.Listen(network, at)
		if err != nil {
			t.Fatal(err)
		}
		server := &http.Server{Handler: http.HandlerFunc(tellsProtocol), Protocols: overHTTP(scheme == "h2c://")}
		go server.Serve(listener)
		t.Cleanup(func() { server.Close() })
		_, addr := s.startEnvoyWith(t, bootstrap.Config{Upstream: scheme + listener.Addr().String()})
		for _, http2 := range []bool{false, true} {
			if status, body := get(t, addr, "x", http2); status != 200 || body != want {
				t.Errorf("%q, a client of HTTP/2: %v: %d %s, want 200 %s", scheme, http2, status, body, want)
			}
		}
	}
}

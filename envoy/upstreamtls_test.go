package envoy_test

import (
	"bytes"
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/bearer"
	"github.com/keyporter/keyporter/envoy/bootstrap"
	"github.com/keyporter/keyporter/internal/parts"
	"github.com/keyporter/keyporter/internal/parts/partstest"
	"github.com/keyporter/keyporter/usage"
)

// authority signs certificates.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	file        string
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{file: filepath.Join(t.TempDir(), "ca.pem")}
	made := a.issue(t, &x509.Certificate{Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	a.key = made.PrivateKey.(*ecdsa.PrivateKey)
	a.certificate = made.Leaf
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: made.Certificate[0]})
	if err := os.WriteFile(a.file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return a
}

// issue completes c and signs it: by itself, if a has no certificate yet.
func (a *authority) issue(t *testing.T, c *x509.Certificate) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c.SerialNumber = big.NewInt(time.Now().UnixNano())
	if c.NotBefore.IsZero() {
		c.NotBefore = time.Now().Add(-time.Hour)
	}
	if c.NotAfter.IsZero() {
		c.NotAfter = time.Now().Add(time.Hour)
	}
	parent, signer := c, key
	if a.certificate != nil {
		parent, signer = a.certificate, a.key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// certified is an https upstream with a certificate and protocols that the test changes.
type certified struct {
	*httptest.Server
	config atomic.Pointer[tls.Config]
}

func startCertified(t *testing.T) *certified {
	t.Helper()
	u := &certified{}
	u.Server = httptest.NewUnstartedServer(http.HandlerFunc(tellsProtocol))
	u.Config.ErrorLog = log.New(io.Discard, "", 0) // most of the handshakes are meant to fail
	u.EnableHTTP2 = true
	u.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return u.config.Load(), nil }}
	u.StartTLS()
	t.Cleanup(u.Close)
	return u
}

// shows makes u present a certificate to new connections, and speak some protocols.
func (u *certified) shows(c *tls.Certificate, protocols ...string) {
	u.config.Store(&tls.Config{Certificates: []tls.Certificate{*c}, NextProtos: protocols, SessionTicketsDisabled: true})
	u.CloseClientConnections()
}

// counter reads one of Envoy's counters for the upstream.
func counter(t *testing.T, e *parts.Envoy, name string) int {
	t.Helper()
	answer, err := http.Get("http://" + e.Admin() + "/stats?filter=" + url.QueryEscape("^cluster.upstream."+name+"$"))
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	_, number, _ := bytes.Cut(bytes.TrimSpace(text), []byte(": "))
	n, err := strconv.Atoi(string(number))
	if err != nil {
		t.Fatalf("%s: %q", name, text)
	}
	return n
}

// An https upstream gets a request only if its certificate is signed by a trusted authority, for
// its name and in time; else the client reads 503 with our body, and the charge is refunded.
func TestOnlyAVerifiedUpstreamIsAsked(t *testing.T) {
	partstest.Slow(t)
	s, trusted, other := startTeller(t, bearer.Token{}), newAuthority(t), newAuthority(t)
	upstream := startCertified(t)
	_, port, _ := net.SplitHostPort(upstream.Listener.Addr().String())
	type row struct {
		name        string
		by          *authority
		certificate x509.Certificate
		fails       string // Envoy's counter; "": it is good
	}
	named := x509.Certificate{DNSNames: []string{"api.example.test"}}
	past, future := named, named
	past.NotAfter, future.NotBefore = time.Now().Add(-time.Minute), time.Now().Add(time.Minute)
	forClients := named
	forClients.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	ip := func(addresses ...string) (c x509.Certificate) {
		for _, a := range addresses {
			c.IPAddresses = append(c.IPAddresses, net.ParseIP(a))
		}
		return c
	}
	for i, table := range []struct {
		host string
		sni  string
		rows []row
	}{
		{"api.example.test", "api.example.test ", []row{
			{"of another authority", other, named, "ssl.fail_verify_error"},
			{"of nobody else", &authority{}, named, "ssl.fail_verify_error"},
			{"of the past", trusted, past, "ssl.fail_verify_error"},
			{"of the future", trusted, future, "ssl.fail_verify_error"},
			{"for clients", trusted, forClients, "ssl.fail_verify_error"},
			{"for another name", trusted, x509.Certificate{DNSNames: []string{"www.example.test", "example.test", "api.example.test.evil.test"}}, "ssl.fail_verify_san"},
			{"for the address", trusted, ip("127.0.0.1"), "ssl.fail_verify_san"},
			{"without the form of today", trusted, x509.Certificate{Subject: pkix.Name{CommonName: "api.example.test"}}, "ssl.fail_verify_san"},
			{"right", trusted, named, ""},
			{"for one of several names", trusted, x509.Certificate{DNSNames: []string{"www.example.test", "API.Example.test"}}, ""},
			{"for all names", trusted, x509.Certificate{DNSNames: []string{"*.example.test"}}, ""},
		}},
		{"127.0.0.1", " ", []row{
			{"for a name", trusted, x509.Certificate{DNSNames: []string{"localhost", "127.0.0.1"}}, "ssl.fail_verify_san"},
			{"for another address", trusted, ip("127.0.0.2"), "ssl.fail_verify_san"},
			{"right", trusted, ip("127.0.0.2", "127.0.0.1"), ""},
		}},
		{"[FD00:0::1]", " ", []row{
			{"for another address", trusted, ip("fd00::2"), "ssl.fail_verify_san"},
			{"right", trusted, ip("fd00::1"), ""},
		}},
	} {
		var changes, refused []string
		if table.host != "127.0.0.1" {
			changes = []string{fmt.Sprintf("address: %q, port_value: %s", strings.Trim(table.host, "[]"), port), "address: 127.0.0.1, port_value: " + port}
		}
		proxy, addr := s.startEnvoyWith(t, bootstrap.Config{Upstream: "https://" + table.host + ":" + port, UpstreamCAFile: trusted.file}, changes...)
		for j, row := range table.rows {
			upstream.shows(row.by.issue(t, &row.certificate), "h2", "http/1.1")
			partstest.Eventually(t, "the end of the connections to the upstream", func() bool { return counter(t, proxy, "upstream_cx_active") == 0 })
			what, failed := fmt.Sprint(i, ".", j), counter(t, proxy, cmp.Or(row.fails, "ssl.handshake"))
			status, body := get(t, addr, what, false)
			if row.fails == "" {
				if status != 200 || body != table.sni+"HTTP/2.0" {
					t.Errorf("%s, %s: %d %s", table.host, row.name, status, body)
				}
				continue
			}
			if status != 503 || body != authz.Undecided.Outcome().Body() {
				t.Errorf("%s, %s: %d %s, want 503", table.host, row.name, status, body)
			}
			if counter(t, proxy, row.fails) == failed {
				t.Errorf("%s, %s: refused for another reason", table.host, row.name)
			}
			refused = append(refused, what)
		}
		for _, what := range refused {
			s.expect(t, what, 503, usage.NoAnswer)
		}
	}
}

// Through TLS the upstream chooses the version of HTTP; and verification can be switched off.
func TestAnUpstreamThatIsNotVerified(t *testing.T) {
	s, upstream := startTeller(t, bearer.Token{}), startCertified(t)
	_, port, _ := net.SplitHostPort(upstream.Listener.Addr().String())
	proxy, addr := s.startEnvoyWith(t, bootstrap.Config{Upstream: "https://localhost:" + port, UpstreamInsecure: true})
	wrong := (&authority{}).issue(t, &x509.Certificate{DNSNames: []string{"example.test"}, NotAfter: time.Now().Add(-time.Minute)})
	for _, row := range []struct {
		speaks []string
		want   string
	}{
		{[]string{"h2", "http/1.1"}, "localhost HTTP/2.0"},
		{[]string{"h2"}, "localhost HTTP/2.0"},
		{[]string{"http/1.1"}, "localhost HTTP/1.1"},
		{nil, "localhost HTTP/1.1"},
	} {
		upstream.shows(wrong, row.speaks...)
		partstest.Eventually(t, "the end of the connections to the upstream", func() bool { return counter(t, proxy, "upstream_cx_active") == 0 })
		for _, http2 := range []bool{false, true} {
			if status, body := get(t, addr, "x", http2); status != 200 || body != row.want {
				t.Errorf("an upstream of %q, a client of HTTP/2: %v: %d %s, want 200 %s", row.speaks, http2, status, body, row.want)
			}
		}
	}
}

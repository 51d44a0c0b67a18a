package e2e_test

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	tlscredentials "google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// Names in certificates.
const (
	nameOfKeyporter = "keyporter.internal"
	idOfEnvoy       = "spiffe://example.org/ns/edge/sa/envoy"
)

// mutualTLS is the certificates of a stack in which Envoy and Keyporter know each other by them.
type mutualTLS struct {
	authority *partstest.Authority
	ours      partstest.CertificateFiles // Keyporter's
	envoys    partstest.CertificateFiles
	secrets   string // the folder for Envoy
}

func newMutualTLS(t *testing.T) *mutualTLS {
	t.Helper()
	a := partstest.NewAuthority(t)
	return &mutualTLS{a, partstest.NewCertificateFiles(t, a.For(t, nameOfKeyporter), a), partstest.NewCertificateFiles(t, a.For(t, idOfEnvoy), a), t.TempDir()}
}

// ofService are the flags of the service.
func (m *mutualTLS) ofService() (flags []string) {
	for _, port := range []string{"grpc", "http"} {
		flags = append(flags, "--"+port+"-tls-cert", m.ours.Cert, "--"+port+"-tls-key", m.ours.Key,
			"--"+port+"-tls-client-ca", m.ours.CA, "--"+port+"-tls-client-names", "spiffe://example.org/ns/edge/*")
	}
	return flags
}

// ofEnvoy are the flags of keyporter envoy.
func (m *mutualTLS) ofEnvoy() []string {
	return []string{"--authz-tls-ca", m.envoys.CA, "--authz-tls-cert", m.envoys.Cert, "--authz-tls-key", m.envoys.Key, "--authz-tls-name", nameOfKeyporter,
		"--page-tls", "--page-tls-name", nameOfKeyporter, "--tls-secrets", m.secrets}
}

// start starts a stack with mutual TLS between Envoy and Keyporter.
func (m *mutualTLS) start(t *testing.T, flags ...string) *stack {
	t.Helper()
	s := start(t, stackConfig{noEnvoy: true, flags: append(append(m.ofService(), flags...), patient...)})
	write(t, filepath.Join(m.secrets, "keyporter-ca.yaml"), s.run("envoy", "secret", "ca", "--authz-tls-ca", m.envoys.CA))
	write(t, filepath.Join(m.secrets, "keyporter-client.yaml"), s.run("envoy", "secret", "client", "--authz-tls-cert", m.envoys.Cert, "--authz-tls-key", m.envoys.Key))
	s.startEnvoy(m.ofEnvoy()...)
	return s
}

// Behind an Envoy with a certificate all works as without TLS. Everybody else is refused by the
// gRPC port: nobody gets an answer to a Check.
func TestMutualTLSThroughEnvoy(t *testing.T) {
	partstest.Slow(t)
	t.Parallel()
	for _, transport := range []string{"fast", "grpc"} {
		t.Run(transport, func(t *testing.T) {
			t.Parallel()
			m := newMutualTLS(t)
			s := m.start(t, "--transport", transport)
			key := s.user("ada", "pro")
			partstest.Eventually(t, "a request passes", func() bool {
				a := s.send(request{target: "/api/v1/brands", header: []string{"x-api-key: " + key}})
				return a.status == 200
			})
			if a := s.send(request{target: "/api/v1/brands"}); a.status != 401 {
				t.Errorf("without a key: %d", a.status)
			}
			if a := s.send(request{target: "/api", header: []string{"cookie: " + s.session("ada")}}); a.status != 200 || !strings.Contains(a.body, "ada") {
				t.Errorf("the page: %d", a.status)
			}
			m.refused(t, s.replicas[0].grpc)
		})
	}
}

// refused asks a gRPC port as other callers than Envoy.
func (m *mutualTLS) refused(t *testing.T, address string) {
	t.Helper()
	other := partstest.NewAuthority(t)
	expired := partstest.Named(t, idOfEnvoy)
	expired.NotAfter = time.Now().Add(-time.Minute)
	with := func(own ...tls.Certificate) tlscredentials.TransportCredentials {
		return tlscredentials.NewTLS(&tls.Config{RootCAs: m.authority.Pool(), ServerName: nameOfKeyporter, Certificates: own})
	}
	for _, row := range []struct {
		what    string
		by      tlscredentials.TransportCredentials
		allowed bool
	}{
		{"a caller with an accepted certificate", with(m.authority.For(t, "spiffe://example.org/ns/edge/sa/other")), true},
		{"a caller without a certificate", with(), false},
		{"a caller of another authority", with(other.For(t, idOfEnvoy)), false},
		{"a caller with another name", with(m.authority.For(t, "spiffe://example.org/ns/shop/sa/web")), false},
		{"a caller with an expired certificate", with(m.authority.Issue(t, expired)), false},
		{"a caller without TLS", insecure.NewCredentials(), false},
	} {
		conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(row.by))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		_, err = authv3.NewAuthorizationClient(conn).Check(ctx, &authv3.CheckRequest{})
		if (err == nil) != row.allowed {
			t.Errorf("%s: %v", row.what, err)
		}
		cancel()
		conn.Close()
	}
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	if answer, _ := io.ReadAll(conn); strings.Contains(string(answer), "HTTP/1.") {
		t.Errorf("HTTP without TLS is answered %q", answer)
	}
}

// All certificates of both sides, and their authority, are replaced under load, and no request
// fails: first both authorities are trusted, then the certificates change, then the old authority
// goes.
func TestCertificatesAreReplacedUnderLoad(t *testing.T) {
	partstest.Slow(t)
	t.Parallel()
	m := newMutualTLS(t)
	s := m.start(t, "--transport", "fast")
	key, cookie := s.user("ada", "pro"), s.session("ada")
	load := &load{t: t, s: s, key: key}
	partstest.Eventually(t, "a request passes", func() bool { status, err := s.get("/api/v1/brands", key); return err == nil && status == 200 })
	load.start(4)
	defer load.end()
	page := func() {
		t.Helper()
		if a := s.send(request{target: "/api", header: []string{"cookie: " + cookie}}); a.status != 200 {
			t.Errorf("the page: %d", a.status)
		}
	}
	before, after := m.authority, partstest.NewAuthority(t)
	ours, envoys := before.For(t, nameOfKeyporter), before.For(t, idOfEnvoy)
	step := func(trusted ...*partstest.Authority) {
		t.Helper()
		page()
		m.ours.Write(t, ours, trusted...)
		m.envoys.Write(t, envoys, trusted...)
		time.Sleep(4 * time.Second) // the service reads its files twice
		page()
	}
	step(before, after)
	ours, envoys = after.For(t, nameOfKeyporter), after.For(t, idOfEnvoy)
	step(before, after)
	step(after)
	load.end()
	t.Logf("%d requests", load.sent.Load())
	if load.failed.Load() > 0 || load.sent.Load() < 100 {
		t.Errorf("%d of %d requests failed", load.failed.Load(), load.sent.Load())
	}
	m.authority = after
	m.refused(t, s.replicas[0].grpc)
	log := s.replicas[0].process.Output()
	if n := strings.Count(log, "new TLS files are in use"); n < 6 {
		t.Errorf("new files were in use %d times, want 3 for each of two ports", n)
	}
	// Envoy's connections by its first certificate were asked to go when the old authority went.
	if _, metrics, err := get("http://" + s.replicas[0].ops + "/metrics"); err != nil || strings.Contains(metrics, `keyporter_tls_reloads_total{port="grpc",result="refused"} 1`) {
		t.Errorf("the files were refused: %v", err)
	}
}

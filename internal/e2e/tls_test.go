package e2e_test

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
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

// A caller of the operators' API is known by its certificate, if it sends no token, and has the
// scopes of its line. The other ports serve over TLS too.
func TestOperatorsAreKnownByTheirCertificates(t *testing.T) {
	t.Parallel()
	a, other := partstest.NewAuthority(t), partstest.NewAuthority(t)
	files := partstest.NewCertificateFiles(t, a.For(t, nameOfKeyporter), a)
	operators := &administered{tokens: filepath.Join(t.TempDir(), "admin.tokens"), apis: []string{address(t)}}
	operators.admit(t, operatorToken)
	write(t, operators.tokens, "billing: san=spiffe://example.org/billing read\n"+file(t, operators.tokens))
	settle, token := address(t), filepath.Join(t.TempDir(), "settle.token")
	write(t, token, operatorToken)
	flags := append(operators.flags(0), "--listen-settle", settle, "--settle-token-file", token, "--admin-tls-client-ca", files.CA)
	for _, port := range []string{"admin", "settle", "ops", "http"} {
		flags = append(flags, "--"+port+"-tls-cert", files.Cert, "--"+port+"-tls-key", files.Key)
	}
	s := start(t, stackConfig{noEnvoy: true, flags: flags})
	expired := partstest.Named(t, "spiffe://example.org/billing")
	expired.NotAfter = time.Now().Add(-time.Minute)
	ask := func(own *tls.Certificate, method, url, token string) int {
		c := &tls.Config{RootCAs: a.Pool(), ServerName: nameOfKeyporter}
		if own != nil {
			c.Certificates = []tls.Certificate{*own}
		}
		var body io.Reader
		if method != "GET" {
			body = strings.NewReader("{}")
		}
		r, err := http.NewRequestWithContext(t.Context(), method, url, body)
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		r.Header.Set("Content-Type", "application/json")
		response, err := (&http.Transport{TLSClientConfig: c, DisableKeepAlives: true}).RoundTrip(r)
		if err != nil {
			return 0
		}
		response.Body.Close()
		return response.StatusCode
	}
	listed, unlisted := a.For(t, "spiffe://example.org/billing"), a.For(t, "spiffe://example.org/shop")
	foreign, late := other.For(t, "spiffe://example.org/billing"), a.Issue(t, expired)
	api := "https://" + operators.apis[0] + "/v1/plans"
	for _, row := range []struct {
		what   string
		own    *tls.Certificate
		method string
		url    string
		token  string
		want   int // 0: no connection
	}{
		{"a listed certificate, within its scopes", &listed, "GET", api, "", 200},
		{"a listed certificate, beyond its scopes", &listed, "PUT", api + "/pro", "", 403},
		{"a listed certificate and another caller's token", &listed, "PUT", api + "/pro", operatorToken, 200},
		{"a listed certificate and a wrong token", &listed, "GET", api, operatorToken + "x", 401},
		{"an unlisted certificate", &unlisted, "GET", api, "", 401},
		{"an unlisted certificate and a token", &unlisted, "GET", api, operatorToken, 200},
		{"no certificate and a token", nil, "GET", api, operatorToken, 0},
		{"another authority's certificate", &foreign, "GET", api, operatorToken, 0},
		{"an expired certificate", &late, "GET", api, operatorToken, 0},
		{"no TLS", &listed, "GET", "http://" + operators.apis[0] + "/v1/plans", operatorToken, 0},
		{"the port of metrics", &listed, "GET", "https://" + s.replicas[0].ops + "/v1/plans", operatorToken, 404},
		{"metrics", nil, "GET", "https://" + s.replicas[0].ops + "/metrics", "", 200},
		{"the settle port without its token", nil, "POST", "https://" + settle + "/v1/settle", "", 401},
		{"the page without a session", nil, "GET", "https://" + s.replicas[0].page + "/api", "", 401},
	} {
		if got := ask(row.own, row.method, row.url, row.token); got != row.want {
			t.Errorf("%s: %d, want %d", row.what, got, row.want)
		}
	}
	command := exec.Command(s.program, "healthcheck", "--listen-ops", s.replicas[0].ops, "--ops-tls-cert", files.Cert, "--ops-tls-key", files.Key)
	if out, err := command.CombinedOutput(); err != nil || !strings.Contains(string(out), "ready") {
		t.Errorf("healthcheck: %v\n%s", err, out)
	}
}

// Only the processes of the named users may connect to the Unix socket, whatever its permissions.
func TestTheSocketKnowsItsUsers(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux names the user of a connection")
	}
	t.Parallel()
	for users, allowed := range map[string]bool{"": true, strconv.Itoa(os.Getuid()): true, "54321": false, "54321," + strconv.Itoa(os.Getuid()): true} {
		socket := filepath.Join(t.TempDir(), "authz.sock")
		flags := []string{"--listen-grpc", "unix://" + socket, "--grpc-socket-mode", "600"}
		if users != "" {
			flags = append(flags, "--grpc-socket-users", users)
		}
		start(t, stackConfig{noEnvoy: true, flags: flags})
		if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("the socket's permissions: %v %v", info.Mode(), err)
		}
		conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if _, err = authv3.NewAuthorizationClient(conn).Check(ctx, &authv3.CheckRequest{}); (err == nil) != allowed {
			t.Errorf("users %q: %v", users, err)
		}
	}
}

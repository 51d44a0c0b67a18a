package store_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyporter/keyporter/internal/parts"
	"github.com/keyporter/keyporter/internal/parts/partstest"
	"github.com/keyporter/keyporter/internal/storetest"
	"github.com/keyporter/keyporter/store"
)

// certificate makes a self-signed certificate for localhost and 127.0.0.1, and its key.
func certificate(t *testing.T) (certificate, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})
}

// overwrite replaces the content of a file that a server created, so that the server still owns it.
func overwrite(t *testing.T, server *parts.Postgres, file string, text []byte) {
	t.Helper()
	if _, err := server.SQL(t.Context(), "postgres", fmt.Sprintf(`COPY (SELECT 1) TO '%s'`, file)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(file, text, 0o600), os.Chmod(file, 0o600)); err != nil {
		t.Fatal(err)
	}
}

// tlsDoor terminates TLS in front of a server, with a delay.
func tlsDoor(t *testing.T, server string, public, private []byte, takes time.Duration) (address string) {
	t.Helper()
	pair, err := tls.X509KeyPair(public, private)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	t.Cleanup(func() { l.Close(); all.Wait() })
	pass := func(client net.Conn) {
		defer client.Close()
		time.Sleep(takes)
		if _, err := io.CopyN(io.Discard, client, 8); err != nil { // an SSLRequest
			return
		}
		if _, err := client.Write([]byte("S")); err != nil {
			return
		}
		secure := tls.Server(client, &tls.Config{Certificates: []tls.Certificate{pair}})
		behind, err := net.Dial("tcp", server)
		if err != nil {
			return
		}
		all.Go(func() { io.Copy(secure, behind); client.Close() })
		io.Copy(behind, secure)
		behind.Close()
	}
	all.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { pass(client) })
		}
	})
	return l.Addr().String()
}

// The server is verified over TLS, even if the handshake is slow, and the password and other
// settings come from libpq's usual places.
func TestTLSAndPasswords(t *testing.T) {
	partstest.Slow(t)
	const secret = "canary-password"
	server := partstest.StartPostgres(t, parts.PostgresConfig{})
	data, err := server.SQL(t.Context(), "postgres", `SHOW data_directory`)
	if err != nil {
		t.Fatal(err)
	}
	data = strings.TrimSpace(data)
	public, private := certificate(t)
	overwrite(t, server, filepath.Join(data, "pg_hba.conf"), []byte("local all all trust\nhost all kp all scram-sha-256\nhost all postgres all trust\n"))
	for _, statement := range []string{
		`CREATE ROLE kp LOGIN PASSWORD '` + secret + `'`, `CREATE DATABASE kp OWNER kp`, `SELECT pg_reload_conf()`,
	} {
		if _, err := server.SQL(t.Context(), "postgres", statement); err != nil {
			t.Fatal(err)
		}
	}
	root, other := filepath.Join(t.TempDir(), "root.crt"), filepath.Join(t.TempDir(), "other.crt")
	foreign, _ := certificate(t)
	passwords := filepath.Join(t.TempDir(), "pgpass")
	if err := errors.Join(os.WriteFile(root, public, 0o600), os.WriteFile(other, foreign, 0o600),
		os.WriteFile(passwords, []byte("*:*:kp:kp:"+secret+"\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	door := tlsDoor(t, server.Addr(), public, private, 300*time.Millisecond)
	host, port, _ := strings.Cut(door, ":")
	url := "postgres://kp@" + door + "/kp"
	withPassword := strings.Replace(url, "kp@", "kp:"+secret+"@", 1)

	db := storetest.Open(t, store.Config{URL: withPassword + "?sslmode=verify-full&sslrootcert=" + root})
	keep(t, db)
	for range 20 {
		if err := lookUp(t.Context(), db); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		url         string
		environment map[string]string
		says        string
	}{
		"PGPASSWORD": {url, map[string]string{"PGPASSWORD": secret}, ""},
		"PGPASSFILE": {url, map[string]string{"PGPASSFILE": passwords}, ""},
		"passfile":   {url + "?passfile=" + passwords, nil, ""},
		"PGSSLMODE":  {withPassword, map[string]string{"PGSSLMODE": "verify-full", "PGSSLROOTCERT": root}, ""},
		"all of it": {"postgres://", map[string]string{"PGHOST": host, "PGPORT": port, "PGUSER": "kp", "PGDATABASE": "kp",
			"PGPASSWORD": secret, "PGSSLMODE": "verify-ca", "PGSSLROOTCERT": root}, ""},
		"the URL is stronger":   {withPassword, map[string]string{"PGPASSWORD": "wrong"}, ""},
		"no password":           {url, nil, "password"},
		"a wrong password":      {strings.Replace(url, "kp@", "kp:wrong@", 1), nil, "password authentication failed"},
		"another's certificate": {withPassword + "?sslmode=verify-full&sslrootcert=" + other, nil, "certificate"},
		"PGSSLMODE, wrong":      {url, map[string]string{"PGSSLMODE": "verify_full"}, "PGSSLMODE"},
		"PGCHANNELBINDING":      {url, map[string]string{"PGCHANNELBINDING": "require"}, "PGCHANNELBINDING"},
	} {
		t.Run(name, func(t *testing.T) {
			for name, value := range c.environment {
				t.Setenv(name, value)
			}
			db, err := store.Open(t.Context(), store.Config{URL: c.url})
			if err == nil {
				db.Close()
			}
			if c.says == "" && err != nil || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
				t.Errorf("%v, want %q", err, c.says)
			}
			if err != nil && bytes.Contains([]byte(err.Error()), []byte(secret)) {
				t.Errorf("the password is shown: %v", err)
			}
		})
	}
}

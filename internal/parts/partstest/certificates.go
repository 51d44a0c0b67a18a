package partstest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Authority signs certificates.
type Authority struct {
	Certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// NewAuthority returns a new authority.
func NewAuthority(t testing.TB) *Authority {
	t.Helper()
	a := &Authority{}
	made := a.Issue(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
	a.key, a.Certificate = made.PrivateKey.(*ecdsa.PrivateKey), made.Leaf
	return a
}

// For returns a certificate of a server and caller with these names: DNS names, IP addresses and
// URIs.
func (a *Authority) For(t testing.TB, names ...string) tls.Certificate {
	t.Helper()
	return a.Issue(t, Named(t, names...))
}

// Named returns the unsigned certificate of a server and caller with these names.
func Named(t testing.TB, names ...string) *x509.Certificate {
	t.Helper()
	c := &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			c.IPAddresses = append(c.IPAddresses, ip)
		} else if strings.Contains(name, "://") {
			id, err := url.Parse(name)
			if err != nil {
				t.Fatal(err)
			}
			c.URIs = append(c.URIs, id)
		} else {
			c.DNSNames = append(c.DNSNames, name)
		}
	}
	return c
}

// Issue completes c, valid for an hour before and after now unless it says otherwise, and signs it.
func (a *Authority) Issue(t testing.TB, c *x509.Certificate) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if c.SerialNumber, err = rand.Int(rand.Reader, big.NewInt(1<<62)); err != nil {
		t.Fatal(err)
	}
	if c.NotBefore.IsZero() {
		c.NotBefore = time.Now().Add(-time.Hour)
	}
	if c.NotAfter.IsZero() {
		c.NotAfter = time.Now().Add(time.Hour)
	}
	parent, signer := c, key
	if a.Certificate != nil {
		parent, signer = a.Certificate, a.key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// Pool returns the pool with the authority alone.
func (a *Authority) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.Certificate)
	return pool
}

// CertificateFiles are the names of PEM files, as Kubernetes mounts a secret of a certificate.
type CertificateFiles struct{ Dir, Cert, Key, CA string }

// NewCertificateFiles returns the names of files in a new folder, and writes them.
func NewCertificateFiles(t testing.TB, own tls.Certificate, trusted ...*Authority) CertificateFiles {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "tls")
	f := CertificateFiles{dir, filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"), filepath.Join(dir, "ca.crt")}
	f.Write(t, own, trusted...)
	return f
}

// Write replaces the files at once, as Kubernetes does: they are links through the link ..data, and
// that one is replaced.
func (f CertificateFiles) Write(t testing.TB, own tls.Certificate, trusted ...*Authority) {
	t.Helper()
	check := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	check(os.MkdirAll(f.Dir, 0o755))
	dir, err := os.MkdirTemp(f.Dir, "..2026_")
	check(err)
	check(os.Chmod(dir, 0o755))
	key, err := x509.MarshalPKCS8PrivateKey(own.PrivateKey)
	check(err)
	var authorities []byte
	for _, a := range trusted {
		authorities = append(authorities, PEM("CERTIFICATE", a.Certificate.Raw)...)
	}
	check(os.WriteFile(filepath.Join(dir, "tls.crt"), PEM("CERTIFICATE", own.Certificate...), 0o644))
	check(os.WriteFile(filepath.Join(dir, "tls.key"), PEM("PRIVATE KEY", key), 0o600))
	check(os.WriteFile(filepath.Join(dir, "ca.crt"), authorities, 0o644))
	data, fresh := filepath.Join(f.Dir, "..data"), filepath.Join(f.Dir, "..data_tmp")
	check(os.Symlink(filepath.Base(dir), fresh))
	check(os.Rename(fresh, data))
	for _, name := range []string{f.Cert, f.Key, f.CA} {
		if _, err := os.Lstat(name); err != nil {
			check(os.Symlink(filepath.Join("..data", filepath.Base(name)), name))
		}
	}
}

// PEM encodes blocks.
func PEM(kind string, blocks ...[]byte) (text []byte) {
	for _, block := range blocks {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: block})...)
	}
	return text
}

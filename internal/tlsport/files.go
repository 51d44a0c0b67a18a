// Package tlsport puts TLS on a port: it loads certificates from files and again when these change,
// verifies callers by their certificates, and hands over connections after their handshake. It
// knows nothing of what is spoken on them. internal/service calls it for each port with TLS.
package tlsport

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// Files are the settings of TLS on one port. The zero value is a port without TLS.
type Files struct {
	Cert, Key   string   // PEM: the port's certificate, with those between it and its authority, and its key
	ClientCA    string   // PEM: the authorities that sign the certificates of callers; "": callers show none
	ClientNames []string // what a caller's certificate may be for: see [CheckName]; none: anything
}

// On reports whether the port has TLS.
func (f Files) On() bool { return f.Cert != "" }

// Check returns an error if the files cannot be used, or form half a set. It names what is wrong in
// terms of the settings: --PORT-tls-cert and so on.
func (f Files) Check(port string) error {
	if err := f.Complete(port); err != nil || !f.On() {
		return err
	}
	content, err := f.read()
	if err != nil {
		return fmt.Errorf("--%s-tls-*: %w", port, err)
	}
	if _, err := f.parse(content); err != nil {
		return fmt.Errorf("--%s-tls-*: %w", port, err)
	}
	return nil
}

// Complete returns an error for half a set of settings. It reads no file.
func (f Files) Complete(port string) error {
	var problems []error
	complain := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	switch {
	case f.Cert != "" && f.Key == "":
		complain("--%s-tls-cert: needs --%[1]s-tls-key", port)
	case f.Cert == "" && f.Key != "":
		complain("--%s-tls-key: needs --%[1]s-tls-cert", port)
	case f.Cert == "" && f.ClientCA != "":
		complain("--%s-tls-client-ca: needs --%[1]s-tls-cert and --%[1]s-tls-key: without TLS no caller shows a certificate", port)
	}
	if len(f.ClientNames) > 0 && f.ClientCA == "" {
		complain("--%s-tls-client-names: needs --%[1]s-tls-client-ca: a name that nobody has signed means nothing", port)
	}
	for _, name := range f.ClientNames {
		if err := CheckName(name); err != nil {
			complain("--%s-tls-client-names: %w", port, err)
		}
	}
	return errors.Join(problems...)
}

// content is the bytes of the files, in the order certificate, key, client CA.
type content [3][]byte

func (c content) equal(other content) bool {
	for i := range c {
		if !bytes.Equal(c[i], other[i]) {
			return false
		}
	}
	return true
}

// maxFile bounds each file, in bytes. The authorities of a whole system fit.
const maxFile = 1 << 20

func (f Files) read() (c content, err error) {
	for i, name := range []string{f.Cert, f.Key, f.ClientCA} {
		if name == "" {
			continue
		}
		if c[i], err = readRegular(name); err != nil {
			return content{}, err
		}
	}
	return c, nil
}

// readRegular reads a regular file. Anything else could block, or be read only once.
func readRegular(name string) ([]byte, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no file that can be read again, such as a pipe or a folder", name)
	}
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	if err == nil && len(text) > maxFile {
		err = fmt.Errorf("%s is larger than %d bytes", name, maxFile)
	}
	return text, err
}

// set is what the files contain.
type set struct {
	content     content
	certificate tls.Certificate
	clientCA    *x509.CertPool // nil: callers show no certificate
	names       names
}

// parse returns an error that names the file and never quotes it.
func (f Files) parse(c content) (*set, error) {
	s := &set{content: c, names: f.ClientNames}
	var err error
	if s.certificate, err = tls.X509KeyPair(c[0], c[1]); err != nil {
		return nil, fmt.Errorf("%s and %s are no certificate with its key (PEM): %w", f.Cert, f.Key, err)
	}
	if f.ClientCA != "" {
		if s.clientCA, err = parsePool(c[2]); err != nil {
			return nil, fmt.Errorf("%s: %w", f.ClientCA, err)
		}
	}
	return s, nil
}

// parsePool reads authorities. Unlike [x509.CertPool.AppendCertsFromPEM] it skips none that is
// broken.
func parsePool(text []byte) (*x509.CertPool, error) {
	pool, found := x509.NewCertPool(), false
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("a certificate in it is broken: %w", err)
		}
		pool.AddCert(certificate)
		found = true
	}
	if !found {
		return nil, errors.New("there is no certificate (PEM) in it")
	}
	return pool, nil
}

// expires returns the end of the first certificate of the chain to expire.
func (s *set) expires() time.Time {
	end := s.certificate.Leaf.NotAfter
	for _, der := range s.certificate.Certificate[1:] {
		if between, err := x509.ParseCertificate(der); err == nil && between.NotAfter.Before(end) {
			end = between.NotAfter
		}
	}
	return end
}

// valid returns an error if callers refuse the port's certificate at this time.
func (s *set) valid(now time.Time) error {
	if begin := s.certificate.Leaf.NotBefore; now.Before(begin) {
		return fmt.Errorf("the certificate is not valid before %s", begin.UTC().Format(time.RFC3339))
	}
	if end := s.expires(); now.After(end) {
		return fmt.Errorf("the certificate, or one between it and its authority, has expired at %s", end.UTC().Format(time.RFC3339))
	}
	return nil
}

var errNoCertificate = errors.New("the caller shows no certificate")

// accepts returns an error if a caller with these certificates may not speak to the port.
func (s *set) accepts(chain []*x509.Certificate, now time.Time) error {
	if s.clientCA == nil {
		return nil
	}
	if len(chain) == 0 {
		return errNoCertificate
	}
	between := x509.NewCertPool()
	for _, certificate := range chain[1:] {
		between.AddCert(certificate)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots: s.clientCA, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return err
	}
	return s.names.check(chain[0])
}

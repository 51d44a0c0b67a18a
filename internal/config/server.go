package config

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"

	"github.com/keyporter/keyporter/client"
)

// checkServer decides whether a command works by an API or on a database: whichever is named on the
// higher level. The defaults are of no level.
func (c *Config) checkServer() error {
	database := max(c.levels["database"], c.levels["database-file"])
	switch {
	case c.Server == "":
		return nil
	case database > c.levels["server"]:
		c.Server = ""
		return nil
	case database == c.levels["server"]:
		return errors.New("--server: --database is given as well: give one of the two")
	case c.TokenFile == "":
		return errors.New("--server: needs --token-file, with a token of the operators' API")
	}
	return nil
}

// Client returns a client of the API of --server. It reads --token-file and --ca-file.
func (c *Config) Client() (*client.Client, error) {
	token, err := readSecret(c.TokenFile)
	if err != nil {
		return nil, about("--token-file", err)
	}
	o := client.Options{PlainHTTP: c.Insecure}
	if c.CAFile != "" {
		text, err := readAtMost(c.CAFile, maxCertificates)
		if err != nil {
			return nil, about("--ca-file", err)
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("--ca-file: %s has no certificate in PEM", c.CAFile)
		}
		transport := http.DefaultTransport.(*http.Transport).Clone()
		transport.TLSClientConfig = &tls.Config{RootCAs: roots}
		o.HTTP = &http.Client{Transport: transport}
	}
	api, err := client.New(c.Server, client.NewSecret(token), o)
	if errors.Is(err, client.ErrPlainHTTP) {
		err = errors.New("plain http would send the token in the clear: use https, or --insecure in a network that nobody else can read")
	}
	return api, about("--server", err)
}

// maxCertificates bounds a file with certificates, in bytes; those of a system have 200,000.
const maxCertificates = 1 << 20

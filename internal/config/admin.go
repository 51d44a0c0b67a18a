package config

import (
	"errors"
	"fmt"
	"net"

	"github.com/keyporter/keyporter/bearer"
)

// ServesAdmin reports whether the service has the operators' API.
func (c *Config) ServesAdmin() bool { return c.ListenAdmin != "" && c.ListenAdmin != "off" }

// AdminTokens reads the tokens of the operators' API, if the service has it.
func (c *Config) AdminTokens() (bearer.Named, error) {
	if !c.ServesAdmin() {
		return bearer.Named{}, nil
	}
	text, err := readAtMost(c.AdminTokensFile, maxTokens)
	if err != nil {
		return bearer.Named{}, fmt.Errorf("reading the tokens of the operators' API: %w", err)
	}
	named, err := bearer.ParseNamed(string(text))
	if err != nil {
		return bearer.Named{}, fmt.Errorf("reading the tokens of the operators' API from %s: %w", c.AdminTokensFile, err)
	}
	if named.Certifies() && c.TLS["admin"].ClientCA == "" {
		return bearer.Named{}, fmt.Errorf("%s has lines with san=, and without --admin-tls-client-ca no caller shows a certificate", c.AdminTokensFile)
	}
	return named, nil
}

// maxTokens bounds a file with named tokens, in bytes.
const maxTokens = 1 << 20

// checkAdmin rejects an API without tokens, and one that shares a port.
func (c *Config) checkAdmin() error {
	if !c.ServesAdmin() {
		return nil
	}
	var problems []error
	if c.AdminTokensFile == "" {
		problems = append(problems, errors.New("--listen-admin: needs --admin-tokens-file: whoever reached the port could make keys"))
	}
	for _, other := range []struct{ name, address string }{
		{"grpc", c.ListenGRPC}, {"http", c.ListenHTTP}, {"ops", c.ListenOps}, {"settle", c.ListenSettle},
	} {
		if samePort(c.ListenAdmin, other.address) {
			problems = append(problems, fmt.Errorf("--listen-admin: %s is that of --listen-%s too: the operators' API needs a port of its own", c.ListenAdmin, other.name))
		}
	}
	return errors.Join(problems...)
}

// samePort reports whether two listeners would share a port. A host may have several names, so only
// two different addresses of numbers can have the same port.
func samePort(a, b string) bool {
	hostA, portA, err1 := net.SplitHostPort(a)
	hostB, portB, err2 := net.SplitHostPort(b)
	if err1 != nil || err2 != nil || portA != portB || portA == "0" {
		return false
	}
	ipA, ipB := net.ParseIP(hostA), net.ParseIP(hostB)
	return ipA == nil || ipB == nil || ipA.Equal(ipB) || ipA.IsUnspecified() || ipB.IsUnspecified()
}

package config

import (
	"crypto/tls"
	"errors"
	"slices"
	"strings"
)

// TLSPorts are the names of the ports that can have TLS, as in --PORT-tls-cert.
var TLSPorts = []string{"grpc", "http", "ops", "settle", "admin"}

// tlsVersions maps the values of --tls-min-version.
var tlsVersions = map[string]uint16{"1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13}

// portPhrases say what each port is for.
var portPhrases = map[string]string{
	"grpc": "the gRPC port", "http": "the users' page", "ops": "the port of /metrics", "settle": "the settle port", "admin": "the operators' API",
}

// withTLS adds the settings of TLS for each port.
func withTLS(settings []Setting) []Setting {
	for _, port := range TLSPorts {
		settings = append(settings, tlsOf(port)...)
	}
	return append(settings, Setting{Name: "tls-min-version", Default: "1.3", Enum: []string{"1.3", "1.2"}, Help: "minimum `version` of TLS on all ports: 1.3 or 1.2",
		set: func(c *Config, s string) error { c.TLSMinVersion = tlsVersions[s]; return nil }})
}

func tlsOf(port string) []Setting {
	what := portPhrases[port]
	return []Setting{
		{Name: port + "-tls-cert", Help: "PEM `file` with the certificate of " + what + ", and those between it and its authority; none: no TLS; needs --" + port + "-tls-key",
			set: func(c *Config, s string) error { c.TLS[port].Cert = s; return nil }},
		{Name: port + "-tls-key", Help: "PEM `file` with the key of this certificate",
			set: func(c *Config, s string) error { c.TLS[port].Key = s; return nil }},
		{Name: port + "-tls-client-ca", Help: "PEM `file` with the authorities that sign the certificates of callers of " + what + "; none: callers show none",
			set: func(c *Config, s string) error { c.TLS[port].ClientCA = s; return nil }},
		{Name: port + "-tls-client-names", Help: "allowed `names` of callers, separated by commas: DNS names, and SPIFFE IDs, perhaps with /* at the end; none: every certificate of these authorities",
			set: func(c *Config, s string) error {
				c.TLS[port].ClientNames = strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' })
				return nil
			}},
	}
}

// checkTLS rejects half a set of settings. The files are read later.
func (c *Config) checkTLS() error {
	var problems []error
	for _, port := range TLSPorts {
		problems = append(problems, c.TLS[port].Complete(port))
	}
	return errors.Join(problems...)
}

// checkTLSFiles reads the files of all ports that are open.
func (c *Config) checkTLSFiles() error {
	var problems []error
	for _, port := range TLSPorts {
		if c.open(port) {
			problems = append(problems, c.TLS[port].Check(port))
		}
	}
	return errors.Join(problems...)
}

// open reports whether the service listens on a port.
func (c *Config) open(port string) bool {
	off := map[string]bool{"http": c.ListenHTTP == "off", "settle": !c.Settles(), "admin": !c.ServesAdmin()}
	return !off[port]
}

// tlsKeys returns the files with keys of ports, by setting.
func (c *Config) tlsKeys() map[string]string {
	keys := map[string]string{}
	for _, port := range TLSPorts {
		keys[port+"-tls-key"] = c.TLS[port].Key
	}
	return keys
}

// OpenTLSPorts returns the names of the ports on which the service listens with TLS.
func (c *Config) OpenTLSPorts() []string {
	return slices.DeleteFunc(slices.Clone(TLSPorts), func(port string) bool { return !c.open(port) || !c.TLS[port].On() })
}

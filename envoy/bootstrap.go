package envoy

import (
	"errors"

	"github.com/keyporter/keyporter/authz"
)

// BootstrapConfig says what Envoy is to be told. An address is HOST:PORT or unix:///PATH.
type BootstrapConfig struct {
	Routes   *authz.RouteTable
	Authz    string // where Keyporter answers Check; "": 127.0.0.1:9001
	Upstream string // the API
	Page     string // Keyporter's page; needed if a rule goes there
	Listen   string // where Envoy takes requests, IP:PORT; "": 0.0.0.0:8080
	Admin    string // where Envoy's admin interface is, IP:PORT; "": 127.0.0.1:9901
	Token    Token  // what Keyporter asks of its callers, if anything
}

// Bootstrap returns a complete Envoy configuration, as commented YAML.
func Bootstrap(c BootstrapConfig) ([]byte, error) {
	return nil, errors.New("not there yet")
}

package main

import (
	"bytes"
	_ "embed"
	"fmt"
	"net"
	"text/template"
)

//go:embed envoy.yaml.tmpl
var envoyTemplate string

// envoyFront is one listener of Envoy with its way to decide. All listeners are otherwise equal.
type envoyFront struct {
	Listen     string
	Authorizer string   // address of its authorizer; "": none
	Log        bool     // send the access log to the authorizer
	Keys       []string // Envoy itself checks keys, with its filter api_key_auth, and admits these
}

// envoyBootstrap returns the configuration of one Envoy with all these listeners.
func envoyBootstrap(fronts []envoyFront) ([]byte, error) {
	parsed, err := template.New("envoy.yaml").Funcs(template.FuncMap{"address": envoyAddress}).Parse(envoyTemplate)
	if err != nil {
		return nil, err
	}
	var bootstrap bytes.Buffer
	if err := parsed.Execute(&bootstrap, fronts); err != nil {
		return nil, fmt.Errorf("writing Envoy's configuration: %w", err)
	}
	return bootstrap.Bytes(), nil
}

func envoyAddress(hostPort string) (string, error) {
	host, port, err := net.SplitHostPort(hostPort)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("{ socket_address: { address: %q, port_value: %s } }", host, port), nil
}

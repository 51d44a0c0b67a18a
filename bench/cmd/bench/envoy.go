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

// envoyFront is one listener of Envoy and what it decides by. All listeners are the same but for that.
type envoyFront struct {
	Listen     string
	Authorizer string   // the one that it asks; "": none
	Log        bool     // the authorizer gets the access log
	Keys       []string // Envoy itself looks at keys, with its filter api_key_auth, and lets these pass
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

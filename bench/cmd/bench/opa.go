package main

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

//go:embed opa.rego
var opaPolicy []byte

// startOPA starts an opa-envoy-plugin with a policy that contains keys. It has no other source of
// data, and logs only errors.
func (l *lab) startOPA(ctx context.Context, binary string, keys []string) error {
	known := map[string]bool{}
	for _, key := range keys {
		known["Bearer "+key] = true
	}
	data, err := json.Marshal(map[string]any{"known": known})
	if err != nil {
		return err
	}
	policy, document := filepath.Join(l.dir, "opa.rego"), filepath.Join(l.dir, "opa.json")
	for file, content := range map[string][]byte{policy: opaPolicy, document: data} {
		if err := os.WriteFile(file, content, 0o600); err != nil {
			return fmt.Errorf("writing what OPA decides by: %w", err)
		}
	}
	l.opa, err = l.launch(ctx, "opa-envoy-plugin", binary, func(checks, ops string) (args, env []string) {
		return []string{
			"run", "--server", "--addr", ops, "--disable-telemetry", "--log-level", "error",
			"--set", "plugins.envoy_ext_authz_grpc.addr=" + checks, "--set", "plugins.envoy_ext_authz_grpc.path=bench/allow", policy, document,
		}, nil
	})
	return err
}

package kubernetes_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/keyporter/keyporter/internal/parts"
	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// The configuration that Keyporter prints does what every front has to do: the measure for the
// others.
func TestThePrintedConfiguration(t *testing.T) {
	if fronts == "" {
		t.Skip("run it by: make kubernetes")
	}
	s := startStack(t)
	keys := map[string]string{"ann": s.user("ann"), "poor": s.user("poor", "--api-access=false")}
	address, err := parts.FreeAddr()
	if err != nil {
		t.Fatal(err)
	}
	host := strings.TrimSuffix(s.keyporter, "2") + "1"
	bootstrap := run(t, nil, keyporter(t), "envoy", "--config", "../"+manifests+"/base/keyporter.yaml", "--listen", address, "--admin", "127.0.0.1:0",
		"--authz", s.keyporter+":9001", "--page", s.keyporter+":"+pagePort, "--upstream", fmt.Sprintf("%s:8000", host))
	bootstrap = strings.Replace(bootstrap, "timeout: 0.250s # Keyporter's", "timeout: 6s # Keyporter's", 1)
	partstest.StartEnvoy(t, parts.EnvoyConfig{Bootstrap: []byte(bootstrap)})
	runMatrix(t, s, address, matrix(keys), keys)
	s.usedCredits("ann", credited)
}

package e2e_test

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The settle port is open only if configured, accepts only its own token, and answers 404 for
// unknown charges. The service stops even with a client connected.
func TestTheSettlePort(t *testing.T) {
	t.Parallel()
	folder, addr := t.TempDir(), address(t)
	tokens := map[string]string{}
	for _, name := range []string{"grpc", "settle"} {
		tokens[name] = filepath.Join(folder, name)
		if err := os.WriteFile(tokens[name], []byte("the-token-of-"+name+"-calls\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := start(t, stackConfig{noEnvoy: true, flags: []string{
		"--listen-settle", addr, "--settle-token-file", tokens["settle"], "--grpc-token-file", tokens["grpc"],
	}})
	for _, row := range []struct {
		name, method, path, authorization, body string
		status                                  int
	}{
		{"no token", "POST", "/v1/charges/abc/settle", "", `{"outcome": "refund"}`, 401},
		{"the token of gRPC", "POST", "/v1/charges/abc/settle", "Bearer the-token-of-grpc-calls", `{"outcome": "refund"}`, 401},
		{"no charge of ours", "POST", "/v1/charges/abc/settle", "Bearer the-token-of-settle-calls", `{"outcome": "refund"}`, 404},
		{"a look", "GET", "/v1/charges/abc/settle", "Bearer the-token-of-settle-calls", "", 405},
	} {
		r, err := http.NewRequest(row.method, "http://"+addr+row.path, strings.NewReader(row.body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", row.authorization)
		response, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil || response.StatusCode != row.status || !strings.HasPrefix(string(body), `{"success":false,`) {
			t.Errorf("%s: %d %s, %v; want %d", row.name, response.StatusCode, body, err, row.status)
		}
	}
	process := s.replicas[0].process
	process.Stop()
	if out := process.Output(); !strings.Contains(out, `"msg":"stopped"`) {
		t.Errorf("it did not stop in good order:\n%s", out)
	}
	mustNotContain(t, "the log", process.Output(), "the-token-of-settle-calls", "the-token-of-grpc-calls")
}

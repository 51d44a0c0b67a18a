//go:build unix

package parts_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/keyporter/keyporter/internal/parts"
	"github.com/keyporter/keyporter/internal/parts/partstest"
)

var majors = []int{18, 16}

func query(t *testing.T, server *parts.Postgres, database, statements string) string {
	t.Helper()
	out, err := server.SQL(t.Context(), database, statements)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// Committed data survives a kill and a restart, on the same port.
func TestPostgresKillAndRestart(t *testing.T) {
	for _, major := range majors {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			server := partstest.StartPostgres(t, parts.PostgresConfig{Major: major})
			if got := query(t, server, "postgres", "SHOW server_version"); !strings.HasPrefix(got, fmt.Sprint(major, ".")) {
				t.Errorf("version %s, want %d", got, major)
			}
			if err := server.CreateDatabase(t.Context(), "first"); err != nil {
				t.Fatal(err)
			}
			query(t, server, "first", "CREATE TABLE kept AS SELECT 42 AS answer")
			if err := server.CreateDatabaseFrom(t.Context(), "second", "first"); err != nil {
				t.Fatal(err)
			}
			before := server.URL("second")

			below := parts.Descendants(server.PID())
			server.Kill()
			for _, pid := range below {
				if parts.Running(pid) {
					t.Errorf("process %d outlived the kill", pid)
				}
			}
			if _, err := server.SQL(t.Context(), "second", "SELECT 1"); err == nil {
				t.Error("a killed server answered")
			}
			for range 2 { // once after a kill, once while it is running
				if err := server.Restart(t.Context()); err != nil {
					t.Fatal(err)
				}
				if got := query(t, server, "second", "SELECT answer FROM kept"); got != "42" {
					t.Errorf("answer %q after a restart", got)
				}
			}
			if server.URL("second") != before {
				t.Errorf("URL changed from %s to %s", before, server.URL("second"))
			}
		})
	}
}

func TestPostgresURLs(t *testing.T) {
	partstest.Slow(t)
	server := partstest.Postgres(t, 18)
	for _, address := range []string{
		server.URL("postgres"),
		"host=" + server.SocketDir() + " user=postgres dbname=postgres port=" + fmt.Sprint(server.Port()),
	} {
		out, err := exec.Command(server.Program("psql"), "-XAtc", "SELECT 'hello'", address).CombinedOutput()
		if err != nil || string(out) != "hello\n" {
			t.Errorf("%s: %v\n%s", address, err, out)
		}
	}
}

func TestPostgresSettings(t *testing.T) {
	const show = "SELECT current_setting('fsync'), current_setting('max_connections'), current_setting('work_mem')"
	if got := query(t, partstest.Postgres(t, 18), "postgres", show); got != "off|300|4MB" {
		t.Errorf("by default %s", got)
	}
	server := partstest.StartPostgres(t, parts.PostgresConfig{
		Durable: true, Settings: map[string]string{"work_mem": "8MB", "max_connections": "20"},
	})
	if got := query(t, server, "postgres", show); got != "on|20|8MB" {
		t.Errorf("as asked for %s", got)
	}
}

// A paused server accepts connections and never answers; after Resume it continues.
func TestPostgresPause(t *testing.T) {
	server := partstest.StartPostgres(t, parts.PostgresConfig{})
	query(t, server, "postgres", "CREATE TABLE kept AS SELECT 42 AS answer")
	server.Pause()
	conn, err := net.DialTimeout("tcp", server.Addr(), time.Minute)
	if err != nil {
		t.Fatalf("a paused server refuses connections: %v", err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := server.SQL(ctx, "postgres", "SELECT 1"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a paused server answered: %v", err)
	}
	server.Resume()
	if got := query(t, server, "postgres", "SELECT answer FROM kept"); got != "42" {
		t.Errorf("answer %q after the pause", got)
	}
}

func TestPostgresKeepsANamedFolder(t *testing.T) {
	dir := openTempDir(t)
	first := partstest.StartPostgres(t, parts.PostgresConfig{Dir: dir})
	query(t, first, "postgres", "CREATE TABLE kept AS SELECT 42 AS answer")
	if err := first.Stop(); err != nil {
		t.Fatal(err)
	}
	second := partstest.StartPostgres(t, parts.PostgresConfig{Dir: dir})
	if got := query(t, second, "postgres", "SELECT answer FROM kept"); got != "42" {
		t.Errorf("answer %q", got)
	}
}

func TestPostgresRefusesAClosedFolder(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root runs PostgreSQL as someone else")
	}
	_, err := parts.FindPostgres(18)
	partstest.Require(t, err)
	dir := openTempDir(t)
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	_, err = parts.StartPostgres(t.Context(), parts.PostgresConfig{Dir: dir})
	if err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("StartPostgres = %v, want an error that names the folder", err)
	}
}

func TestPostgresStopRemovesItsFolder(t *testing.T) {
	server := partstest.StartPostgres(t, parts.PostgresConfig{})
	dir := filepath.Dir(server.SocketDir())
	if err := server.Stop(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s: %v, want it gone", dir, err)
	}
}

// The error contains the reason, which a log in the removed folder would not.
func TestPostgresBadSetting(t *testing.T) {
	partstest.Slow(t)
	_, err := parts.FindPostgres(18)
	partstest.Require(t, err)
	_, err = parts.StartPostgres(t.Context(), parts.PostgresConfig{Settings: map[string]string{"no_such_setting": "1"}})
	if err == nil || !strings.Contains(err.Error(), "no_such_setting") {
		t.Errorf("StartPostgres = %v", err)
	}
}

// PostgreSQL's user may be unable to enter root's checkout.
func TestPostgresFromAClosedFolder(t *testing.T) {
	partstest.Slow(t)
	if os.Geteuid() != 0 {
		t.Skip("only root runs PostgreSQL as someone else")
	}
	bin, err := parts.FindPostgres(18)
	partstest.Require(t, err)
	t.Setenv("TMPDIR", openTempDir(t))
	closed := t.TempDir()
	if err := os.Chmod(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	tree := filepath.Dir(bin)
	for _, part := range []string{tree, filepath.Dir(tree) + ".libs"} {
		inside, err := filepath.Rel(filepath.Dir(filepath.Dir(tree)), part)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(part); err != nil {
			continue // not the wheel: it has no libraries beside it
		}
		if err := os.CopyFS(filepath.Join(closed, inside), os.DirFS(part)); err != nil {
			t.Fatal(err)
		}
		bin = filepath.Join(closed, filepath.Base(filepath.Dir(tree)), filepath.Base(tree), "bin")
	}
	t.Setenv("POSTGRES18_BIN", bin)
	for range 2 { // the second finds the copy of the first
		server := partstest.StartPostgres(t, parts.PostgresConfig{})
		if strings.HasPrefix(server.Program("postgres"), closed) {
			t.Errorf("it runs %s", server.Program("postgres"))
		}
	}

	copied, err := parts.Reachable(bin)
	if err != nil {
		t.Fatal(err)
	}
	top := filepath.Dir(filepath.Dir(filepath.Dir(copied)))
	if err := os.Chmod(top, 0o777); err != nil {
		t.Fatal(err)
	}
	if got, err := parts.Reachable(bin); err == nil {
		t.Errorf("%s is used although everybody can write to its folder", got)
	}
}

func TestPostgresIsNotRoot(t *testing.T) {
	if os.Geteuid() != 0 || runtime.GOOS != "linux" {
		t.Skip("only for root on Linux")
	}
	server := partstest.Postgres(t, 18)
	info, err := os.Stat(fmt.Sprintf("/proc/%d/task", server.PID()))
	if err != nil {
		t.Fatal(err)
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); !ok || stat.Uid == 0 {
		t.Error("PostgreSQL runs as root")
	}
}

const helloBootstrap = `
static_resources:
  listeners:
  - address: {socket_address: {address: 127.0.0.1, port_value: %d}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: hello
          access_log:
          - name: envoy.access_loggers.file
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
              path: /dev/stdout
              log_format: {text_format_source: {inline_string: "asked for %%REQ(:PATH)%%\n"}}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
          route_config:
            virtual_hosts:
            - name: hello
              domains: ["*"]
              routes:
              - match: {prefix: /}
                direct_response: {status: 200, body: {inline_string: hello}}
`

// StartEnvoy works with and without an admin interface in the bootstrap.
func TestEnvoyServes(t *testing.T) {
	const admin = "admin: {address: {socket_address: {address: 127.0.0.1, port_value: %d}}}\n"
	for name, withAdmin := range map[string]bool{"own admin": false, "bootstrap's admin": true} {
		t.Run(name, func(t *testing.T) {
			port, err := parts.FreePort()
			if err != nil {
				t.Fatal(err)
			}
			adminAddr, err := parts.FreeAddr()
			if err != nil {
				t.Fatal(err)
			}
			bootstrap := fmt.Sprintf(helloBootstrap, port)
			if withAdmin {
				_, adminPort, _ := strings.Cut(adminAddr, ":")
				bootstrap = strings.Replace(admin, "%d", adminPort, 1) + bootstrap
			}
			envoy := partstest.StartEnvoy(t, parts.EnvoyConfig{Bootstrap: []byte(bootstrap), Concurrency: 2, LogLevel: "info"})
			if body := get(t, fmt.Sprintf("http://127.0.0.1:%d/", port)); body != "hello" {
				t.Errorf("body %q", body)
			}
			awaitOutput(t, envoy.Process, "asked for /\n")
			if body := get(t, "http://"+envoy.Admin()+"/ready"); body != "LIVE\n" {
				t.Errorf("admin says %q", body)
			}
			if withAdmin && envoy.Admin() != adminAddr {
				t.Errorf("admin at %s, the bootstrap says %s", envoy.Admin(), adminAddr)
			}
			if !strings.Contains(envoy.Output(), "starting main dispatch loop") {
				t.Errorf("no log in the output: %q", envoy.Output())
			}
		})
	}
}

// slowCluster keeps an Envoy from serving for half a second: it waits for endpoints that never
// arrive.
const slowCluster = `
  clusters:
  - name: slow
    type: EDS
    eds_cluster_config:
      eds_config:
        resource_api_version: V3
        initial_fetch_timeout: 0.5s
        api_config_source: {api_type: GRPC, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: nobody}}]}
  - name: nobody
    type: STATIC
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
node: {id: a, cluster: b}
`

// StartEnvoy returns once Envoy serves, not before.
func TestEnvoyIsAwaited(t *testing.T) {
	port, err := parts.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	partstest.StartEnvoy(t, parts.EnvoyConfig{Bootstrap: []byte(fmt.Sprintf(helloBootstrap, port) + slowCluster)})
	if body := get(t, fmt.Sprintf("http://127.0.0.1:%d/", port)); body != "hello" {
		t.Errorf("body %q", body)
	}
}

func get(t *testing.T, url string) string {
	t.Helper()
	response, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// Envoy's own message about a bad bootstrap reaches the caller.
func TestEnvoyBadBootstrap(t *testing.T) {
	partstest.Envoy(t)
	_, err := parts.StartEnvoy(t.Context(), parts.EnvoyConfig{Bootstrap: []byte("no_such_field: 1\n")})
	if err == nil || !strings.Contains(err.Error(), "no_such_field") {
		t.Errorf("StartEnvoy = %v", err)
	}
}

func TestValkeyAnswers(t *testing.T) {
	valkey := partstest.Valkey(t)
	conn, err := net.Dial("tcp", valkey.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(conn, "SET a 1\r\nINCR a\r\nQUIT\r\n")
	if got, err := io.ReadAll(conn); err != nil || string(got) != "+OK\r\n:2\r\n+OK\r\n" {
		t.Errorf("%q, %v", got, err)
	}
}

// A program for Express or Django finds its framework, gets its arguments, and ends with its test.
func TestUpstreams(t *testing.T) {
	for framework, upstream := range map[string]struct {
		start   func(t testing.TB, program string, args ...string) string
		program string
	}{
		"Express": {partstest.Express, `
const [port, word] = process.argv.slice(2)
require("express")().get("/", (request, response) => response.send(word)).listen(port, "127.0.0.1")`},
		"Django": {partstest.Django, `
import sys, django, rest_framework, wsgiref.simple_server
def answer(request, start):
    start("200 OK", [])
    return [sys.argv[2].encode()]
wsgiref.simple_server.make_server("127.0.0.1", int(sys.argv[1]), answer).serve_forever()`},
	} {
		var addr string
		t.Run(framework, func(t *testing.T) {
			program := filepath.Join(t.TempDir(), "program")
			if err := os.WriteFile(program, []byte(upstream.program), 0o600); err != nil {
				t.Fatal(err)
			}
			addr = upstream.start(t, program, "a word")
			if body := get(t, "http://"+addr+"/"); body != "a word" {
				t.Errorf("body %q", body)
			}
		})
		if conn, err := net.Dial("tcp", addr); addr != "" && err == nil {
			conn.Close()
			t.Errorf("%s still listens after its test", framework)
		}
	}
}

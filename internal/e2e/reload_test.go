package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/keyporter/keyporter/internal/parts"
	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// mount is a folder like that of a Kubernetes ConfigMap: swapping a link changes all its files at
// once.
type mount struct {
	dir     string
	version int
}

// write replaces the contents of all files.
func (m *mount) write(t testing.TB, files map[string]string) {
	t.Helper()
	m.version++
	data := fmt.Sprintf("..v%d", m.version)
	if err := os.Mkdir(filepath.Join(m.dir, data), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(m.dir, data, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		os.Symlink(filepath.Join("..data", name), m.path(name)) // exists from the second call on
	}
	next := filepath.Join(m.dir, "..next")
	if err := os.Symlink(data, next); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, filepath.Join(m.dir, "..data")); err != nil {
		t.Fatal(err)
	}
}

func (m *mount) path(name string) string { return filepath.Join(m.dir, name) }

// routesOf returns the hash of each replica's route table, from the list of replicas.
func (s *stack) routesOf() (hashes []string) {
	s.t.Helper()
	var list struct {
		Replicas []struct{ Routes string }
	}
	if err := json.Unmarshal([]byte(s.run("replicas", "--output", "json")), &list); err != nil {
		s.t.Fatal(err)
	}
	for _, r := range list.Replicas {
		hashes = append(hashes, r.Routes)
	}
	return hashes
}

// reloadsTo waits until a replica has applied, or rejected, the given number of changes of its
// files.
func (s *stack) reloadsTo(t *testing.T, result string, n int) {
	t.Helper()
	partstest.EventuallyNil(t, "the configuration is read again", func() error {
		if got := s.replicas[0].metric(t, `keyporter_config_reloads_total{result="`+result+`"}`); got != fmt.Sprint(n) {
			return fmt.Errorf("%s reloads are %s, want %d", got, result, n)
		}
		return nil
	})
}

const tableA = `routes:
  - {paths: /v1/a, kind: api_key}
  - {paths: /v1/b, kind: none}
`
const tableB = `routes:
  - {paths: /v1/a, kind: none}
  - {paths: /v1/b, kind: api_key}
`

// A change of the route table file is enforced within a moment, under load, without a failed
// request and without a decision by a mixture of both tables: on each connection the answers change
// once.
func TestARouteTableIsReplacedUnderLoad(t *testing.T) {
	partstest.Slow(t)
	t.Parallel()
	m := &mount{dir: t.TempDir()}
	m.write(t, map[string]string{"keyporter.yaml": tableA})
	s := start(t, stackConfig{noEnvoy: true, flags: append([]string{"--config", m.path("keyporter.yaml")}, patient...)})
	key := s.user("ann", "pro")
	s.config = m.path("keyporter.yaml")
	before := s.routesOf()
	// Envoy has a route for both, whichever of the two rules applies.
	s.startEnvoyTo(t, s.upstream.address, `{ match: { path: "/v1/b" }, direct_response: { status: 404 } }`, `{ match: { path: "/v1/b" }, route: { cluster: upstream } }`)

	ctx, stop := context.WithCancel(t.Context())
	var asked, changed atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			c := &connection{address: s.front}
			defer c.close()
			fresh := false
			for ctx.Err() == nil {
				a, errA := c.send(request{target: "/v1/a", header: []string{"X-API-Key: " + key}})
				b, errB := c.send(request{target: "/v1/b", header: []string{"X-API-Key: " + key}})
				asked.Add(2)
				statuses := fmt.Sprint(a.status, " ", b.status)
				switch {
				case errA != nil || errB != nil:
					t.Error(errA, errB)
				case statuses == "200 404" && !fresh:
				case statuses == "404 200":
					fresh = true
				case statuses == "200 200" && !fresh: // the change happened in between
					fresh = true
				default:
					t.Errorf("answered %s, after the change: %v", statuses, fresh)
				}
			}
			if fresh {
				changed.Add(1)
			}
		})
	}
	partstest.EventuallyNil(t, "there is load", func() error {
		if asked.Load() < 200 {
			return fmt.Errorf("%d requests", asked.Load())
		}
		return nil
	})
	m.write(t, map[string]string{"keyporter.yaml": tableB})
	s.reloadsTo(t, "taken", 1)
	at := asked.Load()
	partstest.EventuallyNil(t, "there is load afterwards", func() error {
		if asked.Load() < at+200 {
			return fmt.Errorf("%d requests", asked.Load()-at)
		}
		return nil
	})
	stop()
	wg.Wait()
	if changed.Load() != 4 {
		t.Errorf("%d of 4 clients were decided by the new table", changed.Load())
	}
	if after := s.routesOf(); len(after) != 1 || after[0] == before[0] || after[0] == "" {
		t.Errorf("the list of replicas shows %q, before the change it was %q", after, before)
	}
	if n := s.replicas[0].metric(t, `keyporter_route_table_info{hash="`+s.routesOf()[0]+`"}`); n != "1" {
		t.Errorf("the metric for the table of the list is %q", n)
	}
	log := s.replicas[0].process.Output()
	if !strings.Contains(log, "print it again (keyporter envoy)") || !strings.Contains(log, `/v1/b`) {
		t.Errorf("nobody was told that Envoy's part differs:\n%s", log)
	}
}

// An invalid table is rejected, with file, line and reason, and the enforced one stays. SIGHUP
// reloads at once, and stops nothing. A changed setting that requires a restart is named. Token
// files are reread.
func TestWhatIsWrongIsNotReloaded(t *testing.T) {
	partstest.Slow(t)
	t.Parallel()
	m := &mount{dir: t.TempDir()}
	const first, second = "first-token-of-some-length", "second-token-of-some-length"
	m.write(t, map[string]string{"keyporter.yaml": tableA, "token": first + "\n"})
	s := start(t, stackConfig{noEnvoy: true, flags: append(patient, "--config", m.path("keyporter.yaml"), "--grpc-token-file", m.path("token"))})
	s.user("ann", "pro")
	s.config = m.path("keyporter.yaml")
	expect := func(token string, opens bool) {
		t.Helper()
		out, problems, status := s.try("drill", "revoke", "--rounds", "1", "--grpc-token-file", fileWith(t, token))
		if (status == 0) != opens {
			t.Errorf("with the token %s: exit status %d, %s %s", token, status, out, problems)
		}
	}
	expect(first, true)
	before := s.routesOf()

	m.write(t, map[string]string{"keyporter.yaml": tableB + "  - {paths: /v1/b, kind: public}\n", "token": first})
	s.reloadsTo(t, "refused", 1)
	if log := s.replicas[0].process.Output(); !strings.Contains(log, `keyporter.yaml:4:5: routes: path \"/v1/b\" has a rule already`) {
		t.Errorf("nobody was told what is wrong:\n%s", log)
	}
	m.write(t, map[string]string{"keyporter.yaml": tableB + "cache_size: 7\n", "token": second})
	if err := s.replicas[0].process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	s.reloadsTo(t, "taken", 1)
	if after := s.routesOf(); after[0] == before[0] {
		t.Errorf("the table is %q as before", after)
	}
	if log := s.replicas[0].process.Output(); !strings.Contains(log, "restart the service to apply them") || !strings.Contains(log, "cache_size") {
		t.Errorf("nobody was told what needs a restart:\n%s", log)
	}
	expect(second, true)
	expect(first, false)
	m.write(t, map[string]string{"keyporter.yaml": tableB, "token": "short"})
	s.reloadsTo(t, "refused", 2)
	expect(second, true)
	// with either, the page and the table would disagree
	for n, text := range []string{"", tableB + "page_path: /account\n"} {
		m.write(t, map[string]string{"keyporter.yaml": text, "token": second})
		s.reloadsTo(t, "refused", 3+n)
	}
	s.config = fileWith(t, tableB) // for commands
	os.RemoveAll(m.dir)
	s.reloadsTo(t, "refused", 5)
	expect(second, true)
	mustNotContain(t, "what Keyporter wrote", s.replicas[0].process.Output(), first, second)
}

// Files that can be read only once, such as pipes, are not reread: that would block the stop of the
// service, or return nothing.
func TestAPipeIsNotReadAgain(t *testing.T) {
	partstest.Slow(t)
	t.Parallel()
	file := fileWith(t, tableA)
	s := start(t, stackConfig{noEnvoy: true, flags: append(patient, "--config", file)})
	os.Remove(file)
	if err := syscall.Mkfifo(file, 0o600); err != nil {
		t.Fatal(err)
	}
	s.reloadsTo(t, "refused", 1)
	if err := s.replicas[0].process.Stop(); err != nil {
		t.Errorf("the service does not stop in good order: %v", err)
	}
}

// SIGHUP does not end a service that is still waiting for its database.
func TestAHangupWhileTheServiceStarts(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0") // accepts connections and never answers
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	ops := address(t)
	process, err := parts.Start(parts.Command{Path: keyporter(t), Args: []string{
		"serve", "--database", "postgres://nobody@" + silent.Addr().String() + "/none", "--listen-grpc", address(t), "--listen-http", "off", "--listen-ops", ops,
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer process.Kill()
	answers := func() error {
		response, err := http.Get("http://" + ops + "/readyz")
		if err == nil {
			response.Body.Close()
		}
		return err
	}
	partstest.EventuallyNil(t, "the service says that it is not ready", answers)
	if err := process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if err := answers(); err != nil {
			t.Fatalf("after SIGHUP: %v\n%s", err, process.Output())
		}
	}
}

// fileWith writes a text to a new file.
func fileWith(t testing.TB, text string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

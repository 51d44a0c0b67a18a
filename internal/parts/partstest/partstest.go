// Package partstest provides the real programs of package parts to tests, and stops them at the end
// of the test. A missing program skips the test; with CI=true the test fails.
package partstest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyporter/keyporter/internal/parts"
)

const startTimeout = time.Minute

// Require ends the test if err is not nil. On a developer's machine a missing program skips the
// test; in CI, and for every other error, the test fails.
func Require(t testing.TB, err error) {
	t.Helper()
	if err == nil {
		return
	}
	var missing *parts.MissingError
	if errors.As(err, &missing) && os.Getenv("CI") != "true" {
		t.Skip(err)
	}
	t.Fatal(err)
}

// Slow marks a test that takes more than about a second. `make quick`, for use after each edit,
// skips it; `make test` runs it.
func Slow(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("takes seconds: left out with -short")
	}
}

// Envoy returns the path of the Envoy binary.
func Envoy(t testing.TB) string {
	t.Helper()
	path, err := parts.FindEnvoy()
	Require(t, err)
	return path
}

// PythonGRPC returns the path of a Python with gRPC.
func PythonGRPC(t testing.TB) string {
	t.Helper()
	path, err := parts.FindPythonGRPC()
	Require(t, err)
	return path
}

// PythonWebhooks returns the path of a Python with the library of Standard Webhooks.
func PythonWebhooks(t testing.TB) string {
	t.Helper()
	path, err := parts.FindPythonWebhooks()
	Require(t, err)
	return path
}

// shippedAdmin is the port of Envoy's admin interface in the configuration for operators.
var shippedAdmin = regexp.MustCompile(`port_value: 9901\b`)

// StartEnvoy starts an Envoy for this test. Its output is logged if the test fails. Its admin
// interface must have a port of its own, because tests run at the same time.
func StartEnvoy(t testing.TB, config parts.EnvoyConfig) *parts.Envoy {
	t.Helper()
	if shippedAdmin.Match(config.Bootstrap) {
		t.Fatal("the admin interface of a test's Envoy has the port 9901: print the configuration with --admin 127.0.0.1:0")
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	envoy, err := parts.StartEnvoy(ctx, config)
	Require(t, err)
	t.Cleanup(func() { end(t, "Envoy", envoy.Stop, envoy.Output) })
	return envoy
}

// Valkey starts a Valkey for this test.
func Valkey(t testing.TB) *parts.Valkey {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	valkey, err := parts.StartValkey(ctx, parts.ValkeyConfig{})
	Require(t, err)
	t.Cleanup(func() { end(t, "Valkey", valkey.Stop, valkey.Output) })
	return valkey
}

// Express runs an Express program for this test and returns its host:port; see parts.StartExpress.
func Express(t testing.TB, program string, args ...string) string {
	t.Helper()
	return startUpstream(t, "Express", parts.StartExpress, program, args)
}

// Django runs a program for the Django REST framework for this test and returns its host:port; see
// parts.StartDjango.
func Django(t testing.TB, program string, args ...string) string {
	t.Helper()
	return startUpstream(t, "Django", parts.StartDjango, program, args)
}

func startUpstream(t testing.TB, name string, start func(context.Context, string, ...string) (*parts.Upstream, error), program string, args []string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	upstream, err := start(ctx, program, args...)
	Require(t, err)
	t.Cleanup(func() { end(t, name, upstream.Stop, upstream.Output) })
	return upstream.Addr()
}

// StartPostgres starts a PostgreSQL server for this test alone, which may kill, pause or configure
// it. Database is faster for tests that only need a database; this one is Slow.
func StartPostgres(t testing.TB, config parts.PostgresConfig) *parts.Postgres {
	t.Helper()
	Slow(t)
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	server, err := parts.StartPostgres(ctx, config)
	Require(t, err)
	t.Cleanup(func() { end(t, "PostgreSQL", server.Stop, server.Output) })
	return server
}

// end stops a program after its test, and logs the end of its output if something went wrong.
func end(t testing.TB, name string, stop func() error, output func() string) {
	t.Helper()
	if err := stop(); err != nil {
		t.Error(err)
	}
	if t.Failed() {
		t.Logf("output of %s:\n%s", name, output())
	}
}

// shared holds the servers shared by all tests of this process. The first use starts a server, and
// Main stops it.
var shared struct {
	mu        sync.Mutex
	servers   map[int]*sharedPostgres // guarded by mu; major version → server
	databases int                     // guarded by mu; number of databases made, for their names
}

type sharedPostgres struct {
	server *parts.Postgres
	err    error // why it did not start; never retried

	mu        sync.Mutex
	templates map[string]error // guarded by mu; name → why it could not be filled
}

// Main runs the tests of a package and stops the shared servers:
//
//	func TestMain(m *testing.M) { partstest.Main(m) }
func Main(m *testing.M) { os.Exit(M{m}.Run()) }

// M is Main for a TestMain with other wrappers, such as goleak.VerifyTestMain(partstest.M{M: m}).
type M struct{ *testing.M }

// Run runs the tests, stops the shared servers and returns the exit code.
func (m M) Run() int {
	code := m.M.Run()
	shared.mu.Lock()
	defer shared.mu.Unlock()
	for major, postgres := range shared.servers {
		if postgres.err != nil {
			continue
		}
		if err := postgres.server.Stop(); err != nil {
			fmt.Fprintf(os.Stderr, "stopping the shared PostgreSQL %d: %v\n%s\n", major, err, postgres.server.Output())
			code = max(code, 1)
		}
	}
	shared.servers = nil
	awaitListeners()
	return code
}

// awaitListeners waits for closed listeners of lib/pq to end, so that a search for leaks after the
// tests does not find them: one that was closed between two attempts to connect sleeps for up to
// five seconds.
func awaitListeners() {
	stacks := make([]byte, 4<<20)
	for began := time.Now(); time.Since(began) < 10*time.Second; time.Sleep(50 * time.Millisecond) {
		if n := runtime.Stack(stacks, true); !bytes.Contains(stacks[:n], []byte("pq.(*Listener).")) {
			return
		}
	}
}

// Postgres returns this process's shared server of a major version, 18 or 16. The package needs
// Main. Tests must not stop or pause the server; StartPostgres makes one for that.
func Postgres(t testing.TB, major int) *parts.Postgres {
	t.Helper()
	return sharedServer(t, major).server
}

func sharedServer(t testing.TB, major int) *sharedPostgres {
	t.Helper()
	shared.mu.Lock()
	postgres := shared.servers[major]
	if postgres == nil {
		ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
		defer cancel()
		postgres = &sharedPostgres{templates: map[string]error{}}
		postgres.server, postgres.err = parts.StartPostgres(ctx, parts.PostgresConfig{Major: major})
		if shared.servers == nil {
			shared.servers = map[int]*sharedPostgres{}
		}
		shared.servers[major] = postgres
	}
	shared.mu.Unlock()
	Require(t, postgres.err)
	return postgres
}

// Database creates an empty database on the shared server for this test alone and returns its URL.
// The end of the test drops it, with any open connections.
func Database(t testing.TB, major int) string {
	t.Helper()
	return newDatabase(t, Postgres(t, major), "template0")
}

// DatabaseFrom is Database with content. fill gets the URL of an empty database once per process,
// name and version, and each test gets a copy of the result. fill must close its connections.
func DatabaseFrom(t testing.TB, major int, name string, fill func(url string) error) string {
	t.Helper()
	postgres := sharedServer(t, major)
	template := "template_" + name
	postgres.mu.Lock()
	err, filled := postgres.templates[template]
	if !filled {
		ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
		defer cancel()
		if err = postgres.server.CreateDatabase(ctx, template); err == nil {
			err = fill(postgres.server.URL(template))
		}
		postgres.templates[template] = err
	}
	postgres.mu.Unlock()
	if err != nil {
		t.Fatalf("filling the database template %s: %v", name, err)
	}
	return newDatabase(t, postgres.server, template)
}

func newDatabase(t testing.TB, server *parts.Postgres, template string) string {
	t.Helper()
	shared.mu.Lock()
	shared.databases++
	number := shared.databases
	shared.mu.Unlock()
	name := databaseName(t.Name(), number)
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	if err := server.CreateDatabaseFrom(ctx, name, template); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
		defer cancel()
		if err := server.DropDatabase(ctx, name); err != nil {
			t.Error(err)
		}
	})
	return server.URL(name)
}

// databaseName returns a name that identifies the test in the server's log.
func databaseName(test string, number int) string {
	const longest = 50 // PostgreSQL truncates names to 63 bytes
	plain := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		}
		return '_'
	}, test)
	return fmt.Sprintf("%.*s_%d", longest, plain, number)
}

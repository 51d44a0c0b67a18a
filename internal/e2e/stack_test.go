// Package e2e proves the contract from outside: the real binary, behind a real Envoy, on real
// databases. No test accesses the internals of the service; all assertions are about results that
// clients, upstreams and operators see.
package e2e_test

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/keyporter/keyporter/internal/parts"
	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// binaryDir holds the program under test; the end of the run removes it.
var binaryDir string

// Settings of the tests in the environment, which the tests remove: the program under test rejects
// unknown settings.
var (
	long      = take("KEYPORTER_LONG") != ""   // tests may take minutes: see `make long` and `make revocation`
	importing = take("KEYPORTER_IMPORT") != "" // a million users are imported: see `make import`
	faultSeed = take("KEYPORTER_SEED")         // repeats a schedule of faults
)

func take(variable string) string {
	value := os.Getenv(variable)
	os.Unsetenv(variable)
	return value
}

func TestMain(m *testing.M) {
	code := partstest.M{M: m}.Run()
	if binaryDir != "" {
		os.RemoveAll(binaryDir)
	}
	os.Exit(code)
}

// build builds the program under test once per run.
var build = sync.OnceValues(func() (path string, err error) {
	if binaryDir, err = os.MkdirTemp("", "keyporter-e2e-"); err != nil {
		return "", err
	}
	path = filepath.Join(binaryDir, "keyporter")
	out, err := exec.Command("go", "build", "-ldflags=-s -w", "-o", path, "github.com/keyporter/keyporter/cmd/keyporter").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("building keyporter: %w\n%s", err, out)
	}
	return path, nil
})

// keyporter returns the path of the program under test.
func keyporter(t testing.TB) string {
	t.Helper()
	path, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// databases are the databases on which every test of a guarantee about stored state runs.
var databases = map[string]func(t *testing.T) string{
	"SQLite":        func(t *testing.T) string { return "sqlite://" + filepath.Join(t.TempDir(), "keyporter.db") },
	"PostgreSQL 18": func(t *testing.T) string { return partstest.Database(t, 18) },
}

// stack is a recording upstream, replicas of the service and an Envoy in front of the first.
type stack struct {
	t        testing.TB
	program  string // the path of the program under test
	database string
	replicas []*replica
	upstream *upstream
	envoy    *parts.Envoy
	front    string      // host:port of Envoy
	tls      *tls.Config // nil: plaintext

	config string // the path of the configuration file, or empty

	mu     sync.Mutex
	output bytes.Buffer // output of all commands, searched for keys
	plans  map[string]bool
}

// replica is one `keyporter serve`.
type replica struct {
	process         *parts.Process
	grpc, page, ops string   // addresses
	database        string   // URL
	flags           []string // in addition to those for addresses and database
}

// stackConfig configures a stack. The zero value is one replica on a new SQLite database.
type stackConfig struct {
	program  string   // path; empty: the unchanged program under test
	database string   // URL; empty: a new SQLite database
	replicas int      // 0: one
	noEnvoy  bool     // only the service
	config   string   // the text of a configuration file, with UPSTREAM for the upstream's address; empty: none
	flags    []string // of serve, in addition to those for addresses and database
	forEnvoy []string // of envoy, in addition to those for addresses
}

// start starts a stack and stops it at the end of the test.
func start(t testing.TB, c stackConfig) *stack {
	t.Helper()
	s := &stack{t: t, program: c.program, database: c.database, upstream: startUpstream(t)}
	if s.program == "" {
		s.program = keyporter(t)
	}
	if s.database == "" {
		s.database = "sqlite://" + filepath.Join(t.TempDir(), "keyporter.db")
	}
	if !c.noEnvoy {
		c.flags = append(patient, c.flags...)
	}
	if c.config != "" {
		s.config = filepath.Join(t.TempDir(), "keyporter.yaml")
		if err := os.WriteFile(s.config, []byte(strings.ReplaceAll(c.config, "UPSTREAM", s.upstream.address)), 0o600); err != nil {
			t.Fatal(err)
		}
		c.flags = append(c.flags, "--config", s.config)
	}
	for range max(c.replicas, 1) {
		s.replicas = append(s.replicas, s.serve(c.flags...))
	}
	if !c.noEnvoy {
		s.startEnvoy(c.forEnvoy...)
	}
	return s
}

// patient are the flags for tests that are not about time. On a busy machine a decision may take
// longer than a client would wait, which is answered with 503; with these flags the replica takes
// longer, and Envoy waits for it.
var patient = []string{"--check-timeout", "5s"}

// waitLonger makes an Envoy wait for a decision as long as a patient replica takes.
func waitLonger(t testing.TB, bootstrap string) string {
	t.Helper()
	const timeout = "timeout: 0.250s # Keyporter's own deadline lies inside"
	if strings.Count(bootstrap, timeout) != 1 {
		t.Fatal("the bootstrap does not say how long Envoy waits as expected")
	}
	return strings.Replace(bootstrap, timeout, "timeout: 6s", 1)
}

// serve starts a replica and waits until it is ready.
func (s *stack) serve(flags ...string) *replica {
	s.t.Helper()
	r := &replica{grpc: address(s.t), page: address(s.t), ops: address(s.t), database: s.database, flags: flags}
	s.launch(r)
	s.await(r)
	return r
}

// launch starts the process of a replica, at its addresses.
func (s *stack) launch(r *replica) {
	s.t.Helper()
	args := append([]string{
		"serve", "--database", r.database, "--listen-grpc", r.grpc, "--listen-http", r.page,
		"--listen-ops", r.ops, "--drain-delay", "0s", "--insecure-cookies", "--log-level", "debug", "--new-keys-per-hour", "100000",
	}, r.flags...)
	process, err := parts.Start(parts.Command{Path: s.program, Args: args})
	if err != nil {
		s.t.Fatal(err)
	}
	r.process = process
	s.t.Cleanup(func() { process.Stop() })
}

// await returns once r is ready.
func (s *stack) await(r *replica) {
	s.t.Helper()
	partstest.EventuallyNil(s.t, "the service is ready", func() error {
		select {
		case <-r.process.Done():
			s.t.Fatalf("serve ended early:\n%s", r.process.Output())
		default:
		}
		response, err := r.get("/readyz")
		if err != nil {
			return err
		}
		response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return errors.New(response.Status)
		}
		return nil
	})
}

// get asks the operators' listener.
func (r *replica) get(path string) (*http.Response, error) {
	if !slices.Contains(r.flags, "--ops-tls-cert") {
		return http.Get("http://" + r.ops + path)
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
	return client.Get("https://" + r.ops + path)
}

// startEnvoy starts Envoy with the configuration that the program under test prints for it.
func (s *stack) startEnvoy(flags ...string) {
	s.t.Helper()
	s.front = address(s.t)
	r := s.replicas[0]
	bootstrap := s.run(append([]string{"envoy", "--authz", r.grpc, "--page", r.page, "--upstream", s.upstream.address, "--listen", s.front, "--admin", address(s.t)}, flags...)...)
	proxy, err := parts.StartEnvoy(s.t.Context(), parts.EnvoyConfig{Bootstrap: []byte(waitLonger(s.t, bootstrap))})
	if missing := (*parts.MissingError)(nil); errors.As(err, &missing) && os.Getenv("CI") != "true" {
		s.t.Skip(err)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	s.envoy = proxy
	s.t.Cleanup(func() { proxy.Stop() })
}

// run runs a command of the program under test and returns its standard output. It must succeed.
func (s *stack) run(args ...string) string {
	s.t.Helper()
	out, problems, status := s.try(args...)
	if status != 0 {
		s.t.Fatalf("keyporter %s: exit status %d\n%s", strings.Join(args, " "), status, problems)
	}
	return out
}

// try runs a command of the program under test on the stack's database.
func (s *stack) try(args ...string) (out, problems string, status int) {
	s.t.Helper()
	if args[0] != "envoy" {
		args = append(args, "--database", s.database)
	}
	if s.config != "" {
		args = append(args, "--config", s.config)
	}
	return s.tryExactly(args...)
}

// tryExactly runs a command of the program under test.
func (s *stack) tryExactly(args ...string) (out, problems string, status int) {
	s.t.Helper()
	command := exec.Command(s.program, args...)
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	err := command.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		s.t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.output.Write(stderr.Bytes())
	return stdout.String(), stderr.String(), command.ProcessState.ExitCode()
}

// user creates a user with an account of their own on plan, creates the plan if necessary, without
// limits except those in planFlags, and returns a key.
func (s *stack) user(name, plan string, planFlags ...string) (key string) {
	s.t.Helper()
	s.mu.Lock()
	known := s.plans[plan]
	if s.plans == nil {
		s.plans = map[string]bool{}
	}
	s.plans[plan] = true
	s.mu.Unlock()
	if !known { // changing an existing plan is slow
		s.run(append([]string{"plan", "set", plan, "--rate-limit", "unlimited", "--credits", "unlimited"}, planFlags...)...)
	}
	s.run("account", "set", name, "--plan", plan)
	s.run("user", "set", name, "--account", name)
	return s.key("create", name)
}

// key runs `key create` or `key regenerate` and returns the key.
func (s *stack) key(verb, user string) string {
	s.t.Helper()
	var made struct{ Key string }
	s.decode(s.run("key", verb, user, "--output", "json"), &made)
	return made.Key
}

// session returns the Cookie header of a new session.
func (s *stack) session(user string) string {
	s.t.Helper()
	var made struct{ Cookie string }
	s.decode(s.run("session", "create", user, "--insecure-cookies", "--output", "json"), &made)
	return made.Cookie
}

func (s *stack) decode(document string, into any) {
	s.t.Helper()
	if err := json.Unmarshal([]byte(document), into); err != nil {
		s.t.Fatalf("%v in %q", err, document)
	}
}

// written returns all output of the service, Envoy and the commands except standard output. It
// stops Envoy, which writes its access log late.
func (s *stack) written() string {
	if s.envoy != nil {
		s.envoy.Stop()
	}
	s.mu.Lock()
	all := s.output.String()
	s.mu.Unlock()
	for _, r := range s.replicas {
		all += r.process.Output()
	}
	if s.envoy != nil {
		all += s.envoy.Output()
	}
	return all
}

// upstream is the API behind Envoy. It answers 200 and records each request under the value of its
// header x-test-id, if present.
type upstream struct {
	address string
	mu      sync.Mutex
	seen    map[string]seen // x-test-id → the request
}

// seen is a request as it reached the upstream: the target of the request line and the headers,
// raw.
type seen struct {
	method, target string
	header         http.Header
}

func startUpstream(t testing.TB) *upstream {
	t.Helper()
	u := &upstream{seen: map[string]seen{}}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u.address = listener.Addr().String()
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{Handler: u, Protocols: &protocols}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
	return u
}

func (u *upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	u.mu.Lock()
	u.seen[r.Header.Get("x-test-id")] = seen{r.Method, r.RequestURI, r.Header.Clone()}
	u.mu.Unlock()
	u.answer(w, r.Header.Get("x-test-answer"))
}

// answer answers 200, or as a request asks for: with another status, with a reset before or after
// the headers, with a header, or with a gRPC status.
func (u *upstream) answer(w http.ResponseWriter, how string) {
	status, err := strconv.Atoi(how)
	switch {
	case err == nil:
		w.WriteHeader(status)
	case how == "reset after headers":
		w.Header().Set("Content-Length", "100")
		w.WriteHeader(http.StatusOK)
		http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	case how == "reset":
		panic(http.ErrAbortHandler)
	case how == "upgrade":
		hijack(w)
	case how == "cors":
		w.Header().Set("Access-Control-Allow-Origin", "https://upstream.example")
		w.Header().Set("Access-Control-Expose-Headers", "x-own")
		w.Header().Set("Vary", "Accept-Encoding")
	case how == "cacheable":
		w.Header().Set("Cache-Control", "public, max-age=3600")
	case strings.HasPrefix(how, "grpc "):
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Grpc-Status", strings.TrimPrefix(how, "grpc "))
	default:
		fmt.Fprintln(w, "upstream")
	}
}

// take returns and removes the request with the given x-test-id.
func (u *upstream) take(id string) (seen, bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	request, ok := u.seen[id]
	delete(u.seen, id)
	return request, ok
}

func address(t testing.TB) string {
	t.Helper()
	free, err := parts.FreeAddr()
	if err != nil {
		t.Fatal(err)
	}
	return free
}

package kubernetes_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyporter/keyporter/internal/parts"
)

// fronts is the folder of the programs that `make kubernetes` builds; empty: tests that need them
// are skipped. It is removed from the environment, where Keyporter refuses unknown settings.
var fronts = func() string {
	defer os.Unsetenv("KEYPORTER_FRONTS")
	return os.Getenv("KEYPORTER_FRONTS")
}()

// needFronts skips a test that is not run by `make kubernetes`.
func needFronts(t *testing.T) {
	t.Helper()
	if fronts == "" {
		t.Skip("run it by: make kubernetes")
	}
}

// program returns a program that `make kubernetes` builds.
func program(t *testing.T, name string) string {
	t.Helper()
	needFronts(t)
	path := filepath.Join(fronts, name)
	if _, err := os.Stat(path); err != nil {
		t.Fatal(err)
	}
	return path
}

// stack is Keyporter with the configuration file of the manifests and some rules more, and a
// recording API. Each has a loopback address of its own, so that the ports are those of the
// examples.
type stack struct {
	t         *testing.T
	api       *recorder
	front     string                    // host:port of the Envoy before it
	config    string                    // path of the configuration file
	replicas  []string                  // addresses without a port
	database  string                    // URL
	processes map[string]*parts.Process // address → running replica
}

// pagePort is the port of the users' page. Envoy Gateway takes 8081, that of the examples, on all
// addresses.
const pagePort = "28081"

// startStack starts an API and so many replicas.
func startStack(t *testing.T, replicas int) *stack {
	t.Helper()
	needFronts(t)
	net := fmt.Sprintf("127.%d.%d.", 2+rand.IntN(250), rand.IntN(256))
	dir := t.TempDir()
	s := &stack{
		t: t, config: filepath.Join(dir, "keyporter.yaml"), database: "sqlite://" + filepath.Join(dir, "keyporter.db"), processes: map[string]*parts.Process{},
	}
	if err := os.WriteFile(s.config, []byte(read(t, manifests+"/base/keyporter.yaml")+moreRules), 0o600); err != nil {
		t.Fatal(err)
	}
	s.api = startAPI(t, net+"1:8000")
	s.command("migrate")
	for i := range replicas {
		s.replicas = append(s.replicas, fmt.Sprintf("%s%d", net, 2+i))
		s.start(s.replicas[i])
	}
	return s
}

// moreRules continue the file of the manifests, which ends with its rules: kinds and settings of
// rules that it has no example of.
const moreRules = `
  - {paths: [/v2/brands, "/v2/brands/*"], kind: api_key}
  - {paths: /v2/read, kind: api_key, methods: [GET, POST]}
  - {paths: /v2/no-cors, kind: api_key, cors: off}
  - {paths: /v2/own-cors, kind: api_key, cors: upstream}
  - {paths: "/v2/names/*", kind: api_key, encoded: true}
  - {paths: ["/v2/markalar", "/v2/markalar/*"], kind: api_key, rewrite: /v2/brands}
  - {paths: "/app/*", kind: session}
cors:
  origins: ["https://app.example.com"]
`

// start starts the replica at an address. A decision may take long on a busy machine.
func (s *stack) start(address string) {
	s.t.Helper()
	process := startProgram(s.t, parts.Command{Path: keyporter(s.t), Env: []string{"TMPDIR=" + os.TempDir()}, Args: []string{
		"serve", "--config", s.config, "--database", s.database, "--check-timeout", "5s",
		"--listen-grpc", address + ":9001", "--listen-http", address + ":" + pagePort, "--listen-ops", address + ":9013", "--drain-delay", "5s",
	}})
	s.processes[address] = process
	unlessItEnds(s.t, process, "Keyporter is ready", func() error {
		response, err := http.Get("http://" + address + ":9013/readyz")
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

// command runs a command of Keyporter and returns its output.
func (s *stack) command(args ...string) string {
	s.t.Helper()
	return run(s.t, []string{"KEYPORTER_DATABASE=" + s.database}, keyporter(s.t), args...)
}

// user makes a user with an account and a plan of its own, and returns a key.
func (s *stack) user(name string, plan ...string) (key string) {
	s.t.Helper()
	s.command(append([]string{"plan", "set", name}, plan...)...)
	s.command("account", "set", name, "--plan", name)
	s.command("user", "set", name, "--account", name)
	var made struct{ Key string }
	s.decode(s.command("key", "create", name, "--output", "json"), &made)
	return made.Key
}

// keys makes the users of [matrix], and returns their keys.
func (s *stack) keys() map[string]string {
	return map[string]string{"ann": s.user("ann"), "poor": s.user("poor", "--api-access=false")}
}

func (s *stack) decode(document string, into any) {
	s.t.Helper()
	if err := json.Unmarshal([]byte(document), into); err != nil {
		s.t.Fatalf("%v in %q", err, document)
	}
}

// balance is the output of `credits show`.
type balance struct{ Used, Outstanding, Lost int }

func (s *stack) balance(user string) (b balance) {
	s.t.Helper()
	s.decode(s.command("credits", "show", user, "--output", "json"), &b)
	return b
}

// decisions returns how often the first replica has decided.
func (s *stack) decisions(t *testing.T) (sum int) {
	t.Helper()
	_, metrics, err := send(s.replicas[0]+":9013", "GET", "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	for _, sample := range decisionsTotal.FindAllStringSubmatch(metrics, -1) {
		n, err := strconv.Atoi(sample[1])
		if err != nil {
			t.Fatal(err)
		}
		sum += n
	}
	return sum
}

var decisionsTotal = regexp.MustCompile(`(?m)^keyporter_decisions_total\{.*\} (\d+)$`)

// findings returns the findings in a report of `keyporter envoy check`.
func findings(report string) (ids []string) {
	for _, line := range findingID.FindAllStringSubmatch(report, -1) {
		ids = append(ids, line[1])
	}
	return ids
}

var findingID = regexp.MustCompile(`(?m)^(?:error|warning) ([a-z-]+):`)

// usedCredits waits until a user has used so many credits.
func (s *stack) usedCredits(name string, want int) {
	s.t.Helper()
	eventually(s.t, "refunds and charges are settled", func() error {
		if b := s.balance(name); b.Used != want {
			return fmt.Errorf("%s has used %+v, want %d", name, b, want)
		}
		return nil
	})
}

// answers requires an answer with a status and a text from the front.
func (s *stack) answers(key string, status int, text string) error {
	response, body, err := send(s.front, "GET", "/v1/a", "X-API-Key: "+key)
	if err == nil && (response.StatusCode != status || !strings.Contains(body, text)) {
		err = fmt.Errorf("%d %q, want %d %q", response.StatusCode, body, status, text)
	}
	return err
}

// checkLimits checks the answers to a user that sends requests too fast, or has no credits left.
func (s *stack) checkLimits(t *testing.T) {
	t.Helper()
	fast, broke := s.user("fast", "--rate-limit", "2"), s.user("broke", "--credits", "2")
	for key, code := range map[string]string{fast: "rate_limited", broke: "credits_exhausted"} {
		for range 2 {
			if err := s.answers(key, 200, "/v1/a"); err != nil {
				t.Error(err)
			}
		}
		if err := s.answers(key, 429, code); err != nil {
			t.Error(err)
		}
	}
	response, _ := call(t, s.front, "GET", "/v1/a", "X-API-Key: "+fast)
	if response.Header.Get("Retry-After") == "" || response.Header.Get("X-Ratelimit-Limit") != "2" {
		t.Errorf("%v", response.Header)
	}
}

// checkLogs checks that no log has the key of a refused request, which the front leaves in the
// query: neither that of Envoy, which is in the output of a process, nor that of Keyporter.
func (s *stack) checkLogs(t *testing.T, key string, envoy interface{ Output() string }) {
	t.Helper()
	const path = "/v1/logged"
	call(t, s.front, "GET", path+"?api_key="+key)
	eventually(t, "the log has the request", func() error {
		if !strings.Contains(envoy.Output(), path) {
			return errors.New("it is not there yet")
		}
		return nil
	})
	if strings.Contains(envoy.Output()+s.processes[s.replicas[0]].Output(), key) {
		t.Error("a log has the key of a refused request")
	}
}

// checkNobodyDecides stops Keyporter, and starts it again.
func (s *stack) checkNobodyDecides(t *testing.T, key string) {
	t.Helper()
	if err := s.processes[s.replicas[0]].Stop(); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"", key} {
		if response, body := call(t, s.front, "GET", "/v1/a", "X-API-Key: "+key, "X-Test-Id: down"); response.StatusCode != 503 || body != "" || s.api.take("down") != nil {
			t.Errorf("%d %q", response.StatusCode, body)
		}
	}
	s.start(s.replicas[0])
	eventually(t, "requests are decided again", func() error { return s.answers(key, 200, "/v1/a") })
}

// recorder is an API that records requests. It answers as their header x-test-answer asks for: with
// a status, with a header, or by closing the connection. One that ends in "once" is for the first
// request of an ID alone.
type recorder struct {
	address string
	mu      sync.Mutex
	seen    map[string]*http.Request // by the header x-test-id
	times   map[string]int           // the same → requests
}

func startAPI(t *testing.T, address string) *recorder {
	t.Helper()
	a := &recorder{address: address, seen: map[string]*http.Request{}, times: map[string]int{}}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: a}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
	return a
}

func (a *recorder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id := r.Header.Get("X-Test-Id")
	a.mu.Lock()
	a.seen[id] = r
	a.times[id]++
	again := a.times[id] > 1
	a.mu.Unlock()
	how, once := strings.CutSuffix(r.Header.Get("X-Test-Answer"), " once")
	if once && again {
		how = ""
	}
	switch status, err := strconv.Atoi(how); {
	case err == nil:
		w.WriteHeader(status)
	case how == "reset":
		panic(http.ErrAbortHandler)
	case how == "cors":
		w.Header().Set("Access-Control-Allow-Origin", "https://upstream.example")
		w.Header().Set("Vary", "Accept-Encoding")
	case strings.HasPrefix(how, "grpc "):
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Grpc-Status", strings.TrimPrefix(how, "grpc "))
	}
	fmt.Fprintln(w, r.RequestURI)
}

// take returns the request with an ID, or nil, and forgets it.
func (a *recorder) take(id string) *http.Request {
	a.mu.Lock()
	defer a.mu.Unlock()
	r := a.seen[id]
	delete(a.seen, id)
	return r
}

// count returns how many requests with an ID there were.
func (a *recorder) count(id string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.times[id]
}

// call sends a request with headers, each "Name: value", and returns the answer and its body.
func call(t *testing.T, front, method, target string, header ...string) (*http.Response, string) {
	t.Helper()
	response, body, err := send(front, method, target, header...)
	if err != nil {
		t.Fatal(err)
	}
	return response, body
}

// send writes a request of HTTP/1.1 byte for byte to a new connection.
func send(front, method, target string, header ...string) (*http.Response, string, error) {
	return sendRaw("HTTP/1.1", front, method, target, header)
}

func sendHTTP10(front, method, target string, header ...string) (*http.Response, string, error) {
	return sendRaw("HTTP/1.0", front, method, target, header)
}

// sendRaw returns the final answer. Those before it, such as 100, are in its header x-test-before.
func sendRaw(version, front, method, target string, header []string) (*http.Response, string, error) {
	conn, err := net.Dial("tcp", front)
	if err != nil {
		return nil, "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	if !slices.ContainsFunc(header, func(line string) bool { return strings.HasPrefix(line, "Host:") }) {
		header = append([]string{"Host: " + front}, header...)
	}
	if _, err := fmt.Fprintf(conn, "%s %s %s\r\n%s\r\n\r\n", method, target, version, strings.Join(header, "\r\n")); err != nil {
		return nil, "", err
	}
	reader := bufio.NewReader(conn)
	var before []string
	response, err := http.ReadResponse(reader, &http.Request{Method: method})
	for ; err == nil && response.StatusCode < 200; response, err = http.ReadResponse(reader, &http.Request{Method: method}) {
		before = append(before, response.Status)
	}
	if err != nil {
		return nil, "", err
	}
	defer response.Body.Close()
	if before != nil {
		response.Header["X-Test-Before"] = before
	}
	body, err := io.ReadAll(response.Body)
	return response, string(body), err
}

// startProgram starts a program that ends with the test. Its output is shown if the test fails.
func startProgram(t *testing.T, c parts.Command) *parts.Process {
	t.Helper()
	process, err := parts.Start(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		process.Stop()
		if t.Failed() {
			t.Logf("%s:\n%s", filepath.Base(c.Path), process.Output())
		}
	})
	return process
}

// unlessItEnds waits until a check succeeds. The test fails at once if the program ends.
func unlessItEnds(t *testing.T, process *parts.Process, what string, check func() error) {
	t.Helper()
	eventually(t, what, func() error {
		select {
		case <-process.Done():
			t.Fatalf("%s: the program has ended", what)
		default:
		}
		return check()
	})
}

// eventually waits until check returns nil.
func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func freePort(t *testing.T) int {
	t.Helper()
	port, err := parts.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func freeAddress(t *testing.T) string {
	t.Helper()
	return fmt.Sprintf("127.0.0.1:%d", freePort(t))
}

package e2e_test

import (
	"bufio"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"

	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// limited asks about an API route with a key and the given request ID.
func (c *checker) limited(key, id string) (int, error) {
	return c.ask(&authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{
			Id: id, Method: "GET", Path: "/api/v1/brands",
			HeaderMap: &corev3.HeaderMap{Headers: []*corev3.HeaderValue{{Key: "x-api-key", RawValue: []byte(key)}}},
		}},
	}})
}

// respond sends a command to a Valkey, which must accept it.
func respond(t *testing.T, address, command string) {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, command+"\r\n"); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || strings.HasPrefix(line, "-") {
		t.Fatalf("%s: %s%v", command, line, err)
	}
}

// sharing starts three replicas on PostgreSQL, and returns a checker for each.
func sharing(t *testing.T, flags ...string) (*stack, []*checker) {
	t.Helper()
	s := start(t, stackConfig{database: partstest.Database(t, 18), replicas: 3, noEnvoy: true, flags: append(flags, patient...)})
	var all []*checker
	for _, r := range s.replicas {
		all = append(all, newChecker(t, r))
	}
	return s, all
}

// metric returns the text of a replica's metric without labels.
func (r *replica) metric(t testing.TB, name string) string {
	t.Helper()
	response, err := http.Get("http://" + r.ops + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.SplitSeq(string(text), "\n") {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return value
		}
	}
	return "missing"
}

// number returns the value of a replica's metric; name includes its labels.
func (r *replica) number(t testing.TB, name string) float64 {
	t.Helper()
	n, err := strconv.ParseFloat(r.metric(t, name), 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// unanswered returns the number of the replicas' requests that Valkey has not answered in time.
func (s *stack) unanswered(t *testing.T) (n float64) {
	t.Helper()
	for _, r := range s.replicas {
		n += r.number(t, "keyporter_ratelimit_valkey_errors_total")
	}
	return n
}

// divided returns once all replicas divide limits by n.
func (s *stack) divided(t *testing.T, n string) {
	t.Helper()
	partstest.EventuallyNil(t, "all replicas divide limits by "+n, func() error {
		for _, r := range s.replicas {
			if got := r.metric(t, "keyporter_ratelimit_divided_by"); got != n {
				return errors.New(got)
			}
		}
		return nil
	})
}

// flood sends each request one to five times, to the same and to other replicas, and counts those
// that were allowed. Every answer must be 200, 429 or the other status.
func flood(t *testing.T, all []*checker, key string, requests, other int) (allowed int) {
	t.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	statuses := map[int]int{}
	for worker := range 6 {
		wg.Go(func() {
			for i := range requests / 6 {
				id, checks := fmt.Sprint(t.Name(), worker, "-", i), 1+rand.IntN(5)
				answers := map[int]bool{}
				for range checks {
					status, err := all[rand.IntN(len(all))].limited(key, id)
					if err != nil || status != 200 && status != 429 && status != other {
						t.Errorf("%d, %v", status, err)
					}
					answers[status] = true
				}
				mu.Lock()
				for status := range answers {
					statuses[status]++
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	t.Logf("requests by the statuses of their Checks: %v", statuses)
	return statuses[200]
}

// Three replicas with a Valkey admit exactly the limit together, however often each Check arrives
// at any of them. While Valkey is unreachable, each admits its share, and reports that.
func TestReplicasCountTogetherInValkey(t *testing.T) {
	partstest.Slow(t)
	t.Parallel()
	valkey := partstest.Valkey(t)
	password := "hunter2hunter2"
	url := "redis://ann:" + password + "@" + valkey.Addr()
	respond(t, valkey.Addr(), "ACL SETUSER ann on >"+password+" ~* +@all")
	s, all := sharing(t, "--redis", url)
	// as if it had existed for more than a minute
	respond(t, valkey.Addr(), "HSET keyporter:identity since 0")
	for _, r := range s.replicas {
		r.process.Stop()
		s.launch(r)
		s.await(r)
	}
	s.divided(t, "1")
	// On a busy machine a question may exceed its 50 ms; then a replica admits its share alone.
	// Fewer questions are more likely to be all answered.
	var key string
	for try, requests := 1, 300; ; try, requests = try+1, 90 {
		key = s.user(fmt.Sprint("user", try), "pro", "--rate-limit", "60", "--rate-window", "1m")
		before := s.unanswered(t)
		n := flood(t, all, key, requests, 200)
		if n == 60 {
			break
		}
		if n < 60 || s.unanswered(t) == before || try == 50 {
			t.Fatalf("%d of %d requests allowed, want 60; Valkey left %v questions unanswered", n, requests, s.unanswered(t)-before)
		}
	}

	// Valkey stops answering: each replica admits at most its share, no client is locked out, and
	// clients do not notice.
	fresh := s.user("bob", "pro")
	valkey.Pause()
	if n := flood(t, all, fresh, 300, 200); n < 20 || n > 60 {
		t.Errorf("%d of 300 requests allowed without Valkey, want three shares of 20", n)
	}
	s.divided(t, "3")
	valkey.Resume()
	s.divided(t, "1")
	for _, r := range s.replicas {
		if up, n := r.metric(t, "keyporter_ratelimit_valkey_up"), r.metric(t, "keyporter_ratelimit_valkey_seconds_count"); up != "1" || n == "0" || n == "missing" {
			t.Errorf("valkey_up %s, %s questions", up, n)
		}
	}
	if out := s.run("replicas", "--redis", url); !strings.Contains(out, "counted in Valkey") {
		t.Errorf("keyporter replicas says %s", out)
	}
	written := s.written()
	if !strings.Contains(written, "Valkey does not answer: each replica admits its share") || !strings.Contains(written, "Valkey answers again") {
		t.Errorf("the log does not tell of the outage:\n%s", written)
	}
	mustNotContain(t, "what Keyporter wrote", written+s.run("config", "show", "--redis", url), password, key)
}

// With --rate-limit-strict a request with a rate limit gets a 503 while Valkey is unreachable, and
// does not count.
func TestStrictReplicasAnswer503WithoutValkey(t *testing.T) {
	partstest.Slow(t)
	t.Parallel()
	valkey := partstest.Valkey(t)
	s, all := sharing(t, "--redis", "redis://"+valkey.Addr(), "--rate-limit-strict")
	key, free := s.user("ann", "pro", "--rate-limit", "60"), s.user("bob", "free")
	valkey.Pause()
	for i, c := range all {
		for n := range 5 {
			if status, err := c.limited(key, fmt.Sprint(i, n)); status != 503 || err != nil {
				t.Errorf("replica %d: %d, %v, want 503", i, status, err)
			}
		}
		if status, err := c.limited(free, fmt.Sprint("free", i)); status != 200 || err != nil {
			t.Errorf("a user without a limit, replica %d: %d, %v, want 200", i, status, err)
		}
	}
	for _, r := range s.replicas {
		tellsWhy(t, r, "valkey")
	}
	valkey.Resume()
	partstest.EventuallyNil(t, "Valkey counts again", func() error {
		if status, err := all[0].limited(key, "after"); status != 200 {
			return fmt.Errorf("%d, %v", status, err)
		}
		return nil
	})
}

// Replicas use Valkey at rediss:// only if its certificate is trusted; SSL_CERT_FILE names trusted
// authorities. Otherwise the log reports the problem, and the replica counts alone.
func TestAValkeyBehindTLS(t *testing.T) {
	partstest.Slow(t)
	certified := httptest.NewTLSServer(nil) // for its certificate for 127.0.0.1
	certified.Close()
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: certified.TLS.Certificates})
	if err != nil {
		t.Fatal(err)
	}
	front := partstest.StartProxy(t, partstest.ProxyConfig{To: partstest.Valkey(t).Addr(), Listener: listener})
	authority := filepath.Join(t.TempDir(), "ca.pem")
	write(t, authority, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certified.Certificate().Raw})))
	for name, c := range map[string]struct{ trusted, up, logged string }{
		"whom we trust":        {trusted: authority, up: "1"},
		"whom we do not trust": {trusted: os.DevNull, up: "0", logged: "certificate signed by unknown authority"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("SSL_CERT_FILE", c.trusted)
			s := start(t, stackConfig{database: partstest.Database(t, 18), noEnvoy: true, flags: append([]string{"--redis", "rediss://" + front.Addr()}, patient...)})
			r := s.replicas[0]
			partstest.EventuallyNil(t, "Valkey is asked, or not", func() error {
				if up := r.metric(t, "keyporter_ratelimit_valkey_up"); up != c.up {
					return errors.New(up)
				}
				return nil
			})
			if status, err := newChecker(t, r).limited(s.user("ann", "pro", "--rate-limit", "60"), "1"); status != 200 || err != nil {
				t.Errorf("%d, %v", status, err)
			}
			if asked := r.metric(t, "keyporter_ratelimit_valkey_seconds_count"); asked != c.up {
				t.Errorf("Valkey was asked %s times, want %s", asked, c.up)
			}
			if written := s.written(); !strings.Contains(written, c.logged) {
				t.Errorf("the log does not say %q:\n%s", c.logged, written)
			}
		})
	}
}

// Replicas without a Valkey divide every limit by their number, and all outputs report that.
func TestReplicasWithoutValkeySayThatTheyDivideLimits(t *testing.T) {
	t.Parallel()
	partstest.Slow(t)
	s, all := sharing(t)
	key := s.user("ann", "pro", "--rate-limit", "60")
	s.divided(t, "3")
	for i, c := range all {
		allowed := 0
		for n := range 60 {
			if status, _ := c.limited(key, fmt.Sprint(i, "-", n)); status == 200 {
				allowed++
			}
		}
		if allowed != 20 {
			t.Errorf("replica %d allows %d, want 20", i, allowed)
		}
	}
	if out := s.run("replicas"); !strings.Contains(out, "each of the 3 replicas admits its share") {
		t.Errorf("keyporter replicas says %s", out)
	}
	if out := s.run("replicas", "--output", "json"); !strings.Contains(out, `"divided_by":3`) {
		t.Errorf("keyporter replicas says %s", out)
	}
	if _, problems, status := s.try("config", "check"); status != 1 || !strings.Contains(problems, "--rate-limit-share") {
		t.Errorf("config check: %d, %s", status, problems)
	}
	for _, flag := range []string{"--rate-limit-share", "--redis=redis://valkey:6379"} {
		s.run("config", "check", flag)
	}
	s.replicas[2].process.Stop()
	s.replicas = s.replicas[:2]
	s.divided(t, "2")
}

package e2e_test

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// request is an HTTP/1.1 request that is sent byte for byte as given. The clients of net/http would
// repair what these tests want to send.
type request struct {
	method string // GET if empty
	host   string // api.example.com if empty
	target string
	header []string // whole lines, "Name: value"
	form   string   // body, if any
}

// answer is the response to a request.
type answer struct {
	status int
	header http.Header
	body   string
}

// connection is one connection to Envoy, reopened whenever Envoy closes it. It is not safe for
// concurrent use.
type connection struct {
	address string
	tls     *tls.Config // nil: plaintext
	conn    net.Conn
	reader  *bufio.Reader
}

func (c *connection) close() {
	if c.conn != nil {
		c.conn.Close()
		c.conn = nil
	}
}

// send writes r and reads the answer.
func (c *connection) send(r request) (answer, error) {
	for attempt := 0; ; attempt++ {
		fresh := c.conn == nil
		a, err := c.once(r)
		if err == nil {
			return a, nil
		}
		c.close()
		if fresh || attempt > 0 {
			return answer{}, err
		}
	}
}

func (c *connection) once(r request) (answer, error) {
	if c.conn == nil {
		conn, err := net.Dial("tcp", c.address)
		if err != nil {
			return answer{}, err
		}
		if c.tls != nil {
			conn = tls.Client(conn, c.tls)
		}
		c.conn, c.reader = conn, bufio.NewReader(conn)
	}
	c.conn.SetDeadline(time.Now().Add(time.Minute))
	var b strings.Builder
	method := r.verb()
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: %s\r\n", method, r.target, cmp.Or(r.host, "api.example.com"))
	for _, line := range r.header {
		b.WriteString(line + "\r\n")
	}
	if r.form != "" {
		fmt.Fprintf(&b, "Content-Length: %d\r\n", len(r.form))
	}
	b.WriteString("\r\n" + r.form)
	if _, err := io.WriteString(c.conn, b.String()); err != nil {
		return answer{}, err
	}
	response, err := http.ReadResponse(c.reader, &http.Request{Method: method})
	if err != nil {
		return answer{}, err
	}
	body, err := io.ReadAll(response.Body)
	response.Body.Close()
	if err != nil {
		return answer{}, err
	}
	if response.Close {
		c.close()
	}
	return answer{response.StatusCode, response.Header, string(body)}, nil
}

func (r request) verb() string {
	if r.method == "" {
		return http.MethodGet
	}
	return r.method
}

// send sends one request to Envoy.
func (s *stack) send(r request) answer {
	s.t.Helper()
	c := &connection{address: s.front, tls: s.tls}
	defer c.close()
	a, err := c.send(r)
	if err != nil {
		s.t.Fatalf("%s %s: %v", r.verb(), r.target, err)
	}
	return a
}

// versions are the versions of HTTP that tests cover.
var versions = []string{"HTTP/1.1", "HTTP/2"}

// over sends one request to Envoy with the given version of HTTP.
func (s *stack) over(version string, r request) answer {
	s.t.Helper()
	if version == "HTTP/1.1" {
		return s.send(r)
	}
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: &protocols, DisableCompression: true}
	defer transport.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, r.verb(), "http://"+s.front, strings.NewReader(r.form))
	if err != nil {
		s.t.Fatal(err)
	}
	if r.form == "" {
		request.Body = nil
	}
	path, query, found := strings.Cut(r.target, "?")
	request.URL.Opaque, request.URL.RawQuery, request.URL.ForceQuery = path, query, found && query == ""
	request.Host = cmp.Or(r.host, "api.example.com")
	for _, line := range r.header {
		name, value, _ := strings.Cut(line, ": ")
		request.Header.Add(name, value)
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		s.t.Fatalf("%s %s: %v", r.verb(), r.target, err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return answer{response.StatusCode, response.Header, string(body)}
}

// sent is a request, its answer, and the request as the upstream received it.
type sent struct {
	request
	answer
	arrived bool
	seen    seen
}

// sendAll sends requests concurrently on a few connections and passes each outcome to judge, in no
// order. judge must be safe for concurrent use. Every request gets its own x-test-id.
func (s *stack) sendAll(requests []request, judge func(i int, o sent)) {
	s.t.Helper()
	const connections = 8
	var wg sync.WaitGroup
	problems := make(chan error, connections)
	for worker := range connections {
		wg.Go(func() {
			c := &connection{address: s.front, tls: s.tls}
			defer c.close()
			for i := worker; i < len(requests); i += connections {
				id := fmt.Sprintf("%s-%d", s.t.Name(), i)
				r := requests[i]
				r.header = append([]string{"x-test-id: " + id}, r.header...)
				a, err := c.send(r)
				if err != nil {
					problems <- fmt.Errorf("%s %q: %w", r.verb(), r.target, err)
					return
				}
				request, arrived := s.upstream.take(id)
				judge(i, sent{requests[i], a, arrived, request})
			}
		})
	}
	wg.Wait()
	close(problems)
	if err := errors.Join(collect(problems)...); err != nil {
		s.t.Fatal(err)
	}
}

func collect(problems <-chan error) (all []error) {
	for err := range problems {
		all = append(all, err)
	}
	return all
}

// bodies are the bodies of the denials, deliberately repeated here.
var bodies = map[string]string{
	"bad_request":         `"code":"bad_request"`,
	"unauthorized":        `{"success":false,"error":"Unauthorized","code":"unauthorized"}`,
	"not_found":           `"code":"not_found"`,
	"method_not_allowed":  `"code":"method_not_allowed"`,
	"api_access_required": `{"success":false,"error":"API access is not included in your plan.","code":"api_access_required"}`,
	"unavailable":         `"code":"unavailable"`,
}

// mustNotContain fails the test if any of the secrets occurs in written.
func mustNotContain(t testing.TB, what, written string, secrets ...string) {
	t.Helper()
	if written == "" {
		t.Errorf("%s is empty, so the search proves nothing", what)
	}
	for _, secret := range secrets {
		if i := strings.Index(written, secret); i >= 0 {
			line := written[strings.LastIndexByte(written[:i], '\n')+1:]
			line, _, _ = strings.Cut(line, "\n")
			t.Errorf("%s holds a secret: %s", what, strings.ReplaceAll(line, secret, "SECRET"))
		}
	}
}

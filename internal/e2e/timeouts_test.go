package e2e_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// timed is a request from the table in docs/timeouts.md.
type timed struct {
	// the last segment selects the upstream's behaviour; one with the client's name is appended
	target string
	open   bool // the client does not end its request
	deaf   bool // the client reads nothing until all is over
}

func (r timed) by(client string) string {
	return r.target + "/" + strings.NewReplacer("/", "", ".", "").Replace(client)
}

// Rows of the table, by their first column.
var timedRequests = map[string]timed{
	"the upstream has the whole request and says nothing for `idle_timeout`":      {target: "/api/v1/events/silent"},
	"the same, while the request is still open: an upload, a stream":              {target: "/api/v1/events/open/silent", open: true},
	"nothing is said for `idle_timeout` in the middle of the answer":              {target: "/api/v1/events/half"},
	"the client reads nothing for `idle_timeout`":                                 {target: "/api/v1/events/endless", deaf: true},
	"something is said within every `idle_timeout`":                               {target: "/api/v1/events/steady"},
	"the answer does not begin within `timeout`":                                  {target: "/api/v1/export/silent"},
	"the answer is not complete within `timeout`":                                 {target: "/api/v1/export/half"},
	"the upstream has the whole request and does not begin within `max_duration`": {target: "/api/v1/feed/silent"},
	"the same, while the request is still open":                                   {target: "/api/v1/feed/open/silent", open: true},
	"the answer is still open after `max_duration`":                               {target: "/api/v1/feed/half"},
	"an upgraded connection is still open after `max_duration`":                   {target: "/api/v1/feed/upgraded"},
	"the request is not complete after `request_timeout`":                         {target: "/api/v1/other/silent", open: true},
}

// The example and the table in docs/timeouts.md hold: each client's result after a time-out,
// Envoy's log entry, and the effect on credits.
func TestTimeOuts(t *testing.T) {
	t.Parallel()
	partstest.Slow(t)
	s, rows := startTimed(t)
	var asking sync.WaitGroup
	over := make(chan struct{})
	for i, row := range rows {
		request, ok := timedRequests[row.how]
		if !ok {
			t.Fatalf("no request ends like this: %s", row.how)
		}
		key := s.user(fmt.Sprint("user-", i), "metered", "--credits", "1000")
		for _, client := range row.clients() {
			asking.Go(func() {
				if got := s.ask(t, client, request, key, over); got != row.want(client) {
					t.Errorf("%s, by %s: %s, want %s", row.how, client, got, row.want(client))
				}
			})
		}
	}
	for _, row := range rows {
		for _, client := range row.clients() {
			if told := s.told(t, timedRequests[row.how].by(client)); !slices.Contains(told, row.told) {
				t.Errorf("%s, by %s: Envoy tells %s, want %s", row.how, client, told, row.told)
			}
		}
	}
	close(over)
	asking.Wait()
	if len(rows) != len(timedRequests) {
		t.Errorf("the table has %d rows, want %d", len(rows), len(timedRequests))
	}
	for i, row := range rows {
		used, back := row.credits()
		s.balanceBecomes(fmt.Sprint("user-", i), used, back)
	}
	s.ledgerAddsUp()
}

// A response in progress when its key is revoked is cut at its maximum age.
func TestAnOpenAnswerOutlivesItsKeyByItsAgeAtMost(t *testing.T) {
	t.Parallel()
	partstest.Slow(t)
	s, _ := startTimed(t)
	key := s.user("ann", "pro")
	conn, err := s.dial(t, "/api/v1/feed/half/ann", "Host: api.example.com", "X-API-Key: "+key)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Fatalf("%v, %v", answer, err)
	}
	s.run("key", "revoke", "ann")
	if a := s.send(request{target: "/api/v1/feed/half/ann", header: []string{"X-API-Key: " + key}}); a.status != 401 {
		t.Errorf("the key opens another answer: %d", a.status)
	}
	if _, err := io.Copy(io.Discard, answer.Body); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("the answer was not cut: %v", err)
	}
}

// timedRow is a row of the table in docs/timeouts.md.
type timedRow struct{ how, http, grpc, told, credit string }

func (r timedRow) clients() []string {
	if r.grpc == "–" { // an upgrade, which only HTTP/1.1 has
		return []string{"HTTP/1.1"}
	}
	return []string{"HTTP/1.1", "HTTP/2", "gRPC"}
}

func (r timedRow) want(client string) string {
	if client == "gRPC" {
		return r.grpc
	}
	return r.http
}

// credits returns the used and the refunded credits of all clients' requests.
func (r timedRow) credits() (used, back int64) {
	cost := int64(1)
	if strings.HasPrefix(timedRequests[r.how].target, "/api/v1/export/") {
		cost = 25
	}
	all := int64(len(r.clients()))
	switch r.credit {
	case "comes back":
		return 0, all * cost
	case "comes back; of a gRPC call it stays":
		return cost, (all - 1) * cost
	}
	return all * cost, 0
}

// startTimed starts a stack with the example of docs/timeouts.md as its route table, with seconds
// in place of minutes, and with WebSocket as described in the bootstrap's comment. It also returns
// the rows of the document's last table.
func startTimed(t *testing.T) (*stack, []timedRow) {
	t.Helper()
	document, err := os.ReadFile("../../docs/timeouts.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(document), "```yaml\n")
	example, text, _ := strings.Cut(text, "```\n")
	example = strings.NewReplacer("15m", "3s", "5m", "2s", "30s", "1s").Replace(example)
	s := start(t, stackConfig{noEnvoy: true, config: example, flags: patient})
	s.envoy = s.startEnvoyTo(t, startTimedUpstream(t), "request_timeout: 300s", "request_timeout: 5s",
		"stat_prefix: ingress\n", "stat_prefix: ingress\n          upgrade_configs: [{ upgrade_type: websocket }]\n",
		`[{ safe_regex: { regex: ".*" } }]`, `[{ safe_regex: { regex: "(?i)(h2c|tls/.*|http/.*)" } }]`)
	var rows []timedRow
	for _, line := range strings.Split(text, "\n") {
		if cells := strings.Split(line, " | "); len(cells) == 5 {
			rows = append(rows, timedRow{strings.TrimPrefix(cells[0], "| "), cells[1], strings.TrimSpace(cells[2]), strings.Trim(cells[3], "`"), strings.TrimSuffix(cells[4], " |")})
		}
	}
	return s, rows[1:] // without the heading
}

// startTimedUpstream starts an upstream whose behaviour the last but one segment of a path selects,
// and returns its address.
func startTimedUpstream(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		control := http.NewResponseController(w)
		switch path.Base(path.Dir(r.URL.Path)) {
		case "silent":
			io.Copy(io.Discard, r.Body)
		case "half":
			io.WriteString(w, "half")
			control.Flush()
		case "endless":
			for {
				if _, err := w.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		case "steady":
			sendEvents(r.Context(), w)
			return
		case "upgraded":
			conn, _, err := control.Hijack()
			if err != nil {
				return
			}
			defer conn.Close()
			io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello")
			io.Copy(io.Discard, conn)
			return
		}
		<-r.Context().Done()
	})}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
	return listener.Addr().String()
}

// sendEvents sends events for longer than the time-outs of the example.
func sendEvents(ctx context.Context, w http.ResponseWriter) {
	w.Header().Set("Content-Type", "text/event-stream")
	now := time.NewTicker(250 * time.Millisecond)
	defer now.Stop()
	for i := range 14 {
		fmt.Fprintf(w, "data: %d\n\n", i)
		http.NewResponseController(w).Flush()
		select {
		case <-now.C:
		case <-ctx.Done():
			return
		}
	}
}

// ask sends a request, and returns its client's result in the words of the table. A deaf client
// reads only after all is over.
func (s *stack) ask(t *testing.T, client string, r timed, key string, over <-chan struct{}) string {
	t.Helper()
	if path.Base(r.target) == "upgraded" {
		return s.askUpgraded(t, r.by(client), key)
	}
	var protocols http.Protocols
	protocols.SetHTTP1(client == "HTTP/1.1")
	protocols.SetUnencryptedHTTP2(client != "HTTP/1.1")
	transport := &http.Transport{Protocols: &protocols}
	defer transport.CloseIdleConnections()
	reader, writer := io.Pipe()
	defer reader.Close()
	if r.open {
		go writer.Write([]byte("begin"))
	} else {
		writer.Close()
	}
	question, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+s.front+r.by(client), reader)
	if err != nil {
		return err.Error()
	}
	question.Header.Set("X-API-Key", key)
	if client == "gRPC" {
		question.Header.Set("Content-Type", "application/grpc")
	}
	answer, err := transport.RoundTrip(question)
	if err != nil {
		return err.Error()
	}
	defer answer.Body.Close()
	if r.deaf {
		<-over
	}
	return noticed(client, answer)
}

func (s *stack) askUpgraded(t *testing.T, target, key string) string {
	t.Helper()
	conn, err := s.dial(t, target, "Host: api.example.com", "X-API-Key: "+key, "Connection: Upgrade", "Upgrade: websocket")
	if err != nil {
		return err.Error()
	}
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return err.Error()
	}
	if _, err := io.Copy(io.Discard, conn); err != nil {
		return err.Error()
	}
	return fmt.Sprint(answer.StatusCode, ", cut")
}

// noticed reads an answer to its end.
func noticed(client string, answer *http.Response) string {
	_, err := io.Copy(io.Discard, answer.Body)
	end := "whole"
	if err != nil {
		end = "cut"
	}
	switch {
	case client == "gRPC" && answer.Header.Get("Grpc-Status") != "":
		return answer.Header.Get("Grpc-Status")
	case client == "gRPC":
		return end
	case answer.StatusCode == http.StatusOK:
		return "200, " + end
	}
	return fmt.Sprint(answer.StatusCode)
}

// dial sends an HTTP/1.1 request and returns the connection.
func (s *stack) dial(t *testing.T, target string, header ...string) (net.Conn, error) {
	conn, err := net.Dial("tcp", s.front)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(time.Minute))
	_, err = fmt.Fprintf(conn, "GET %s HTTP/1.1\r\n%s\r\n\r\n", target, strings.Join(header, "\r\n"))
	return conn, err
}

// told waits until Envoy has logged the end of a request, and returns its flags and details.
func (s *stack) told(t *testing.T, target string) (words []string) {
	t.Helper()
	partstest.EventuallyNil(t, "Envoy has logged the end of "+target, func() error {
		for _, line := range strings.Split(s.envoy.Output(), "\n") {
			var entry struct{ Path, Flags, Details string }
			if json.Unmarshal([]byte(line), &entry) == nil && entry.Path == target {
				words = append(strings.Split(entry.Flags, ","), entry.Details)
				return nil
			}
		}
		return errors.New("there is no such line")
	})
	return words
}

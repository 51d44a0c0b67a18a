package e2e_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyporter/keyporter/internal/parts"
	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// silent is an upstream that reads requests and never answers, except for half an answer if the
// path ends in half.
type silent struct {
	net.Listener
	asked atomic.Int64
}

func startSilent(t *testing.T) *silent {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u := &silent{Listener: listener}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u.asked.Add(1)
		if strings.HasSuffix(r.URL.Path, "half") {
			w.Header().Set("Content-Length", "100")
			io.WriteString(w, "half")
			http.NewResponseController(w).Flush()
		}
		<-r.Context().Done()
	})}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
	return u
}

// startEnvoyTo starts an Envoy with another upstream, and with some texts of its configuration
// replaced.
func (s *stack) startEnvoyTo(t *testing.T, upstream string, changes ...string) *parts.Envoy {
	t.Helper()
	return s.startEnvoyWith(t, []string{"--upstream", upstream}, changes...)
}

// startEnvoyWith is startEnvoyTo with further flags of `keyporter envoy`.
func (s *stack) startEnvoyWith(t *testing.T, flags []string, changes ...string) *parts.Envoy {
	t.Helper()
	s.front = address(t)
	r := s.replicas[0]
	config := s.run(append([]string{"envoy", "--authz", r.grpc, "--page", r.page, "--listen", s.front, "--admin", address(t)}, flags...)...)
	for i := 0; i < len(changes); i += 2 {
		changed := strings.ReplaceAll(config, changes[i], changes[i+1])
		if changed == config {
			t.Fatalf("the bootstrap does not say %q", changes[i])
		}
		config = changed
	}
	return partstest.StartEnvoy(t, parts.EnvoyConfig{Bootstrap: []byte(waitLonger(t, config))})
}

// leave sends a request and disconnects once isTime returns nil.
func (s *stack) leave(t *testing.T, r request, isTime func() error) {
	t.Helper()
	conn, err := net.Dial("tcp", s.front)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: api.example.com\r\n%s\r\n\r\n", r.target, strings.Join(r.header, "\r\n"))
	if strings.HasSuffix(r.target, "half") {
		conn.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil {
			t.Fatal(err)
		}
	}
	partstest.EventuallyNil(t, "it is time to leave", isTime)
}

// Refunds of requests without an answer: a credit comes back unless the upstream may have worked
// for a client that left, through the real Envoy, its access log and the ledger.
func TestTheBalanceWithoutAnAnswer(t *testing.T) {
	t.Parallel()
	partstest.Slow(t)
	s := start(t, stackConfig{noEnvoy: true, flags: patient})
	mute, nowhere := startSilent(t), address(t)
	host, port, _ := net.SplitHostPort(mute.Addr().String())
	endpoint := fmt.Sprintf("lb_endpoints: [{ endpoint: { address: { socket_address: { address: %q, port_value: %s } } } }]", host, port)
	hurry := []string{"idle_timeout: 60s", "idle_timeout: 0.5s"}
	var many []string
	for i := range 95 {
		many = append(many, fmt.Sprintf("x-header-%d: 1", i))
	}
	asked := func() error {
		if mute.asked.Load() == 0 {
			return errors.New("the upstream was not asked")
		}
		return nil
	}
	told := map[string]int{}
	for i, row := range []struct {
		name     string
		upstream string
		changes  []string
		header   []string
		path     string
		status   int // that the client gets, unless it leaves
		isTime   func(*parts.Envoy) error
		failure  string // that the access log reports
	}{
		{"nobody listens", nowhere, nil, nil, "", 503, nil, "no_answer"},
		{"no host is healthy", mute.Addr().String(), []string{endpoint, "lb_endpoints: []"}, nil, "", 503, nil, "not_asked"},
		{"it is too slow", mute.Addr().String(), hurry, nil, "", 504, nil, "no_answer"},
		{"what we add does not fit", mute.Addr().String(), nil, many, "", 431, nil, "headers_too_large"},
		{"the client leaves before the upstream is asked", partstest.DeafAddr(t), []string{"connect_timeout: 1s", "connect_timeout: 300s"}, nil, "", 0, pending, "client_gone"},
		{"the client leaves while the upstream works", mute.Addr().String(), nil, nil, "", 0, func(*parts.Envoy) error { return asked() }, "none"},
		{"the client leaves while it reads", mute.Addr().String(), nil, nil, "/half", 0, func(*parts.Envoy) error { return asked() }, "none"},
	} {
		mute.asked.Store(0)
		user := fmt.Sprint("user-", i)
		key := s.user(user, "metered", "--credits", "1000")
		envoy := s.startEnvoyTo(t, row.upstream, row.changes...)
		r := request{target: "/api/v1/brands" + row.path, header: append([]string{"X-API-Key: " + key}, row.header...)}
		if row.isTime != nil {
			s.leave(t, r, func() error { return row.isTime(envoy) })
		} else if a := s.send(r); a.status != row.status {
			t.Errorf("%s: the client got %d, want %d", row.name, a.status, row.status)
		}
		t.Log(row.name)
		partstest.EventuallyNil(t, "the access log reports the completion", func() error {
			if got := s.replicas[0].metric(t, `keyporter_accesslog_entries_total{result="`+row.failure+`"}`); got != fmt.Sprint(told[row.failure]+1) {
				return fmt.Errorf("%s entries with %s, want %d", got, row.failure, told[row.failure]+1)
			}
			return nil
		})
		told[row.failure]++
		if row.failure != "none" {
			s.balanceBecomes(user, 0, 1)
		} else {
			s.balanceBecomes(user, 1, 0)
		}
		envoy.Stop()
	}
	s.ledgerAddsUp()
}

// pending returns nil once a request waits for a connection to the upstream.
func pending(e *parts.Envoy) error {
	response, err := http.Get("http://" + e.Admin() + "/stats?filter=cluster.upstream.upstream_rq_pending_active")
	if err != nil {
		return err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err == nil && !strings.Contains(string(text), "pending_active: 1") {
		err = fmt.Errorf("no request waits: %s", text)
	}
	return err
}

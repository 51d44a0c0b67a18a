package e2e_test

import (
	"bytes"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	accesslogdata "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// visitor is a user affected by the load of others: they open their page and the login, and use
// their key.
type visitor struct {
	s           *stack
	key, cookie string
}

// visit does all of that some times, each on a new connection, and returns the median duration.
func (v visitor) visit(t *testing.T, times int) time.Duration {
	t.Helper()
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true}}
	var took []time.Duration
	for range times {
		for path, header := range map[string][2]string{
			"/api": {"Cookie", v.cookie}, "/api/-/login": {"Accept", "text/html"}, "/api/v1/brands": {"X-Api-Key", v.key},
		} {
			request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+v.s.front+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			request.Header.Set(header[0], header[1])
			began := time.Now()
			answer, err := client.Do(request)
			if err != nil {
				t.Errorf("GET %s: %v", path, err)
				continue
			}
			io.Copy(io.Discard, answer.Body)
			answer.Body.Close()
			took = append(took, time.Since(began))
			if answer.StatusCode != http.StatusOK {
				t.Errorf("GET %s: %s", path, answer.Status)
			}
		}
	}
	if len(took) == 0 {
		t.Fatal("no request was answered")
	}
	slices.Sort(took)
	return took[len(took)/2]
}

// Clients that send forms without bodies affect no other user. There are more such forms than
// Envoy's default limit for a cluster (1,024), and Envoy holds all of them: none reaches the page.
func TestBodiesThatNeverComeAreNoticedByNobody(t *testing.T) {
	t.Parallel()
	s := start(t, stackConfig{})
	v := visitor{s: s, key: s.user("ada", "pro"), cookie: s.session("ada")}
	rounds, connections := 10, 12
	if long {
		rounds, connections = 100, 90 // above the limit of the page cluster
	}
	s.user("eve", "pro")
	eve := s.session("eve")
	quiet := v.visit(t, rounds)
	for i := range connections {
		path := []string{"/api/-/login", "/api/regenerate", "/api"}[i%3]
		openForms(t, s.front, path, eve, 100)
	}
	partstest.EventuallyNil(t, "all forms are open", func() error {
		if open := s.stat(t, "http.ingress.downstream_rq_active"); open < connections*100 {
			return fmt.Errorf("%d are", open)
		}
		return nil
	})
	if open := s.stat(t, "cluster.page.upstream_rq_active"); open != 0 {
		t.Errorf("%d requests that are not whole have reached the page", open)
	}
	// Requests that expect 100-continue go to the page at once, and use up the user's share of it.
	openForms(t, s.front, "/api/regenerate", eve, 50, [2]string{"expect", "100-continue"})
	partstest.EventuallyNil(t, "the page has refused what is above the user's share", func() error {
		if open := s.stat(t, "cluster.page.upstream_rq_active"); open != 8 {
			return fmt.Errorf("it has %d", open)
		}
		return nil
	})
	attacked := v.visit(t, rounds)
	t.Logf("%d forms without a body: another user waits %v in the median, %v before: %.2f times as long", connections*100, attacked, quiet, float64(attacked)/float64(quiet))
	// Envoy rejects a form that is too long; the page answers one that fits.
	for size, want := range map[int]int{5000: http.StatusRequestEntityTooLarge, 3000: http.StatusNotFound} {
		answer, err := http.Post("http://"+s.front+"/api/-/login", "application/x-www-form-urlencoded", strings.NewReader("token="+strings.Repeat("x", size)))
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode != want {
			t.Errorf("a form of %d bytes: %s, want %d", size, answer.Status, want)
		}
	}
}

// A user with a session but no API access holds as many requests open as the upstream allows, and
// requests with a key still pass. The long run opens the full number; the short one lowers the
// limit.
func TestHeldSessionsLeaveKeysAlone(t *testing.T) {
	t.Parallel()
	partstest.Slow(t)
	s := start(t, stackConfig{noEnvoy: true, flags: patient})
	most, changes := 100, []string{"max_connections: 8192, max_pending_requests: 8192, max_requests: 8192 }", "max_connections: 100, max_pending_requests: 100, max_requests: 100 }"}
	if long {
		most, changes = 8192, nil
	}
	s.envoy = s.startEnvoyTo(t, s.upstream.address, changes...)
	key := s.user("ada", "pro")
	s.user("eve", "free", "--api-access=false")
	eve := s.session("eve")
	for range most/100 + 2 {
		openForms(t, s.front, "/api/other", eve, 100)
	}
	partstest.EventuallyNil(t, "the upstream has as many as it may", func() error {
		if open := s.stat(t, "cluster.upstream.upstream_rq_active"); open < most {
			return fmt.Errorf("%d requests are open", open)
		}
		return nil
	})
	client := &http.Client{Timeout: 20 * time.Second}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.front+"/api/v1/brands", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("X-API-Key", key)
	for range 5 {
		answer, err := client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			t.Errorf("with a key: %s", answer.Status)
		}
	}
}

// openForms starts requests whose bodies never arrive.
func openForms(t *testing.T, address, path, cookie string, n int, more ...[2]string) {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	io.WriteString(conn, http2.ClientPreface)
	framer := http2.NewFramer(conn, nil)
	framer.WriteSettings()
	var block bytes.Buffer
	headers := hpack.NewEncoder(&block)
	for i := range n {
		block.Reset()
		for _, h := range append([][2]string{
			{":method", "POST"}, {":scheme", "http"}, {":path", path}, {":authority", address}, {"cookie", cookie},
			{"content-type", "application/x-www-form-urlencoded"}, {"content-length", "80"},
		}, more...) {
			headers.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]})
		}
		if err := framer.WriteHeaders(http2.HeadersFrameParam{StreamID: uint32(2*i + 1), BlockFragment: block.Bytes(), EndHeaders: true}); err != nil {
			t.Fatal(err)
		}
	}
	go io.Copy(io.Discard, conn)
}

// stat returns a counter or gauge from Envoy's admin interface.
func (s *stack) stat(t *testing.T, name string) int {
	t.Helper()
	answer, err := http.Get("http://" + s.envoy.Admin() + "/stats?filter=^" + name + "$")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	_, value, _ := strings.Cut(strings.TrimSpace(string(body)), ": ")
	n, err := strconv.Atoi(value)
	if err != nil {
		t.Fatalf("%s: %s", name, body)
	}
	return n
}

// Once there are many connections, idle ones end soon, so that others find room. The long run opens
// the full number; the short one lowers the limit.
func TestIdleConnectionsMakeRoom(t *testing.T) {
	t.Parallel()
	partstest.Slow(t)
	s := start(t, stackConfig{noEnvoy: true, flags: patient})
	idle, changes := 200, []string{
		"max_active_downstream_connections: 10000", "max_active_downstream_connections: 200",
		"scaling_threshold: 0.04, saturation_threshold: 0.06", "scaling_threshold: 0.001, saturation_threshold: 0.002",
		"CONNECTION_IDLE, min_timeout: 10s", "CONNECTION_IDLE, min_timeout: 1s",
	}
	if long {
		idle, changes = 10000, nil
	}
	s.envoy = s.startEnvoyTo(t, s.upstream.address, changes...)
	v := visitor{s: s, key: s.user("ada", "pro"), cookie: s.session("ada")}
	v.visit(t, 1)
	for range idle {
		conn, err := net.Dial("tcp", s.front)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
	}
	began := time.Now()
	// Envoy accepts connections later than the kernel: until then, there is room only in Envoy's
	// numbers.
	partstest.EventuallyNil(t, "Envoy has accepted them", func() error {
		if accepted := s.stat(t, "http.ingress.downstream_cx_total"); accepted < idle*9/10 {
			return fmt.Errorf("it has accepted %d connections", accepted)
		}
		return nil
	})
	partstest.EventuallyNil(t, "there is room again", func() error {
		if open := s.stat(t, "http.ingress.downstream_cx_active"); open > idle/2 {
			return fmt.Errorf("%d connections are open", open)
		}
		return nil
	})
	t.Logf("%d idle connections had made room after %v", idle, time.Since(began))
	v.visit(t, 5)
}

// A client that reaches the gRPC port without a token and forges an access log creates only few
// rows, which all expire, and breaks no page and no command. Every request of another user is
// counted and listed.
func TestAMadeUpAccessLogDoesLittle(t *testing.T) {
	t.Parallel()
	partstest.Slow(t)
	s := start(t, stackConfig{database: partstest.Database(t, 18)})
	s.user("ada", "pro")
	key := s.user("bob", "pro")
	cookie := s.session("ada")
	var ada struct{ Key struct{ ID string } }
	s.decode(s.run("user", "show", "ada", "--output", "json"), &ada)
	messages := 20
	if long {
		messages = 2000
	}
	attack := make(chan struct{})
	stream := dialLog(t, s.replicas[0]).stream
	go func() {
		defer close(attack)
		for i := range messages {
			if err := stream.Send(madeUp(ada.Key.ID, i)); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	const own = 59
	for range own {
		if a := s.send(request{target: "/api/v1/brands", header: []string{"X-API-Key: " + key}}); a.status != http.StatusOK {
			t.Errorf("another user: %d", a.status)
		}
	}
	<-attack
	partstest.EventuallyNil(t, "all requests of another user are counted", func() error {
		var bob struct {
			Key struct {
				LastHour int64 `json:"requests_last_hour"`
			}
			Requests []struct{ Path string }
		}
		s.decode(s.run("user", "show", "bob", "--output", "json"), &bob)
		if bob.Key.LastHour != own || len(bob.Requests) != 20 {
			return fmt.Errorf("%+v", bob)
		}
		return nil
	})
	db, err := sql.Open("postgres", s.database)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var rows, ahead int
	if err := db.QueryRow(`SELECT count(*), count(*) FILTER (WHERE last_at > extract(epoch FROM now()) * 1000) FROM request_counts`).Scan(&rows, &ahead); err != nil {
		t.Fatal(err)
	}
	if rows > 500 || ahead > 0 {
		t.Errorf("%d rows, %d of them of the future", rows, ahead)
	}
	page, text, document := s.page(cookie), s.run("user", "show", "ada"), s.run("user", "show", "ada", "--output", "json")
	if page.status != http.StatusOK || !json.Valid([]byte(page.body)) || !json.Valid([]byte(document)) {
		t.Errorf("the page: %d %s; the command: %s", page.status, page.body, document)
	}
	mustNotContain(t, "what ada is shown", page.body+text+document, "\x1b", "\u202e", `\u001b`, `\u202e`, "\u009b", "10000-")
}

// madeUp returns a message with impossible entries about ada among possible ones.
func madeUp(keyID string, n int) *accesslogv3.StreamAccessLogsMessage {
	var entries []*accesslogdata.HTTPAccessLogEntry
	for i := range 300 {
		user, key, at := "ada", keyID, timestamppb.Now()
		switch i % 8 {
		case 0:
			key = fmt.Sprintf("key_%d_%d", n, i)
		case 1:
			user = fmt.Sprintf("nobody%d-%d", n, i)
		case 2:
			at.Seconds += int64(n*300+i+1) * 600
		case 3:
			at.Seconds -= int64(n*300+i+1) * 600
		case 4:
			at = &timestamppb.Timestamp{Seconds: 253402300800} // the year 10000
		case 5:
			at = &timestamppb.Timestamp{Seconds: 1<<62 + int64(i), Nanos: -5}
		}
		facts, _ := structpb.NewStruct(map[string]any{"keyporter": map[string]any{"user": user, "key_id": key, "reason": []string{"allowed", "revoked_key"}[i%2]}})
		entries = append(entries, &accesslogdata.HTTPAccessLogEntry{
			CommonProperties: &accesslogdata.AccessLogCommon{
				AccessLogType: accesslogdata.AccessLogType_DownstreamEnd, StartTime: at,
				DownstreamRemoteAddress: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{Address: fmt.Sprintf("\x1b[%dm", i)}}},
				Metadata:                &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{"envoy.filters.http.ext_authz": facts}},
			},
			Request:  &accesslogdata.HTTPRequestProperties{Path: "/\x1b[2J\u202e", UserAgent: fmt.Sprintf("\u009b2J \u202e %d %d", n, i)},
			Response: &accesslogdata.HTTPResponseProperties{ResponseCode: wrapperspb.UInt32(200)},
		})
	}
	return &accesslogv3.StreamAccessLogsMessage{LogEntries: &accesslogv3.StreamAccessLogsMessage_HttpLogs{
		HttpLogs: &accesslogv3.StreamAccessLogsMessage_HTTPAccessLogEntries{LogEntry: entries},
	}}
}

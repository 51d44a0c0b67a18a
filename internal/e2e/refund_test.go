package e2e_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	accesslogdata "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// balance is the output of `credits show`.
type balance struct{ Used, Refunded, Outstanding, Lost, Unreported int64 }

func (s *stack) balance(user string) (b balance) {
	s.t.Helper()
	s.decode(s.run("credits", "show", user, "--output", "json"), &b)
	return b
}

// balanceBecomes waits until a user has the given numbers of used and refunded credits.
func (s *stack) balanceBecomes(user string, used, refunded int64) {
	s.t.Helper()
	partstest.EventuallyNil(s.t, "the balance is as expected", func() error {
		if b := s.balance(user); b.Used != used || b.Refunded != refunded {
			return fmt.Errorf("%s has %+v, want %d used and %d refunded", user, b, used, refunded)
		}
		return nil
	})
}

// chargedNothing fails the test if any request was charged. A balance of 0 would not show it at
// once: charges are reported within a second.
func (s *stack) chargedNothing() {
	s.t.Helper()
	for i, r := range s.replicas {
		if n := r.number(s.t, "keyporter_credits_charged_total"); n != 0 {
			s.t.Errorf("replica %d has charged %v credits, want 0", i, n)
		}
	}
}

// A credit is refunded if the upstream fails, through the real Envoy and its access log, and kept
// if it answers. Package envoy tests the log entries of each kind of failure, also with a real
// Envoy.
func TestCreditsComeBackWhenTheUpstreamFails(t *testing.T) {
	t.Parallel()
	partstest.Slow(t)
	for name, database := range databases {
		t.Run(name, func(t *testing.T) {
			s := start(t, stackConfig{database: database(t)})
			key := s.user("ann", "metered", "--credits", "1000")
			used, refunded := int64(0), int64(0)
			for _, row := range []struct {
				answer string
				status int
				back   bool
			}{
				{"", 200, false}, {"404", 404, false}, {"429", 429, false}, {"302", 302, false},
				{"500", 500, true}, {"501", 501, true}, {"502", 502, true}, {"503", 503, true}, {"504", 504, true},
				{"reset", 503, true}, {"grpc 14", 200, true}, {"grpc 13", 200, true}, {"grpc 5", 200, false},
			} {
				a := s.send(request{target: "/api/v1/brands", header: []string{"X-API-Key: " + key, "x-test-answer: " + row.answer}})
				if a.status != row.status {
					t.Errorf("the upstream's %q: the client got %d", row.answer, a.status)
				}
				if row.back {
					refunded++
				} else {
					used++
				}
			}
			s.balanceBecomes("ann", used, refunded)
			// Our own denials are no failure of the upstream, and are free. A listed balance may
			// lag behind. The one in an answer is exact: it counts its own request, and no denial
			// before.
			for _, denied := range []struct {
				target, key string
				status      int
			}{{"/api/v1/nothing", key, 404}, {"/api/v1/brands;x", key, 400}, {"/api/v1/brands", "wh_" + key[4:], 401}} {
				if a := s.send(request{target: denied.target, header: []string{"X-API-Key: " + denied.key}}); a.status != denied.status {
					t.Errorf("%s: the client got %d, want %d", denied.target, a.status, denied.status)
				}
			}
			used++
			told := s.send(request{target: "/api/v1/tiktok-shop/credits", header: []string{"X-API-Key: " + key}})
			if want := fmt.Sprintf(`"used":%d,`, used); told.status != 200 || !strings.Contains(told.body, want) {
				t.Errorf("after the denials the balance is %d %s, want %s", told.status, told.body, want)
			}
			s.balanceBecomes("ann", used, refunded)
			s.ledgerAddsUp()
			statement := s.run("credits", "statement", "ann")
			if n := bytes.Count([]byte(statement), []byte("refunded")); n != int(refunded) {
				t.Errorf("%d refunds in the statement, want %d:\n%s", n, refunded, statement)
			}
		})
	}
}

// A charge is refunded at most once, however often and to whichever replica its outcome is
// reported. A name without a signature for the access log has no effect.
func TestAChargeIsGivenBackOnce(t *testing.T) {
	t.Parallel()
	partstest.Slow(t)
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("settle-settle-settle-settle-settle\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	settle := address(t)
	s := start(t, stackConfig{database: partstest.Database(t, 18), replicas: 2, noEnvoy: true, flags: slices.Concat(namesCharges, patient)})
	third := s.serve(append(patient, "--listen-settle", settle, "--settle-token-file", token)...)
	key := s.user("ann", "metered", "--credits", "1000")
	checker := newChecker(t, s.replicas[0])
	var receipts, ids []string
	for i := range 10 {
		receipt, id := checker.charge(t, key, fmt.Sprint("request ", i))
		receipts, ids = append(receipts, receipt), append(ids, id)
	}
	if again, id := checker.charge(t, key, "request 0"); again != receipts[0] || id != ids[0] {
		t.Errorf("the second Check of a request was charged as %q", id)
	}
	forged := "B" + receipts[9][1:]
	for _, r := range append(s.replicas, third) {
		log := dialLog(t, r)
		for range 20 {
			log.tell(t, 500, receipts[0], receipts[1], receipts[2], forged, ids[8], "", "x")
			log.tell(t, 200, receipts[3])
		}
	}
	s.balanceBecomes("ann", 7, 3)
	post := func(id, outcome, token string) (int, string) {
		t.Helper()
		body := bytes.NewBufferString(`{"outcome":"` + outcome + `"}`)
		r, _ := http.NewRequest(http.MethodPost, "http://"+settle+"/v1/charges/"+id+"/settle", body)
		r.Header.Set("Authorization", "Bearer "+token)
		response, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		var b bytes.Buffer
		b.ReadFrom(response.Body)
		return response.StatusCode, b.String()
	}
	const secret = "settle-settle-settle-settle-settle"
	for _, row := range []struct {
		what, id, outcome, token string
		status                   int
		body                     string
	}{
		{"the first call", ids[4], "refund", secret, 200, `"refunded":true`},
		{"the same call", ids[4], "refund", secret, 200, `"refunded":false`},
		{"a charge that came back already", ids[0], "refund", secret, 200, `"refunded":false`},
		{"a charge that stands", ids[5], "charge", secret, 200, `"refunded":false`},
		{"a client with a leaked id", ids[6], "refund", "guessed", 401, ""},
		{"a receipt of the access log", receipts[6], "refund", secret, 404, ""},
		{"a forged id", "B" + ids[6][1:], "refund", secret, 404, ""},
	} {
		if status, body := post(row.id, row.outcome, row.token); status != row.status || !bytes.Contains([]byte(body), []byte(row.body)) {
			t.Errorf("%s: %d %s", row.what, status, body)
		}
	}
	s.balanceBecomes("ann", 6, 4)
	s.ledgerAddsUp()
	// Repeated reports count once: six of ten charges were reported.
	partstest.EventuallyNil(t, "the unreported credits in the balance", func() error {
		if b := s.balance("ann"); b.Unreported != 4 {
			return fmt.Errorf("%d credits are unreported, want 4", b.Unreported)
		}
		return nil
	})
}

// namesCharges makes a replica without a settle port name charges to the upstream.
var namesCharges = []string{"--upstream-headers", "user,charge"}

// charge asks like Envoy, and returns the names of the charge, by a replica with namesCharges.
func (c *checker) charge(t testing.TB, key, id string) (receipt, charge string) {
	t.Helper()
	response, err := c.client.Check(t.Context(), &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{
			Id: id, Method: "GET", Path: "/api/v1/brands", Headers: map[string]string{"x-api-key": key},
		}},
	}})
	if err != nil || response.GetOkResponse() == nil {
		t.Fatalf("%v %v", response, err)
	}
	for _, h := range response.GetOkResponse().GetHeaders() {
		if h.GetHeader().GetKey() == "x-keyporter-charge" {
			charge = h.GetHeader().GetValue()
		}
	}
	receipt = response.GetDynamicMetadata().GetFields()["keyporter"].GetStructValue().GetFields()["charge"].GetStringValue()
	if receipt == "" || charge == "" || receipt == charge {
		t.Fatalf("charged as %q and %q", receipt, charge)
	}
	return receipt, charge
}

// logger is an Envoy that sends an access log.
type logger struct {
	stream accesslogv3.AccessLogService_StreamAccessLogsClient
}

func dialLog(t testing.TB, r *replica) *logger {
	t.Helper()
	conn, err := grpc.NewClient(r.grpc, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() { cancel(); conn.Close() })
	stream, err := accesslogv3.NewAccessLogServiceClient(conn).StreamAccessLogs(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return &logger{stream}
}

// tell reports that the upstream answered requests with a status.
func (l *logger) tell(t testing.TB, status uint32, receipts ...string) {
	t.Helper()
	var entries []*accesslogdata.HTTPAccessLogEntry
	for _, receipt := range receipts {
		facts, err := structpb.NewStruct(map[string]any{"keyporter": map[string]any{"charge": receipt}})
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, &accesslogdata.HTTPAccessLogEntry{
			CommonProperties: &accesslogdata.AccessLogCommon{
				AccessLogType:         accesslogdata.AccessLogType_DownstreamEnd,
				UpstreamRemoteAddress: &corev3.Address{},
				Metadata:              &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{"envoy.filters.http.ext_authz": facts}},
			},
			Response: &accesslogdata.HTTPResponseProperties{ResponseCode: wrapperspb.UInt32(status), ResponseCodeDetails: "via_upstream"},
		})
	}
	err := l.stream.Send(&accesslogv3.StreamAccessLogsMessage{LogEntries: &accesslogv3.StreamAccessLogsMessage_HttpLogs{
		HttpLogs: &accesslogv3.StreamAccessLogsMessage_HTTPAccessLogEntries{LogEntry: entries},
	}})
	if err != nil {
		t.Fatal(err)
	}
}

// A client cannot make an HTTP/2 upstream fail by the trailers of its request, and so get a refund
// for work that was done: upstreams reject some trailer names, if trailers were announced to them.
func TestTrailersOfARequestBringNoCreditBack(t *testing.T) {
	partstest.Slow(t)
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	carriedOut := make(chan string, 2)
	server := &http.Server{Protocols: &protocols, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		carriedOut <- fmt.Sprintf("%s, trailers %v", body, r.Trailer)
	})}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
	s := start(t, stackConfig{noEnvoy: true, flags: patient})
	s.envoy = s.startEnvoyTo(t, "h2c://"+listener.Addr().String())
	key := s.user("ann", "metered", "--credits", "1000")
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{Protocols: &protocols}}
	for i, trailer := range []string{"Authorization", "X-Keyporter-User"} {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+s.front+"/api/v1/brands", io.NopCloser(strings.NewReader("body")))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("X-Api-Key", key)
		request.Trailer = http.Header{trailer: {"x"}}
		answer, err := client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if got := <-carriedOut; answer.StatusCode != http.StatusOK || got != "body, trailers map[]" {
			t.Errorf("%s: %s, the upstream got %s", trailer, answer.Status, got)
		}
		s.balanceBecomes("ann", int64(i+1), 0)
	}
}

package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/envoy/codec"
	"github.com/keyporter/keyporter/envoy/transport"
	"github.com/keyporter/keyporter/internal/parts"
	"github.com/keyporter/keyporter/usage"
)

// part is a part of an answer whose cost is measured: an answer with pieces of it, beside one
// without.
type part struct {
	name   string
	pieces int
	answer *authv3.CheckResponse
}

// pieces is how many of each part an answer has. One alone would cost less than rounds differ by.
const pieces = 10

// answerParts returns the measured parts. The first one is the answer without any.
func answerParts() []part {
	all := []part{
		{"an empty answer", 1, &authv3.CheckResponse{Status: &status.Status{}}},
		{"the answer of Keyporter", 1, ownAnswer(codec.Selection{})},
		{"the same with all that can be switched on", 1, ownAnswer(codec.Selection{
			Headers: codec.DefaultHeaders | codec.FactCharge, Metadata: codec.FactAccount | codec.FactPlan,
		})},
	}
	add := func(name string, fill func(*authv3.OkHttpResponse, map[string]*structpb.Value)) {
		ok, facts := &authv3.OkHttpResponse{}, map[string]*structpb.Value{}
		fill(ok, facts)
		answer := &authv3.CheckResponse{Status: &status.Status{}, HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: ok}}
		if len(facts) > 0 {
			own := structpb.NewStructValue(&structpb.Struct{Fields: facts})
			answer.DynamicMetadata = &structpb.Struct{Fields: map[string]*structpb.Value{codec.MetadataKey: own}}
		}
		all = append(all, part{name, pieces, answer})
	}
	long := strings.Repeat("0123456789abcdef", 6)
	add("a header for the upstream", func(ok *authv3.OkHttpResponse, _ map[string]*structpb.Value) {
		ok.Headers = tenHeaders("an-account-name", true)
	})
	add("the same, without the field append", func(ok *authv3.OkHttpResponse, _ map[string]*structpb.Value) {
		ok.Headers = tenHeaders("an-account-name", false)
	})
	add("the same, of 96 bytes", func(ok *authv3.OkHttpResponse, _ map[string]*structpb.Value) {
		ok.Headers = tenHeaders(long, true)
	})
	add("a header for the client", func(ok *authv3.OkHttpResponse, _ map[string]*structpb.Value) {
		ok.ResponseHeadersToAdd = tenHeaders("20000", true)
	})
	add("the removal of a header that is not there", func(ok *authv3.OkHttpResponse, _ map[string]*structpb.Value) {
		for i := range pieces {
			ok.HeadersToRemove = append(ok.HeadersToRemove, fmt.Sprintf("x-keyporter-part-%d", i))
		}
	})
	add("a field of the metadata", func(_ *authv3.OkHttpResponse, facts map[string]*structpb.Value) {
		tenFacts(facts, "an-account-name")
	})
	add("the same, of 96 bytes", func(_ *authv3.OkHttpResponse, facts map[string]*structpb.Value) {
		tenFacts(facts, long)
	})
	return all
}

func tenHeaders(value string, explicit bool) (headers []*corev3.HeaderValueOption) {
	for i := range pieces {
		h := &corev3.HeaderValueOption{
			Header:       &corev3.HeaderValue{Key: fmt.Sprintf("x-keyporter-part-%d", i), Value: value},
			AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
		}
		if explicit {
			h.Append = wrapperspb.Bool(false) //lint:ignore SA1019 the field that is measured
		}
		headers = append(headers, h)
	}
	return headers
}

func tenFacts(facts map[string]*structpb.Value, value string) {
	for i := range pieces {
		facts[fmt.Sprintf("fact_%d", i)] = structpb.NewStringValue(value)
	}
}

// ownAnswer returns what Keyporter answers to a request with a key in X-API-Key, of a user with
// limits.
func ownAnswer(s codec.Selection) *authv3.CheckResponse {
	const id, receipt = 85, 85 // the lengths of the names of a charge
	d := authz.Decision{
		Reason:    authz.Allowed,
		Principal: authz.Principal{User: "user-0001", Account: "bench", Plan: "bench", KeyID: "0123456789abcdef"},
		Rewrite:   authz.Rewrite{RemoveAPIKey: true},
		Charge: usage.Charge{
			ID: strings.Repeat("i", id), Receipt: strings.Repeat("r", receipt),
			Rate:    usage.Rate{Limit: 10_000, Window: time.Second, Remaining: 9_000, Reset: time.Second},
			Credits: usage.Credits{Counted: true, Limit: 1_000_000, Used: 10},
		},
	}
	a := codec.Answer{Selection: s}
	a.Fill(&codec.Call{}, &d)
	return a.Response()
}

// fixed answers every Check with the same bytes.
type fixed []byte

func (f fixed) Try(_ *transport.Call, out []byte) ([]byte, bool) { return append(out, f...), true }

func (f fixed) Wait(_ context.Context, _ *transport.Call, out []byte) []byte {
	return append(out, f...)
}

func (f fixed) Refuse(_ *transport.Call, out []byte) []byte { return append(out, f...) }

// serveFixed serves one answer, and drops the access log, until the lab stops.
func (l *lab) serveFixed(answer *authv3.CheckResponse) (addr string, err error) {
	message, err := proto.Marshal(answer)
	if err != nil {
		return "", err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	server := transport.NewServer(transport.Config{
		Methods: map[string]transport.Method{authv3.Authorization_Check_FullMethodName: fixed(message)},
		Streams: map[string]transport.Handler{accesslogv3.AccessLogService_StreamAccessLogs_FullMethodName: drop},
	})
	go server.Serve(listener) // ends with the lab
	l.cleanups = append(l.cleanups, server.Close)
	return listener.Addr().String(), nil
}

// drop reads a stream to its end.
func drop(stream transport.Stream) (code int, text string) {
	for {
		if _, err := stream.Receive(stream.Context()); err != nil {
			return 0, ""
		}
	}
}

// measuredPart is a part with its rows: without and with the access log.
type measuredPart struct {
	part
	rows [2]*row
}

// runCosts measures what each part of an answer costs Envoy, and prints a table. The answers come
// from this process, so that nothing but Envoy differs from row to row.
func runCosts(ctx context.Context, o options, stdout io.Writer, progress func(string, ...any)) error {
	machine, err := describeMachine(ctx, "fixed answers")
	if err != nil {
		return err
	}
	l := &lab{machine: machine}
	defer l.stop()
	measured, err := l.startParts(ctx)
	if err != nil {
		return err
	}
	var rows []*row
	for _, m := range measured {
		rows = append(rows, m.rows[:]...)
	}
	if err := measureAll(ctx, rows, o.plan, progress); err != nil {
		return err
	}
	table := renderCosts(measured) + notes(rows, machine)
	if _, err := io.WriteString(stdout, table); err != nil || o.write == "" {
		return err
	}
	return writeTable(o.write, costMarkers, table)
}

// startParts starts the servers of all parts, and an Envoy before them.
func (l *lab) startParts(ctx context.Context) ([]*measuredPart, error) {
	var measured []*measuredPart
	var fronts []envoyFront
	l.envoy = &server{name: "Envoy"}
	for _, p := range answerParts() {
		addr, err := l.serveFixed(p.answer)
		if err != nil {
			return nil, err
		}
		m := &measuredPart{part: p}
		for i, log := range []bool{false, true} {
			front, err := parts.FreeAddr()
			if err != nil {
				return nil, err
			}
			fronts = append(fronts, envoyFront{Listen: front, Authorizer: addr, Log: log})
			q := question{path: "/api/v1/brands?limit=20", keys: []string{forged}, status: http.StatusOK}
			m.rows[i] = &row{
				way: "through Envoy", server: fmt.Sprintf("access log %t", log), answer: p.name, envoy: l.envoy,
				dial: func(ctx context.Context, alone bool) (asker, error) { return q.dialEnvoy(ctx, front, alone) },
			}
		}
		measured = append(measured, m)
	}
	return measured, l.runEnvoy(ctx, fronts)
}

// renderCosts returns the table in Markdown.
func renderCosts(measured []*measuredPart) string {
	var table strings.Builder
	line(&table, []string{"part", "Envoy CPU µs", "±", "with the access log", "±"})
	line(&table, []string{"---", "---:", "---:", "---:", "---:"})
	for i, m := range measured {
		cells := []string{m.name}
		for j, r := range m.rows {
			cost, spread := r.median(envoyCPU)
			empty, _ := measured[0].rows[j].median(envoyCPU)
			spread *= cost / float64(m.pieces)
			if i > 0 {
				cost -= empty
			}
			cells = append(cells, fmt.Sprintf("%.2f", cost/float64(m.pieces)), fmt.Sprintf("%.2f", spread))
		}
		line(&table, cells)
	}
	return table.String()
}

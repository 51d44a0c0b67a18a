package envoy_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	accesslogdata "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/keyporter/keyporter/bearer"
	"github.com/keyporter/keyporter/envoy"
	"github.com/keyporter/keyporter/envoy/codec"
	"github.com/keyporter/keyporter/internal/parts/partstest"
	"github.com/keyporter/keyporter/usage"
)

// endings records the completions that a server reports.
type endings struct {
	mu  sync.Mutex
	all []usage.Completion // guarded by mu
}

func (e *endings) complete(ending usage.Completion) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if ending.Record = (usage.Record{}); ending.Receipt != "" { // see TestRecords for the rest
		e.all = append(e.all, ending)
	}
}

// take returns the completions since the last take.
func (e *endings) take() []usage.Completion {
	e.mu.Lock()
	defer e.mu.Unlock()
	all := e.all
	e.all = nil
	return all
}

// change is a change of an entry.
type change = func(*accesslogdata.HTTPAccessLogEntry)

// entry returns the entry of a charged request that was answered with 200, with changes applied.
// Its fields are as a real Envoy fills them.
func entry(changes ...change) *accesslogdata.HTTPAccessLogEntry {
	e := &accesslogdata.HTTPAccessLogEntry{
		CommonProperties: &accesslogdata.AccessLogCommon{
			AccessLogType: accesslogdata.AccessLogType_DownstreamEnd, ResponseFlags: &accesslogdata.ResponseFlags{},
			Metadata: charged("receipt"), UpstreamCluster: "upstream", UpstreamRequestAttemptCount: 1,
			TimeToFirstUpstreamTxByte: durationpb.New(time.Millisecond), TimeToFirstUpstreamRxByte: durationpb.New(2 * time.Millisecond),
		},
		Request:  &accesslogdata.HTTPRequestProperties{Path: "/a?api_key=wh_canary"},
		Response: &accesslogdata.HTTPResponseProperties{ResponseCode: wrapperspb.UInt32(200), ResponseCodeDetails: "via_upstream"},
	}
	for _, change := range changes {
		change(e)
	}
	return e
}

// charged returns the metadata of a request with a receipt.
func charged(receipt any) *corev3.Metadata {
	facts, err := structpb.NewStruct(map[string]any{codec.MetadataKey: map[string]any{"user": "ada", "charge": receipt}})
	if err != nil {
		panic(err) // a test has made a receipt of a type that no Struct has
	}
	return &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{"envoy.filters.http.ext_authz": facts}}
}

func answered(code uint32) change {
	return func(e *accesslogdata.HTTPAccessLogEntry) { e.Response.ResponseCode = wrapperspb.UInt32(code) }
}

// local is an answer of Envoy's own, without one from the upstream.
func local(code uint32, details string) change {
	return func(e *accesslogdata.HTTPAccessLogEntry) {
		e.CommonProperties.TimeToFirstUpstreamRxByte = nil
		e.Response.ResponseCode, e.Response.ResponseCodeDetails = wrapperspb.UInt32(code), details
	}
}

// details are Envoy's details of an answer that began.
func details(text string) change {
	return func(e *accesslogdata.HTTPAccessLogEntry) { e.Response.ResponseCodeDetails = text }
}

// nothing means that the client left without an answer.
func nothing(e *accesslogdata.HTTPAccessLogEntry) {
	e.CommonProperties.TimeToFirstUpstreamRxByte = nil
	e.Response.ResponseCode, e.Response.ResponseCodeDetails = nil, "downstream_remote_disconnect"
}

// body is an answer with this many bytes received.
func body(bytes uint64) change {
	return func(e *accesslogdata.HTTPAccessLogEntry) { e.Response.ResponseBodyBytes = bytes }
}

// unsent means that no upstream has received any part of the request.
func unsent(e *accesslogdata.HTTPAccessLogEntry) { e.CommonProperties.TimeToFirstUpstreamTxByte = nil }

func flags(set func(f *accesslogdata.ResponseFlags)) change {
	return func(e *accesslogdata.HTTPAccessLogEntry) { set(e.CommonProperties.ResponseFlags) }
}

func grpcHeader(status string) change {
	return func(e *accesslogdata.HTTPAccessLogEntry) {
		e.Response.ResponseHeaders = map[string]string{"grpc-status": status}
	}
}

func grpcTrailer(status string) change {
	return func(e *accesslogdata.HTTPAccessLogEntry) {
		e.Response.ResponseTrailers = map[string]string{"grpc-status": status}
	}
}

type responseFlags = accesslogdata.ResponseFlags

var (
	refused    = flags(func(f *responseFlags) { f.UpstreamConnectionFailure = true })
	retried    = flags(func(f *responseFlags) { f.UpstreamRetryLimitExceeded = true })
	terminated = flags(func(f *responseFlags) { f.UpstreamConnectionTermination = true })
	reset      = flags(func(f *responseFlags) { f.UpstreamRemoteReset = true })
	localReset = flags(func(f *responseFlags) { f.LocalReset = true })
	garbled    = flags(func(f *responseFlags) { f.UpstreamProtocolError = true })
	slow       = flags(func(f *responseFlags) { f.UpstreamRequestTimeout = true })
	idle       = flags(func(f *responseFlags) { f.StreamIdleTimeout = true })
	unhealthy  = flags(func(f *responseFlags) { f.NoHealthyUpstream = true })
	overflow   = flags(func(f *responseFlags) { f.UpstreamOverflow = true })
	noCluster  = flags(func(f *responseFlags) { f.NoClusterFound = true })
	noRoute    = flags(func(f *responseFlags) { f.NoRouteFound = true })
	noName     = flags(func(f *responseFlags) { f.DnsResolutionFailure = true })
	overload   = flags(func(f *responseFlags) { f.OverloadManager = true })
	left       = flags(func(f *responseFlags) { f.DownstreamConnectionTermination = true })
	leftStream = flags(func(f *responseFlags) { f.DownstreamRemoteReset = true })
	ours       = flags(func(f *responseFlags) {
		f.UnauthorizedDetails = &accesslogdata.ResponseFlags_Unauthorized{Reason: accesslogdata.ResponseFlags_Unauthorized_EXTERNAL_SERVICE}
	})
)

// Each way in which a request can end has its failure, with entries like a real Envoy's. An ending
// that a client alone can cause after the upstream was asked is no failure.
func TestHowARequestEnded(t *testing.T) {
	const none, answered5xx, noAnswer, notAsked, clientGone = usage.NoFailure, usage.Answered5xx, usage.NoAnswer, usage.NotAsked, usage.ClientGone
	for _, row := range []struct {
		name    string
		entry   []change
		status  int
		failure usage.Failure
	}{
		{"the upstream answers 200", nil, 200, none},
		{"the upstream answers 302", []change{answered(302)}, 302, none},
		{"the upstream answers 404", []change{answered(404)}, 404, none},
		{"the upstream answers 429", []change{answered(429)}, 429, none},
		{"the upstream answers 499", []change{answered(499)}, 499, none},
		{"the upstream answers 500", []change{answered(500)}, 500, answered5xx},
		{"the upstream answers 501", []change{answered(501)}, 501, answered5xx},
		{"the upstream answers 502", []change{answered(502)}, 502, answered5xx},
		{"the upstream answers 503", []change{answered(503)}, 503, answered5xx},
		{"the upstream answers 504", []change{answered(504)}, 504, answered5xx},
		{"the upstream answers 503 to each attempt", []change{answered(503), retried}, 503, answered5xx},
		{"the upstream answers 500 and the client leaves while it reads", []change{answered(500), left}, 500, answered5xx},

		{"the upstream refuses the connection, and again", []change{local(503, "upstream_reset_before_response_started{remote_connection_failure}"), unsent, refused, retried}, 503, noAnswer},
		{"the upstream resets before its headers", []change{local(503, "upstream_reset_before_response_started{connection_termination}"), terminated}, 503, noAnswer},
		{"the upstream resets the stream before its headers", []change{local(503, "upstream_reset_before_response_started{remote_reset}"), reset}, 503, noAnswer},
		{"Envoy resets the stream of an upstream", []change{local(503, "upstream_reset_before_response_started{local_reset}"), localReset}, 503, noAnswer},
		{"the upstream speaks no HTTP", []change{local(502, "upstream_reset_before_response_started{protocol_error}"), garbled}, 502, noAnswer},
		{"the upstream is too slow", []change{local(504, "response_timeout"), slow}, 504, noAnswer},
		{"the upstream says nothing for too long", []change{local(504, "stream_idle_timeout"), idle}, 504, noAnswer},
		{"the upstream says nothing for too long to a request that is still open", []change{local(408, "stream_idle_timeout"), idle}, 408, noAnswer},
		{"no upstream takes a request for too long", []change{local(504, "stream_idle_timeout"), idle, unsent}, 504, notAsked},
		{"no upstream takes a request that is still open for too long", []change{local(408, "stream_idle_timeout"), idle, unsent}, 408, notAsked},
		{"the upstream has said nothing when the request has its age", []change{local(504, "max_duration_timeout")}, 504, noAnswer},
		{"the upstream hangs up in the middle of its answer", []change{garbled}, 200, noAnswer},
		{"the upstream's connection ends in the middle of its answer", []change{terminated}, 200, noAnswer},
		{"the upstream resets in the middle of its answer", []change{reset}, 200, noAnswer},

		{"the upstream hangs up after as much as a client that does not read can leave with Envoy", []change{garbled, body(32<<10 - 1)}, 200, noAnswer},
		{"the upstream hangs up, perhaps because the client has not read", []change{garbled, body(32 << 10)}, 200, none},

		{"no upstream is healthy", []change{local(503, "no_healthy_upstream"), unsent, unhealthy}, 503, notAsked},
		{"too many requests wait for the upstream", []change{local(503, "upstream_reset_before_response_started{overflow}"), unsent, overflow}, 503, notAsked},
		{"the upstream has no name", []change{local(503, "no_healthy_upstream"), unsent, noName}, 503, notAsked},
		{"there is no such cluster", []change{local(503, "cluster_not_found"), unsent, noCluster}, 503, notAsked},
		{"there is no such route", []change{local(404, "route_not_found"), unsent, noRoute}, 404, none},
		{"our headers do not fit beside the client's", []change{local(431, "ext_authz_invalid"), unsent, ours}, 431, usage.HeadersTooLarge},
		{"our headers cannot be set", []change{local(503, "ext_authz_invalid"), unsent, ours}, 503, usage.InvalidAnswer},
		{"one of the two, without the generated configuration", []change{local(500, "ext_authz_invalid"), unsent, ours}, 500, usage.InvalidAnswer},
		{"Envoy is overloaded", []change{local(503, "overload"), unsent, overload}, 503, notAsked},
		{"Envoy fails by itself after our yes", []change{local(500, "internal_error"), unsent}, 500, notAsked},

		{"the client leaves before the upstream is asked", []change{nothing, unsent, left}, 0, clientGone},
		{"the client resets its stream before the upstream is asked", []change{nothing, unsent, leftStream}, 0, clientGone},
		{"the client leaves while the upstream works", []change{nothing, left}, 0, none},
		{"the client resets its stream while the upstream works", []change{nothing, leftStream}, 0, none},
		{"the client leaves while it reads", []change{left}, 200, none},
		{"the client resets its stream while it reads", []change{leftStream, reset}, 200, none},
		{"the client reads too slowly", []change{slow}, 200, none},
		{"the client stops reading", []change{idle}, 200, none},
		{"the client sends its body too slowly", []change{local(408, "request_overall_timeout")}, 408, none},
		{"the client is still sending when the request has its age", []change{local(408, "max_duration_timeout")}, 408, none},
		{"the answer has its age", []change{details("max_duration_timeout")}, 200, none},
		{"the client sends too much", []change{local(413, "request_payload_too_large"), unsent}, 413, none},

		{"gRPC: the call succeeds", []change{grpcTrailer("0")}, 200, none},
		{"gRPC: canceled by the client", []change{grpcTrailer("1")}, 200, none},
		{"gRPC: not found", []change{grpcTrailer("5")}, 200, none},
		{"gRPC: resource exhausted", []change{grpcTrailer("8")}, 200, none},
		{"gRPC: unimplemented", []change{grpcTrailer("12")}, 200, none},
		{"gRPC: unknown", []change{grpcTrailer("2")}, 200, answered5xx},
		{"gRPC: deadline exceeded", []change{grpcTrailer("4")}, 200, answered5xx},
		{"gRPC: internal", []change{grpcTrailer("13")}, 200, answered5xx},
		{"gRPC: unavailable", []change{grpcTrailer("14")}, 200, answered5xx},
		{"gRPC: data loss", []change{grpcTrailer("15")}, 200, answered5xx},
		{"gRPC: unavailable, and nothing else", []change{grpcHeader("14")}, 200, answered5xx},
		{"gRPC: Envoy says that the upstream is unavailable", []change{local(200, "upstream_reset_before_response_started{connection_termination}"), terminated, grpcHeader("14")}, 200, noAnswer},
		{"gRPC: the upstream says nothing for too long to a stream", []change{local(200, "stream_idle_timeout"), idle, grpcHeader("2")}, 200, noAnswer},
		{"gRPC: the client sends its messages too slowly", []change{local(200, "request_overall_timeout"), grpcHeader("2")}, 200, none},
		{"gRPC: the call has its age, whoever has not ended it", []change{local(200, "max_duration_timeout"), grpcHeader("4")}, 200, none},
		{"gRPC: our headers do not fit beside the client's", []change{local(200, "ext_authz_invalid"), unsent, ours, grpcHeader("2")}, 200, usage.HeadersTooLarge},
		{"gRPC: our headers cannot be set", []change{local(200, "ext_authz_invalid"), unsent, ours, grpcHeader("14")}, 200, usage.InvalidAnswer},
		{"gRPC: Envoy says that nobody is there", []change{local(200, "no_healthy_upstream"), unsent, unhealthy, grpcHeader("14")}, 200, notAsked},

		{"we answer ourselves", []change{local(200, "ext_authz_denied"), unsent, ours}, 200, none},
		{"we refuse, by a mistake with a receipt", []change{local(503, "ext_authz_denied"), unsent, ours}, 503, none},
	} {
		t.Run(row.name, func(t *testing.T) {
			var got endings
			s := makeServer(envoy.Config{OnComplete: got.complete})
			envoy.ReadLog(s, logOf(entry(row.entry...)))
			if diff := cmp.Diff([]usage.Completion{{Receipt: "receipt", Status: row.status, Failure: row.failure}}, got.take()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func logOf(entries ...*accesslogdata.HTTPAccessLogEntry) *accesslogv3.StreamAccessLogsMessage {
	return &accesslogv3.StreamAccessLogsMessage{LogEntries: &accesslogv3.StreamAccessLogsMessage_HttpLogs{
		HttpLogs: &accesslogv3.StreamAccessLogsMessage_HTTPAccessLogEntries{LogEntry: entries},
	}}
}

// Each request is reported once, at its end; an entry without a charge, or with an invalid one, is
// left out and counted. No broken entry keeps the others from being read.
func TestEntriesThatAreLeftOut(t *testing.T) {
	with := func(m *corev3.Metadata) *accesslogdata.HTTPAccessLogEntry {
		return entry(func(e *accesslogdata.HTTPAccessLogEntry) { e.CommonProperties.Metadata = m })
	}
	ofType := func(kind accesslogdata.AccessLogType, intermediate bool) *accesslogdata.HTTPAccessLogEntry {
		return entry(func(e *accesslogdata.HTTPAccessLogEntry) {
			e.CommonProperties.AccessLogType = kind
			//lint:ignore SA1019 all that an Envoy without the types has
			e.CommonProperties.IntermediateLogEntry = intermediate
		})
	}
	others := charged("receipt")
	others.FilterMetadata["envoy.filters.http.lua"] = others.FilterMetadata["envoy.filters.http.ext_authz"]
	delete(others.FilterMetadata, "envoy.filters.http.ext_authz")
	for _, row := range []struct {
		name      string
		entry     *accesslogdata.HTTPAccessLogEntry
		result    string
		completed bool
	}{
		{"a request that ends", entry(), "none", true},
		{"an older Envoy's request that ends", ofType(accesslogdata.AccessLogType_NotSet, false), "none", true},
		{"an older Envoy's request that goes on", ofType(accesslogdata.AccessLogType_NotSet, true), "not_the_end", false},
		{"a request that begins", ofType(accesslogdata.AccessLogType_DownstreamStart, true), "not_the_end", false},
		{"a request that goes on", ofType(accesslogdata.AccessLogType_DownstreamPeriodic, true), "not_the_end", false},
		{"a tunnel that begins", ofType(accesslogdata.AccessLogType_DownstreamTunnelSuccessfullyEstablished, true), "not_the_end", false},
		{"an attempt that ends", ofType(accesslogdata.AccessLogType_UpstreamEnd, false), "not_the_end", false},
		{"no such type", ofType(99, false), "not_the_end", false},
		{"an empty entry", &accesslogdata.HTTPAccessLogEntry{}, "no_key", false},
		{"no entry", nil, "no_key", false},
		{"no metadata", with(nil), "no_key", false},
		{"metadata without anything", with(&corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{"envoy.filters.http.ext_authz": nil}}), "no_key", false},
		{"another filter's metadata", with(others), "no_key", false},
		{"an empty receipt", with(charged("")), "no_key", false},
		{"a receipt that is a number", with(charged(7)), "no_key", false},
		{"a receipt that is a list", with(charged([]any{"receipt"})), "no_key", false},
		{"a receipt without end", with(charged(strings.Repeat("a", 1025))), "malformed", false},
	} {
		t.Run(row.name, func(t *testing.T) {
			var got endings
			registry := prometheus.NewRegistry()
			s := makeServer(envoy.Config{OnComplete: got.complete, Metrics: registry})
			envoy.ReadLog(s, logOf(row.entry))
			if completed := got.take(); (len(completed) == 1) != row.completed {
				t.Errorf("completed: %+v", completed)
			}
			expectMetric(t, registry, "keyporter_accesslog_entries_total", row.result, 1)
		})
	}
	registry := prometheus.NewRegistry()
	s := makeServer(envoy.Config{Metrics: registry})
	envoy.ReadLog(s, &accesslogv3.StreamAccessLogsMessage{})
	envoy.ReadLog(s, nil)
	envoy.ReadLog(s, &accesslogv3.StreamAccessLogsMessage{LogEntries: &accesslogv3.StreamAccessLogsMessage_TcpLogs{
		TcpLogs: &accesslogv3.StreamAccessLogsMessage_TCPAccessLogEntries{LogEntry: []*accesslogdata.TCPAccessLogEntry{{}, nil}},
	}})
	envoy.ReadLog(s, logOf(entry())) // without OnComplete
	expectMetric(t, registry, "keyporter_accesslog_entries_total", "not_http", 2)
	expectMetric(t, registry, "keyporter_accesslog_entries_total", "none", 1)
}

// An entry that makes the program panic is left out and counted, its neighbors are read, and
// nothing of it is logged.
func TestAnEntryThatPanics(t *testing.T) {
	var got endings
	var logs bytes.Buffer
	registry := prometheus.NewRegistry()
	s := makeServer(envoy.Config{
		Log: slog.New(slog.NewTextHandler(&logs, nil)), Metrics: registry,
		OnComplete: func(e usage.Completion) {
			if e.Status == 404 {
				panic(e.Receipt)
			}
			got.complete(e)
		},
	})
	envoy.ReadLog(s, logOf(entry(), entry(answered(404)), entry(answered(500))))
	if completed := got.take(); len(completed) != 2 || completed[1].Status != 500 {
		t.Errorf("completed: %+v", completed)
	}
	expectMetric(t, registry, "keyporter_accesslog_entries_total", "panicked", 1)
	expectMetric(t, registry, "keyporter_check_panics_total", "", 0)
	if text := logs.String(); !strings.Contains(text, "access log entry panicked") || strings.Contains(text, "canary") || strings.Contains(text, "receipt") {
		t.Errorf("logged: %s", text)
	}
}

// Any bytes that a caller sends as a message yield entries that are reported or counted.
func FuzzAccessLog(f *testing.F) {
	for _, m := range []*accesslogv3.StreamAccessLogsMessage{
		{}, logOf(entry()), logOf(entry(nothing, left, unsent), entry(local(503, ""), refused)), logOf(entry(grpcTrailer("14"))),
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	var got endings
	registry := prometheus.NewRegistry()
	s := makeServer(envoy.Config{OnComplete: got.complete, Metrics: registry})
	f.Fuzz(func(t *testing.T, b []byte) {
		var m accesslogv3.StreamAccessLogsMessage
		if proto.Unmarshal(b, &m) != nil {
			return
		}
		envoy.ReadLog(s, &m)
		for _, e := range got.take() {
			if e.Receipt == "" || len(e.Receipt) > 1024 {
				t.Errorf("completed: %+v", e)
			}
		}
		expectMetric(t, registry, "keyporter_accesslog_entries_total", "panicked", 0)
	})
}

// openLog opens a stream of the access log.
func openLog(t *testing.T, c envoy.Config) (*envoy.Server, accesslogv3.AccessLogService_StreamAccessLogsClient) {
	t.Helper()
	s, conn := connect(t, c)
	stream, err := accesslogv3.NewAccessLogServiceClient(conn).StreamAccessLogs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s, stream
}

// A stop waits for no stream of an access log, and loses nothing that was sent before it.
func TestAStopEndsAccessLogs(t *testing.T) {
	var got endings
	registry := prometheus.NewRegistry()
	s, stream := openLog(t, envoy.Config{OnComplete: got.complete, DrainDelay: -1, Metrics: registry})
	const messages = 100
	for range messages {
		if err := stream.Send(logOf(entry(), entry())); err != nil {
			t.Fatal(err)
		}
	}
	partstest.Eventually(t, "a stream is open", func() bool { return gauge(t, registry, "keyporter_accesslog_streams") == 1 })
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
	if n := len(got.take()); n != 2*messages {
		t.Errorf("%d of %d entries were read", n, 2*messages)
	}
	if n := gauge(t, registry, "keyporter_accesslog_streams"); n != 0 {
		t.Errorf("%v streams are open", n)
	}
	if _, err := stream.CloseAndRecv(); err == nil || status.Code(err) == codes.Unavailable {
		t.Errorf("the stream was cut off: %v", err)
	}
}

// A stream ends in good order before its connection reaches its maximum age and is cut.
func TestAStreamOfTheAccessLogEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got endings
		_, stream := openLog(t, envoy.Config{OnComplete: got.complete})
		began := time.Now()
		if err := stream.Send(logOf(entry())); err != nil {
			t.Fatal(err)
		}
		err := stream.RecvMsg(new(accesslogv3.StreamAccessLogsResponse))
		if took := time.Since(began); took < envoy.StreamLife || took > envoy.StreamLife+time.Second {
			t.Errorf("it ended after %v", took)
		}
		if status.Code(err) == codes.Unavailable || len(got.take()) != 1 {
			t.Errorf("it was cut off: %v", err)
		}
	})
}

// An Envoy that is slow to notice that its stream must end loses no entry that it sends meanwhile,
// not even what arrives together with its end. One that never notices is left after a while.
func TestASlowEnvoyLosesNoEntries(t *testing.T) {
	for name, notices := range map[string]bool{"it notices after two seconds": true, "it never notices": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { testSlowEnvoy(t, notices) })
		})
	}
}

func testSlowEnvoy(t *testing.T, notices bool) {
	var got endings
	listener := bufconn.Listen(1 << 20)
	s := makeServer(envoy.Config{OnComplete: got.complete, DrainDelay: -1, Log: slog.New(slog.DiscardHandler)})
	serve(t, s, listener)
	conn, err := listener.DialContext(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	packets := bufio.NewWriter(conn)
	r := raw{conn, http2.NewFramer(packets, conn)}
	told := make(chan struct{})
	go awaitAnswer(r, told)
	message, err := proto.Marshal(logOf(entry(func(e *accesslogdata.HTTPAccessLogEntry) { e.Request.Referer = strings.Repeat("a", 5<<10) })))
	if err != nil {
		t.Fatal(err)
	}
	sent := 0
	send := func() {
		sent++
		frames := slices.Chunk(append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message))), message...), 1<<10)
		for frame := range frames {
			_ = r.WriteData(1, false, frame)
		}
	}
	_, _ = packets.WriteString(http2.ClientPreface)
	_ = r.WriteSettings()
	_ = r.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: callOf(accesslogv3.AccessLogService_StreamAccessLogs_FullMethodName), EndHeaders: true})
	send()
	_ = packets.Flush()
	synctest.Wait() // the stream is open
	stopped := make(chan error, 1)
	go func() { stopped <- s.Shutdown(t.Context()) }()
	<-told
	for range 2 {
		time.Sleep(time.Second)
		send()
		_ = packets.Flush()
	}
	if notices {
		time.Sleep(time.Second)
		for range 3 {
			send()
		}
		_ = r.WriteRSTStream(1, http2.ErrCodeCancel)
		_ = packets.Flush()
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	if n := len(got.take()); n != sent {
		t.Errorf("%d of %d entries were read", n, sent)
	}
}

// awaitAnswer closes told at the first frame that answers stream 1.
func awaitAnswer(r raw, told chan<- struct{}) {
	for {
		frame, err := r.ReadFrame()
		if err != nil {
			return
		}
		if frame.Header().StreamID == 1 && told != nil {
			close(told)
			told = nil
		}
	}
}

// Without the token nobody can report anything.
func TestTheAccessLogWantsTheToken(t *testing.T) {
	token, err := bearer.Parse("a-token-of-some-length")
	if err != nil {
		t.Fatal(err)
	}
	var got endings
	_, conn := connect(t, envoy.Config{OnComplete: got.complete, Token: token})
	for value, want := range map[string]codes.Code{"": codes.Unauthenticated, "Bearer wrong": codes.Unauthenticated, "Bearer a-token-of-some-length": codes.Internal} {
		ctx := t.Context()
		if value != "" {
			ctx = metadata.AppendToOutgoingContext(ctx, "authorization", value)
		}
		stream, err := accesslogv3.NewAccessLogServiceClient(conn).StreamAccessLogs(ctx)
		if err != nil {
			t.Fatal(err)
		}
		_ = stream.Send(logOf(entry())) // fails if the stream was refused before
		if _, err = stream.CloseAndRecv(); status.Code(err) != want {
			t.Errorf("%q: %v, want %v", value, err, want)
		}
	}
	if n := len(got.take()); n != 1 {
		t.Errorf("%d entries were read, want the one with the token", n)
	}
}

// A message that is too long ends its stream and is counted; the next stream is read.
func TestAMessageThatIsTooLong(t *testing.T) {
	var got endings
	registry := prometheus.NewRegistry()
	_, conn := connect(t, envoy.Config{OnComplete: got.complete, Metrics: registry})
	long := entry(func(e *accesslogdata.HTTPAccessLogEntry) { e.Request.Path = strings.Repeat("a", 300<<10) })
	for _, e := range []*accesslogdata.HTTPAccessLogEntry{long, entry()} {
		stream, err := accesslogv3.NewAccessLogServiceClient(conn).StreamAccessLogs(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_ = stream.Send(logOf(e)) // fails if the stream has ended meanwhile
		_, _ = stream.CloseAndRecv()
	}
	partstest.Eventually(t, "a completion", func() bool { return len(got.take()) == 1 })
	// grpc-go ends such a stream before it returns the error to its handler.
	partstest.Eventually(t, "a count", func() bool {
		malformed, _ := metric(t, registry, "keyporter_accesslog_entries_total", "malformed")
		return malformed == 1
	})
}

// gauge returns the value of the gauge with this name.
func gauge(t *testing.T, g prometheus.Gatherer, name string) float64 {
	t.Helper()
	families, err := g.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("there is no %s", name)
	return 0
}

// The user sees the request as it was, but without its query, and without anything that may be a
// key, however long and odd a client has made it. A request with a revoked key is shown as well.
func TestRecords(t *testing.T) {
	key := "wh_" + strings.Repeat("0123456789ab", 4)
	began := time.Date(2026, 11, 24, 8, 0, 0, 0, time.UTC)
	with := func(path, agent string, facts map[string]any) *accesslogdata.HTTPAccessLogEntry {
		return entry(func(e *accesslogdata.HTTPAccessLogEntry) {
			own, err := structpb.NewStruct(map[string]any{codec.MetadataKey: facts})
			if err != nil {
				t.Fatal(err)
			}
			e.CommonProperties.Metadata = &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{"envoy.filters.http.ext_authz": own}}
			e.CommonProperties.StartTime = timestamppb.New(began)
			e.CommonProperties.DownstreamRemoteAddress = &corev3.Address{Address: &corev3.Address_SocketAddress{
				SocketAddress: &corev3.SocketAddress{Address: "10.1.2.3", PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: 5}}}}
			e.Request = &accesslogdata.HTTPRequestProperties{RequestMethod: corev3.RequestMethod_POST, Path: path, UserAgent: agent}
			e.Response = &accesslogdata.HTTPResponseProperties{ResponseCode: wrapperspb.UInt32(401)}
		})
	}
	ada := map[string]any{"user": "ada", "key_id": "key_1", "reason": "revoked_key"}
	want := func(path, agent string) usage.Record {
		return usage.Record{User: "ada", KeyID: "key_1", Reason: "revoked_key", At: began, Method: "POST", Path: path, Status: 401, Address: "10.1.2.3", Agent: agent}
	}
	long := strings.Repeat("x", 10_000)
	for _, row := range []struct {
		name  string
		entry *accesslogdata.HTTPAccessLogEntry
		want  usage.Record
	}{
		{"a request", with("/api/v1/brands", "curl/8", ada), want("/api/v1/brands", "curl/8")},
		{"with a query", with("/api/v1/brands?api_key="+key, "curl/8", ada), want("/api/v1/brands", "curl/8")},
		{"with a fragment", with("/api/v1/brands#"+key, "curl/8", ada), want("/api/v1/brands", "curl/8")},
		{"with a key in its path", with("/api/v1/brands/"+key+"/x", "curl/8", ada), want("/api/v1/brands/wh_…/x", "curl/8")},
		{"with a key in its path, in capitals", with("/a/"+strings.ToUpper(key[3:]), "", ada), want("/a/…", "")},
		{"with a key for an agent", with("/", "my "+key, ada), want("/", "my wh_…")},
		{"with a key where the text is cut", with("/"+long[:230]+key, "", ada), want("/"+long[:230]+"wh_…", "")},
		{"with keys before and after where the text is cut", with("/"+long[:200]+strings.Repeat("/"+key, 5), "", ada),
			want("/"+long[:200]+"/wh_…/wh_", "")},
		{"with many keys", with(strings.Repeat("/"+key, 400), "", ada), want(strings.Repeat("/wh_…", 5)+"/wh_", "")},
		{"without end", with("/"+long, long, ada), want("/"+long[:255], long[:256])},
		{"that is no text", with("/\xff\x00", "\xfe", ada), want("/\uFFFD\uFFFD", "\uFFFD")},
		{"with what terminals obey", with("/\x1b[2J\u009b2J\x7f\r\n", "a\tb", ada), want("/\uFFFD[2J\uFFFD2J\uFFFD\uFFFD\uFFFD", "a\uFFFDb")},
		{"with what turns text round, or hides", with("/\u202e\u2066\u200b\u2028\ufeff", "é 你 😀", ada), want("/\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD", "é 你 😀")},
		{"of nobody that there can be", with("/", "", map[string]any{"user": "a\x1b", "key_id": "key_1", "reason": "x", "charge": "r"}), usage.Record{}},

		{"of which nothing is text", with("/", strings.Repeat("\xfex", 5000), ada), want("/", strings.Repeat("\uFFFDx", 64))},
		{"whose letters are cut in two", with("/", strings.Repeat("é", 300)+"é", ada), want("/", strings.Repeat("é", 128))},
		{"whose letters are cut in two, and not at the end", with("/", "x"+strings.Repeat("é", 300), ada), want("/", "x"+strings.Repeat("é", 127))},
	} {
		t.Run(row.name, func(t *testing.T) {
			var got []usage.Completion
			s := makeServer(envoy.Config{OnComplete: func(e usage.Completion) { got = append(got, e) }})
			envoy.ReadLog(s, logOf(row.entry))
			if len(got) != 1 {
				t.Fatalf("told: %+v", got)
			}
			if diff := cmp.Diff(row.want, got[0].Record); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// An entry without a receipt that cannot be about one of our users is left out; an invalid address
// is not kept.
func TestEntriesThatAreMadeUp(t *testing.T) {
	registry := prometheus.NewRegistry()
	var got []usage.Record
	s := makeServer(envoy.Config{OnComplete: func(e usage.Completion) { got = append(got, e.Record) }, Metrics: registry})
	made := func(user, key, reason, address string, status uint32) *accesslogdata.HTTPAccessLogEntry {
		return entry(func(e *accesslogdata.HTTPAccessLogEntry) {
			own, err := structpb.NewStruct(map[string]any{codec.MetadataKey: map[string]any{"user": user, "key_id": key, "reason": reason}})
			if err != nil {
				t.Fatal(err)
			}
			e.CommonProperties.Metadata = &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{"envoy.filters.http.ext_authz": own}}
			e.CommonProperties.DownstreamRemoteAddress = &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{Address: address}}}
			e.Response = &accesslogdata.HTTPResponseProperties{ResponseCode: wrapperspb.UInt32(status)}
		})
	}
	long := strings.Repeat("k", 300)
	refused := []*accesslogdata.HTTPAccessLogEntry{
		made("a\x1b[2J", "key_1", "x", "10.0.0.1", 200), made("ada", "key\n1", "x", "10.0.0.1", 200), made("ada", "key_1", "\u202e", "10.0.0.1", 200),
		made("a\x10", "key_1", "x", "10.0.0.1", 200), made("ada", long, "x", "10.0.0.1", 200), made("ada", "key_1", "x", "10.0.0.1", 1000), made("ada", "key_1", "x", "10.0.0.1", 1<<32-1),
	}
	for _, e := range refused {
		envoy.ReadLog(s, logOf(e))
	}
	if len(got) > 0 {
		t.Errorf("told: %+v", got)
	}
	expectMetric(t, registry, "keyporter_accesslog_entries_total", "malformed", float64(len(refused)))
	for address, want := range map[string]string{
		"10.0.0.1": "10.0.0.1", "2001:db8::1": "2001:db8::1", "fe80::1%eth0": "fe80::1%eth0", "": "unknown",
		"\x1b[2J": "unknown", "fe80::1%\x1b[2J": "unknown", "10.0.0.1\n": "unknown", "evil.example": "unknown",
	} {
		got = nil
		envoy.ReadLog(s, logOf(made("ada", "key_1", "revoked_key", address, 401)))
		if len(got) != 1 || got[0].Address != want {
			t.Errorf("the address %q: %+v, want %q", address, got, want)
		}
	}
}

// A record keeps nothing of its entry alive but its own texts: not the query, and not 60 KiB of a
// path.
func TestRecordsKeepNothingElse(t *testing.T) {
	var kept []usage.Record
	s := makeServer(envoy.Config{OnComplete: func(e usage.Completion) { kept = append(kept, e.Record) }})
	before := heap()
	const entries, size = 500, 60_000
	for range entries {
		envoy.ReadLog(s, logOf(entry(func(e *accesslogdata.HTTPAccessLogEntry) {
			e.Request.Path, e.Request.UserAgent = "/a?"+strings.Repeat("q", size), strings.Repeat("u", size)
		}), entry(func(e *accesslogdata.HTTPAccessLogEntry) { e.Request.Path = "/" + strings.Repeat("p", size) })))
	}
	grown := heap() - before
	if len(kept) != 2*entries || grown > 2*entries*4*256 {
		t.Errorf("%d records keep %d bytes", len(kept), grown)
	}
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// Envoy waits while an entry is read.
func BenchmarkReadLog(b *testing.B) {
	s := makeServer(envoy.Config{OnComplete: func(usage.Completion) {}})
	m := logOf(entry(func(e *accesslogdata.HTTPAccessLogEntry) {
		e.CommonProperties.StartTime = timestamppb.Now()
		e.CommonProperties.DownstreamRemoteAddress = &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{Address: "10.1.2.3"}}}
		e.Request = &accesslogdata.HTTPRequestProperties{RequestMethod: corev3.RequestMethod_GET, Path: "/api/v1/brands?page=2", UserAgent: "python-requests/2.32"}
	}))
	b.ReportAllocs()
	for b.Loop() {
		envoy.ReadLog(s, m)
	}
}

package codec_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	accesslogdata "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/envoy/codec"
	"github.com/keyporter/keyporter/envoy/codec/codectest"
	"github.com/keyporter/keyporter/usage"
)

// loggedByEnvoy is an entry as Envoy 1.40 sends it.
func loggedByEnvoy() *accesslogdata.HTTPAccessLogEntry {
	address := func(ip string) *corev3.Address {
		return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
			Address: ip, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: 5}}}}
	}
	own, _ := structpb.NewStruct(map[string]any{codec.MetadataKey: map[string]any{
		"user": "ada", "account": "acme", "plan": "pro", "key_id": "key_1", "reason": "allowed", "charge": "receipt-1",
	}, "other": 1.5})
	other, _ := structpb.NewStruct(map[string]any{"list": []any{nil, true, "x", map[string]any{"a": 1}}})
	return &accesslogdata.HTTPAccessLogEntry{
		ProtocolVersion: accesslogdata.HTTPAccessLogEntry_HTTP2,
		CommonProperties: &accesslogdata.AccessLogCommon{
			SampleRate: 1, DownstreamRemoteAddress: address("203.0.113.57"), DownstreamLocalAddress: address("10.0.0.1"), DownstreamDirectRemoteAddress: address("10.0.0.9"),
			UpstreamRemoteAddress: address("10.0.0.2"), UpstreamLocalAddress: address("10.0.0.1"), UpstreamCluster: "api", RouteName: "api", StreamId: "b5f1c7de",
			StartTime: timestamppb.New(time.Unix(1_795_000_000, 5)), TimeToLastRxByte: durationpb.New(1), TimeToFirstUpstreamTxByte: durationpb.New(2),
			TimeToFirstUpstreamRxByte: durationpb.New(3), TimeToLastDownstreamTxByte: durationpb.New(4), Duration: durationpb.New(5),
			ResponseFlags: &accesslogdata.ResponseFlags{UpstreamRemoteReset: true, DnsResolutionFailure: true, FaultInjected: true},
			Metadata:      &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{"envoy.filters.http.ext_authz": own, "envoy.other": other}},
			CustomTags:    map[string]string{"a": "b"}, FilterStateObjects: map[string]*anypb.Any{"x": {TypeUrl: "y", Value: []byte("\xff")}},
			UpstreamRequestAttemptCount: 1, DownstreamWireBytesSent: 300, AccessLogType: accesslogdata.AccessLogType_DownstreamEnd,
		},
		Request: &accesslogdata.HTTPRequestProperties{
			RequestMethod: corev3.RequestMethod_GET, Scheme: "http", Authority: "api.example.com", Path: "/api/v1/brands?page=2", UserAgent: "curl/8",
			ForwardedFor: "203.0.113.57", RequestId: "b5f1c7de", RequestHeadersBytes: 300, Port: wrapperspb.UInt32(80), RequestHeaders: map[string]string{"a": "b"},
		},
		Response: &accesslogdata.HTTPResponseProperties{
			ResponseCode: wrapperspb.UInt32(200), ResponseHeadersBytes: 100, ResponseBodyBytes: 5000, ResponseCodeDetails: "via_upstream",
			ResponseHeaders: map[string]string{"grpc-status": "14", "x": "y"}, ResponseTrailers: map[string]string{"grpc-status": "0"},
		},
	}
}

// logged is an entry of Envoy's with a change.
func logged(change func(*accesslogdata.HTTPAccessLogEntry)) *accesslogdata.HTTPAccessLogEntry {
	e := loggedByEnvoy()
	change(e)
	return e
}

// logWith is a message with entries.
func logWith(entries ...*accesslogdata.HTTPAccessLogEntry) *accesslogv3.StreamAccessLogsMessage {
	return &accesslogv3.StreamAccessLogsMessage{LogEntries: &accesslogv3.StreamAccessLogsMessage_HttpLogs{
		HttpLogs: &accesslogv3.StreamAccessLogsMessage_HTTPAccessLogEntries{LogEntry: entries},
	}}
}

func logSeeds(t testing.TB) [][]byte {
	left := logged(func(e *accesslogdata.HTTPAccessLogEntry) {
		common, response := e.CommonProperties, e.Response
		common.TimeToFirstUpstreamTxByte, common.TimeToFirstUpstreamRxByte = nil, nil
		common.ResponseFlags = &accesslogdata.ResponseFlags{DownstreamConnectionTermination: true}
		response.ResponseCode, response.ResponseCodeDetails = nil, "downstream_remote_disconnect"
	})
	refused := logged(func(e *accesslogdata.HTTPAccessLogEntry) {
		e.CommonProperties.TimeToFirstUpstreamRxByte = nil
		e.CommonProperties.ResponseFlags = &accesslogdata.ResponseFlags{UpstreamConnectionFailure: true}
		e.Response.ResponseCode, e.Response.ResponseCodeDetails = wrapperspb.UInt32(503), ""
	})
	idle := logged(func(e *accesslogdata.HTTPAccessLogEntry) {
		e.CommonProperties.TimeToFirstUpstreamRxByte = nil
		e.CommonProperties.ResponseFlags = &accesslogdata.ResponseFlags{StreamIdleTimeout: true}
		e.Response.ResponseCode, e.Response.ResponseCodeDetails = wrapperspb.UInt32(408), "stream_idle_timeout"
	})
	sparse := &accesslogdata.HTTPAccessLogEntry{
		CommonProperties: &accesslogdata.AccessLogCommon{ResponseFlags: &accesslogdata.ResponseFlags{}},
		Request:          &accesslogdata.HTTPRequestProperties{Path: "/a"},
		Response:         &accesslogdata.HTTPResponseProperties{ResponseTrailers: map[string]string{"grpc-status": "14"}},
	}
	var all [][]byte
	for _, m := range []*accesslogv3.StreamAccessLogsMessage{
		{}, logWith(loggedByEnvoy(), loggedByEnvoy()), logWith(&accesslogdata.HTTPAccessLogEntry{}), logWith(left, refused),
		logWith(sparse), logWith(idle), {Identifier: &accesslogv3.StreamAccessLogsMessage_Identifier{LogName: "x"}},
		{LogEntries: &accesslogv3.StreamAccessLogsMessage_TcpLogs{TcpLogs: &accesslogv3.StreamAccessLogsMessage_TCPAccessLogEntries{
			LogEntry: []*accesslogdata.TCPAccessLogEntry{{}, {CommonProperties: &accesslogdata.AccessLogCommon{RouteName: "x"}}},
		}}},
	} {
		message, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, message)
	}
	return all
}

// expectSameLog fails unless both codecs read a message alike, or both refuse it.
func expectSameLog(t testing.TB, message []byte) (fast bool) {
	var in accesslogv3.StreamAccessLogsMessage
	refused := proto.Unmarshal(message, &in)
	got, fast := codec.ReadLogEntries(bytes.Clone(message))
	switch {
	case refused != nil && fast:
		t.Fatalf("the generated code refuses what was read: %v\n%x", refused, message)
	case refused != nil || !fast:
		return false
	}
	if want := codec.DecodeLogEntries(&in); !reflect.DeepEqual(want, got) {
		t.Fatalf("read otherwise:\ngenerated %s\nfast      %s\n%x", fmt.Sprintf("%+v", want), fmt.Sprintf("%+v", got), message)
	}
	return true
}

// The fast codec reads the same of an access log as the generated code, and nothing that the
// generated code refuses.
func FuzzReadLog(f *testing.F) {
	for _, message := range logSeeds(f) {
		f.Add(message)
	}
	f.Fuzz(func(t *testing.T, message []byte) { expectSameLog(t, message) })
}

func TestWhatEnvoyLogsIsReadInPlace(t *testing.T) {
	for i, message := range logSeeds(t) {
		if !expectSameLog(t, message) {
			t.Errorf("message %d needs the generated code", i)
		}
	}
}

// The same from a plain generator: see TestReadCheckOfBrokenMessages.
func TestReadLogOfBrokenMessages(t *testing.T) {
	all, random := logSeeds(t), rand.New(rand.NewPCG(3, uint64(time.Now().UnixNano())))
	n, fast := rounds(t), 0
	for range n {
		if expectSameLog(t, mutated(random, all)) {
			fast++
		}
	}
	t.Logf("%d messages, %d of them read in place", n, fast)
	if fast < n/100 || fast > n*99/100 {
		t.Errorf("%d of %d were read in place: the generator does not try much", fast, n)
	}
}

// BenchmarkLog measures reading an entry from the wire, with both codecs.
func BenchmarkLog(b *testing.B) {
	message := logSeeds(b)[1]
	b.Run("fast", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, ok := codec.ReadLogEntries(message); !ok {
				b.Fatal("not read in place")
			}
		}
	})
	b.Run("generated", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			var in accesslogv3.StreamAccessLogsMessage
			if err := proto.Unmarshal(message, &in); err != nil {
				b.Fatal(err)
			}
			codec.DecodeLogEntries(&in)
		}
	})
}

// BenchmarkCheck measures reading a Check.
func BenchmarkCheck(b *testing.B) {
	message, err := proto.Marshal(codectest.Usual())
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if !codec.ReadCheckOnce(message) {
			b.Fatal("not read in place")
		}
	}
}

// BenchmarkAnswer measures writing an answer.
func BenchmarkAnswer(b *testing.B) {
	d := authz.Decision{Reason: authz.Allowed, Principal: ada, Rewrite: authz.Rewrite{RemoveAPIKey: true}, Charge: usage.Charge{
		ID: strings.Repeat("c", 100), Receipt: strings.Repeat("r", 100),
		Rate: usage.Rate{Limit: 60, Window: time.Minute, Remaining: 59}, Credits: usage.Credits{Counted: true, Limit: 1000},
	}}
	b.ReportAllocs()
	for b.Loop() {
		codec.WriteAnswer(&d)
	}
}

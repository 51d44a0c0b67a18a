// Package codectest has the messages of Envoy that tests read.
package codectest

import (
	"slices"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Check makes a CheckRequest with raw headers, given as name, value, name, value …
func Check(method, path string, headers ...string) *authv3.CheckRequest {
	raw := &corev3.HeaderMap{}
	for i := 0; i < len(headers); i += 2 {
		raw.Headers = append(raw.Headers, &corev3.HeaderValue{Key: headers[i], RawValue: []byte(headers[i+1])})
	}
	in := Joined(method, path, nil)
	in.Attributes.Request.Http.HeaderMap = raw
	return in
}

// Joined makes a CheckRequest in the older form, in which a name has one value.
func Joined(method, path string, headers map[string]string) *authv3.CheckRequest {
	return &authv3.CheckRequest{Attributes: &authv3.AttributeContext{Request: &authv3.AttributeContext_Request{
		Http: &authv3.AttributeContext_HttpRequest{Method: method, Path: path, Headers: headers},
	}}}
}

// with adds headers in the older form.
func with(in *authv3.CheckRequest, headers map[string]string) *authv3.CheckRequest {
	in.Attributes.Request.Http.Headers = headers
	return in
}

// FromEnvoy is a Check as Envoy 1.40 sends it, with everything it may have beside the request.
func FromEnvoy() *authv3.CheckRequest {
	in := Check("GET", "/api/v1/brands?limit=20", ":authority", "api.example.com", ":path", "/api/v1/brands?limit=20", ":method", "GET",
		"user-agent", "curl/8", "accept", "application/json", "x-api-key", "wh_0123", "cookie", "a=b", "x-forwarded-for", "203.0.113.57")
	in.Attributes.Source = &authv3.AttributeContext_Peer{
		Principal: "spiffe://cluster.local/ns/a", Certificate: "-----BEGIN%20CERTIFICATE", Labels: map[string]string{"a": "b"},
		Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
			Address: "203.0.113.57", PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: 51312},
		}}},
	}
	in.Attributes.Destination = &authv3.AttributeContext_Peer{Address: &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: "/tmp/x", Mode: 0o600}}}}
	in.Attributes.Request.Time = &timestamppb.Timestamp{Seconds: 1_795_000_000, Nanos: 5}
	in.Attributes.ContextExtensions = map[string]string{"virtual_host": "x"}
	in.Attributes.MetadataContext = &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{"a": {Fields: map[string]*structpb.Value{
		"list": structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{structpb.NewNumberValue(1), structpb.NewNullValue()}}),
	}}}}
	in.Attributes.RouteMetadataContext = &corev3.Metadata{}
	in.Attributes.TlsSession = &authv3.AttributeContext_TLSSession{Sni: "api.example.com"}
	h := in.Attributes.Request.Http
	h.Id, h.Host, h.Scheme, h.Query, h.Fragment, h.Size, h.Protocol, h.Body, h.RawBody = "1234567890", "api.example.com", "http", "q", "f", -1, "HTTP/1.1", "b", []byte("\xff")
	return in
}

// named is a Check of a route that asks for a rule by name.
func named(rule, host string) *authv3.CheckRequest {
	in := Check("GET", "/a", "x-api-key", "k")
	in.Attributes.ContextExtensions = map[string]string{"keyporter-rule": rule, "other": "x"}
	in.Attributes.Request.Http.Host = host
	return in
}

// Usual is a Check that an Envoy was seen to send for a request of a small client.
func Usual() *authv3.CheckRequest {
	const path = "/api/v1/brands?limit=20"
	in := Check("GET", path, ":authority", "api.example.com", ":path", path, ":method", "GET", ":scheme", "http",
		"user-agent", "Mozilla/5.0 (X11; Linux x86_64) example-client/3.1", "accept", "application/json", "accept-encoding", "gzip, deflate, br",
		"x-api-key", "wh_0123456789abcdef0123456789abcdef0123456789abcdef", "x-forwarded-for", "203.0.113.57", "x-forwarded-proto", "http",
		"x-envoy-external-address", "203.0.113.57", "x-request-id", "b5f1c7de-4d2a-4c3b-9a7e-999999999999")
	peer := func(ip string, port uint32) *authv3.AttributeContext_Peer {
		return &authv3.AttributeContext_Peer{Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
			Address: ip, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port},
		}}}}
	}
	a := in.Attributes
	a.Source, a.Destination = peer("203.0.113.57", 51312), peer("10.0.0.12", 8080)
	a.Request.Time = &timestamppb.Timestamp{Seconds: 1_795_000_000, Nanos: 123_456_000}
	a.MetadataContext, a.RouteMetadataContext = &corev3.Metadata{}, &corev3.Metadata{}
	h := a.Request.Http
	h.Id, h.Host, h.Scheme, h.Protocol = "9999999999999999999", "api.example.com", "http", "HTTP/1.1"
	return in
}

// Checks are messages of all kinds, encoded, for the tests that compare the two codecs.
func Checks(t testing.TB) [][]byte {
	var all [][]byte
	for _, in := range []*authv3.CheckRequest{
		{}, {Attributes: &authv3.AttributeContext{}}, FromEnvoy(), Usual(),
		Check("GET", "/api/v1/brands?api_key=k", "x-api-key", "k", ":path", "/other", "x.keyporter.user", "eve", "cookie", "a=\xff", "X-Api-Key", "k2"),
		Joined("POST", "*", map[string]string{"authorization": "Bearer k", "content-type": "application/grpc", "X-API-KEY": "k", "x_api_key": "v", "accept": "a", ":path": "*"}),
		Joined("GET", "/a", map[string]string{":path": "/b", "x-api-key": "k"}),
		with(Check("GET", "/a", "x-api-key", "raw"), map[string]string{"x-api-key": "joined"}),
		Check("OPTIONS", "/a!?b", "Origin", "https://a.example", "origin", "null", "access-control-request-method", "PUT", "Content-Length", "0", "content-length", "5",
			"sec-websocket-protocol", "a, b", "Sec-WebSocket-Protocol", "c", "x-keyporter-transfer-encoding", "chunked", "x~keyporter!user", "eve"),
		named("search", "api.example.com:8080"), named("", ""),
		Check("GET", "/a!", ":path", "/a!", "x-keyporter-transfer-encoding", "", "x-keyporter-transfer-encoding", "gzip"),
		Joined("OPTIONS", "/a!", map[string]string{":path": "/a!", "origin": "https://a.example", "Access-Control-Request-Method": "GET", "content-length": "7",
			"sec-websocket-protocol": "a", "x-keyporter-transfer-encoding": "chunked", "ORIGIN": "https://b.example"}),
	} {
		message, err := proto.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, message)
	}
	rich := all[2]
	// extension is an entry of a map of texts, in the message it belongs to.
	extension := func(key, value string) []byte {
		entry := protowire.AppendString(protowire.AppendTag(nil, 2, protowire.BytesType), value)
		entry = protowire.AppendString(protowire.AppendTag(entry, 1, protowire.BytesType), key)
		entry = protowire.AppendBytes(protowire.AppendTag(nil, 10, protowire.BytesType), entry)
		return entry
	}
	attributes := func(fields ...[]byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), slices.Concat(fields...))
	}
	return append(all,
		// The last one counts.
		attributes(extension("keyporter-rule", "first"), extension("x", "y"), extension("keyporter-rule", "last")),
		attributes(extension("keyporter-rule", "first"), extension("keyporter-rule", "")),
		attributes(extension("keyporter-rule", "not \xff text")),
		slices.Concat(rich, all[4]), // two in one are merged
		slices.Concat(rich, protowire.AppendTag(nil, 9, protowire.StartGroupType), protowire.AppendTag(nil, 9, protowire.EndGroupType)),
		// Field 1 again, its tag and length not minimal.
		slices.Concat(rich, []byte{0x8a, 0x80, 0x00, 0x00}),
		// Field 1 as a number is an unknown field.
		slices.Concat(rich, protowire.AppendVarint([]byte{8}, 1)),
	)
}

package envoy_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/envoy"
	"github.com/keyporter/keyporter/usage"
)

// fromEnvoy is a Check as Envoy 1.40 sends it, with everything it may have beside the request.
func fromEnvoy() *authv3.CheckRequest {
	in := check("GET", "/api/v1/brands?limit=20", ":authority", "api.example.com", ":path", "/api/v1/brands?limit=20", ":method", "GET",
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
	in := check("GET", "/a", "x-api-key", "k")
	in.Attributes.ContextExtensions = map[string]string{"keyporter-rule": rule, "other": "x"}
	in.Attributes.Request.Http.Host = host
	return in
}

// usual is a Check that an Envoy was seen to send for a request of a small client.
func usual() *authv3.CheckRequest {
	const path = "/api/v1/brands?limit=20"
	in := check("GET", path, ":authority", "api.example.com", ":path", path, ":method", "GET", ":scheme", "http",
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

// seeds are messages of all kinds, for the tests that compare the two codecs.
func seeds(t testing.TB) [][]byte {
	var all [][]byte
	for _, in := range []*authv3.CheckRequest{
		{}, {Attributes: &authv3.AttributeContext{}}, fromEnvoy(), usual(),
		check("GET", "/api/v1/brands?api_key=k", "x-api-key", "k", ":path", "/other", "x.keyporter.user", "eve", "cookie", "a=\xff", "X-Api-Key", "k2"),
		joined("POST", "*", map[string]string{"authorization": "Bearer k", "content-type": "application/grpc", "X-API-KEY": "k", "x_api_key": "v", "accept": "a", ":path": "*"}),
		joined("GET", "/a", map[string]string{":path": "/b", "x-api-key": "k"}),
		with(check("GET", "/a", "x-api-key", "raw"), map[string]string{"x-api-key": "joined"}),
		check("OPTIONS", "/a!?b", "Origin", "https://a.example", "origin", "null", "access-control-request-method", "PUT", "Content-Length", "0", "content-length", "5",
			"sec-websocket-protocol", "a, b", "Sec-WebSocket-Protocol", "c", "x-keyporter-transfer-encoding", "chunked", "x~keyporter!user", "eve"),
		named("search", "api.example.com:8080"), named("", ""),
		check("GET", "/a!", ":path", "/a!", "x-keyporter-transfer-encoding", "", "x-keyporter-transfer-encoding", "gzip"),
		joined("OPTIONS", "/a!", map[string]string{":path": "/a!", "origin": "https://a.example", "Access-Control-Request-Method": "GET", "content-length": "7",
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

// expectSame fails unless both codecs read a message alike, or both refuse it.
func expectSame(t testing.TB, message []byte) (fast bool) {
	var in authv3.CheckRequest
	refused := proto.Unmarshal(message, &in)
	got, fast := envoy.ReadCheck(bytes.Clone(message))
	if refused != nil {
		if fast {
			t.Fatalf("the generated code refuses what was read: %v\n%x", refused, message)
		}
		return false
	}
	if !fast {
		return false // decoded by the generated code
	}
	want := envoy.DecodeCheck(&in)
	// The map of headers has no order.
	if in.GetAttributes().GetRequest().GetHttp().GetHeaderMap() == nil {
		slices.Sort(want.Imposing)
		slices.Sort(got.Imposing)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("read otherwise (-generated +fast):\n%s\n%x", diff, message)
	}
	return true
}

// The fast codec reads the same as the generated code, and nothing that the generated code refuses.
// Envoy's own messages need no generated code.
func FuzzReadCheck(f *testing.F) {
	for _, message := range seeds(f) {
		f.Add(message)
	}
	f.Fuzz(func(t *testing.T, message []byte) { expectSame(t, message) })
}

func TestWhatEnvoySendsIsReadInPlace(t *testing.T) {
	for i, in := range []*authv3.CheckRequest{fromEnvoy(), joined("GET", "/a", map[string]string{"x-api-key": "k", "accept": "*/*"})} {
		message, err := proto.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		if !expectSame(t, message) {
			t.Errorf("message %d needs the generated code", i)
		}
	}
}

// The same from a plain generator, which breaks messages of every kind in the ways in which
// encodings differ: millions of them, in `make fuzz`.
func TestReadCheckOfBrokenMessages(t *testing.T) {
	all, random := seeds(t), rand.New(rand.NewPCG(1, uint64(time.Now().UnixNano())))
	n, fast := rounds(t), 0
	for range n {
		if expectSame(t, mutated(random, all)) {
			fast++
		}
	}
	t.Logf("%d messages, %d of them read in place", n, fast)
	if fast < n/100 || fast > n*99/100 {
		t.Errorf("%d of %d were read in place: the generator does not try much", fast, n)
	}
}

// Both codecs write the same answer, byte for byte, for any request and decision.
func TestBothCodecsWriteTheSameBytes(t *testing.T) {
	random := rand.New(rand.NewPCG(2, uint64(time.Now().UnixNano())))
	n := 20_000
	if testing.Short() {
		n = 2_000
	}
	for range n {
		in, d := randomQuestion(random), randomDecision(random)
		expectSameBytes(t, in, &d)
	}
}

// An unfilled answer denies, with either codec.
func TestTheZeroAnswerDenies(t *testing.T) {
	response, written := envoy.ZeroAnswer()
	var read authv3.CheckResponse
	if err := proto.Unmarshal(written, &read); err != nil {
		t.Fatal(err)
	}
	for name, out := range map[string]*authv3.CheckResponse{"generated": response, "fast": &read} {
		if out.GetStatus().GetCode() == 0 || out.GetOkResponse() != nil || out.GetDeniedResponse().GetStatus().GetCode() != 503 {
			t.Errorf("%s: %v", name, out)
		}
	}
}

func expectSameBytes(t *testing.T, in *authv3.CheckRequest, d *authz.Decision) {
	t.Helper()
	response, got := envoy.Answers(in, d)
	want, err := proto.MarshalOptions{Deterministic: true}.Marshal(response)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(want, got) {
		return
	}
	var read authv3.CheckResponse
	if err := proto.Unmarshal(got, &read); err != nil {
		t.Fatalf("what was written is no message: %v\n%x", err, got)
	}
	t.Fatalf("written otherwise for %.500q: (-generated +fast):\n%.2000s", fmt.Sprintf("%+v", d), cmp.Diff(response.String(), read.String()))
}

func randomQuestion(random *rand.Rand) *authv3.CheckRequest {
	var headers []string
	for range random.IntN(8) {
		headers = append(headers, pick(random, "x-api-key", "x.keyporter.user", "x_api_key", "content-type", "cookie"),
			pick(random, "", "application/grpc", "k", fmt.Sprint(random.Uint64())))
	}
	return check("GET", "/a", headers...)
}

func pick[T any](random *rand.Rand, all ...T) T { return all[random.IntN(len(all))] }

func randomDecision(random *rand.Rand) authz.Decision {
	text := func() string {
		return pick(random, "", "ada", "ü", string(bytes.Repeat([]byte("x"), random.IntN(300))), string(bytes.Repeat([]byte("y"), random.IntN(20_000))))
	}
	numbers := func() int64 { return random.Int64() >> random.IntN(64) }
	d := authz.Decision{
		Reason:    pick(random, append(authz.Reasons(), authz.Allowed, authz.Allowed, authz.Reason(200))...),
		Principal: authz.Principal{KeyID: text(), User: text(), Account: text(), Plan: text()},
		Rewrite:   authz.Rewrite{Path: text(), RemoveAPIKey: random.IntN(2) == 0, RemoveAuthorization: random.IntN(2) == 0, RemoveCookie: random.IntN(2) == 0, Cookie: pick(random, "", "a=b", "\xff")},
		Charge: usage.Charge{
			ID: text(), Receipt: text(),
			Rate:    usage.Rate{Limit: usage.Limit(numbers()), Window: time.Duration(random.IntN(2)) * time.Minute, Remaining: numbers(), Reset: time.Duration(numbers())},
			Credits: usage.Credits{Counted: random.IntN(2) == 0, Used: numbers(), Limit: usage.Limit(numbers()), Reset: time.Duration(numbers())},
		},
		Location: pick(random, "", "", "https://example.com/"),
	}
	if random.IntN(2) == 0 {
		d.Rule = &authz.Rule{Methods: []string{"GET"}, Answer: pick(random, authz.AnswerDestination, authz.AnswerCredits)}
	}
	return d
}

// Both codecs answer a Check alike over the wire, also one that the generated code has to read;
// both refuse an invalid Check.
func TestBothCodecsAnswerAlikeOverTheWire(t *testing.T) {
	answers := map[envoy.Codec]map[string]string{}
	for _, codec := range []envoy.Codec{envoy.CodecFast, envoy.CodecGenerated} {
		answers[codec] = map[string]string{}
		_, conn := connect(t, envoy.Config{Authorize: echo(authz.Allowed), Codec: codec})
		for i, message := range append(seeds(t), []byte{0x0a, 0x05}, []byte{0xff}) {
			var out authv3.CheckResponse
			err := conn.Invoke(t.Context(), authv3.Authorization_Check_FullMethodName, message, &out, grpc.ForceCodecV2(rawCodec{}))
			answers[codec][fmt.Sprint(i)] = fmt.Sprint(prototext.Format(&out), status.Code(err))
		}
	}
	if diff := cmp.Diff(answers[envoy.CodecGenerated], answers[envoy.CodecFast]); diff != "" {
		t.Errorf("answered otherwise (-generated +fast):\n%s", diff)
	}
}

// rawCodec sends encoded messages.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }
func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.([]byte))}, nil
}
func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	return proto.Unmarshal(data.Materialize(), v.(proto.Message))
}

// If a Check panics before or after the decision, the reply is a denial, and the charge is undone.
func TestAPanicTakesTheChargeBack(t *testing.T) {
	var void []usage.Charge
	s := envoy.NewServer(envoy.Config{Void: func(c usage.Charge) { void = append(void, c) }, Log: slog.New(slog.DiscardHandler)})
	d := authz.Decision{Reason: authz.Allowed, Charge: usage.Charge{User: "ada", Number: 7}}
	out := envoy.Guarded(s, &d, func() { panic("oh") })
	if out.GetDeniedResponse().GetStatus().GetCode() != 503 || len(void) != 1 || void[0] != d.Charge {
		t.Errorf("answered %v, taken back %v", out, void)
	}
	if out := envoy.Guarded(s, &d, func() {}); out != nil || len(void) != 1 {
		t.Errorf("without a panic: answered %v, taken back %v", out, void)
	}
}

// A panic while a Check is decided harms nobody else, and does not allow.
func TestAPanicIsNoYes(t *testing.T) {
	_, conn := connect(t, envoy.Config{Authorize: func(context.Context, *authz.Request) (authz.Decision, error) { panic("oh") }})
	for range 3 {
		out, err := authv3.NewAuthorizationClient(conn).Check(t.Context(), fromEnvoy())
		if err != nil || out.GetDeniedResponse().GetStatus().GetCode() != 503 {
			t.Fatalf("answered %v, %v", out, err)
		}
	}
}

// Of two entries of a map under one key only the last counts, so a header that is twice among the
// joined ones is read as by the generated code, with any value.
func TestAHeaderThatIsTwiceInTheMap(t *testing.T) {
	field := func(b []byte, number protowire.Number, value string) []byte {
		return protowire.AppendString(protowire.AppendTag(b, number, protowire.BytesType), value)
	}
	for _, name := range []string{":path", "x-api-key", "X-API-Key", "authorization", "cookie", "accept", "content-type", "x.keyporter.user", "other"} {
		for _, values := range [][2]string{{"/a", "/b"}, {"/b", "/a"}, {"", "/a"}, {"/a", ""}, {"application/grpc", "text/plain"}, {"text/plain", "application/grpc"}} {
			http := field(nil, 4, "/a")
			for _, value := range values {
				http = field(http, 3, string(field(field(nil, 1, name), 2, value)))
			}
			expectSame(t, field(nil, 1, string(field(nil, 4, string(field(nil, 2, string(http)))))))
		}
	}
}

// The name of every header in use, in any case, concerns us.
func TestWhatIsLookedAtConcernsUs(t *testing.T) {
	for _, name := range []string{
		"x-api-key", "x_api_key", "x.api_key", "authorization", "cookie", "accept", "content-type", ":path",
		"x-keyporter-user", "x_keyporter.plan", "x-keyporter-anything-else",
	} {
		for _, name := range []string{name, strings.ToUpper(name), strings.ToUpper(name[:1]) + name[1:]} {
			if !envoy.Concerns(name) {
				t.Errorf("%s is passed over", name)
			}
		}
	}
	for _, name := range []string{"", "x", "x-", "x-request-id", "x-forwarded-for", "accept-encoding", "user-agent", ":authority"} {
		if envoy.Concerns(name) {
			t.Errorf("%q costs a closer look", name)
		}
	}
}

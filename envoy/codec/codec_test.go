package codec_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/envoy/codec"
	"github.com/keyporter/keyporter/envoy/codec/codectest"
	"github.com/keyporter/keyporter/usage"
)

// expectSame fails unless both codecs read a message alike, or both refuse it.
func expectSame(t testing.TB, message []byte) (fast bool) {
	var in authv3.CheckRequest
	refused := proto.Unmarshal(message, &in)
	got, fast := codec.ReadCheck(bytes.Clone(message))
	if refused != nil {
		if fast {
			t.Fatalf("the generated code refuses what was read: %v\n%x", refused, message)
		}
		return false
	}
	if !fast {
		return false // decoded by the generated code
	}
	want := codec.DecodeCheck(&in)
	// The map of headers has no order.
	if in.GetAttributes().GetRequest().GetHttp().GetHeaderMap() == nil {
		slices.Sort(want.Spoofed)
		slices.Sort(got.Spoofed)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("read otherwise (-generated +fast):\n%s\n%x", diff, message)
	}
	return true
}

// The fast codec reads the same as the generated code, and nothing that the generated code refuses.
// Envoy's own messages need no generated code.
func FuzzReadCheck(f *testing.F) {
	for _, message := range codectest.Checks(f) {
		f.Add(message)
	}
	f.Fuzz(func(t *testing.T, message []byte) { expectSame(t, message) })
}

func TestWhatEnvoySendsIsReadInPlace(t *testing.T) {
	for i, in := range []*authv3.CheckRequest{codectest.FromEnvoy(), codectest.Joined("GET", "/a", map[string]string{"x-api-key": "k", "accept": "*/*"})} {
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
	all, random := codectest.Checks(t), rand.New(rand.NewPCG(1, uint64(time.Now().UnixNano())))
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
	response, written := codec.ZeroAnswer()
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
	everything := codec.Selection{Headers: codec.DefaultHeaders | codec.FactCharge, Metadata: codec.FactAccount | codec.FactPlan}
	response, got := codec.Answers(in, d, everything)
	want, err := proto.MarshalOptions{Deterministic: true}.Marshal(response)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(want, got) {
		return
	}
	var read authv3.CheckResponse
	if err := proto.Unmarshal(got, &read); err != nil {
		t.Fatalf("the answer is not a valid message: %v\n%x", err, got)
	}
	t.Fatalf("written otherwise for %.500q: (-generated +fast):\n%.2000s", fmt.Sprintf("%+v", d), cmp.Diff(response.String(), read.String()))
}

func randomQuestion(random *rand.Rand) *authv3.CheckRequest {
	var headers []string
	for range random.IntN(8) {
		headers = append(headers, pick(random, "x-api-key", "x.keyporter.user", "x_api_key", "content-type", "cookie"),
			pick(random, "", "application/grpc", "k", fmt.Sprint(random.Uint64())))
	}
	return codectest.Check("GET", "/a", headers...)
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
			if !codec.Concerns(name) {
				t.Errorf("%s is passed over", name)
			}
		}
	}
	for _, name := range []string{"", "x", "x-", "x-request-id", "x-forwarded-for", "accept-encoding", "user-agent", ":authority"} {
		if codec.Concerns(name) {
			t.Errorf("%q costs a closer look", name)
		}
	}
}

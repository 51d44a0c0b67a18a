package load_test

import (
	"encoding/binary"
	"maps"
	"testing"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/protobuf/proto"

	"github.com/keyporter/keyporter/bench/load"
)

const (
	path = "/api/v1/brands?limit=20"
	key  = "wh_0123456789abcdef0123456789abcdef0123456789abcdef"
)

func decode(t *testing.T, frame []byte) *authv3.CheckRequest {
	t.Helper()
	if frame[0] != 0 || int(binary.BigEndian.Uint32(frame[1:])) != len(frame)-5 {
		t.Fatalf("%x is no gRPC message of %d bytes", frame[:5], len(frame)-5)
	}
	var request authv3.CheckRequest
	if err := proto.Unmarshal(frame[5:], &request); err != nil {
		t.Fatalf("decoding %x: %v", frame, err)
	}
	return &request
}

func headers(r *authv3.CheckRequest) map[string]string {
	found := map[string]string{}
	for _, h := range r.GetAttributes().GetRequest().GetHttp().GetHeaderMap().GetHeaders() {
		found[h.GetKey()] = string(h.GetRawValue())
	}
	return found
}

// A Check with any number is readable by Envoy's own types, with that number in both places.
func TestNumberedCheckIsAWholeCheckRequest(t *testing.T) {
	check, err := load.NewCheck(path, key)
	if err != nil {
		t.Fatal(err)
	}
	for number, want := range map[uint64][2]string{
		0:                         {"0000000000000000000", "b5f1c7de-4d2a-4c3b-9a7e-000000000000"},
		1:                         {"0000000000000000001", "b5f1c7de-4d2a-4c3b-9a7e-000000000001"},
		7_000_123_456_789_012:     {"0007000123456789012", "b5f1c7de-4d2a-4c3b-9a7e-123456789012"},
		9_223_372_036_854_775_807: {"9223372036854775807", "b5f1c7de-4d2a-4c3b-9a7e-036854775807"},
	} {
		request := decode(t, check.Number(number))
		if got := request.GetAttributes().GetRequest().GetHttp().GetId(); got != want[0] {
			t.Errorf("Number(%d): id %s, want %s", number, got, want[0])
		}
		if got := headers(request)["x-request-id"]; got != want[1] {
			t.Errorf("Number(%d): x-request-id %s, want %s", number, got, want[1])
		}
	}
}

// Two uses of one Check differ only in their numbers.
func TestNumberChangesNothingElse(t *testing.T) {
	check, err := load.NewCheck(path, key)
	if err != nil {
		t.Fatal(err)
	}
	first := decode(t, check.Number(1))
	check.Number(7_777_777_777_777_777_777)
	if again := decode(t, check.Number(1)); !proto.Equal(first, again) {
		t.Errorf("first %v\nagain %v", first, again)
	}
}

func TestCheckAsksAboutThePathWithTheKey(t *testing.T) {
	for _, key := range []string{key, ""} {
		check, err := load.NewCheck(path, key)
		if err != nil {
			t.Fatal(err)
		}
		request := decode(t, check.Number(1))
		http := request.GetAttributes().GetRequest().GetHttp()
		if http.GetMethod() != "GET" || http.GetPath() != path || headers(request)[":path"] != path {
			t.Errorf("asks about %s %s, want GET %s", http.GetMethod(), http.GetPath(), path)
		}
		got, sent := headers(request)["x-api-key"]
		if got != key || sent != (key != "") {
			t.Errorf("x-api-key %q, sent %t; want %q", got, sent, key)
		}
	}
}

// A path or a key that looks like the place of a number would be patched by mistake.
func TestNewCheckRefusesWhatLooksLikeANumber(t *testing.T) {
	if _, err := load.NewCheck("/9999999999999999999", key); err == nil {
		t.Error("no error")
	}
}

// SetKey changes only the key; the new one must have the same length.
func TestSetKey(t *testing.T) {
	const other = "wh_fedcba9876543210fedcba9876543210fedcba9876543210"
	check, err := load.NewCheck(path, key)
	if err != nil {
		t.Fatal(err)
	}
	if err := check.SetKey(other); err != nil {
		t.Fatal(err)
	}
	direct, err := load.NewCheck(path, other)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := decode(t, check.Number(1)), decode(t, direct.Number(1)); !proto.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	if check.SetKey(other+"0") == nil {
		t.Error("no error for a key that is longer")
	}
}

// A joined Check has the same content in the map of joined headers, with the key as a Bearer token.
func TestJoinedCheck(t *testing.T) {
	check, err := load.NewJoinedCheck(path, key)
	if err != nil {
		t.Fatal(err)
	}
	http := decode(t, check.Number(1)).GetAttributes().GetRequest().GetHttp()
	if http.GetHeaderMap() != nil || http.GetHeaders()["authorization"] != "Bearer "+key || http.GetHeaders()["x-request-id"] != "b5f1c7de-4d2a-4c3b-9a7e-000000000001" {
		t.Errorf("a joined Check is %v", http)
	}
	plain, err := load.NewCheck(path, "")
	if err != nil {
		t.Fatal(err)
	}
	want := headers(decode(t, plain.Number(1)))
	want["authorization"] = "Bearer " + key
	if !maps.Equal(http.GetHeaders(), want) {
		t.Errorf("joined headers are %v, want %v", http.GetHeaders(), want)
	}
}

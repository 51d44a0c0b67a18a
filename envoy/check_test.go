package envoy_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"testing"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/envoy"
	"github.com/keyporter/keyporter/envoy/codec"
	"github.com/keyporter/keyporter/envoy/codec/codectest"
	"github.com/keyporter/keyporter/usage"
)

var somebody = authz.Principal{KeyID: "k1", User: "ada", Account: "acme", Plan: "pro"}

// The charge of a decision that comes too late, or that nobody waits for any more, is undone; the
// charge of an answered one is not.
func TestWhatIsNotAnsweredIsNotCharged(t *testing.T) {
	charge := usage.Charge{User: "ada", Request: "1"}
	for name, late := range map[string]bool{"answered": false, "nobody waits": true} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var void []usage.Charge
			s := makeServer(envoy.Config{
				Authorize: func(context.Context, *authz.Request) (authz.Decision, error) {
					if late {
						cancel()
					}
					return authz.Decision{Reason: authz.Allowed, Charge: charge}, nil
				},
				Void: func(c usage.Charge) { void = append(void, c) },
			})
			out, err := s.Check(ctx, codectest.Check("GET", "/a"))
			if err != nil || (out.GetOkResponse() != nil) == late {
				t.Fatalf("%v, %v", out, err)
			}
			if late != slices.Equal(void, []usage.Charge{charge}) {
				t.Errorf("taken back: %+v", void)
			}
		})
	}
}

// Both codecs answer a Check alike over the wire, also one that the generated code has to read;
// both refuse an invalid Check.
func TestBothCodecsAnswerAlikeOverTheWire(t *testing.T) {
	answers := map[codec.Kind]map[string]string{}
	for _, kind := range []codec.Kind{codec.Fast, codec.Generated} {
		answers[kind] = map[string]string{}
		_, conn := connect(t, envoy.Config{Authorize: echo(authz.Allowed), Codec: kind})
		for i, message := range append(codectest.Checks(t), []byte{0x0a, 0x05}, []byte{0xff}) {
			var out authv3.CheckResponse
			err := conn.Invoke(t.Context(), authv3.Authorization_Check_FullMethodName, message, &out, grpc.ForceCodecV2(rawCodec{}))
			answers[kind][fmt.Sprint(i)] = fmt.Sprint(prototext.Format(&out), status.Code(err))
		}
	}
	if diff := cmp.Diff(answers[codec.Generated], answers[codec.Fast]); diff != "" {
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
	s := makeServer(envoy.Config{Void: func(c usage.Charge) { void = append(void, c) }, Log: slog.New(slog.DiscardHandler)})
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
		out, err := authv3.NewAuthorizationClient(conn).Check(t.Context(), codectest.FromEnvoy())
		if err != nil || out.GetDeniedResponse().GetStatus().GetCode() != 503 {
			t.Fatalf("answered %v, %v", out, err)
		}
	}
}

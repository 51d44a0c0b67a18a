//go:build !race

// The race detector makes sync.Pool drop items on purpose.

package envoy_test

import (
	"context"
	"testing"
	"time"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/envoy"
	"github.com/keyporter/keyporter/envoy/codec/codectest"
	"github.com/keyporter/keyporter/usage"
)

// A Check is read, decided and answered with one object of ours, whatever its answer. The
// decision's own allocations, the two names of a charge, come on top.
func TestACheckAllocatesLittle(t *testing.T) {
	message, err := proto.Marshal(codectest.FromEnvoy())
	if err != nil {
		t.Fatal(err)
	}
	sent := mem.BufferSlice{mem.SliceBuffer(message)}
	for _, d := range []authz.Decision{
		{Reason: authz.Allowed, Principal: somebody, Rewrite: authz.Rewrite{RemoveAPIKey: true}, Charge: usage.Charge{
			ID: "charge", Receipt: "receipt", Rate: usage.Rate{Limit: 60, Window: time.Minute, Remaining: 59}, Credits: usage.Credits{Counted: true, Limit: 1000},
		}},
		{Reason: authz.UnknownKey},
		{Reason: authz.NoAPIAccess, Principal: somebody},
	} {
		s := makeServer(envoy.Config{Authorize: func(context.Context, *authz.Request) (authz.Decision, error) { return d, nil }})
		if n := testing.AllocsPerRun(200, func() { envoy.AnswerOnce(s, sent) }); n > 1 {
			t.Errorf("%v: %v allocations, want 1", d.Reason, n)
		}
	}
}

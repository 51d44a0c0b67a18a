package envoy_test

import (
	"context"
	"log/slog"
	"testing"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/protobuf/proto"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/envoy"
	"github.com/keyporter/keyporter/envoy/codec/codectest"
)

// Every CheckRequest gets an answer that fits on the wire, and is allowed only if that was decided.
func FuzzCheck(f *testing.F) {
	for _, in := range []*authv3.CheckRequest{
		{},
		codectest.Check("GET", "/api/v1/brands?api_key=k", "x-api-key", "k", ":path", "/other", "x.keyporter.user", "eve", "cookie", "a=\xff"),
		codectest.Joined("POST", "*", map[string]string{"authorization": "Bearer k", "content-type": "application/grpc"}),
	} {
		seed, err := proto.Marshal(in)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(seed, uint8(authz.Allowed))
		f.Add(seed, uint8(authz.MethodNotAllowed))
	}
	f.Fuzz(func(t *testing.T, message []byte, reason uint8) {
		var in authv3.CheckRequest
		if proto.Unmarshal(message, &in) != nil {
			t.Skip("gRPC refuses it before us")
		}
		s := makeServer(envoy.Config{Log: slog.New(slog.DiscardHandler), Authorize: echo(authz.Reason(reason))})
		out, err := s.Check(t.Context(), &in)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := proto.Marshal(out); err != nil {
			t.Fatalf("the answer does not fit on the wire: %v", err)
		}
		allowed := out.GetStatus().GetCode() == 0 || out.GetOkResponse() != nil
		if allowed != (authz.Reason(reason) == authz.Allowed) {
			t.Fatalf("reason %v: allowed is %v", authz.Reason(reason), allowed)
		}
	})
}

// echo decides by reason, and returns as much of the client's own bytes as a decision can.
func echo(reason authz.Reason) authorizeFunc {
	return func(_ context.Context, r *authz.Request) (authz.Decision, error) {
		d := authz.Decision{Reason: reason, Rule: &authz.Rule{}, Rewrite: authz.Rewrite{Path: r.Path}}
		if len(r.Cookie) > 0 {
			d.Rewrite.Cookie = r.Cookie[0]
		}
		return d, nil
	}
}

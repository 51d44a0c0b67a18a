//go:build lean

package envoy_test

import (
	"log/slog"
	"net"
	"strings"
	"testing"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/keyporter/keyporter/envoy"
	"github.com/keyporter/keyporter/envoy/codec/codectest"
)

// The prototype has no token, so it has no strangers: the data of a connection is not bounded.
func TestTheLeanServerKnowsNoStrangers(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	s := envoy.NewServer(envoy.Config{Authorize: allowAll, DrainDelay: -1, Log: slog.New(slog.DiscardHandler)})
	go s.Serve(listener)
	conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	request := codectest.Check("GET", "/"+strings.Repeat("a", 1000))
	for i := range 200 {
		if _, err := authv3.NewAuthorizationClient(conn).Check(t.Context(), request); err != nil {
			t.Fatalf("after %d Checks: %v", i, err)
		}
	}
}

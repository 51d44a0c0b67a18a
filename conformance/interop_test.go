package conformance

import (
	"context"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/interop"
	"google.golang.org/grpc/interop/grpc_testing"

	"github.com/keyporter/keyporter/envoy/transport"
)

// A server of grpc-go behind the transport passes the interoperability calls of grpc-go. A call
// that fails ends the test's process with its reason.
func TestInterop(t *testing.T) {
	behind := grpc.NewServer()
	t.Cleanup(behind.Stop)
	grpc_testing.RegisterTestServiceServer(behind, interop.NewTestServer())
	config := transport.Config{Others: behind, MaxMessage: 1 << 20}
	conn, err := grpc.NewClient(serve(t, config, nil), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	client := grpc_testing.NewTestServiceClient(conn)
	for _, row := range []struct {
		name string
		call func(context.Context, grpc_testing.TestServiceClient, ...grpc.CallOption)
	}{
		{"empty unary", interop.DoEmptyUnaryCall},
		{"large unary", interop.DoLargeUnaryCall},
		{"client streaming", interop.DoClientStreaming},
		{"server streaming", interop.DoServerStreaming},
		{"ping-pong", interop.DoPingPong},
		{"empty stream", interop.DoEmptyStream},
		{"cancel after begin", interop.DoCancelAfterBegin},
		{"cancel after the first response", interop.DoCancelAfterFirstResponse},
		{"time-out on a sleeping server", interop.DoTimeoutOnSleepingServer},
		{"custom metadata", interop.DoCustomMetadata},
		{"status code and message", interop.DoStatusCodeAndMessage},
		{"special status message", interop.DoSpecialStatusMessage},
		{"unimplemented method", func(ctx context.Context, _ grpc_testing.TestServiceClient, _ ...grpc.CallOption) {
			interop.DoUnimplementedMethod(ctx, conn)
		}},
		{"unimplemented service", func(ctx context.Context, _ grpc_testing.TestServiceClient, _ ...grpc.CallOption) {
			interop.DoUnimplementedService(ctx, grpc_testing.NewUnimplementedServiceClient(conn))
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			row.call(ctx, client)
		})
	}
}

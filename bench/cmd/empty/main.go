// Empty is the yardstick: the smallest ext_authz server that the standard gRPC library and Envoy's
// own generated types allow. It reads nothing of a Check, answers OK, drops the access log, and
// leaves every setting of the library and of the Go runtime at its default.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
)

type server struct {
	authv3.UnimplementedAuthorizationServer
}

// Check allows every request.
func (server) Check(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	return &authv3.CheckResponse{Status: &status.Status{Code: int32(codes.OK)}}, nil
}

// accessLog reads entries and drops them.
type accessLog struct {
	accesslogv3.UnimplementedAccessLogServiceServer
}

// StreamAccessLogs reads until Envoy ends the stream.
func (accessLog) StreamAccessLogs(stream accesslogv3.AccessLogService_StreamAccessLogsServer) error {
	for {
		if _, err := stream.Recv(); err != nil {
			return err
		}
	}
}

func main() {
	grpcAddr := flag.String("listen-grpc", "127.0.0.1:9001", "where to answer Checks")
	opsAddr := flag.String("listen-ops", "127.0.0.1:9090", "where to serve /metrics, read for the number of allocations")
	flag.Parse()
	if err := run(*grpcAddr, *opsAddr); err != nil {
		fmt.Fprintln(os.Stderr, "empty:", err)
		os.Exit(1)
	}
}

// run serves until it is killed: it has nothing to lose.
func run(grpcAddr, opsAddr string) error {
	checks, err := net.Listen("tcp", grpcAddr)
	if err != nil {
		return err
	}
	ops, err := net.Listen("tcp", opsAddr)
	if err != nil {
		return errors.Join(err, checks.Close())
	}
	ended := make(chan error, 2)
	go func() { ended <- http.Serve(ops, promhttp.Handler()) }()
	go func() {
		s := grpc.NewServer()
		authv3.RegisterAuthorizationServer(s, server{})
		accesslogv3.RegisterAccessLogServiceServer(s, accessLog{})
		ended <- s.Serve(checks)
	}()
	return <-ended
}

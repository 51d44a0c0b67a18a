package e2e_test

import (
	"context"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// checker asks one replica directly, in the way of an Envoy. Tests use it for requests that Envoy
// never sends, or for answers faster than over HTTP.
type checker struct{ client authv3.AuthorizationClient }

func newChecker(t testing.TB, r *replica) *checker {
	t.Helper()
	conn, err := grpc.NewClient(r.grpc, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &checker{authv3.NewAuthorizationClient(conn)}
}

// status asks about a GET of path with raw headers, name and value in turn, and returns the HTTP
// status that Envoy would use: 200 for an allow, 0 with an error without an answer.
func (c *checker) status(path string, headers ...string) (int, error) {
	raw := &corev3.HeaderMap{}
	for i := 0; i+1 < len(headers); i += 2 {
		raw.Headers = append(raw.Headers, &corev3.HeaderValue{Key: headers[i], RawValue: []byte(headers[i+1])})
	}
	return c.ask(&authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		Request: &authv3.AttributeContext_Request{
			Http: &authv3.AttributeContext_HttpRequest{Method: "GET", Path: path, HeaderMap: raw},
		},
	}})
}

func (c *checker) ask(request *authv3.CheckRequest) (int, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	response, err := c.client.Check(ctx, request)
	if err != nil {
		return 0, err
	}
	if response.GetStatus().GetCode() == 0 {
		return 200, nil
	}
	return int(response.GetDeniedResponse().GetStatus().GetCode()), nil
}

// key asks about an API route with a key.
func (c *checker) key(key string) (int, error) { return c.status("/api/v1/brands", "x-api-key", key) }

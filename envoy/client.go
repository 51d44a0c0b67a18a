package envoy

import (
	"context"
	"fmt"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/keyporter/keyporter/bearer"
	"github.com/keyporter/keyporter/envoy/codec"
)

// Client asks a [Server] as Envoy does, without an Envoy. It is safe for concurrent use.
type Client struct {
	conn  *grpc.ClientConn
	check authv3.AuthorizationClient
	token bearer.Token
}

// NewClient returns a client of the server at HOST:PORT or unix:///PATH. It connects on first use.
// It sends a token, if there is one, with every call.
func NewClient(address string, token bearer.Token) (*Client, error) {
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("the address %q of a replica: %w", address, err)
	}
	return &Client{conn: conn, check: authv3.NewAuthorizationClient(conn), token: token}, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// Question is a request to ask about.
type Question struct {
	Method, Host, Path string
	Rule               string // rule that the route asks for by name; "": none
}

// Ask asks about a request with a key in X-API-Key, and returns the HTTP status that its sender
// would get: 200 for an allow.
func (c *Client) Ask(ctx context.Context, q Question, key string) (status int, err error) {
	if !c.token.IsZero() {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+c.token.Reveal())
	}
	response, err := c.check.Check(ctx, &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		ContextExtensions: map[string]string{codec.RuleExtension: q.Rule},
		Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{
			Method: q.Method, Host: q.Host, Path: q.Path,
			HeaderMap: &corev3.HeaderMap{Headers: []*corev3.HeaderValue{{Key: "x-api-key", RawValue: []byte(key)}}},
		}},
	}})
	if err != nil {
		return 0, err
	}
	if response.GetStatus().GetCode() == 0 {
		return 200, nil
	}
	return int(response.GetDeniedResponse().GetStatus().GetCode()), nil
}

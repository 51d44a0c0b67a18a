package envoy_test

import (
	"context"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/envoy"
)

// Authorize receives the fields for path and method, and the headers in either of their two forms.
func TestCheckDecodes(t *testing.T) {
	for _, test := range []struct {
		name string
		in   *authv3.CheckRequest
		want authz.Request
	}{
		{"nothing at all", nil, authz.Request{}},
		{"no attributes", &authv3.CheckRequest{}, authz.Request{}},
		{"no request", &authv3.CheckRequest{Attributes: &authv3.AttributeContext{}}, authz.Request{}},
		{"no http", &authv3.CheckRequest{Attributes: &authv3.AttributeContext{Request: &authv3.AttributeContext_Request{}}}, authz.Request{}},
		{"path and method are fields", check("GET", "/a?b=c"), authz.Request{Method: "GET", Path: "/a?b=c"}},
		{
			"joined headers",
			joined("GET", "/a", map[string]string{"x-api-key": "k", "authorization": "Bearer b", "cookie": "c=1", "accept": "*/*"}),
			authz.Request{Method: "GET", Path: "/a", APIKey: []string{"k"}, Authorization: []string{"Bearer b"}, Cookie: []string{"c=1"}, Accept: "*/*"},
		},
		{
			"raw headers keep repeats in order, empty ones too",
			check("GET", "/a", "x-api-key", "one", "x-api-key", "", "x-api-key", "two"),
			authz.Request{Method: "GET", Path: "/a", APIKey: []string{"one", "", "two"}},
		},
		{
			"names in any case",
			check("GET", "/a", "X-API-Key", "k", "AUTHORIZATION", "b", "Cookie", "c"),
			authz.Request{Method: "GET", Path: "/a", APIKey: []string{"k"}, Authorization: []string{"b"}, Cookie: []string{"c"}},
		},
		{
			"joined headers in another case",
			joined("GET", "/a", map[string]string{"X-Api-Key": "k"}),
			authz.Request{Method: "GET", Path: "/a", APIKey: []string{"k"}},
		},
		{
			"bytes that are not UTF-8 arrive as they are",
			check("GET", "/a", "cookie", "c=\xff"),
			authz.Request{Method: "GET", Path: "/a", Cookie: []string{"c=\xff"}},
		},
		{
			"raw headers win over joined ones",
			with(check("GET", "/a", "x-api-key", "raw"), map[string]string{"x-api-key": "joined", "cookie": "c"}),
			authz.Request{Method: "GET", Path: "/a", APIKey: []string{"raw"}},
		},
		{
			"pseudo headers are no second source",
			check("GET", "/a", ":method", "POST", ":path", "/a", ":authority", "x"),
			authz.Request{Method: "GET", Path: "/a"},
		},
		{
			"a path that was not the one sent is none",
			check("GET", "/a?b=!", ":path", "/a?b=\xff"),
			authz.Request{Method: "GET"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			var got *authz.Request
			s := envoy.NewServer(envoy.Config{Authorize: func(_ context.Context, r *authz.Request) (authz.Decision, error) {
				got = r
				return authz.Decision{}, nil
			}})
			if _, err := s.Check(t.Context(), test.in); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(&test.want, got, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("request (-want +got):\n%s", diff)
			}
		})
	}
}

// A header value may come as text instead of raw bytes.
func TestCheckDecodesTextValues(t *testing.T) {
	in := check("GET", "/a")
	in.Attributes.Request.Http.HeaderMap.Headers = []*corev3.HeaderValue{{Key: "x-api-key", Value: "k"}, nil}
	s := envoy.NewServer(envoy.Config{Authorize: func(_ context.Context, r *authz.Request) (authz.Decision, error) {
		if diff := cmp.Diff([]string{"k"}, r.APIKey); diff != "" {
			t.Errorf("x-api-key (-want +got):\n%s", diff)
		}
		return authz.Decision{}, nil
	}})
	if _, err := s.Check(t.Context(), in); err != nil {
		t.Fatal(err)
	}
}

// check makes a CheckRequest with raw headers, given as name, value, name, value …
func check(method, path string, headers ...string) *authv3.CheckRequest {
	raw := &corev3.HeaderMap{}
	for i := 0; i < len(headers); i += 2 {
		raw.Headers = append(raw.Headers, &corev3.HeaderValue{Key: headers[i], RawValue: []byte(headers[i+1])})
	}
	in := joined(method, path, nil)
	in.Attributes.Request.Http.HeaderMap = raw
	return in
}

// joined makes a CheckRequest in the older form, in which a name has one value.
func joined(method, path string, headers map[string]string) *authv3.CheckRequest {
	return &authv3.CheckRequest{Attributes: &authv3.AttributeContext{Request: &authv3.AttributeContext_Request{
		Http: &authv3.AttributeContext_HttpRequest{Method: method, Path: path, Headers: headers},
	}}}
}

func with(in *authv3.CheckRequest, headers map[string]string) *authv3.CheckRequest {
	in.Attributes.Request.Http.Headers = headers
	return in
}

package codec_test

import (
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/envoy/codec"
	"github.com/keyporter/keyporter/envoy/codec/codectest"
)

// The decision rests on the fields for path and method, and the headers in either of their two
// forms.
func TestCheckDecodes(t *testing.T) {
	bothForms := codectest.Check("GET", "/a", "x-api-key", "raw")
	bothForms.Attributes.Request.Http.Headers = map[string]string{"x-api-key": "joined", "cookie": "c"}
	for _, test := range []struct {
		name string
		in   *authv3.CheckRequest
		want authz.Request
	}{
		{"nothing at all", nil, authz.Request{}},
		{"no attributes", &authv3.CheckRequest{}, authz.Request{}},
		{"no request", &authv3.CheckRequest{Attributes: &authv3.AttributeContext{}}, authz.Request{}},
		{"no http", &authv3.CheckRequest{Attributes: &authv3.AttributeContext{Request: &authv3.AttributeContext_Request{}}}, authz.Request{}},
		{"path and method are fields", codectest.Check("GET", "/a?b=c"), authz.Request{Method: "GET", Path: "/a?b=c"}},
		{
			"joined headers",
			codectest.Joined("GET", "/a", map[string]string{"x-api-key": "k", "authorization": "Bearer b", "cookie": "c=1", "accept": "*/*"}),
			authz.Request{Method: "GET", Path: "/a", APIKey: []string{"k"}, Authorization: []string{"Bearer b"}, Cookie: []string{"c=1"}, Accept: "*/*"},
		},
		{
			"raw headers keep repeats in order, empty ones too",
			codectest.Check("GET", "/a", "x-api-key", "one", "x-api-key", "", "x-api-key", "two"),
			authz.Request{Method: "GET", Path: "/a", APIKey: []string{"one", "", "two"}},
		},
		{
			"names in any case",
			codectest.Check("GET", "/a", "X-API-Key", "k", "AUTHORIZATION", "b", "Cookie", "c"),
			authz.Request{Method: "GET", Path: "/a", APIKey: []string{"k"}, Authorization: []string{"b"}, Cookie: []string{"c"}},
		},
		{
			"joined headers in another case",
			codectest.Joined("GET", "/a", map[string]string{"X-Api-Key": "k"}),
			authz.Request{Method: "GET", Path: "/a", APIKey: []string{"k"}},
		},
		{
			"bytes that are not UTF-8 arrive as they are",
			codectest.Check("GET", "/a", "cookie", "c=\xff"),
			authz.Request{Method: "GET", Path: "/a", Cookie: []string{"c=\xff"}},
		},
		{
			"raw headers win over joined ones",
			bothForms,
			authz.Request{Method: "GET", Path: "/a", APIKey: []string{"raw"}},
		},
		{
			"pseudo headers are no second source",
			codectest.Check("GET", "/a", ":method", "POST", ":path", "/a", ":authority", "x"),
			authz.Request{Method: "GET", Path: "/a"},
		},
		{
			"a path that was not the one sent is none",
			codectest.Check("GET", "/a?b=!", ":path", "/a?b=\xff"),
			authz.Request{Method: "GET"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := codec.DecodeCheck(test.in).Request
			if diff := cmp.Diff(test.want, got, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("request (-want +got):\n%s", diff)
			}
		})
	}
}

// A header value may come as text instead of raw bytes.
func TestCheckDecodesTextValues(t *testing.T) {
	in := codectest.Check("GET", "/a")
	in.Attributes.Request.Http.HeaderMap.Headers = []*corev3.HeaderValue{{Key: "x-api-key", Value: "k"}, nil}
	if diff := cmp.Diff([]string{"k"}, codec.DecodeCheck(in).APIKey); diff != "" {
		t.Errorf("x-api-key (-want +got):\n%s", diff)
	}
}

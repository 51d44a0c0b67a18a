//go:build !race

// Under the race detector, sync.Pool drops items at random.

package authz_test

import (
	"context"
	"strings"
	"testing"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/authz"
)

// A request with its key in a header is parsed, routed and identified without an allocation, and so
// is one with a forged key.
func TestADecisionAllocatesNothing(t *testing.T) {
	w := newWorld(t)
	w.FindKey = func(context.Context, apikey.Digest) (authz.Principal, error) { return ada, nil }
	authorizer, ctx := authz.New(w.Config), t.Context()
	for _, row := range []struct {
		name string
		r    authz.Request
		want authz.Reason
	}{
		{"a good key", header(w.ada), authz.Allowed},
		{"a forged key", header(w.forged), authz.ForgedKey},
	} {
		n := testing.AllocsPerRun(200, func() {
			if d, err := authorizer.Authorize(ctx, &row.r); err != nil || d.Reason != row.want {
				t.Fatal(d.Reason, err)
			}
		})
		if n != 0 {
			t.Errorf("%s: %v allocations, want 0", row.name, n)
		}
	}
}

// Long headers of many small items are not copied, whatever their content: such a request needs no
// key.
func TestLongHeadersAreNotCopied(t *testing.T) {
	w := newWorld(t, authz.Rule{Path: "/*", Kind: authz.KindAPIKey})
	authorizer, ctx := authz.New(w.Config), t.Context()
	commas := []string{strings.Repeat("a,", 30_000)}
	for name, r := range map[string]authz.Request{
		"protocols": {Method: "GET", Path: "/x", Protocols: commas}, "x-api-key": {Method: "GET", Path: "/x", APIKey: commas},
		"authorization": {Method: "GET", Path: "/x", Authorization: commas}, "cookie": {Method: "GET", Path: "/x", Cookie: commas},
	} {
		if n := testing.AllocsPerRun(20, func() { authorizer.Authorize(ctx, &r) }); n > 0 {
			t.Errorf("%s: %v allocations, want 0", name, n)
		}
	}
}

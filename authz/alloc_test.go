//go:build !race

// Under the race detector sync.Pool forgets on purpose.

package authz_test

import (
	"context"
	"testing"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/authz"
)

// A request with its key in a header is parsed, routed and identified without an allocation, and so is one with a
// forged key.
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

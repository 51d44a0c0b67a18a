package e2e_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/keyporter/keyporter/internal/contract"
)

// Identity headers of a client never reach the upstream, in any spelling: the upstream sees only
// ours. Keyporter removes them itself, even behind an Envoy that removes none; TestAnEnvoyOfOnesOwn
// covers one that does.
func TestIdentityHeadersOfAClientNeverReachTheUpstream(t *testing.T) {
	t.Parallel()
	s := start(t, stackConfig{noEnvoy: true, flags: patient})
	s.startEnvoyTo(t, s.upstream.address, `- remove_on_match: { key_matcher: { safe_regex: { regex: "x[^a-z0-9]keyporter[^a-z0-9].*" } } }`,
		`- remove: nothing`)
	key := s.user("ann", "pro")
	cookie := s.session("ann")
	routes := []request{
		{target: "/api/v1/brands", header: []string{"X-API-Key: " + key}},
		{target: "/api/product-detail/7", header: []string{"Cookie: " + cookie}},
	}
	var requests []request
	for _, line := range contract.IdentityHeaders() {
		for _, route := range routes {
			for times := 1; times <= 3; times++ {
				r := route
				r.header = slices.Concat(route.header, slices.Repeat([]string{line}, times))
				requests = append(requests, r)
			}
		}
	}
	s.sendAll(requests, func(_ int, o sent) {
		if o.status != 200 {
			t.Errorf("%s: %d %s, want 200", o.request.header[1], o.status, o.body)
			return
		}
		if strings.Contains(fmt.Sprint(o.seen.header), "victim") {
			t.Errorf("%s reached the upstream: %v", o.request.header[1], o.seen.header)
		}
		if got := o.seen.header.Values("x-keyporter-user"); len(got) != 1 || got[0] != "ann" {
			t.Errorf("%s: the upstream saw the users %q, want ann", o.request.header[1], got)
		}
	})
	t.Logf("%d requests", len(requests))
}

// Our session cookie is removed before any upstream sees the request, on routes of every kind. All
// other cookies stay unchanged byte for byte.
func TestTheSessionCookieNeverReachesTheUpstream(t *testing.T) {
	t.Parallel()
	s := start(t, stackConfig{})
	key := s.user("ann", "pro")
	cookie := s.session("ann")
	rows := []struct{ name, sent, want string }{
		{"alone", cookie, ""},
		{"first", cookie + "; a=1; b=2", "a=1; b=2"},
		{"in the middle", "a=1; " + cookie + "; b=2", "a=1; b=2"},
		{"last", "a=1; b=\"x, y\"; " + cookie, "a=1; b=\"x, y\""},
		{"with odd neighbours", "=; a==b==; %20=%zz; " + cookie + "; keyporter_session2=x", "=; a==b==; %20=%zz; keyporter_session2=x"},
		{"without blanks between", "a=1;" + cookie + ";b=2;  c=3", "a=1;b=2;  c=3"},
		{"twice on an API route", cookie + "; a=1; " + cookie, "a=1"},
		{"none of ours", "a=1;b=2;  c=3", "a=1;b=2;  c=3"},
	}
	var requests []request
	for _, row := range rows {
		requests = append(requests,
			request{target: "/api/v1/brands", header: []string{"X-API-Key: " + key, "Cookie: " + row.sent}},
			request{target: "/api/product-detail/7", header: []string{"Cookie: " + row.sent}})
	}
	s.sendAll(requests, func(i int, o sent) {
		row := rows[i/2]
		if i%2 == 1 && strings.Count(row.sent, cookie) != 1 { // on a session route
			o.mustBe(t, row.name, "")
			return
		}
		o.mustBe(t, row.name, "ann")
		if got := strings.Join(o.seen.header.Values("cookie"), "|"); got != row.want {
			t.Errorf("%s: the upstream saw %q, want %q", row.name, got, row.want)
		}
	})
}

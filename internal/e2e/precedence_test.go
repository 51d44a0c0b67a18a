package e2e_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/keyporter/keyporter/internal/contract"
)

// The first place that is not empty decides, even if its value is bad: X-API-Key, then Bearer, then
// ?api_key=. The test covers all 3 × 5 states through Envoy.
func TestTheFirstPlaceThatIsNotEmptyWins(t *testing.T) {
	t.Parallel()
	s := start(t, stackConfig{})
	rows := contract.Places("/api/v1/brands", contract.Keys{Ann: s.user("ann", "pro"), Bob: s.user("bob", "pro")})
	if len(rows) != 125 {
		t.Fatalf("%d requests, want 125", len(rows))
	}
	s.sendRows(rows, func(i int, o sent) { o.mustBe(t, rows[i].Name, rows[i].User) })
}

// sendRows sends rows of the matrix.
func (s *stack) sendRows(rows []contract.Row, judge func(i int, o sent)) {
	s.t.Helper()
	var requests []request
	for _, row := range rows {
		requests = append(requests, request{target: row.Target, header: row.Header})
	}
	s.sendAll(requests, judge)
}

// mustBe judges an outcome: allowed as user, or denied with 401 if user is empty.
func (o sent) mustBe(t *testing.T, row, user string) {
	t.Helper()
	if user == "" {
		if o.status != 401 || o.body != bodies["unauthorized"] || o.arrived {
			t.Errorf("%s: %d %s, arrived: %v; want 401", row, o.status, o.body, o.arrived)
		}
		return
	}
	if o.status != 200 || !o.arrived {
		t.Errorf("%s: %d %s, want 200 for %s", row, o.status, o.body, user)
		return
	}
	if got := o.seen.header.Get("x-keyporter-user"); got != user {
		t.Errorf("%s: passed as %q, want %q", row, got, user)
	}
}

// Authorization counts only as Bearer, in any case, with one space and one token. Other schemes are
// left to the upstream, and the search continues. Anything else after Bearer decides and is bad.
func TestFormsOfAuthorization(t *testing.T) {
	t.Parallel()
	s := start(t, stackConfig{})
	ann, bob := s.user("ann", "pro"), s.user("bob", "pro")
	rows := contract.Authorization("/api/v1/brands", contract.Keys{Ann: ann, Bob: bob})
	if len(rows) < 200 {
		t.Fatalf("%d forms, want 200 and more", len(rows))
	}
	s.sendRows(rows, func(i int, o sent) {
		o.mustBe(t, rows[i].Name, rows[i].User)
		for _, value := range o.seen.header.Values("authorization") {
			if strings.Contains(value, ann) {
				t.Errorf("%q reached the upstream", "Authorization: "+strings.ReplaceAll(value, ann, "KEY"))
			}
		}
	})
}

// Two values in the deciding place are rejected in any form; blanks do not count.
func TestRepeatedValuesAreRefused(t *testing.T) {
	t.Parallel()
	s := start(t, stackConfig{})
	rows := contract.Repeated("/api/v1/brands", s.user("ann", "pro"), 50)
	s.sendRows(rows, func(i int, o sent) { o.mustBe(t, rows[i].Name, rows[i].User) })
}

// A query name that only becomes api_key by decoding is rejected: no spelling authenticates, and no
// spelling reaches the upstream with the key in it. Values are decoded.
func TestSpellingsOfTheQueryName(t *testing.T) {
	t.Parallel()
	s := start(t, stackConfig{})
	key := s.user("ann", "pro")
	var requests []request
	for _, name := range spellings("api_key") {
		requests = append(requests,
			request{target: "/api/v1/brands?" + name + "=" + key},
			request{target: "/api/v1/brands?" + name + "=" + key, header: []string{"X-API-Key: " + key}},
			request{target: "/api/v1/brands?a=1;" + name + "=" + key, header: []string{"X-API-Key: " + key}})
	}
	s.sendAll(requests, func(_ int, o sent) {
		if o.status != 400 || o.arrived || !strings.Contains(o.body, bodies["bad_request"]) {
			t.Errorf("%s: %d %s, arrived: %v; want 400", strings.ReplaceAll(o.target, key, "KEY"), o.status, o.body, o.arrived)
		}
	})
	t.Logf("%d requests", len(requests))
	encoded := "%77%68%5F" + key[3:]
	s.sendAll([]request{{target: "/api/v1/brands?api_key=" + encoded}}, func(_ int, o sent) { o.mustBe(t, "encoded value", "ann") })
}

// spellings returns all forms of a name with at least one percent-encoded byte, in three cases of
// the hexadecimal digits.
func spellings(name string) []string {
	var all []string
	for mask := 1; mask < 1<<len(name); mask++ {
		for _, digits := range []string{"%%%02x", "%%%02X", "mixed"} {
			var b strings.Builder
			for i := range len(name) {
				switch {
				case mask>>i&1 == 0:
					b.WriteByte(name[i])
				case digits == "mixed" && i%2 == 0:
					fmt.Fprintf(&b, "%%%02x", name[i])
				case digits == "mixed":
					fmt.Fprintf(&b, "%%%02X", name[i])
				default:
					fmt.Fprintf(&b, digits, name[i])
				}
			}
			all = append(all, b.String())
		}
	}
	return all
}

package e2e_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// overview is the part of the page about a user's requests.
type overview struct {
	OldKeys *struct {
		Count   int64
		Address string
		Agent   string `json:"user_agent"`
	} `json:"old_keys"`
	Credits  struct{ Used int64 }
	Days     []struct{ Used, Refunded int64 }
	Requests []struct {
		Method, Path    string
		Status, Credits int
		Refunded        bool
	}
}

func (s *stack) overview(cookie string) (f overview) {
	s.t.Helper()
	a := s.page(cookie)
	if a.status != 200 {
		s.t.Fatalf("the page: %d %s", a.status, a.body)
	}
	s.decode(a.body, &f)
	return f
}

// The page shows a user's requests, through the real Envoy and its access log: without queries and
// keys, with refunds, and including denials. It also shows requests with a revoked key, although
// their callers get the same answer as for any other bad key.
func TestThePageTellsOfRequests(t *testing.T) {
	t.Parallel()
	partstest.Slow(t)
	for name, database := range databases {
		t.Run(name, func(t *testing.T) {
			s := start(t, stackConfig{database: database(t)})
			old := s.user("ann", "metered", "--credits", "1000")
			cookie := s.session("ann")
			send := func(key, target string, header ...string) answer {
				return s.send(request{target: target, header: append(header, "X-API-Key: "+key, "User-Agent: forgotten <b>client</b>")})
			}
			send(old, "/api/v1/brands?secret=canary")
			send(old, "/api/v1/brands/wh_"+strings.Repeat("0123456789ab", 4)+"?api_key=canary", "x-test-answer: 500")
			key := s.key("regenerate", "ann")
			unknown := send(key[:len(key)-1]+"x", "/api/v1/brands")
			for range 3 { // the first from the database, the others from the cache
				if a := send(old, "/api/v1/brands"); a.status != 401 || a.body != unknown.body || len(a.header) != len(unknown.header) {
					t.Errorf("the old key: %d %v %s, want what a key gets that never was: %v %s", a.status, a.header, a.body, unknown.header, unknown.body)
				}
			}
			var f overview
			partstest.EventuallyNil(t, "every request in the list", func() error {
				if f = s.overview(cookie); len(f.Requests) < 5 || f.OldKeys == nil || f.OldKeys.Count < 3 ||
					f.Days[len(f.Days)-1].Used < 2 || f.Days[len(f.Days)-1].Refunded < 1 || f.Credits.Used != s.balance("ann").Used {
					return fmt.Errorf("%+v", f)
				}
				return nil
			})
			told := map[string]int{}
			for _, r := range f.Requests {
				told[fmt.Sprint(r.Method, " ", r.Path, " ", r.Status, " ", r.Credits, " ", r.Refunded)]++
			}
			if len(f.Requests) != 5 || told["GET /api/v1/brands 200 1 false"] != 1 || told["GET /api/v1/brands/wh_… 500 1 true"] != 1 || told["GET /api/v1/brands 401 0 false"] != 3 {
				t.Errorf("requests: %v", told)
			}
			if f.OldKeys.Count != 3 || f.OldKeys.Address != "127.0.0.1" || f.OldKeys.Agent != "forgotten <b>client</b>" {
				t.Errorf("the old key: %+v", *f.OldKeys)
			}
			if today := f.Days[len(f.Days)-1]; today.Used != 2 || today.Refunded != 1 || f.Credits.Used != 1 {
				t.Errorf("today: %+v, credits used %d; the ledger: %+v", today, f.Credits.Used, s.balance("ann"))
			}
			mustNotContain(t, "the page", s.page(cookie).body, old, key, "canary")
			mustNotContain(t, "what Envoy and Keyporter wrote", s.written(), old, key)
		})
	}
}

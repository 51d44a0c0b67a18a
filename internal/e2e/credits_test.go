package e2e_test

import (
	"fmt"
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// Credits as a client sees them through Envoy: the remaining credits on each answer, the credits
// endpoint, which Keyporter answers itself, a denial with the limit, and more credits after a
// grant.
func TestTheCreditsAsAClientSeesThem(t *testing.T) {
	partstest.Slow(t)
	t.Parallel()
	for name, database := range databases {
		t.Run(name, func(t *testing.T) {
			s := start(t, stackConfig{database: database(t)})
			key := s.user("ann", "small", "--credits", "5", "--rate-limit", "60", "--rate-window", "10m")
			ask := func(path string) (*http.Response, string) {
				t.Helper()
				return s.fetch(t, nil, http.MethodGet, statusRow{path: path, header: "X-API-Key: " + key}, "")
			}
			for i := range 3 {
				// A client's own idempotency key makes no request free.
				response := s.send(request{target: "/api/v1/brands", header: []string{"X-API-Key: " + key, "Idempotency-Key: 1", "X-Request-Id: 1"}})
				if left := response.header.Get("X-Credits-Remaining"); response.status != 200 || left != fmt.Sprint(4-i) {
					t.Errorf("request %d: %d, %s left", i+1, response.status, left)
				}
			}
			response, body := ask("/api/v1/tiktok-shop/credits")
			if response.StatusCode != 200 || body != `{"success":true,"credits":{"used":4,"limit":5,"remaining":1}}` ||
				response.Header.Get("Content-Type") != "application/json" || response.Header.Get("Cache-Control") != "no-store" || response.Header.Get("X-Credits-Remaining") != "1" {
				t.Errorf("the credits endpoint: %d %v %s", response.StatusCode, response.Header, body)
			}
			if response, _ := ask("/api/v1/brands"); response.StatusCode != 200 {
				t.Errorf("the last credit: %d", response.StatusCode)
			}
			exhausted := statusRow{"a request too many", "/api/v1/brands", "X-API-Key: " + key, 429, "8",
				`{"success":false,"error":"Monthly credit limit reached (5). Resets next month.","code":"credits_exhausted","credits":{"used":5,"limit":5,"remaining":0}}`,
				map[string]string{"X-Credits-Remaining": "0", "X-Ratelimit-Limit": "60"}}
			s.judgeRow(t, exhausted)
			response, _ = ask("/api/v1/brands")
			if again, err := strconv.Atoi(response.Header.Get("Retry-After")); err != nil || again < 1 || again > 31*24*3600 {
				t.Errorf("a refusal says to come again after %q s", response.Header.Get("Retry-After"))
			}
			// Denials are not in the rate log: five of sixty requests were used.
			if left := response.Header.Get("X-Ratelimit-Remaining"); left != "55" && left != "54" {
				t.Errorf("%s requests of 60 are left", left)
			}
			key = s.key("regenerate", "ann")
			if response, _ := ask("/api/v1/brands"); response.StatusCode != 429 {
				t.Errorf("a new key brought new credits: %d", response.StatusCode)
			}
			s.run("credits", "grant", "ann", "2")
			if response, _ := ask("/api/v1/brands"); response.StatusCode != 200 || response.Header.Get("X-Credits-Remaining") != "1" {
				t.Errorf("after a grant: %d, %s left", response.StatusCode, response.Header.Get("X-Credits-Remaining"))
			}
			s.run("plan", "set", "small", "--credits", "0")
			if response, _ := ask("/api/v1/brands"); response.StatusCode != 429 {
				t.Errorf("after the limit was lowered below what is used: %d", response.StatusCode)
			}
			s.run("plan", "set", "small", "--credits", "10")
			if response, _ := ask("/api/v1/brands"); response.StatusCode != 200 || response.Header.Get("X-Credits-Remaining") != "5" {
				t.Errorf("after the limit was raised: %d, %s left", response.StatusCode, response.Header.Get("X-Credits-Remaining"))
			}
			s.ledgerAddsUp()
			s.replicas[0].process.Stop()
			var shown struct{ Used, Outstanding, Lost, Granted int64 }
			s.decode(s.run("credits", "show", "ann", "--output", "json"), &shown)
			if shown.Used != 7 || shown.Outstanding != 0 || shown.Lost != 0 || shown.Granted != 2 {
				t.Errorf("after the replica has stopped: %+v", shown)
			}
			s.ledgerAddsUp()
		})
	}
}

// ledgerAddsUp runs `ledger verify`.
func (s *stack) ledgerAddsUp() {
	s.t.Helper()
	if out, problems, status := s.try("ledger", "verify"); status != 0 {
		s.t.Errorf("the ledger: %s%s", out, problems)
	}
}

// All users of an account share its credits if the plan says so, on every replica. A plan that
// switches between shared and separate credits in the middle of a month carries over the used
// credits.
func TestUsersOfAnAccountShareItsCredits(t *testing.T) {
	t.Parallel()
	partstest.Slow(t)
	s := start(t, stackConfig{database: partstest.Database(t, 18), replicas: 2, noEnvoy: true, flags: patient})
	s.run("plan", "set", "team", "--credits", "6", "--pool", "account", "--rate-limit", "unlimited")
	s.run("account", "set", "acme", "--plan", "team", "--kind", "organization")
	keys := map[string]string{}
	for _, user := range []string{"ann", "bob"} {
		s.run("user", "set", user, "--account", "acme")
		keys[user] = s.key("create", user)
	}
	callers := []*checker{newChecker(t, s.replicas[0]), newChecker(t, s.replicas[1])}
	spend := func(user string, n int) (admitted int) {
		for i := range n {
			status, err := callers[i%2].key(keys[user])
			// no decision in time, as on a busy machine: clients retry
			for try := 0; status == 503 && try < 20; try++ {
				time.Sleep(50 * time.Millisecond)
				status, err = callers[i%2].key(keys[user])
			}
			if err != nil || status != 200 && status != 429 {
				t.Errorf("answered %d, %v", status, err)
			}
			if status == 200 {
				admitted++
			}
		}
		return admitted
	}
	if n := spend("ann", 4) + spend("bob", 4); n != 6 {
		t.Errorf("%d requests of a team with 6 credits were admitted", n)
	}
	s.run("plan", "set", "team", "--pool", "user")
	s.balanceBecomes("ann", 4, 0) // usage is reported once a second
	s.balanceBecomes("bob", 2, 0)
	if a, b := spend("ann", 4), spend("bob", 6); a != 2 || b != 4 {
		t.Errorf("with credits of their own, of which 4 and 2 were used, %d and %d of 6 requests were admitted", a, b)
	}
	s.ledgerAddsUp()
}

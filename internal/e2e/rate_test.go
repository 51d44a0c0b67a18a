package e2e_test

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// The rate limit as a client sees it through Envoy: the remaining requests on each answer, then a
// denial with the time of the next free request, and room exactly one window after the first
// request.
func TestTheRateLimitAsAClientSeesIt(t *testing.T) {
	t.Parallel()
	partstest.Slow(t)
	const window = 8 * time.Second // enough for a busy machine to answer six requests
	s := start(t, stackConfig{database: partstest.Database(t, 18)})
	key := s.user("ann", "small", "--rate-limit", "5", "--rate-window", window.String())
	other := s.user("bob", "small")
	free := s.user("cyd", "open")

	ask := func(key string) *http.Response {
		t.Helper()
		response, _ := s.fetch(t, nil, http.MethodGet, statusRow{path: "/api/v1/brands", header: "X-API-Key: " + key}, "")
		return response
	}
	began, counted := time.Now(), time.Time{}
	for i := range 5 {
		response := ask(key)
		if i == 0 {
			counted = time.Now() // or earlier
		}
		h := response.Header
		reset, _ := strconv.Atoi(h.Get("X-Ratelimit-Reset"))
		if response.StatusCode != 200 || h.Get("X-Ratelimit-Limit") != "5" || h.Get("X-Ratelimit-Remaining") != fmt.Sprint(4-i) || reset < 1 || reset > 8 {
			t.Errorf("request %d: %d %v", i+1, response.StatusCode, h)
		}
	}
	row := statusRow{"the sixth request", "/api/v1/brands", "X-API-Key: " + key, 429, "8",
		`{"success":false,"error":"Rate limit exceeded. Max 5 requests per 8 seconds.","code":"rate_limited"}`,
		map[string]string{"X-Ratelimit-Limit": "5", "X-Ratelimit-Remaining": "0"}}
	s.judgeRow(t, row)
	response := ask(key)
	if again := response.Header.Get("Retry-After"); again != response.Header.Get("X-Ratelimit-Reset") || again < "1" || again > "8" {
		t.Errorf("a refusal says to come again after %q s, and %q", again, response.Header.Get("X-Ratelimit-Reset"))
	}
	if response := ask(other); response.StatusCode != 200 {
		t.Errorf("another user of the plan got %d", response.StatusCode)
	}
	if response := ask(free); response.StatusCode != 200 || response.Header.Get("X-Ratelimit-Limit") != "" {
		t.Errorf("a user without a limit got %d with %v", response.StatusCode, response.Header)
	}
	// A regenerated key keeps its user's log.
	key = s.key("regenerate", "ann")
	if response := ask(key); response.StatusCode != 429 && time.Since(began) < window {
		t.Errorf("a new key got %d", response.StatusCode)
	}
	time.Sleep(time.Until(counted.Add(window + 100*time.Millisecond)))
	if response := ask(key); response.StatusCode != 200 {
		t.Errorf("after a window: %d", response.StatusCode)
	}
	// A change of the plan is enforced when its command returns.
	s.run("plan", "set", "small", "--rate-limit", "0")
	if response := ask(other); response.StatusCode != 429 {
		t.Errorf("with a limit of 0: %d", response.StatusCode)
	}
}

// Requests denied for another reason do not count: afterwards the whole limit is available.
func TestRefusalsDoNotCountTowardsTheRateLimit(t *testing.T) {
	t.Parallel()
	s := start(t, stackConfig{database: partstest.Database(t, 18)})
	key := s.user("ann", "small", "--rate-limit", "3")
	forged := key[:len(key)-1] + string("01"[strings.IndexByte("0", key[len(key)-1])+1])
	for range 5 {
		for _, row := range []statusRow{
			{"two keys", "/api/v1/brands", "X-API-Key: " + key + ", " + key, 401, "", unauthorizedBody, nil},
			{"a forged key", "/api/v1/brands", "X-API-Key: " + forged, 401, "", unauthorizedBody, nil},
			{"a path without a rule", "/nowhere", "X-API-Key: " + key, 404, "", notFoundBody, nil},
			{"a bad path", "/api/v1/brands;x", "X-API-Key: " + key, 400, "", characterBody, nil},
		} {
			s.once(t, row, http.MethodGet)
		}
		s.once(t, statusRow{"a wrong method", "/api/v1/tiktok-shop/credits", "X-API-Key: " + key, 405, "", methodBody, nil}, http.MethodPost)
	}
	s.run("user", "set", "ann", "--status", "disabled")
	s.once(t, statusRow{"a disabled user", "/api/v1/brands", "X-API-Key: " + key, 403, "", accessBody, nil}, http.MethodGet)
	s.run("user", "set", "ann", "--status", "active")
	for range 3 {
		if response, _ := s.fetch(t, nil, http.MethodGet, statusRow{path: "/api/v1/brands", header: "X-API-Key: " + key}, ""); response.StatusCode != 200 {
			t.Errorf("an allowed request got %d", response.StatusCode)
		}
	}
	s.once(t, statusRow{"the fourth", "/api/v1/brands", "X-API-Key: " + key, 429, "",
		`{"success":false,"error":"Rate limit exceeded. Max 3 requests per minute.","code":"rate_limited"}`, nil}, http.MethodGet)
}

// once sends one request through Envoy and judges the answer.
func (s *stack) once(t *testing.T, row statusRow, method string) {
	t.Helper()
	response, body := s.fetch(t, nil, method, row, "")
	row.judge(t, "HTTP/1.1", response, body, method)
}

// With any number of concurrent clients, exactly the limit is admitted through Envoy.
func TestManyClientsOfOneUserGetTheLimit(t *testing.T) {
	t.Parallel()
	s := start(t, stackConfig{database: partstest.Database(t, 18)})
	key := s.user("ann", "pro", "--rate-limit", "60", "--rate-window", "10m")
	var admitted, refused atomic.Int64
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 25 {
				switch response, _ := s.fetch(t, nil, http.MethodGet, statusRow{path: "/api/v1/brands", header: "X-API-Key: " + key}, ""); response.StatusCode {
				case 200:
					admitted.Add(1)
				case 429:
					refused.Add(1)
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d admitted, %d refused", admitted.Load(), refused.Load())
	if admitted.Load() != 60 || refused.Load() != 340 {
		t.Errorf("%d of 400 admitted, %d refused; want 60 and 340", admitted.Load(), refused.Load())
	}
}

// A graceful restart starts no new window.
func TestARestartForgetsNoRequest(t *testing.T) {
	partstest.Slow(t)
	t.Parallel()
	for name, database := range databases {
		t.Run(name, func(t *testing.T) {
			s := start(t, stackConfig{database: database(t), noEnvoy: true, flags: patient})
			key, r := s.user("ann", "small", "--rate-limit", "5"), s.replicas[0]
			ask := func() int {
				t.Helper()
				status, err := newChecker(t, r).key(key)
				if err != nil {
					t.Fatal(err)
				}
				return status
			}
			for i := range 3 {
				if status := ask(); status != 200 {
					t.Errorf("request %d: %d", i+1, status)
				}
			}
			if err := r.process.Stop(); err != nil {
				t.Error(err)
			}
			s.launch(r)
			s.await(r)
			for i := range 3 {
				if status := ask(); status != []int{200, 200, 429}[i] {
					t.Errorf("request %d after the restart: %d", i+1, status)
				}
			}
		})
	}
}

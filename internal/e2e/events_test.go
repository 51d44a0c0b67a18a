package e2e_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// hook is a receiver of events, which may take them and fail to say so.
type hook struct {
	t       *testing.T
	mu      sync.Mutex
	fail    int // how many of the next answers are lost
	ids     map[string]string
	times   map[string]int      // webhook-id → how often it came
	keys    map[string][]string // user → the keys of the events, in the order of their first arrival
	content strings.Builder     // everything that came
}

const hookSecret = "whsec_c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"

func (h *hook) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	id := r.Header.Get("webhook-id")
	verifier, err := standardwebhooks.NewWebhook(hookSecret)
	if err == nil {
		err = verifier.Verify(body, r.Header)
	}
	var e struct {
		Type string
		Data struct {
			User string `json:"user"`
			Key  string `json:"key_id"`
		}
	}
	if err == nil {
		err = json.Unmarshal(body, &e)
	}
	if err != nil {
		h.t.Errorf("%s: %v", body, err)
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	fmt.Fprintln(&h.content, r.Header, string(body))
	if of := e.Type + " " + e.Data.Key; h.ids[id] == "" {
		h.ids[id] = of
		h.keys[e.Data.User] = append(h.keys[e.Data.User], e.Data.Key)
	} else if h.ids[id] != of {
		h.t.Errorf("%s is %s, and was %s", id, of, h.ids[id])
	}
	h.times[id]++
	if h.fail > 0 {
		h.fail--
		panic(http.ErrAbortHandler) // it was taken, and the sender does not know
	}
}

// The replica that delivers events is killed while keys are regenerated, and
// answers get lost: the other one takes over, every event arrives, in order for each user, and
// twice only with the same id. No event holds a key.
func TestEventsOutliveTheReplicaThatDelivers(t *testing.T) {
	t.Parallel()
	partstest.Slow(t)
	h := &hook{t: t, ids: map[string]string{}, times: map[string]int{}, keys: map[string][]string{}}
	server := httptest.NewServer(h)
	defer server.Close()
	s := start(t, stackConfig{database: partstest.Database(t, 18), noEnvoy: true, replicas: 2, flags: append(tells(t, server.URL), "--lease", "2s")})
	partstest.Eventually(t, "the endpoint is subscribed", func() bool { return strings.Contains(s.run("events", "endpoints"), "billing") })

	const users, rounds = 4, 6
	want, secrets := map[string][]string{}, []string{}
	change := func(user, verb string) {
		var made struct{ ID, Key string }
		if err := json.Unmarshal([]byte(s.run("key", verb, user, "--output", "json")), &made); err != nil {
			t.Fatal(err)
		}
		want[user], secrets = append(want[user], made.ID), append(secrets, made.Key)
	}
	s.run("plan", "set", "pro")
	s.run("account", "set", "acme", "--plan", "pro")
	for i := range users {
		s.run("user", "set", fmt.Sprint("u", i), "--account", "acme")
		change(fmt.Sprint("u", i), "create")
	}
	for round := range rounds {
		h.mu.Lock()
		h.fail = 3
		h.mu.Unlock()
		for i := range users {
			change(fmt.Sprint("u", i), "regenerate")
		}
		if round == rounds/2 {
			r := delivering(s)
			r.process.Kill()
			s.launch(r)
			s.await(r)
		}
	}
	all := users * (rounds + 1)
	for began := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		h.mu.Lock()
		n := len(h.ids)
		h.mu.Unlock()
		if n == all {
			break
		}
		if time.Since(began) > 2*time.Minute {
			t.Fatalf("after two minutes %d of %d events have arrived:\n%s", n, all, s.run("events", "list"))
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	twice := 0
	for _, n := range h.times {
		if n > 1 {
			twice++
		}
	}
	t.Logf("%d events, %d of them more than once", len(h.ids), twice)
	for user, keys := range want {
		if !slices.Equal(h.keys[user], keys) {
			t.Errorf("%s: the events came as %v, want %v", user, h.keys[user], keys)
		}
	}
	for _, secret := range secrets {
		if strings.Contains(h.content.String(), secret) {
			t.Error("an event holds a key")
		}
	}
}

// tells returns flags of serve for a webhook that is told of keys.
func tells(t *testing.T, url string) []string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"webhooks.yaml": "webhooks: [{name: billing, url: '" + url + "', secret_file: s, types: [key.created, key.regenerated]}]\n", "s": hookSecret + "\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return []string{"--webhooks-file", filepath.Join(dir, "webhooks.yaml"), "--webhook-allow", "127.0.0.0/8"}
}

// delivering returns the replica that delivers events.
func delivering(s *stack) (found *replica) {
	s.t.Helper()
	partstest.Eventually(s.t, "a replica delivers events", func() bool {
		for _, r := range s.replicas {
			if _, text, err := get("http://" + r.ops + "/metrics"); err == nil && strings.Contains(text, "keyporter_events_lag_seconds{") {
				found = r
			}
		}
		return found != nil
	})
	return found
}

package e2e_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyporter/keyporter/internal/parts"
	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// 50 callers replace keys by the API of three replicas, with a database that waits for the disk. No
// old key is allowed on any replica after its answer. Changes are committed one after the other, so
// the disk allows one for each fsync; a long run demands 60 % of that.
func TestFiftyCallersReplaceKeysByTheAPI(t *testing.T) {
	t.Parallel()
	partstest.Slow(t)
	const callers, replicas = 50, 3
	lasts := 3 * time.Second
	if long {
		lasts = time.Minute
	}
	server := partstest.StartPostgres(t, parts.PostgresConfig{Durable: true})
	a := startAdministered(t, server.URL("postgres"), replicas)
	var checkers []*checker
	for _, r := range a.replicas {
		checkers = append(checkers, newChecker(t, r))
	}
	keys := make([]string, callers)
	for _, row := range [][3]string{
		{"PUT", "/v1/plans/pro", `{"rate_limit": "unlimited", "credits": "unlimited"}`},
		{"PUT", "/v1/accounts/acme", `{"plan": "pro"}`},
	} {
		a.change(t, 0, row[0], row[1], row[2])
	}
	for i := range keys {
		a.change(t, 0, "PUT", fmt.Sprint("/v1/users/user", i), `{"account": "acme"}`)
		keys[i] = a.change(t, 0, "POST", fmt.Sprintf("/v1/users/user%d/key:create", i), "").Key
	}
	before := fsyncTime(t)
	var made, alive, unconfirmed atomic.Int64
	var all sync.WaitGroup
	began := time.Now()
	for i := range keys {
		all.Go(func() {
			for n := i; time.Since(began) < lasts; n++ {
				done := a.change(t, n%replicas, "POST", fmt.Sprintf("/v1/users/user%d/key:regenerate", i), "")
				if done.Key == "" {
					return
				}
				old := keys[i]
				keys[i] = done.Key
				made.Add(1)
				if !done.Confirmed {
					unconfirmed.Add(1)
					continue
				}
				if status, err := checkers[(n+1)%replicas].key(old); err == nil && status == 200 {
					alive.Add(1)
				}
			}
		})
	}
	all.Wait()
	took := time.Since(began)
	fsync := (before + fsyncTime(t)) / 2
	rate, limit := float64(made.Load())/took.Seconds(), float64(time.Second)/float64(fsync)
	t.Logf("an fsync takes %v, so at most %.0f changes/s; %d callers made %.0f/s on %d replicas, %.0f %%; %d old keys were allowed, %d changes not confirmed",
		fsync, limit, callers, rate, replicas, 100*rate/limit, alive.Load(), unconfirmed.Load())
	if alive.Load() > 0 || made.Load() == 0 {
		t.Errorf("%d old keys were allowed after their replacement", alive.Load())
	}
	if long && rate < 0.6*limit {
		t.Errorf("%.0f changes/s, want 60 %% of %.0f", rate, limit)
	}
	mustNotContain(t, "the log", a.written(), slices.Concat(keys, []string{operatorToken})...)
}

// replaced is what a test reads of an answer to a change.
type replaced struct {
	Key       string
	Confirmed bool
}

// change calls the API of a replica, which must make a change.
func (a *administered) change(t *testing.T, replica int, method, path, body string) (done replaced) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, "http://"+a.apis[replica]+path, strings.NewReader(body))
	if err != nil {
		t.Error(err)
		return done
	}
	r.Header.Set("Authorization", "Bearer "+operatorToken)
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Error(err)
		return done
	}
	defer answer.Body.Close()
	if err := json.NewDecoder(answer.Body).Decode(&done); answer.StatusCode != 200 && answer.StatusCode != 202 || err != nil {
		t.Errorf("%s %s: %d %v", method, path, answer.StatusCode, err)
		return replaced{}
	}
	return done
}

// fsyncTime returns the median time to write a block to the disk.
func fsyncTime(t *testing.T) time.Duration {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "block"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	times := make([]time.Duration, 101)
	for i := range times {
		began := time.Now()
		if _, err := file.WriteAt([]byte(strings.Repeat("x", 8192)), 0); err != nil {
			t.Fatal(err)
		}
		if err := file.Sync(); err != nil {
			t.Fatal(err)
		}
		times[i] = time.Since(began)
	}
	slices.Sort(times)
	return times[len(times)/2]
}

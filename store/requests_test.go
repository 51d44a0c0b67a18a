package store_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/store"
)

// Requests are listed newest first, page by page, each once, and a user sees none of another's. Of very many
// the newest thousand or so are kept.
func TestRequestsArePaged(t *testing.T) {
	onEach(t, func(t *testing.T, url string) {
		db := open(t, store.Config{URL: url})
		began := time.Now().Add(-time.Hour).Truncate(time.Millisecond)
		for batch := range 60 {
			var records []authz.Record
			for i := range 50 {
				n := batch*50 + i
				records = append(records, authz.Record{User: "ada", KeyID: "k", At: began.Add(time.Duration(n/3) * time.Millisecond), Method: "GET",
					Path: fmt.Sprintf("/%d", n), Status: 200, Reason: "allowed", Credits: 1, Refunded: n%2 == 0})
			}
			records = append(records, authz.Record{User: "eve", KeyID: "e", At: began, Method: "GET", Path: "/eve\x00\xff", Status: 500})
			if err := db.SaveRequests(t.Context(), records, nil); err != nil {
				t.Fatal(err)
			}
		}
		seen := map[string]bool{}
		last, cursor := time.Now(), ""
		for {
			page, next, err := db.Requests(t.Context(), "ada", cursor, 70)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range page {
				if seen[r.Path] || r.User != "ada" || r.At.After(last) {
					t.Fatalf("%+v after %v: twice, of another, or out of order", r, last)
				}
				seen[r.Path], last = true, r.At
			}
			if cursor = next; next == "" {
				break
			}
		}
		if !seen["/2999"] || len(seen) < 1000 || len(seen) > 2200 {
			t.Errorf("%d requests are kept, the newest: %v; want the newest thousand or so", len(seen), seen["/2999"])
		}
		for _, bad := range []string{"x y", "1.zz", "1." + fmt.Sprintf("%050d", 1), "'; DROP TABLE requests"} {
			if _, _, err := db.Requests(t.Context(), "ada", bad, 5); !errors.Is(err, store.ErrInvalid) {
				t.Errorf("the cursor %q: %v", bad, err)
			}
		}
	})
}

// What was done with a key is counted by time and source, with the tries of ended keys apart; a day later it
// is added up, and nothing is lost by that until the retention is over.
func TestTheUseOfKeysIsCounted(t *testing.T) {
	onEach(t, func(t *testing.T, url string) {
		db := open(t, store.Config{URL: url})
		now := time.Now()
		count := func(key string, ended bool, ago time.Duration, address string, n int64) store.RequestCount {
			return store.RequestCount{User: "ada", KeyID: key, Ended: ended, Address: address, Agent: "agent of " + address, At: now.Add(-ago), Requests: n}
		}
		for range 2 { // twice the same is twice as much
			if err := db.SaveRequests(t.Context(), nil, []store.RequestCount{
				count("new", false, time.Minute, "10.0.0.1", 5), count("new", false, 3*time.Hour, "10.0.0.2", 7),
				count("new", false, 30*time.Hour, "10.0.0.3", 11), count("new", false, 31*time.Hour, "10.0.0.3", 1),
				count("old", true, 2*time.Minute, "10.9.9.9", 3), count("old", false, 5*time.Hour, "10.9.9.9", 100),
				count("old", true, 50*time.Hour, "10.9.9.8", 13),
			}); err != nil {
				t.Fatal(err)
			}
		}
		check := func(when string) {
			t.Helper()
			u, err := db.KeyUsage(t.Context(), "ada", "new")
			if err != nil || u.LastHour != 10 || u.LastDay != 24 || u.Addresses != 2 || u.Agents != 2 || u.All != 48 ||
				u.Address != "10.0.0.1" || u.Agent != "agent of 10.0.0.1" || u.Last.UnixMilli() != now.Add(-time.Minute).UnixMilli() {
				t.Errorf("%s: the new key: %+v, %v", when, u, err)
			}
			u, err = db.EndedKeyUsage(t.Context(), "ada", now.Add(-time.Hour))
			if err != nil || u.All != 6 || u.Address != "10.9.9.9" {
				t.Errorf("%s: ended keys: %+v, %v", when, u, err)
			}
			if u, err := db.KeyUsage(t.Context(), "eve", "new"); err != nil || u != (store.KeyUsage{}) {
				t.Errorf("%s: another user's: %+v, %v", when, u, err)
			}
		}
		check("at once")
		if err := db.TidyRequests(t.Context(), 40*time.Hour); err != nil {
			t.Fatal(err)
		}
		check("added up")
		if u, err := db.EndedKeyUsage(t.Context(), "ada", now.Add(-100*time.Hour)); err != nil || u.All != 6 {
			t.Errorf("after the retention: %+v, %v", u, err)
		}
	})
}

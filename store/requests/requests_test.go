package requests_test

import (
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/keyporter/keyporter/credits/ledger"
	"github.com/keyporter/keyporter/internal/parts/partstest"
	"github.com/keyporter/keyporter/internal/storetest"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
	storeledger "github.com/keyporter/keyporter/store/ledger"
	"github.com/keyporter/keyporter/store/requests"
	"github.com/keyporter/keyporter/usage"
)

// Any time that plain SQL has written can be listed, paged and encoded as JSON.
func TestTimesThatNoTextHolds(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		db := storetest.Open(t, store.Config{URL: url})
		log := requests.New(db)
		storetest.WithAda(t, db)
		key, _, err := directory.NewKeys(db).CreateKey(t.Context(), "ada", storetest.Format(t))
		if err != nil {
			t.Fatal(err)
		}
		var records []usage.Record
		for range 4 {
			records = append(records, usage.Record{User: "ada", KeyID: key.ID, At: time.Now(), Method: "GET", Path: "/", Status: 200})
		}
		count := requests.Count{User: "ada", KeyID: key.ID, Address: "10.0.0.1", At: time.Now(), Requests: 1}
		if err := log.Save(t.Context(), records, []requests.Count{count}); err != nil {
			t.Fatal(err)
		}
		year10000 := time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC).UnixMilli()
		for _, statement := range []string{
			`UPDATE requests SET at = 1`, `UPDATE requests SET at = -1 - at WHERE id = (SELECT min(id) FROM requests)`,
			fmt.Sprintf(`UPDATE requests SET at = %d WHERE id = (SELECT max(id) FROM requests)`, year10000),
			fmt.Sprintf(`UPDATE requests SET at = -%d WHERE at = -2`, 1<<60), fmt.Sprintf(`UPDATE request_counts SET last_at = %d`, year10000),
		} {
			if _, err := db.Changes.ExecContext(t.Context(), statement); err != nil {
				t.Fatal(err)
			}
		}
		for cursor, n := "", 0; n < 4; n++ { // a page each
			page, next, err := log.List(t.Context(), "ada", cursor, 1)
			if err != nil || len(page) != 1 || (next == "") != (n == 3) {
				t.Fatalf("page %d: %d requests, next %q, %v", n, len(page), next, err)
			}
			if text, err := json.Marshal(page[0].At); err != nil {
				t.Errorf("page %d: %s, %v", n, text, err)
			}
			cursor = next
		}
		usage, err := log.KeyUsage(t.Context(), "ada", key.ID)
		if _, unwritten := json.Marshal(usage.Last); err != nil || unwritten != nil {
			t.Errorf("the use of a key: %v, %v", err, unwritten)
		}
	})
}

// Requests are listed newest first, page by page, each once, and only to their user. Of very many,
// about the newest thousand are kept.
func TestRequestsArePaged(t *testing.T) {
	partstest.Slow(t)
	storetest.OnEach(t, func(t *testing.T, url string) {
		db := storetest.Open(t, store.Config{URL: url})
		log := requests.New(db)
		storetest.WithAda(t, db)
		storetest.WithKeys(t, db, "ada", "k")
		storetest.WithUser(t, db, "eve")
		storetest.WithKeys(t, db, "eve", "e")
		began := time.Now().Add(-time.Hour).Truncate(time.Millisecond)
		for batch := range 60 {
			var records []usage.Record
			for i := range 50 {
				n := batch*50 + i
				records = append(records, usage.Record{User: "ada", KeyID: "k", At: began.Add(time.Duration(n/3) * time.Millisecond), Method: "GET",
					Path: fmt.Sprintf("/%d", n), Status: 200, Reason: "allowed", Credits: 1, Refunded: n%2 == 0})
			}
			records = append(records, usage.Record{User: "eve", KeyID: "e", At: began, Method: "GET", Path: "/eve\x00\xff", Status: 500})
			if err := log.Save(t.Context(), records, nil); err != nil {
				t.Fatal(err)
			}
		}
		seen := map[string]bool{}
		last, cursor := time.Now(), ""
		for {
			page, next, err := log.List(t.Context(), "ada", cursor, 70)
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
			if _, _, err := log.List(t.Context(), "ada", bad, 5); !errors.Is(err, store.ErrInvalid) {
				t.Errorf("the cursor %q: %v", bad, err)
			}
		}
	})
}

// Uses of a key are counted by time and source, separately from attempts with ended keys. A day
// later they are added up, and nothing is lost until the retention ends.
func TestTheUseOfKeysIsCounted(t *testing.T) {
	partstest.Slow(t)
	storetest.OnEach(t, func(t *testing.T, url string) {
		db := storetest.Open(t, store.Config{URL: url})
		log := requests.New(db)
		storetest.WithAda(t, db)
		storetest.WithKeys(t, db, "ada", "old", "new")
		now := time.Now()
		count := func(key string, ended bool, ago time.Duration, address string, n int64) requests.Count {
			return requests.Count{User: "ada", KeyID: key, Ended: ended, Address: address, Agent: "agent of " + address, At: now.Add(-ago), Requests: n}
		}
		for range 2 { // the same again doubles the counts
			if err := log.Save(t.Context(), nil, []requests.Count{
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
			u, err := log.KeyUsage(t.Context(), "ada", "new")
			if err != nil || u.LastHour != 10 || u.LastDay != 24 || u.Addresses != 2 || u.Agents != 2 || u.All != 48 ||
				u.Address != "10.0.0.1" || u.Agent != "agent of 10.0.0.1" || u.Last.UnixMilli() != now.Add(-time.Minute).UnixMilli() {
				t.Errorf("%s: the new key: %+v, %v", when, u, err)
			}
			u, err = log.EndedKeyUsage(t.Context(), "ada", now.Add(-time.Hour))
			if err != nil || u.All != 6 || u.Address != "10.9.9.9" {
				t.Errorf("%s: ended keys: %+v, %v", when, u, err)
			}
			if u, err := log.KeyUsage(t.Context(), "eve", "new"); err != nil || u != (usage.KeyUsage{}) {
				t.Errorf("%s: another user's: %+v, %v", when, u, err)
			}
		}
		check("at once")
		if err := log.Tidy(t.Context(), 40*time.Hour); err != nil {
			t.Fatal(err)
		}
		check("added up")
		if u, err := log.EndedKeyUsage(t.Context(), "ada", now.Add(-100*time.Hour)); err != nil || u.All != 6 {
			t.Errorf("after the retention: %+v, %v", u, err)
		}
		if err := log.Tidy(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		if n := storetest.RowsOf(t, db, "request_counts"); n != 0 {
			t.Errorf("%d rows are left where nothing is to be kept", n)
		}
	})
}

// A client can send any agent. In a flood of agents each request counts, but only some agents are
// counted separately; known ones still are.
func TestAFloodOfAgentsTakesLittleRoom(t *testing.T) {
	partstest.Slow(t)
	storetest.OnEach(t, func(t *testing.T, url string) {
		db := storetest.Open(t, store.Config{URL: url})
		log := requests.New(db)
		storetest.WithAda(t, db)
		storetest.WithKeys(t, db, "ada", "k", "older", "new")
		at := time.Now().Add(-26 * time.Hour).Truncate(24 * time.Hour) // the day before, to be added up
		count := func(i int, agent string) requests.Count {
			return requests.Count{User: "ada", KeyID: []string{"k", "older"}[i%2], Ended: true, At: at.Add(time.Duration(i/4) * 10 * time.Minute), Address: "10.0.0.1", Agent: agent, Requests: 1}
		}
		const batches, slots, agents = 12, 3, 100
		for i := range batches {
			counts := []requests.Count{count(i, "the client")}
			for n := range agents {
				counts = append(counts, count(i, fmt.Sprintf("agent %d of %d", n, i)))
			}
			if err := log.Save(t.Context(), nil, counts); err != nil {
				t.Fatal(err)
			}
		}
		if n := storetest.RowsOf(t, db, "request_counts"); n > slots*3*agents {
			t.Errorf("%d rows for %d slots", n, slots)
		}
		for _, when := range []string{"by slot", "by day"} {
			u, err := log.EndedKeyUsage(t.Context(), "ada", at)
			if err != nil || u.All != batches*(agents+1) || u.Agent == "" {
				t.Errorf("%s: %+v, %v; want all %d requests, and whose the last one was", when, u, err, batches*(agents+1))
			}
			var known int
			if err := db.Changes.QueryRow(`SELECT coalesce(sum(requests), 0) FROM request_counts WHERE agent = 'the client'`).Scan(&known); err != nil || known != batches {
				t.Errorf("%s: %d requests of the client that was first, want %d, %v", when, known, batches, err)
			}
			if err := log.Tidy(t.Context(), 100*time.Hour); err != nil {
				t.Fatal(err)
			}
		}
		if n := storetest.RowsOf(t, db, "request_counts"); n > 7*agents {
			t.Errorf("%d rows for a day", n)
		}
	})
}

// Records with a key that the user never had, or with a revoked key as a live one, are neither
// listed nor counted. All revoked keys of a user are counted as one.
func TestOnlyKeysThatAUserHadCount(t *testing.T) {
	partstest.Slow(t)
	storetest.OnEach(t, func(t *testing.T, url string) {
		db := storetest.Open(t, store.Config{URL: url})
		log := requests.New(db)
		storetest.WithAda(t, db)
		storetest.WithKeys(t, db, "ada", "old", "older", "new")
		storetest.WithUser(t, db, "eve")
		storetest.WithKeys(t, db, "eve", "hers")
		now := time.Now()
		count := func(user, key string, ended bool, ago time.Duration) requests.Count {
			return requests.Count{User: user, KeyID: key, Ended: ended, At: now.Add(-ago), Address: "10.0.0.1", Agent: "curl", Requests: 1}
		}
		var records []usage.Record
		for _, key := range []string{"invented", "hers", "", "new", "old"} {
			records = append(records, usage.Record{User: "ada", KeyID: key, At: now, Path: "/" + key})
		}
		if err := log.Save(t.Context(), records, []requests.Count{
			count("ada", "invented", false, 0), count("ada", "hers", false, 0), count("ada", "hers", true, 0), count("eve", "new", false, 0),
			count("nobody", "new", false, 0), count("ada", "", true, 0), count("ada", "new", true, 0), count("ada", "old", false, 0),
			count("ada", "new", false, 0), count("ada", "old", false, 2*time.Hour), count("ada", "old", true, 0), count("ada", "older", true, 0),
		}); err != nil {
			t.Fatal(err)
		}
		if n := storetest.RowsOf(t, db, "request_counts"); n != 3 {
			t.Errorf("%d rows of counts, want those of the live key, of the old one while it lived, and of ended ones", n)
		}
		if u, err := log.EndedKeyUsage(t.Context(), "ada", now.Add(-time.Hour)); err != nil || u.All != 2 {
			t.Errorf("ended keys: %+v, %v", u, err)
		}
		if list, _, err := log.List(t.Context(), "ada", "", 10); err != nil || len(list) != 2 {
			t.Errorf("listed: %+v, %v", list, err)
		}
	})
}

// A deleted user leaves no requests behind, and late ones are dropped: a later user with the same
// name is another user.
func TestADeletedUserHasNoRequests(t *testing.T) {
	partstest.Slow(t)
	storetest.OnEach(t, func(t *testing.T, url string) {
		db := storetest.Open(t, store.Config{URL: url})
		log := requests.New(db)
		storetest.WithAda(t, db)
		storetest.WithKeys(t, db, "ada", "k")
		save := func() {
			t.Helper()
			if err := log.Save(t.Context(), []usage.Record{{User: "ada", KeyID: "k", At: time.Now()}},
				[]requests.Count{{User: "ada", KeyID: "k", At: time.Now(), Requests: 1}}); err != nil {
				t.Fatal(err)
			}
		}
		save()
		if n := storetest.RowsOf(t, db, "requests") + storetest.RowsOf(t, db, "request_counts"); n != 2 {
			t.Fatalf("%d rows, want 2", n)
		}
		if _, err := directory.New(db).DeleteUser(t.Context(), "ada", ""); err != nil {
			t.Fatal(err)
		}
		save() // from a batch that was under way
		if n := storetest.RowsOf(t, db, "requests") + storetest.RowsOf(t, db, "request_counts"); n != 0 {
			t.Errorf("%d rows are left", n)
		}
	})
}

// If the tables of requests cannot be written, saving fails soon, and so does reading them for the
// page; look-ups, changes and reports of credits are not affected.
func TestAStuckLogKeepsNobodyWaiting(t *testing.T) {
	partstest.Slow(t)
	for _, version := range []int{16, 18} {
		t.Run(fmt.Sprint("PostgreSQL ", version), func(t *testing.T) {
			t.Parallel()
			db := storetest.Open(t, store.Config{URL: partstest.Database(t, version)})
			log := requests.New(db)
			storetest.WithAda(t, db)
			key, token, err := directory.NewKeys(db).CreateKey(t.Context(), "ada", storetest.Format(t))
			if err != nil {
				t.Fatal(err)
			}
			stuck, err := db.Changes.BeginTx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer stuck.Rollback()
			if _, err := stuck.Exec(`LOCK TABLE requests, request_counts IN ACCESS EXCLUSIVE MODE`); err != nil {
				t.Fatal(err)
			}
			var waiting sync.WaitGroup
			for range 8 { // at least as many readers as there are connections for them
				waiting.Go(func() { log.KeyUsage(t.Context(), "ada", key.ID) })
				waiting.Go(func() { log.List(t.Context(), "ada", "", 10) })
			}
			began := time.Now()
			err = log.Save(t.Context(), []usage.Record{{User: "ada", KeyID: key.ID, At: time.Now()}}, []requests.Count{{User: "ada", KeyID: key.ID, At: time.Now(), Requests: 1}})
			if took := time.Since(began); err == nil || took > 30*time.Second {
				t.Errorf("saving: %v after %v, want an error soon", err, took)
			}
			m := storetest.Month(t, db)
			began = time.Now()
			for i := range 20 {
				_, err1 := directory.NewLookups(db).FindKey(t.Context(), token.Digest())
				_, err2 := storeledger.New(db).Report(t.Context(), ledger.Report{Holder: "one", Seq: int64(i + 1), Asks: []ledger.Ask{{Pool: ledger.Pool{Month: m, Name: "ada"}, Need: 1}}})
				if err := errors.Join(err1, err2); err != nil {
					t.Fatal(err)
				}
			}
			if _, _, _, err = directory.NewKeys(db).RegenerateKey(t.Context(), "ada", storetest.Format(t), directory.Rate{}, ""); err != nil {
				t.Error(err)
			}
			if took := time.Since(began); took > 9*time.Second { // shorter than any wait for a lock
				t.Errorf("what does not look at requests took %v", took)
			}
			waiting.Wait()
		})
	}
}

// A process that hangs while it saves requests loses its locks: no change waits for it.
func TestAHangingSaveIsGivenUp(t *testing.T) {
	partstest.Slow(t)
	t.Parallel()
	db := storetest.Open(t, store.Config{URL: partstest.Database(t, 18)})
	log := requests.New(db)
	storetest.WithAda(t, db)
	storetest.WithKeys(t, db, "ada", "k")
	save := []requests.Count{{User: "ada", KeyID: "k", At: time.Now(), Requests: 1}}
	if err := log.Save(t.Context(), nil, save); err != nil {
		t.Fatal(err)
	}
	holds, release := make(chan struct{}), make(chan struct{})
	hung := make(chan error)
	go func() {
		hung <- db.WriteLog(t.Context(), func(tx *sql.Tx) error {
			_, err := tx.Exec(`UPDATE request_counts SET requests = requests + 1`)
			close(holds)
			<-release
			return err
		})
	}()
	<-holds
	began := time.Now()
	_, err := directory.New(db).DeleteUser(t.Context(), "ada", "")
	if took := time.Since(began); err != nil || took > 8*time.Second {
		t.Errorf("deleting a user: %v after %v", err, took)
	}
	close(release)
	if err := <-hung; err == nil {
		t.Error("what was given up was saved")
	}
}

// The waits of other writers on SQLite, which has one writer at a time, while a busy second of
// requests is saved.
func BenchmarkSaveRequests(b *testing.B) {
	for name, database := range storetest.Databases {
		b.Run(name, func(b *testing.B) {
			db := storetest.Open(b, store.Config{URL: database(b)})
			log := requests.New(db)
			storetest.WithAda(b, db)
			storetest.WithKeys(b, db, "ada", "k")
			var records []usage.Record
			var counts []requests.Count
			for i := range 500 {
				user := fmt.Sprint("user", i%10)
				storetest.WithUser(b, db, user)
				if i < 10 {
					storetest.WithKeys(b, db, user, "k"+user)
				}
				records = append(records, usage.Record{User: user, KeyID: "k" + user, At: time.Now(), Method: "GET", Path: "/api/v1/brands", Status: 200, Reason: "allowed"})
				counts = append(counts, requests.Count{User: user, KeyID: "k" + user, At: time.Now(), Address: "10.0.0.1", Agent: fmt.Sprint("agent ", i), Requests: 1})
			}
			for b.Loop() {
				if err := log.Save(b.Context(), records, counts); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

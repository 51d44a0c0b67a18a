package store_test

import (
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/keyporter/keyporter/credits/ledger"
	"github.com/keyporter/keyporter/internal/parts/partstest"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/usage"
)

// Any time that plain SQL has written can be listed, paged and encoded as JSON.
func TestTimesThatNoTextHolds(t *testing.T) {
	onEach(t, func(t *testing.T, url string) {
		db := open(t, store.Config{URL: url})
		withAda(t, db)
		key, _, err := db.CreateKey(t.Context(), "ada", format(t))
		if err != nil {
			t.Fatal(err)
		}
		var records []usage.Record
		for range 4 {
			records = append(records, usage.Record{User: "ada", KeyID: key.ID, At: time.Now(), Method: "GET", Path: "/", Status: 200})
		}
		count := store.RequestCount{User: "ada", KeyID: key.ID, Address: "10.0.0.1", At: time.Now(), Requests: 1}
		if err := db.SaveRequests(t.Context(), records, []store.RequestCount{count}); err != nil {
			t.Fatal(err)
		}
		year10000 := time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC).UnixMilli()
		for _, statement := range []string{
			`UPDATE requests SET at = 1`, `UPDATE requests SET at = -1 - at WHERE id = (SELECT min(id) FROM requests)`,
			fmt.Sprintf(`UPDATE requests SET at = %d WHERE id = (SELECT max(id) FROM requests)`, year10000),
			fmt.Sprintf(`UPDATE requests SET at = -%d WHERE at = -2`, 1<<60), fmt.Sprintf(`UPDATE request_counts SET last_at = %d`, year10000),
		} {
			if _, err := db.SQL().ExecContext(t.Context(), statement); err != nil {
				t.Fatal(err)
			}
		}
		for cursor, n := "", 0; n < 4; n++ { // a page each
			page, next, err := db.Requests(t.Context(), "ada", cursor, 1)
			if err != nil || len(page) != 1 || (next == "") != (n == 3) {
				t.Fatalf("page %d: %d requests, next %q, %v", n, len(page), next, err)
			}
			if text, err := json.Marshal(page[0].At); err != nil {
				t.Errorf("page %d: %s, %v", n, text, err)
			}
			cursor = next
		}
		usage, err := db.KeyUsage(t.Context(), "ada", key.ID)
		if _, unwritten := json.Marshal(usage.Last); err != nil || unwritten != nil {
			t.Errorf("the use of a key: %v, %v", err, unwritten)
		}
	})
}

// Requests are listed newest first, page by page, each once, and only to their user. Of very many,
// about the newest thousand are kept.
func TestRequestsArePaged(t *testing.T) {
	partstest.Slow(t)
	onEach(t, func(t *testing.T, url string) {
		db := open(t, store.Config{URL: url})
		withAda(t, db)
		withKeys(t, db, "ada", "k")
		withUser(t, db, "eve")
		withKeys(t, db, "eve", "e")
		began := time.Now().Add(-time.Hour).Truncate(time.Millisecond)
		for batch := range 60 {
			var records []usage.Record
			for i := range 50 {
				n := batch*50 + i
				records = append(records, usage.Record{User: "ada", KeyID: "k", At: began.Add(time.Duration(n/3) * time.Millisecond), Method: "GET",
					Path: fmt.Sprintf("/%d", n), Status: 200, Reason: "allowed", Credits: 1, Refunded: n%2 == 0})
			}
			records = append(records, usage.Record{User: "eve", KeyID: "e", At: began, Method: "GET", Path: "/eve\x00\xff", Status: 500})
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

// Uses of a key are counted by time and source, separately from attempts with ended keys. A day
// later they are added up, and nothing is lost until the retention ends.
func TestTheUseOfKeysIsCounted(t *testing.T) {
	partstest.Slow(t)
	onEach(t, func(t *testing.T, url string) {
		db := open(t, store.Config{URL: url})
		withAda(t, db)
		withKeys(t, db, "ada", "old", "new")
		now := time.Now()
		count := func(key string, ended bool, ago time.Duration, address string, n int64) store.RequestCount {
			return store.RequestCount{User: "ada", KeyID: key, Ended: ended, Address: address, Agent: "agent of " + address, At: now.Add(-ago), Requests: n}
		}
		for range 2 { // the same again doubles the counts
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
		if err := db.TidyRequests(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		if n := rowsOf(t, db, "request_counts"); n != 0 {
			t.Errorf("%d rows are left where nothing is to be kept", n)
		}
	})
}

// withKeys creates revoked keys of a user, and a live one, which is the last.
func withKeys(t testing.TB, db *store.DB, user string, ids ...string) {
	t.Helper()
	for i, id := range ids {
		var ended any
		if i < len(ids)-1 {
			ended = time.Now().Add(-time.Hour).UnixMilli()
		}
		if _, err := db.SQL().Exec(`INSERT INTO keys (id, user_name, digest, created_at, revoked_at) VALUES ($1, $2, $3, 0, $4)`,
			id, user, []byte(fmt.Sprintf("%-32.32s", user+id)), ended); err != nil {
			t.Fatal(err)
		}
	}
}

// withUser creates another user of acme.
func withUser(t testing.TB, db *store.DB, name string) {
	t.Helper()
	if _, _, err := db.SetUser(t.Context(), name, store.UserChange{Account: new("acme")}, ""); err != nil {
		t.Fatal(err)
	}
}

func rowsOf(t testing.TB, db *store.DB, table string) (n int) {
	t.Helper()
	if err := db.SQL().QueryRow(`SELECT count(*) FROM ` + table).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// A client can send any agent. In a flood of agents each request counts, but only some agents are
// counted separately; known ones still are.
func TestAFloodOfAgentsTakesLittleRoom(t *testing.T) {
	partstest.Slow(t)
	onEach(t, func(t *testing.T, url string) {
		db := open(t, store.Config{URL: url})
		withAda(t, db)
		withKeys(t, db, "ada", "k", "older", "new")
		at := time.Now().Add(-26 * time.Hour).Truncate(24 * time.Hour) // the day before, to be added up
		count := func(i int, agent string) store.RequestCount {
			return store.RequestCount{User: "ada", KeyID: []string{"k", "older"}[i%2], Ended: true, At: at.Add(time.Duration(i/4) * 10 * time.Minute), Address: "10.0.0.1", Agent: agent, Requests: 1}
		}
		const batches, slots, agents = 12, 3, 100
		for i := range batches {
			counts := []store.RequestCount{count(i, "the client")}
			for n := range agents {
				counts = append(counts, count(i, fmt.Sprintf("agent %d of %d", n, i)))
			}
			if err := db.SaveRequests(t.Context(), nil, counts); err != nil {
				t.Fatal(err)
			}
		}
		if n := rowsOf(t, db, "request_counts"); n > slots*3*agents {
			t.Errorf("%d rows for %d slots", n, slots)
		}
		for _, when := range []string{"by slot", "by day"} {
			u, err := db.EndedKeyUsage(t.Context(), "ada", at)
			if err != nil || u.All != batches*(agents+1) || u.Agent == "" {
				t.Errorf("%s: %+v, %v; want all %d requests, and whose the last one was", when, u, err, batches*(agents+1))
			}
			var known int
			if err := db.SQL().QueryRow(`SELECT coalesce(sum(requests), 0) FROM request_counts WHERE agent = 'the client'`).Scan(&known); err != nil || known != batches {
				t.Errorf("%s: %d requests of the client that was first, want %d, %v", when, known, batches, err)
			}
			if err := db.TidyRequests(t.Context(), 100*time.Hour); err != nil {
				t.Fatal(err)
			}
		}
		if n := rowsOf(t, db, "request_counts"); n > 7*agents {
			t.Errorf("%d rows for a day", n)
		}
	})
}

// Records with a key that the user never had, or with a revoked key as a live one, are neither
// listed nor counted. All revoked keys of a user are counted as one.
func TestOnlyKeysThatAUserHadCount(t *testing.T) {
	partstest.Slow(t)
	onEach(t, func(t *testing.T, url string) {
		db := open(t, store.Config{URL: url})
		withAda(t, db)
		withKeys(t, db, "ada", "old", "older", "new")
		withUser(t, db, "eve")
		withKeys(t, db, "eve", "hers")
		now := time.Now()
		count := func(user, key string, ended bool, ago time.Duration) store.RequestCount {
			return store.RequestCount{User: user, KeyID: key, Ended: ended, At: now.Add(-ago), Address: "10.0.0.1", Agent: "curl", Requests: 1}
		}
		var records []usage.Record
		for _, key := range []string{"invented", "hers", "", "new", "old"} {
			records = append(records, usage.Record{User: "ada", KeyID: key, At: now, Path: "/" + key})
		}
		if err := db.SaveRequests(t.Context(), records, []store.RequestCount{
			count("ada", "invented", false, 0), count("ada", "hers", false, 0), count("ada", "hers", true, 0), count("eve", "new", false, 0),
			count("nobody", "new", false, 0), count("ada", "", true, 0), count("ada", "new", true, 0), count("ada", "old", false, 0),
			count("ada", "new", false, 0), count("ada", "old", false, 2*time.Hour), count("ada", "old", true, 0), count("ada", "older", true, 0),
		}); err != nil {
			t.Fatal(err)
		}
		if n := rowsOf(t, db, "request_counts"); n != 3 {
			t.Errorf("%d rows of counts, want those of the live key, of the old one while it lived, and of ended ones", n)
		}
		if u, err := db.EndedKeyUsage(t.Context(), "ada", now.Add(-time.Hour)); err != nil || u.All != 2 {
			t.Errorf("ended keys: %+v, %v", u, err)
		}
		if list, _, err := db.Requests(t.Context(), "ada", "", 10); err != nil || len(list) != 2 {
			t.Errorf("listed: %+v, %v", list, err)
		}
	})
}

// A deleted user leaves no requests behind, and late ones are dropped: a later user with the same
// name is another user.
func TestADeletedUserHasNoRequests(t *testing.T) {
	partstest.Slow(t)
	onEach(t, func(t *testing.T, url string) {
		db := open(t, store.Config{URL: url})
		withAda(t, db)
		withKeys(t, db, "ada", "k")
		save := func() {
			t.Helper()
			if err := db.SaveRequests(t.Context(), []usage.Record{{User: "ada", KeyID: "k", At: time.Now()}},
				[]store.RequestCount{{User: "ada", KeyID: "k", At: time.Now(), Requests: 1}}); err != nil {
				t.Fatal(err)
			}
		}
		save()
		if n := rowsOf(t, db, "requests") + rowsOf(t, db, "request_counts"); n != 2 {
			t.Fatalf("%d rows, want 2", n)
		}
		if _, err := db.DeleteUser(t.Context(), "ada", ""); err != nil {
			t.Fatal(err)
		}
		save() // from a batch that was under way
		if n := rowsOf(t, db, "requests") + rowsOf(t, db, "request_counts"); n != 0 {
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
			db := open(t, store.Config{URL: partstest.Database(t, version)})
			withAda(t, db)
			key, token, err := db.CreateKey(t.Context(), "ada", format(t))
			if err != nil {
				t.Fatal(err)
			}
			stuck, err := db.SQL().BeginTx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer stuck.Rollback()
			if _, err := stuck.Exec(`LOCK TABLE requests, request_counts IN ACCESS EXCLUSIVE MODE`); err != nil {
				t.Fatal(err)
			}
			var waiting sync.WaitGroup
			for range 8 { // at least as many readers as there are connections for them
				waiting.Go(func() { db.KeyUsage(t.Context(), "ada", key.ID) })
				waiting.Go(func() { db.Requests(t.Context(), "ada", "", 10) })
			}
			began := time.Now()
			err = db.SaveRequests(t.Context(), []usage.Record{{User: "ada", KeyID: key.ID, At: time.Now()}}, []store.RequestCount{{User: "ada", KeyID: key.ID, At: time.Now(), Requests: 1}})
			if took := time.Since(began); err == nil || took > 30*time.Second {
				t.Errorf("saving: %v after %v, want an error soon", err, took)
			}
			m := month(t, db)
			began = time.Now()
			for i := range 20 {
				_, err1 := db.FindKey(t.Context(), token.Digest())
				_, err2 := db.Report(t.Context(), ledger.Report{Holder: "one", Seq: int64(i + 1), Asks: []ledger.Ask{{Pool: ledger.Pool{Month: m, Name: "ada"}, Need: 1}}})
				if err := errors.Join(err1, err2); err != nil {
					t.Fatal(err)
				}
			}
			if _, _, _, err = db.RegenerateKey(t.Context(), "ada", format(t), store.Pace{}, ""); err != nil {
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
	db := open(t, store.Config{URL: partstest.Database(t, 18)})
	withAda(t, db)
	withKeys(t, db, "ada", "k")
	save := []store.RequestCount{{User: "ada", KeyID: "k", At: time.Now(), Requests: 1}}
	if err := db.SaveRequests(t.Context(), nil, save); err != nil {
		t.Fatal(err)
	}
	holds, release := make(chan struct{}), make(chan struct{})
	hung := make(chan error)
	go func() {
		hung <- db.Logged(t.Context(), func(tx *sql.Tx) error {
			_, err := tx.Exec(`UPDATE request_counts SET requests = requests + 1`)
			close(holds)
			<-release
			return err
		})
	}()
	<-holds
	began := time.Now()
	_, err := db.DeleteUser(t.Context(), "ada", "")
	if took := time.Since(began); err != nil || took > 8*time.Second {
		t.Errorf("deleting a user: %v after %v", err, took)
	}
	close(release)
	if err := <-hung; err == nil {
		t.Error("what was given up was saved")
	}
}

// The days of a month add up to the ledger's figures, for reports in any order, repeated or late;
// reports after the month count for its last day.
func TestTheDaysAddUpToTheLedger(t *testing.T) {
	partstest.Slow(t)
	onEach(t, func(t *testing.T, url string) {
		db := open(t, store.Config{URL: url})
		withAda(t, db)
		withUser(t, db, "eve")
		this := month(t, db)
		last := usage.MonthOf(this.Start().Add(-time.Hour))
		used := map[string]map[ledger.Payer]int64{"one": {}, "two": {}}
		for i := range 60 {
			holder := []string{"one", "two"}[rand.N(2)]
			r := ledger.Report{Holder: holder, Seq: int64(i + 1), Replica: "r"}
			for payer := range map[ledger.Payer]bool{payerOf(this): true, payerOf(last): true, payerOf(this): true} {
				used[holder][payer] += rand.Int64N(20)
			}
			byPool := map[ledger.Pool]int64{}
			for payer, n := range used[holder] {
				r.Usages = append(r.Usages, ledger.Usage{Payer: payer, Used: n})
				byPool[ledger.Pool{Month: payer.Month, Name: payer.User}] += n
			}
			for pool, n := range byPool {
				r.Asks = append(r.Asks, ledger.Ask{Pool: pool, Used: n, Keep: n})
			}
			if payer := payerOf(this); used[holder][payer] > 0 {
				charge := ledger.Refund{Payer: payer, Charge: fmt.Sprint("charge ", i/2), Credits: 1, Cause: "answered_5xx"} // each twice
				r.Refunds = append(r.Refunds, charge, charge)
			}
			if _, err := db.Report(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			if again := r; rand.N(4) == 0 {
				if _, err := db.Report(t.Context(), again); err == nil {
					t.Error("a report was posted twice")
				}
			}
		}
		mustAddUp(t, db)
		for _, user := range []string{"ada", "eve"} {
			days, err := db.CreditDays(t.Context(), user, 62)
			if err != nil || len(days) != 62 {
				t.Fatalf("%d days, %v", len(days), err)
			}
			for _, m := range []usage.Month{this, last} {
				var got, want store.CreditDay
				for _, d := range days {
					if usage.MonthOf(d.Date) == m {
						got.Used, got.Refunded = got.Used+d.Used, got.Refunded+d.Refunded
						if m == last && d.Used != 0 && !d.Date.AddDate(0, 0, 1).Equal(this.Start()) {
							t.Errorf("%s: %v has what was reported later", user, d.Date)
						}
					}
				}
				for p, err := range db.EachPosting(t.Context(), user, m) {
					if err != nil {
						t.Fatal(err)
					}
					switch p.Kind {
					case "used":
						want.Used -= p.Credits
					case "refunded":
						want.Refunded += p.Credits
					}
				}
				if got != want || want.Used == 0 {
					t.Errorf("%s in %v: the days have %+v, the ledger %+v", user, m, got, want)
				}
			}
		}
	})
}

// payerOf returns one of two users as a payer in a month.
func payerOf(m usage.Month) ledger.Payer {
	return ledger.Payer{Month: m, User: []string{"ada", "eve"}[rand.N(2)], Account: "acme"}
}

// The waits of other writers on SQLite, which has one writer at a time, while a busy second of
// requests is saved.
func BenchmarkSaveRequests(b *testing.B) {
	for name, database := range databases {
		b.Run(name, func(b *testing.B) {
			db := open(b, store.Config{URL: database(b)})
			withAda(b, db)
			withKeys(b, db, "ada", "k")
			var records []usage.Record
			var counts []store.RequestCount
			for i := range 500 {
				user := fmt.Sprint("user", i%10)
				withUser(b, db, user)
				if i < 10 {
					withKeys(b, db, user, "k"+user)
				}
				records = append(records, usage.Record{User: user, KeyID: "k" + user, At: time.Now(), Method: "GET", Path: "/api/v1/brands", Status: 200, Reason: "allowed"})
				counts = append(counts, store.RequestCount{User: user, KeyID: "k" + user, At: time.Now(), Address: "10.0.0.1", Agent: fmt.Sprint("agent ", i), Requests: 1})
			}
			for b.Loop() {
				if err := db.SaveRequests(b.Context(), records, counts); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

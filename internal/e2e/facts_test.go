package e2e_test

import (
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// pageFacts is the JSON answer of GET /api.
type pageFacts struct {
	Key *struct {
		ID         string
		CanBeShown bool  `json:"can_be_shown"`
		LastDay    int64 `json:"requests_last_day"`
	}
	Credits   struct{ Used, Limit, Remaining int64 }
	RateLimit struct{ Limit, Used, Remaining int64 } `json:"rate_limit"`
	OldKeys   struct {
		Count int64
		Agent string `json:"user_agent"`
	} `json:"old_keys"`
	Days     []struct{ Used, Refunded int64 }
	Requests []struct {
		Path     string
		Status   int
		Credits  int64
		Refunded bool
	}
}

// facts requests the page as a program.
func (s *stack) facts(cookie string) (f pageFacts) {
	s.t.Helper()
	a := s.page(cookie)
	if a.status != 200 {
		s.t.Fatalf("the page: %d %s", a.status, a.body)
	}
	s.decode(a.body, &f)
	return f
}

// The page, the credits endpoint, the response headers, `credits show` and the chart agree on all
// numbers, under load and after it.
func TestAllTellTheSameNumbers(t *testing.T) {
	t.Parallel()
	partstest.Slow(t)
	s := start(t, stackConfig{database: databases["PostgreSQL 18"](t)})
	key, cookie := s.user("ann", "pro", "--credits", "100000", "--rate-limit", "10000"), s.session("ann")
	header := []string{"X-API-Key: " + key}
	stop := make(chan struct{})
	var load sync.WaitGroup
	for i := range 4 {
		load.Go(func() {
			c := &connection{address: s.front}
			defer c.close()
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				answer := ""
				if n%10 == i {
					answer = "503" // refunded
				}
				if _, err := c.send(request{target: "/api/v1/brands", header: append([]string{"X-Test-Answer: " + answer}, header...)}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	used := func(response answer) int64 {
		left, err := strconv.ParseInt(response.header.Get("X-Credits-Remaining"), 10, 64)
		if err != nil {
			t.Errorf("%d %v", response.status, response.header)
		}
		return 100000 - left
	}
	for range 20 {
		before := used(s.send(request{target: "/api/v1/brands", header: header}))
		page := s.facts(cookie)
		after := s.send(request{target: "/api/v1/tiktok-shop/credits", header: header})
		// Refunds may lower the number in between, by no more than the requests in flight.
		if low, high := before-200, used(after)+200; page.Credits.Used < low || page.Credits.Used > high {
			t.Errorf("%d credits are used on the page, %d before and %d after by the headers", page.Credits.Used, before, used(after))
		}
		if page.Credits.Used+page.Credits.Remaining != page.Credits.Limit || page.RateLimit.Used+page.RateLimit.Remaining != 10000 {
			t.Errorf("the page does not add up: %+v %+v", page.Credits, page.RateLimit)
		}
	}
	close(stop)
	load.Wait()
	same := func(last answer) error {
		page, balance := s.facts(cookie), s.balance("ann")
		charted := int64(0)
		for _, day := range page.Days {
			charted += day.Used - day.Refunded
		}
		if page.Credits.Used != balance.Used || charted != balance.Used {
			return fmt.Errorf("page %d, credits show %d, chart %d", page.Credits.Used, balance.Used, charted)
		}
		if last.status == 0 {
			return nil
		}
		if told := used(last); told != balance.Used || !strings.Contains(last.body, fmt.Sprintf(`"used":%d,`, told)) {
			return fmt.Errorf("header %d, endpoint %s, credits show %d", told, last.body, balance.Used)
		}
		if rate, _ := strconv.ParseInt(last.header.Get("X-Ratelimit-Remaining"), 10, 64); page.RateLimit.Remaining < rate {
			return fmt.Errorf("%d requests fit by the header, %d by the page", rate, page.RateLimit.Remaining)
		}
		return nil
	}
	s.stableUse("ann") // until Envoy has reported the last refunds
	partstest.EventuallyNil(t, "all tell the same", func() error { return same(answer{}) })
	last := s.send(request{target: "/api/v1/tiktok-shop/credits", header: header})
	partstest.EventuallyNil(t, "all tell the same as the last answer", func() error { return same(last) })
}

// The page can reveal a key from its sealed copy wherever the key was made, and also while the seal
// key is being rotated. The copy disappears with the key. A page with the wrong seal key reports
// that, and otherwise works. A replica without the page needs no seal key.
func TestSealedKeys(t *testing.T) {
	t.Parallel()
	partstest.Slow(t)
	database := databases["PostgreSQL 18"](t)
	flags, file := sealed(t, database)
	s := start(t, stackConfig{database: database, flags: flags})
	deciding := s.serve("--listen-http", "off")
	cookies, keys := map[string]string{}, map[string]string{}
	for _, user := range []string{"ann", "bob"} {
		keys[user] = s.user(user, "pro") // by the command, which does not have the private key
		cookies[user] = s.session(user)
	}
	reveal := func(cookie string) answer {
		return s.send(request{method: "POST", target: "/api/-/reveal", header: []string{"Cookie: " + cookie, "Origin: " + own, "Accept: application/json", "Content-Length: 0"}})
	}
	shows := func(when string) {
		t.Helper()
		for user, key := range keys {
			if a := reveal(cookies[user]); a.status != 200 || !strings.Contains(a.body, key) {
				t.Errorf("%s: %s's key: %d, want it shown", when, user, a.status)
			}
		}
	}
	shows("at first")
	for _, step := range [][]string{{"--prepare"}, {"--keep-old"}, nil, nil} {
		s.run(append([]string{"seal", "rotate", file}, step...)...)
		shows(fmt.Sprintf("after seal rotate %v", step))
	}
	keys["ann"] = s.key("regenerate", "ann")
	shows("after a regeneration")
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the seal key file: %v, %v", info, err)
	}

	c := &connection{address: deciding.grpc}
	c.close()
	if _, err := http.Get("http://" + deciding.page + "/api"); err == nil {
		t.Error("a replica that only decides serves the page")
	}
	other := filepath.Join(t.TempDir(), "other.key")
	foreign := &stack{t: t, program: s.program, database: databases["SQLite"](t)}
	foreign.run("migrate")
	foreign.run("seal", "init", other)
	wrong := s.serve("--seal-key-file", other)
	direct := &connection{address: wrong.page}
	defer direct.close()
	header := []string{"Cookie: " + cookies["ann"], "Accept: application/json", "Content-Length: 0"}
	if a, err := direct.send(request{method: "POST", target: "/api/-/reveal", header: header}); err != nil || a.status != 503 || !strings.Contains(a.body, "key_unreadable") {
		t.Errorf("a key with a wrong seal key: %d %s, %v", a.status, a.body, err)
	}
	if a, err := direct.send(request{target: "/api", header: header}); err != nil || a.status != 200 {
		t.Errorf("the page with a wrong seal key: %d, %v", a.status, err)
	}
	if !strings.Contains(wrong.process.Output(), "does not belong to the seal key of the database") {
		t.Error("the log does not say that the seal key is a wrong one")
	}
	if _, problems, status := s.try("serve", "--seal-key-file", filepath.Join(t.TempDir(), "none"), "--listen-grpc", address(t), "--listen-http", address(t), "--listen-ops", address(t)); status != 1 || !strings.Contains(problems, "--seal-key-file") {
		t.Errorf("a seal key file that is not there: %d %s", status, problems)
	}
	entries := s.run("audit", "--name", "ann", "--output", "json")
	for _, want := range []string{`"action":"revealed"`, `"actor":"page:ann"`, `"actor":"command:`} {
		if !strings.Contains(entries, want) {
			t.Errorf("the audit has no %s", want)
		}
	}
	mustNotContain(t, "the audit and what was written", entries+s.written(), keys["ann"], keys["bob"])
}

// The request log never delays Checks: while it cannot be saved, Checks are answered as before,
// lost records are counted, and the page reports that data is missing. The test compares no times,
// which depend on the machine.
func TestTheRequestLogIsNoBurden(t *testing.T) {
	t.Parallel()
	partstest.Slow(t)
	database := databases["PostgreSQL 18"](t)
	s := start(t, stackConfig{database: database})
	key, cookie := s.user("ann", "pro", "--credits", "100000", "--rate-limit", "10000"), s.session("ann")
	ask := func(n int) time.Duration {
		t.Helper()
		c := &connection{address: s.front}
		defer c.close()
		began := time.Now()
		for range n {
			if a, err := c.send(request{target: "/api/v1/brands", header: []string{"X-API-Key: " + key}}); err != nil || a.status != 200 {
				t.Fatalf("%d, %v", a.status, err)
			}
		}
		return time.Since(began)
	}
	ask(200)
	free := ask(300)
	db, err := sql.Open("postgres", database)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	if _, err := tx.Exec(`LOCK TABLE requests, request_counts IN ACCESS EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	stuck := ask(300)
	partstest.EventuallyNil(t, "lost entries counted", func() error {
		ask(10)
		if n := s.replicas[0].metric(t, `keyporter_requestlog_records_total{result="failed"}`); n == "" || n == "0" {
			return errors.New("nothing is")
		}
		return nil
	})
	t.Logf("1,000 requests: %v, and %v while none could be saved", free, stuck)
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	partstest.EventuallyNil(t, "requests are kept again", func() error {
		ask(1)
		if f := s.facts(cookie); len(f.Requests) == 0 {
			return errors.New("none")
		}
		return nil
	})
}

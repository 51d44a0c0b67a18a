package admin_test

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/keyporter/keyporter/admin"
	"github.com/keyporter/keyporter/internal/parts/partstest"
	"github.com/keyporter/keyporter/internal/storetest"
)

// Usage is one answer, as JSON or as CSV, of any number of users.
func TestUsageIsOneListHoweverLong(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		f := newFixture(t, url)
		const users = 700
		names := `WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < $1), names AS (SELECT 'n' || CAST(1000000 + i AS TEXT) AS name FROM n) `
		for _, statement := range []string{
			`INSERT INTO credit_pools (month, kind, name, granted, used, refunded) SELECT 202501, 'user', name, 20000, 7, 0 FROM names`,
			`INSERT INTO credit_usages (month, kind, user_name, account, holder, used) SELECT 202501, 'user', name, 'gone', 'one', 7 FROM names`,
		} {
			if _, err := f.db.Changes.Exec(names+statement, users); err != nil {
				t.Fatal(err)
			}
		}
		const query = "/v1/usage?from=2025-01&to=2025-01&group_by=user"
		items := f.must(200, "GET", query, "")["items"].([]any)
		if len(items) != users || fmt.Sprint(items[0]) != "map[account:gone charged:7 lost:0 month:2025-01 outstanding:0 refunded:0 unreported:7 used:7 user:n1000001]" {
			t.Errorf("%d items, first %v", len(items), items[0])
		}
		table := f.answer(f.Context(), "all", "GET", query+"&format=csv", "")
		rows, err := csv.NewReader(strings.NewReader(table.body)).ReadAll()
		if err != nil || len(rows) != users+1 || strings.Join(rows[0], ",") != "month,account,user,used,refunded,charged,unreported,lost,outstanding" ||
			strings.Join(rows[users], ",") != "2025-01,gone,n1000700,7,0,7,7,0,0" || table.header.Get("Content-Type") != "text/csv; charset=utf-8; header=present" {
			t.Errorf("%d rows of CSV, %v", len(rows), err)
		}
		for accept, want := range map[string]string{
			"text/csv": "text/csv", "text/csv, */*;q=0.1": "text/csv", "application/json;q=0.5, text/csv": "text/csv",
			"*/*": "application/json", "application/json, text/csv": "application/json", "text/html": "application/json", "text/csv;q=x": "application/json",
		} {
			if a := f.answer(f.Context(), "all", "GET", query, "", "Accept", accept); a.status != 200 || !strings.HasPrefix(a.header.Get("Content-Type"), want) {
				t.Errorf("Accept: %s is answered by %d %s", accept, a.status, a.header.Get("Content-Type"))
			}
		}
		if a := f.answer(f.Context(), "all", "GET", query+"&format=json", "", "Accept", "text/csv"); a.header.Get("Content-Type") != "application/json" {
			t.Errorf("the parameter does not decide: %s", a.header.Get("Content-Type"))
		}
		if nobody := f.must(200, "GET", "/v1/usage?from=2024-12&to=2024-12", "")["items"].([]any); len(nobody) != 0 {
			t.Errorf("a month without usage: %v", nobody)
		}
		for _, wrong := range []string{"from=2025-13", "from=2025-01-02", "group_by=week", "from=2999-01", "user=ada", "user=ada&account=acme&group_by=user", "format=xml"} {
			if a := f.ask("all", "GET", "/v1/usage?"+wrong, ""); a.status != 400 || a.fields["field"] == nil {
				t.Errorf("%s: %d %s", wrong, a.status, a.body)
			}
		}
	})
}

// A list that fails is broken off, so that no reader takes a part of it for the whole.
func TestAListThatFailsIsBrokenOff(t *testing.T) {
	rows := func(n int, err error) iter.Seq2[int, error] {
		return func(yield func(int, error) bool) {
			for i := range n {
				if !yield(i, nil) {
					return
				}
			}
			if err != nil {
				yield(0, err)
			}
		}
	}
	broken := errors.New("the database has gone")
	for _, row := range []struct {
		name string
		n    int
		err  error
		csv  bool
		want string // of the answer; "": the start of one
	}{
		{"none", 0, nil, false, "{\"items\": [\n]}\n"},
		{"two", 2, nil, false, "{\"items\": [\n0,\n1\n]}\n"},
		{"two of CSV", 2, nil, true, "number\n0\n1\n"},
		{"many, then an error", 100_000, broken, false, ""},
		{"many of CSV, then an error", 100_000, broken, true, ""},
		{"one, then an error", 1, broken, false, ""},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { admin.Send(w, r, rows(row.n, row.err), row.csv) }))
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		text, err := got(server.Client().Do(request))
		if row.err == nil && (err != nil || text != row.want) || row.err != nil && err == nil {
			t.Errorf("%s: %.40q, %v", row.name, text, err)
		}
		server.Close()
	}
	if err := admin.Send(nil, nil, rows(0, broken), false); !errors.Is(err, broken) {
		t.Errorf("a list that begins with an error: %v", err)
	}
}

// got returns a whole answer.
func got(answer *http.Response, err error) (string, error) {
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	return string(text), err
}

// A reader who leaves ends the reading.
func TestAListEndsWithItsReader(t *testing.T) {
	ctx, leave := context.WithCancel(t.Context())
	ended := make(chan bool)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = admin.Send(w, r, func(yield func(int, error) bool) {
			defer close(ended)
			for i := 0; yield(i, r.Context().Err()) && r.Context().Err() == nil; i++ {
			}
		}, false)
	}))
	defer server.Close()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := server.Client().Do(request)
	if err != nil {
		t.Fatal(err)
	}
	leave()
	<-ended
	answer.Body.Close()
}

// A list takes as long as its reader reads it, although the server lets no other answer take that
// long. A reader who does not read is cut off.
func TestALongListHasTimeWhileItIsRead(t *testing.T) {
	partstest.Slow(t)
	done := make(chan bool, 2)
	const rows = 40
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() { done <- true }()
		n := map[string]int{"/read": rows, "/unread": 1 << 30}[r.URL.Path]
		_ = admin.Send(w, r, func(yield func(int, error) bool) {
			for i := range n {
				if r.URL.Path == "/read" && i%(rows/10) == 0 {
					time.Sleep(admin.ReaderTime / 3)
				}
				for range 2 * 32 << 10 / rows { // each tenth is more than 32 KiB
					if !yield(1_000_000+i, nil) {
						return
					}
				}
			}
		}, false)
	}))
	server.Config.WriteTimeout = admin.ReaderTime
	server.Start()
	defer server.Close()
	for path, whole := range map[string]bool{"/read": true, "/unread": false} {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := server.Client().Do(request)
		if err != nil {
			t.Fatal(err)
		}
		if !whole {
			<-done // although nobody reads
		}
		if text, err := got(answer, nil); whole && (err != nil || !strings.HasSuffix(text, "]}\n")) || !whole && err == nil {
			t.Errorf("%s: %d bytes, %v", path, len(text), err)
		}
		if whole {
			<-done
		}
	}
}

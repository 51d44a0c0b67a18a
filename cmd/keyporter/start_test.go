package main

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/keyporter/keyporter/internal/parts"
	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// serving is a `serve` in this process.
type serving struct {
	*testing.T
	ops  string
	stop context.CancelFunc
	end  chan int // receives the exit status

	text partstest.Buffer // its standard error
}

// serveIn starts a `serve` on a database.
func serveIn(t *testing.T, url string, flags ...string) *serving {
	t.Helper()
	ops, err := parts.FreeAddr()
	if err != nil {
		t.Fatal(err)
	}
	s := &serving{T: t, ops: ops, end: make(chan int, 1)}
	var ctx context.Context
	ctx, s.stop = context.WithCancel(t.Context())
	t.Cleanup(s.stop)
	go func() {
		s.end <- run(ctx, append([]string{"serve", "--database", url, "--listen-grpc", "127.0.0.1:0", "--listen-http", "off", "--listen-ops", ops,
			"--drain-delay", "0s"}, flags...), io.Discard, &s.text)
	}()
	return s
}

// becomes waits until /readyz answers with a status and a text that contains all parts.
func (s *serving) becomes(status int, parts ...string) {
	s.Helper()
	partstest.EventuallyNil(s, fmt.Sprintf("/readyz says %d %q", status, parts), func() error {
		select {
		case <-s.end:
			s.Fatalf("serve has ended, want %d %q:\n%s", status, parts, s.text.String())
		default:
		}
		got, text, err := s.get("/readyz")
		missing := err != nil || got != status
		for _, part := range parts {
			missing = missing || !strings.Contains(text, part)
		}
		if missing {
			return fmt.Errorf("%d %q, %v\n%s", got, text, err, s.text.String())
		}
		return nil
	})
}

// isReady waits until /readyz reports ready, and nothing else.
func (s *serving) isReady() {
	s.Helper()
	partstest.EventuallyNil(s, "/readyz says ready and nothing else", func() error {
		if _, text, err := s.get("/readyz"); text != "ready\n" {
			return fmt.Errorf("%q, %v\n%s", text, err, s.text.String())
		}
		return nil
	})
}

func (s *serving) get(path string) (status int, text string, err error) {
	response, err := http.Get("http://" + s.ops + path)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return response.StatusCode, string(body), err
}

// ends waits for the end, with the wanted exit status and texts.
func (s *serving) ends(want int, says ...string) {
	s.Helper()
	select {
	case got := <-s.end:
		if got != want {
			s.Errorf("exit status %d, want %d:\n%s", got, want, s.text.String())
		}
	case <-time.After(time.Minute):
		s.Fatalf("serve has not ended:\n%s", s.text.String())
	}
	for _, part := range says {
		if !strings.Contains(s.text.String(), part) {
			s.Errorf("it says %q, want %q", s.text.String(), part)
		}
	}
}

// command runs a command and returns its exit status and standard error.
func command(t *testing.T, url, line string) (status int, problems string) {
	t.Helper()
	var written strings.Builder
	status = run(t.Context(), append(strings.Fields(line), "--database", url), io.Discard, &written)
	return status, written.String()
}

// prepare runs commands that must succeed.
func prepare(t *testing.T, url string, lines ...string) {
	t.Helper()
	for _, line := range lines {
		if status, problems := command(t, url, line); status != exitDone {
			t.Fatalf("%s: %s", line, problems)
		}
	}
}

// A service waits for its database and its first lease, and is not ready before: /readyz reports
// what it waits for. If triggers are disabled later on, /readyz explains what to do, and no command
// confirms a change that no replica enforces.
func TestAServiceIsReadyWithItsFirstLease(t *testing.T) {
	partstest.Slow(t)
	t.Parallel()
	url := partstest.Database(t, 18)
	prepare(t, url, "migrate", "plan set pro", "account set acme --plan pro", "user set ada --account acme", "key create ada")
	db, err := sql.Open("postgres", url)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	lock, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Rollback()
	if _, err := lock.Exec(`LOCK TABLE replicas`); err != nil {
		t.Fatal(err)
	}

	address, err := parts.FreeAddr()
	if err != nil {
		t.Fatal(err)
	}
	host := partstest.Postgres(t, 18).Addr()
	s := serveIn(t, strings.Replace(url, host, address, 1), "--lease", "1s")
	s.becomes(http.StatusServiceUnavailable, "waiting for the database", "connection refused")
	if status, text, err := s.get("/healthz"); err != nil || status != http.StatusOK {
		t.Errorf("/healthz: %d %q, %v", status, text, err)
	}
	if n := strings.Count(s.text.String(), "waiting for the database"); n != 1 {
		t.Errorf("said %d times what it waits for, want once at first:\n%s", n, s.text.String())
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	partstest.StartProxy(t, partstest.ProxyConfig{To: host, Listener: listener})
	s.becomes(http.StatusServiceUnavailable, "waiting for the first lease", "registering this replica")
	if err := lock.Rollback(); err != nil {
		t.Fatal(err)
	}
	s.becomes(http.StatusOK, "ready\n")

	if _, err := db.Exec(`ALTER TABLE keys DISABLE TRIGGER ALL; ALTER TABLE keys ENABLE TRIGGER ALL`); err != nil {
		t.Fatal(err)
	}
	if status, problems := command(t, url, "key regenerate ada"); status != exitFailed || !strings.Contains(problems, "nothing was changed") || !strings.Contains(problems, "keyporter migrate") {
		t.Errorf("regenerate while triggers are off: exit status %d, %s", status, problems)
	}
	s.becomes(http.StatusOK, "no lease", "keys.changes_update", "keyporter migrate")
	if status, problems := command(t, url, "config check --connect --rate-limit-share"); status != exitDone || !strings.Contains(problems, "warning: --database: the start of the service mends this") {
		t.Errorf("config check: exit status %d, %s; a start that migrates works", status, problems)
	}
	if status, problems := command(t, url, "config check --connect --rate-limit-share --migrate=false"); status != exitFailed || !strings.Contains(problems, "keys.changes_update") {
		t.Errorf("config check: exit status %d, %s; a start that does not migrate fails", status, problems)
	}
	if status, problems := command(t, url, "migrate"); status != exitDone || !strings.Contains(problems, "are on again") {
		t.Errorf("migrate: exit status %d, %s", status, problems)
	}
	s.isReady()
	s.stop()
	s.ends(exitDone)
}

// An error that waiting cannot repair ends a service with status 1 and a text that explains what to
// do. A stop during a wait is a graceful one.
func TestAStartThatCannotWorkEnds(t *testing.T) {
	t.Parallel()
	url := partstest.Database(t, 18)
	prepare(t, url, "migrate")
	db, err := sql.Open("postgres", url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	for _, statement := range []string{`CREATE ROLE looker LOGIN`, `GRANT SELECT ON ALL TABLES IN SCHEMA public TO looker`} {
		if _, err := db.Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if _, err := db.Exec(`DROP OWNED BY looker; DROP ROLE looker`); err != nil {
			t.Error(err)
		}
	})
	before, after, _ := strings.Cut(url, "@")
	scheme, _, _ := strings.Cut(before, "://")
	for database, says := range map[string][]string{
		scheme + "://looker@" + after:         {"the role looker lacks rights", "INSERT on ", "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO looker"},
		strings.Replace(url, "?", "_not?", 1): {"does not exist"},
		url + "&search_path=house":            {"CREATE SCHEMA"},
	} {
		s := serveIn(t, database, "--migrate=false")
		s.ends(exitFailed, says...)
	}
	address, err := parts.FreeAddr()
	if err != nil {
		t.Fatal(err)
	}
	s := serveIn(t, strings.Replace(url, partstest.Postgres(t, 18).Addr(), address, 1))
	s.becomes(http.StatusServiceUnavailable, "connection refused")
	s.stop()
	s.ends(exitDone)
}

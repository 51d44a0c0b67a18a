package store_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/internal/parts"
	"github.com/keyporter/keyporter/internal/parts/partstest"
	"github.com/keyporter/keyporter/internal/storetest"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
	"github.com/keyporter/keyporter/store/feed"
	storeledger "github.com/keyporter/keyporter/store/ledger"
)

// checkTime is how long a request waits for a look-up by default (--check-timeout).
const checkTime = 150 * time.Millisecond

// lookUp does what a request with an uncached key does: it waits for checkTime for a connection.
func lookUp(ctx context.Context, db *store.DB) error {
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	if _, err := directory.NewLookups(db).FindKey(ctx, apikey.Digest{1}); !errors.Is(err, authz.ErrUnknown) {
		return err
	}
	return nil
}

// keep keeps the connections of db open until the test ends. It returns when they are open.
func keep(t *testing.T, db *store.DB) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() { db.Keep(ctx, directory.NewLookups(db).Try) })
	t.Cleanup(func() { cancel(); all.Wait() })
	limited, end := context.WithTimeout(t.Context(), time.Minute)
	defer end()
	if err := db.AwaitConnections(limited, directory.NewLookups(db).Try); err != nil {
		t.Fatal(err)
	}
}

// kill ends all connections to the database of a URL.
func kill(t *testing.T, url string) {
	t.Helper()
	killer, err := sql.Open("postgres", url)
	if err != nil {
		t.Fatal(err)
	}
	defer killer.Close()
	if _, err := killer.Exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity
		WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'`); err != nil {
		t.Fatal(err)
	}
}

// Even if connecting is slow, requests that wait for 150 ms are answered: the connections are open
// before the first request, and lost ones are reopened in the background.
func TestConnectingTakesItsTime(t *testing.T) {
	partstest.Slow(t)
	t.Parallel()
	for _, takes := range []time.Duration{0, 300 * time.Millisecond, time.Second, 3 * time.Second} {
		t.Run(takes.String(), func(t *testing.T) {
			t.Parallel()
			if takes > time.Second {
				partstest.Slow(t)
			}
			direct := partstest.Database(t, 18)
			storetest.Open(t, store.Config{URL: direct}).Close() // creates the schema
			w, url := storetest.NewWire(t, direct)
			w.Connect.Store(int64(takes))
			db := storetest.Open(t, store.Config{URL: url})
			keep(t, db)
			for range 20 {
				if err := lookUp(t.Context(), db); err != nil {
					t.Fatalf("ready, and a look-up: %v", err)
				}
			}
			kill(t, direct)
			took := partstest.Eventually(t, "look-ups after all connections were lost", func() bool { return lookUp(t.Context(), db) == nil })
			t.Logf("look-ups again after %v", took)
			for range 20 {
				if err := lookUp(t.Context(), db); err != nil {
					t.Fatalf("after they were lost, and a look-up: %v", err)
				}
			}
		})
	}
}

// Even if nothing keeps connections open, as in a command, an attempt to connect continues after
// the request that needed it has left, and the next request finds its connection.
func TestNoDeadlineEndsAnAttempt(t *testing.T) {
	partstest.Slow(t)
	t.Parallel()
	w, url := storetest.NewWire(t, partstest.Database(t, 18))
	db := storetest.Open(t, store.Config{URL: url})
	w.Connect.Store(int64(time.Second))
	if err := lookUp(t.Context(), db); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the first look-up: %v", err)
	}
	partstest.Eventually(t, "a look-up", func() bool { return lookUp(t.Context(), db) == nil })
}

// A caller that leaves does not close a connection.
func TestWhoLeavesTakesNoConnectionAlong(t *testing.T) {
	t.Parallel()
	url := partstest.Database(t, 18)
	db := storetest.Open(t, store.Config{URL: url, Connections: store.MinConnections}) // one for look-ups
	admin := storetest.SQL{T: t, DB: db.Changes}
	pid := func() (pid string) {
		if err := admin.DB.QueryRow(`SELECT coalesce(string_agg(pid::TEXT, ' '), '') FROM pg_stat_activity
			WHERE datname = current_database() AND query LIKE '%LEFT JOIN keys k%' AND pid <> pg_backend_pid()`).Scan(&pid); err != nil {
			t.Fatal(err)
		}
		return pid
	}
	directory.NewLookups(db).FindKey(t.Context(), apikey.Digest{1})
	before := pid()
	for range 300 {
		ctx, cancel := context.WithCancel(t.Context())
		var left sync.WaitGroup
		left.Go(cancel)
		directory.NewLookups(db).FindKey(ctx, apikey.Digest{1})
		left.Wait()
	}
	if after := pid(); before == "" || after != before {
		t.Errorf("the connection was %q and is %q", before, after)
	}
}

// limited creates a role that owns a database and has a connection limit, and returns its URL.
func limited(t *testing.T, url string, connections int) (admin *sql.DB, own string) {
	t.Helper()
	admin, err := sql.Open("postgres", url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { admin.Close() })
	var name string
	if err := admin.QueryRow(`SELECT current_database()`).Scan(&name); err != nil {
		t.Fatal(err)
	}
	role := "few_" + name
	for _, statement := range []string{
		fmt.Sprintf(`CREATE ROLE %q LOGIN CONNECTION LIMIT %d`, role, connections),
		fmt.Sprintf(`ALTER DATABASE %q OWNER TO %q`, name, role),
	} {
		if _, err := admin.Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
	return admin, strings.Replace(url, "postgres://postgres@", "postgres://"+role+"@", 1)
}

// If the server grants fewer connections than a replica may open, the replica works with those:
// each kind of work has one, and requests, changes and announcements work.
func TestAServerWithFewConnections(t *testing.T) {
	t.Parallel()
	_, url := limited(t, partstest.Database(t, 18), 6)
	db := storetest.Open(t, store.Config{URL: url})
	r := storetest.StartReplica(t, db, time.Second)
	keep(t, db)
	r.AwaitLease(t)
	partstest.Eventually(t, "it is known how many there are", func() bool {
		c := db.Connections()
		return c.Refused != nil && c.Granted == 6 && c.Most == store.DefaultConnections
	})
	hints := r.Hints.Load()
	storetest.WithAda(t, db)
	partstest.Eventually(t, "announcements are heard", func() bool {
		if _, err := feed.New(db).RollCall(t.Context()); err != nil {
			t.Fatal(err)
		}
		return r.Hints.Load() > hints
	})
	var all sync.WaitGroup
	for range 5 {
		all.Go(func() {
			for range 10 {
				if _, err := directory.NewLookups(db).FindKey(t.Context(), apikey.Digest{1}); !errors.Is(err, authz.ErrUnknown) {
					t.Errorf("a look-up: %v", err)
				}
			}
		})
	}
	all.Wait()
	if _, err := storeledger.New(db).Recalled(t.Context()); err != nil {
		t.Errorf("the credits: %v", err)
	}
	if err := db.WriteLog(t.Context(), func(*sql.Tx) error { return nil }); err != nil {
		t.Errorf("the log of requests: %v", err)
	}
}

// A change waits for a connection that the server does not grant yet, instead of failing.
func TestAChangeWaitsForAConnection(t *testing.T) {
	partstest.Slow(t)
	t.Parallel()
	_, url := limited(t, partstest.Database(t, 18), 3)
	storetest.Open(t, store.Config{URL: url}).Close()
	other, err := sql.Open("postgres", url)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	other.SetMaxIdleConns(3)
	var taken []*sql.Conn
	partstest.Eventually(t, "all connections are taken", func() bool {
		conn, err := other.Conn(t.Context())
		if err == nil {
			taken = append(taken, conn)
		}
		return len(taken) == 3
	})
	// Not before the change has been refused at least once.
	giveBack := time.AfterFunc(time.Second, func() {
		for _, conn := range taken {
			conn.Raw(func(any) error { return errors.New("not used again") })
			conn.Close()
		}
		other.Close()
	})
	defer giveBack.Stop()
	db, err := store.Open(t.Context(), store.Config{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	storetest.WithAda(t, db)
}

// A replica never opens more connections than it may have, and everything works even with the
// minimum.
func TestTheSmallestNumberOfConnections(t *testing.T) {
	t.Parallel()
	admin, url := limited(t, partstest.Database(t, 18), 100)
	db := storetest.Open(t, store.Config{URL: url, Connections: store.MinConnections})
	r := storetest.StartReplica(t, db, time.Second)
	keep(t, db)
	r.AwaitLease(t)
	storetest.WithAda(t, db)
	var all sync.WaitGroup
	most := 0
	for range 5 {
		all.Go(func() {
			for range 10 {
				if _, err := directory.NewLookups(db).FindKey(t.Context(), apikey.Digest{1}); !errors.Is(err, authz.ErrUnknown) {
					t.Errorf("a look-up: %v", err)
				}
				directory.New(db).Plans(t.Context())
				storeledger.New(db).Recalled(t.Context())
			}
		})
	}
	for range 20 {
		var n int
		if err := admin.QueryRow(`SELECT count(*) FROM pg_stat_activity WHERE usename LIKE 'few_' || current_database()`).Scan(&n); err != nil {
			t.Error(err)
		}
		most = max(most, n)
	}
	all.Wait()
	if most > store.MinConnections {
		t.Errorf("%d connections, want at most %d", most, store.MinConnections)
	}
}

// For any number of connections, each kind of work has one, and the sum is that number.
func TestEachPurposeHasConnections(t *testing.T) {
	t.Parallel()
	for n := store.MinConnections; n <= 100; n++ {
		sum := 0
		for i, connections := range store.DivideConnections(n) {
			if connections < 1 {
				t.Errorf("of %d, purpose %d has none", n, i)
			}
			sum += connections
		}
		if sum != n {
			t.Errorf("of %d, %d are used", n, sum)
		}
	}
	const today = "lookups 8, lease 2, credits 2, changes 4, announcements 1, requests 2"
	if got := store.DivideConnections(store.DefaultConnections).String(); got != today {
		t.Errorf("by default: %s", got)
	}
}

// Reports of credits do not wait for operators, even if the operators' connections are half open.
func TestReportsDoNotWaitForOperators(t *testing.T) {
	t.Parallel()
	db := storetest.Open(t, store.Config{URL: partstest.Database(t, 18)})
	release, err := db.Hold(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	if _, err := storeledger.New(db).Recalled(t.Context()); err != nil {
		t.Errorf("all connections of operators are in use: %v", err)
	}
}

// Connecting succeeds with a name server that loses every other answer, and with a host that has
// several addresses of which one is dead.
func TestNamesThatAreHardToResolve(t *testing.T) {
	t.Parallel()
	url := partstest.Database(t, 18)
	var mu sync.Mutex
	asked := 0
	lossy := func(host string) ([]netip.Addr, error) {
		mu.Lock()
		defer mu.Unlock()
		if asked++; asked%2 == 1 {
			return nil, &net.DNSError{Err: "i/o timeout", Name: host, IsTimeout: true}
		}
		if host != "db.example" {
			return nil, errors.New("who is " + host)
		}
		return []netip.Addr{netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("127.0.0.1")}, nil
	}
	c := store.Config{URL: strings.Replace(url, "127.0.0.1", "db.example", 1), Create: true, Migrate: true}.ResolvedBy(lossy)
	_, err := store.Open(t.Context(), c)
	if err == nil || !strings.Contains(err.Error(), "db.example") {
		t.Errorf("an answer was lost: %v", err)
	}
	db := storetest.Open(t, c)
	r := storetest.StartReplica(t, db, time.Second)
	keep(t, db)
	partstest.Eventually(t, "announcements are heard", func() bool {
		_, err := feed.New(db).RollCall(t.Context())
		return err == nil && r.Hinted.Load() > 0
	})
	for range 3 {
		kill(t, url)
		partstest.Eventually(t, "look-ups", func() bool { return lookUp(t.Context(), db) == nil })
	}
}

// The primary disappears and its standby is promoted at another address. Look-ups, changes and
// announcements with the same URL follow it.
func TestAFailOverIsFollowed(t *testing.T) {
	partstest.Slow(t)
	t.Parallel()
	dirs, err := os.MkdirTemp("", "keyporter-failover-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dirs) })
	if err := os.Chmod(dirs, 0o755); err != nil { // t.TempDir is closed to the server's user
		t.Fatal(err)
	}
	first, second := filepath.Join(dirs, "first"), filepath.Join(dirs, "second")
	if err := errors.Join(os.Mkdir(first, 0o755), os.Chmod(first, 0o755)); err != nil {
		t.Fatal(err)
	}
	primary := partstest.StartPostgres(t, parts.PostgresConfig{Dir: first})
	storetest.Open(t, store.Config{URL: primary.URL("postgres")}).Close()
	if err := primary.Stop(); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cp", "-a", first, second).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := primary.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	signal := filepath.Join(second, "data", "standby.signal")
	if err := errors.Join(os.WriteFile(signal, nil, 0o666), os.Chmod(signal, 0o666)); err != nil {
		t.Fatal(err)
	}
	standby := partstest.StartPostgres(t, parts.PostgresConfig{Dir: second, Settings: map[string]string{
		"primary_conninfo": fmt.Sprintf("host=127.0.0.1 port=%d user=postgres", primary.Port()),
	}})

	db := storetest.Open(t, store.Config{URL: fmt.Sprintf("postgres://postgres@127.0.0.1:%d,127.0.0.1:%d/postgres?sslmode=disable", standby.Port(), primary.Port())})
	r := storetest.StartReplica(t, db, time.Second)
	keep(t, db)
	r.AwaitLease(t)
	storetest.WithAda(t, db)
	partstest.Eventually(t, "the standby has it", func() bool {
		out, err := standby.SQL(t.Context(), "postgres", `SELECT count(*) FROM users`)
		return err == nil && strings.TrimSpace(out) == "1"
	})
	primary.Kill()
	down := time.Now()
	if _, err := standby.SQL(t.Context(), "postgres", `SELECT pg_promote()`); err != nil {
		t.Fatal(err)
	}
	promoted := time.Now()
	partstest.Eventually(t, "look-ups at the new primary", func() bool { return lookUp(t.Context(), db) == nil })
	t.Logf("promoted after %v, look-ups %v later", promoted.Sub(down), time.Since(promoted))
	r.AwaitLease(t)
	hints := r.Hints.Load()
	if _, err := feed.New(db).RollCall(t.Context()); err != nil {
		t.Errorf("a change: %v", err)
	}
	partstest.Eventually(t, "announcements from the new primary", func() bool { return r.Hints.Load() > hints })
}

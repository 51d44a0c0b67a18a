package feed_test

import (
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lib/pq"
	"modernc.org/sqlite"

	"github.com/keyporter/keyporter/internal/parts"
	"github.com/keyporter/keyporter/internal/parts/partstest"
	"github.com/keyporter/keyporter/internal/storetest"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/feed"
	"github.com/keyporter/keyporter/store/lease"
)

// A lease is held and renewed; a fenced replica registers again under another name; and a replica
// that ends leaves the list.
func TestALeaseInADatabase(t *testing.T) {
	partstest.Slow(t)
	storetest.OnEach(t, func(t *testing.T, url string) {
		db := storetest.Open(t, store.Config{URL: url})
		const life = 3 * time.Second
		r := storetest.StartReplica(t, db, life)
		first := r.AwaitLease(t)
		looks, lost := 0, 0
		for begun := time.Now(); time.Since(begun) < life*3/2; time.Sleep(time.Millisecond) {
			looks++
			if !r.Held() {
				lost++
			}
		}
		if lost > 0 || r.Good.Load() < 4 {
			t.Errorf("not held at %d of %d looks; %d renewals", lost, looks, r.Good.Load())
		}
		id := *r.ID.Load()
		if _, err := db.Changes.Exec(`DELETE FROM replicas`); err != nil {
			t.Fatal(err)
		}
		again := partstest.Eventually(t, "another registration", func() bool { return *r.ID.Load() != id })
		r.AwaitLease(t)
		replicas, newest, err := feed.New(db).Replicas(t.Context())
		if err != nil || len(replicas) != 1 || replicas[0].ID != *r.ID.Load() || replicas[0].Life != life {
			t.Errorf("listed: %+v, %v", replicas, err)
		}
		partstest.Eventually(t, "everything acknowledged", func() bool {
			replicas, _, err := feed.New(db).Replicas(t.Context())
			return err == nil && len(replicas) == 1 && replicas[0].Epoch >= newest && replicas[0].Lag == 0
		})
		r.End()
		if replicas, _, err := feed.New(db).Replicas(t.Context()); err != nil || len(replicas) != 0 || r.Held() {
			t.Errorf("after the end: %+v, %v, held %v", replicas, err, r.Held())
		}
		t.Logf("held after %v; %d looks, not held at %d; fenced: registered again after %v", first, looks, lost, again)
	})
}

// Even if its connections are killed again and again, a replica never answers for longer than its
// lease, and it recovers.
func TestKilledConnections(t *testing.T) {
	partstest.Slow(t)
	storetest.OnPostgres(t, func(t *testing.T, url string) {
		db := storetest.Open(t, store.Config{URL: url})
		r := storetest.StartReplica(t, db, 600*time.Millisecond)
		r.AwaitLease(t)
		killer, err := sql.Open("postgres", url)
		if err != nil {
			t.Fatal(err)
		}
		defer killer.Close()
		killed, lost := 0, 0
		for begun := time.Now(); time.Since(begun) < 3*time.Second; time.Sleep(rand.N(60 * time.Millisecond)) {
			var n int
			err := killer.QueryRow(`SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
				WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'`).Scan(&n)
			if err != nil {
				t.Fatal(err)
			}
			killed += n
			if !r.Held() {
				lost++
			}
		}
		back := r.AwaitLease(t)
		good := r.Good.Load()
		partstest.Eventually(t, "further renewals", func() bool { return r.Good.Load() > good+2 })
		t.Logf("%d connections killed; %d renewals failed, %d did not; not held at %d looks; back %v after the last one; too long at %d of %d looks",
			killed, r.Bad.Load(), r.Good.Load(), lost, back, r.Longer.Load(), r.Looks.Load())
	})
}

// A link that swallows data in one direction, or in both, is noticed within two renewals; when it
// works again the lease is renewed over another connection.
func TestAHalfOpenLink(t *testing.T) {
	partstest.Slow(t)
	t.Parallel()
	for name, silence := range map[string]func(w *storetest.Wire, lost bool){
		"nothing arrives there": func(w *storetest.Wire, lost bool) { w.Up.Drop.Store(lost) },
		"nothing comes back":    func(w *storetest.Wire, lost bool) { w.Down.Drop.Store(lost) },
		"neither":               (*storetest.Wire).Silence,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const life = time.Second
			w, url := storetest.NewWire(t, partstest.Database(t, 18))
			db := storetest.Open(t, store.Config{URL: url})
			r := storetest.StartReplica(t, db, life)
			r.AwaitLease(t)
			silence(w, true)
			muted, bad := time.Now(), r.Bad.Load()
			// It begins at most one renewal later and is given up after two.
			noticed := partstest.Eventually(t, "a renewal that fails", func() bool { return r.Bad.Load() > bad })
			if limit := 3*lease.Period(life) + 3*time.Second; noticed > limit {
				t.Errorf("noticed after %v, want %v", noticed, limit)
			}
			partstest.Eventually(t, "the end of the lease", func() bool { return !r.Held() })
			lost := time.Since(muted).Round(time.Millisecond)
			r.NotHeldFor(t, life, "the link is dead")
			silence(w, false)
			back := r.AwaitLease(t)
			if back > 5*time.Second {
				t.Errorf("back after %v", back)
			}
			t.Logf("noticed after %v, lost after %v of at most %v, back %v after the link", noticed, lost, life, back)
		})
	}
}

// The connection for announcements is given up when it is half open, and reopened.
func TestAHalfOpenConnectionForAnnouncements(t *testing.T) {
	partstest.Slow(t)
	t.Parallel()
	const life = time.Second
	direct := partstest.Database(t, 18)
	f := storetest.SQL{T: t, DB: storetest.Open(t, store.Config{URL: direct}).Changes}
	f.Exec(storetest.People...)
	w, url := storetest.NewWire(t, direct)
	r := storetest.StartReplica(t, storetest.Open(t, store.Config{URL: url}), life)
	r.AwaitLease(t)
	announced := func() time.Duration {
		f.Exec(`UPDATE keys SET revoked_at = coalesce(revoked_at, 0) + 1 WHERE id = 'ko'`)
		epoch := f.Newest()
		return partstest.Eventually(t, "an announcement", func() bool { return r.Hinted.Load() >= epoch })
	}
	partstest.Eventually(t, "the connection for announcements", func() bool { return r.Hints.Load() > 0 })
	announced()
	w.Silence(true)
	time.Sleep(2 * life) // both connections are given up in that time
	f.Exec(`UPDATE keys SET revoked_at = 77 WHERE id = 'ko'`)
	hints := r.Hints.Load()
	w.Silence(false)
	again := partstest.Eventually(t, "a hint that something may have been missed", func() bool { return r.Hints.Load() > hints })
	t.Logf("listening again %v after the link; the next announcement took %v", again, announced())
}

// A commit that no standby has renews nothing, regardless of what ends the wait for it and of the
// server's default for synchronous_commit. While the standby is away the replica does not use up
// the connections of the server.
func TestARenewalNeedsTheStandby(t *testing.T) {
	t.Parallel()
	const life = 600 * time.Millisecond
	server := partstest.StartPostgres(t, parts.PostgresConfig{Major: 18, Settings: map[string]string{"max_prepared_transactions": "5"}})
	url := server.URL("postgres")
	f := storetest.SQL{T: t, DB: storetest.Open(t, store.Config{URL: url}).Changes}
	f.Exec(storetest.People...)
	t.Run("two phases", func(t *testing.T) { twoPhases(storetest.SQL{T: t, DB: f.DB}) })
	set := func(statements ...string) {
		f.Exec(append(statements, `SELECT pg_reload_conf()`)...)
		time.Sleep(300 * time.Millisecond)
	}
	connections := func() int64 {
		return f.Number(`SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
			AND (query LIKE '%UPDATE replicas%' OR query LIKE 'INSERT INTO replicas%' OR wait_event = 'SyncRep')`)
	}
	r := storetest.StartReplica(t, storetest.Open(t, store.Config{URL: url}), life)
	r.AwaitLease(t)
	set(`ALTER SYSTEM SET synchronous_standby_names = 'nobody'`)
	partstest.Eventually(t, "the end of the lease", func() bool { return !r.Held() })
	r.NotHeldFor(t, 2*life, "there is no standby")
	cancelled := int64(0)
	cancel := func(d time.Duration) {
		for begun := time.Now(); time.Since(begun) < d; time.Sleep(20 * time.Millisecond) {
			cancelled += f.Number(`SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'SyncRep'`)
			if r.Held() {
				t.Fatal("held after a wait was cancelled")
			}
		}
	}
	cancel(2 * life)
	waiting := connections()
	for _, commit := range []string{"off", "local"} {
		set(`ALTER SYSTEM SET synchronous_commit = '` + commit + `'`)
		r.NotHeldFor(t, life, "synchronous_commit = "+commit)
		cancel(life)
		other := storetest.StartReplica(t, storetest.Open(t, store.Config{URL: url}), life) // with new connections
		other.NotHeldFor(t, life, "a new replica, synchronous_commit = "+commit)
		other.End()
	}
	r.NotHeldFor(t, 3*time.Second, "there is no standby")
	most := connections()
	if most > 5 {
		t.Errorf("%d connections wait on the server", most)
	}
	set(`ALTER SYSTEM RESET synchronous_standby_names`)
	back := r.AwaitLease(t)
	t.Logf("%d waits cancelled, %d renewals failed, %d and then %d connections waited; back after %v", cancelled, r.Bad.Load(), waiting, most, back)
	set(`ALTER SYSTEM RESET synchronous_commit`)
}

// twoPhases shows that PostgreSQL refuses PREPARE TRANSACTION, since we use NOTIFY.
func twoPhases(f storetest.SQL) {
	before := f.Newest()
	conn, err := f.DB.Conn(f.Context())
	if err != nil {
		f.Fatal(err)
	}
	defer conn.Close()
	for _, statement := range []string{`BEGIN`, `UPDATE keys SET revoked_at = 5 WHERE id = 'ka'`} {
		if _, err := conn.ExecContext(f.Context(), statement); err != nil {
			f.Fatal(err)
		}
	}
	_, err = conn.ExecContext(f.Context(), `PREPARE TRANSACTION 'two'`)
	var refused *pq.Error
	if !errors.As(err, &refused) || refused.Code != "0A000" {
		f.Errorf("error %v", err)
	}
	conn.ExecContext(f.Context(), `ROLLBACK`)
	if n := f.Number(`SELECT count(*) FROM keys WHERE id = 'ka' AND revoked_at IS NULL`); n != 1 || len(f.Since(before)) != 0 {
		f.Errorf("%d keys, changes %q", n, f.Since(before))
	}
	f.Logf("PREPARE TRANSACTION: %v", err)
}

// overtake replaces the newest changes of a database by others with the same numbers.
func overtake(f storetest.SQL, n int64) {
	f.Helper()
	newest := f.Newest()
	f.Exec(fmt.Sprintf(`DELETE FROM changes WHERE epoch > %d`, newest-n))
	if _, err := f.DB.Exec(`UPDATE sqlite_sequence SET seq = $1 WHERE name = 'changes'`, newest-n); err != nil {
		f.Exec(fmt.Sprintf(`SELECT setval('changes_epoch', %d)`, newest-n))
	}
	step(f, int(n)+3)
	if f.Newest() <= newest {
		f.Fatal("the numbers were not reached again")
	}
}

// step makes changes.
func step(f storetest.SQL, n int) {
	f.Helper()
	for range n {
		f.Exec(`UPDATE keys SET revoked_at = coalesce(revoked_at, 0) + 1 WHERE id = 'ko'`)
	}
}

// refuses checks that a replica refuses the history, until an operator accepts it.
func refuses(t *testing.T, r *storetest.Replica, f storetest.SQL, db *store.DB) {
	t.Helper()
	partstest.Eventually(t, "a refusal", func() bool { return errors.Is(r.Problem(), lease.ErrRewritten) && !r.Held() })
	step(f, 5)
	partstest.Eventually(t, "the list tells", func() bool { // renewals alone make no replica live
		all, _, err := feed.New(db).Replicas(t.Context())
		return err == nil && len(all) == 1 && !all[0].Live()
	})
	if _, err := db.Changes.Exec(`DELETE FROM replicas`); err != nil { // registering again does not help
		t.Fatal(err)
	}
	r.NotHeldFor(t, 2*r.Life, "the history was rewritten")
	if !strings.Contains(r.Log.String(), "keyporter replicas accept-history") {
		t.Error("the log does not say what to do")
	}
	c, err := feed.New(db).AcceptHistory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	back := r.AwaitLease(t)
	step(f, 5)
	good := r.Good.Load()
	partstest.Eventually(t, "further renewals", func() bool { return r.Good.Load() > good+2 && r.Held() })
	t.Logf("accepted: %+v, back after %v", c.Took.Round(time.Millisecond), back)
}

// An overtaken history is refused, even if its epochs have caught up.
func TestAnOvertakenHistoryIsRefused(t *testing.T) {
	partstest.Slow(t)
	storetest.OnEach(t, func(t *testing.T, url string) {
		db := storetest.Open(t, store.Config{URL: url})
		f := storetest.SQL{T: t, DB: db.Changes}
		f.Exec(storetest.People...)
		r := storetest.StartReplica(t, db, 500*time.Millisecond)
		r.AwaitLease(t)
		step(f, 10)
		partstest.Eventually(t, "the newest change applied", func() bool { return r.Position.Load() == f.Newest() })
		r.Gate.Lock() // or it would see half of it
		overtake(f, 5)
		r.Gate.Unlock()
		refuses(t, r, f, db)
		r.Gate.Lock() // once more: an earlier acceptance does not count
		overtake(f, 5)
		r.Gate.Unlock()
		refuses(t, r, f, db)
	})
}

// An import of any size ends no valid answer: a replica follows more added rows than it would
// follow changes one by one, and only reads again that something does not exist.
func TestAnImportEndsNoAnswer(t *testing.T) {
	partstest.Slow(t)
	storetest.OnEach(t, func(t *testing.T, url string) {
		const rows = 12_000
		db := storetest.Open(t, store.Config{URL: url})
		f := storetest.SQL{T: t, DB: db.Changes}
		f.Exec(storetest.People...)
		r := storetest.StartReplica(t, db, 2*time.Second)
		r.AwaitLease(t)
		applied := func() bool { return r.Position.Load() == f.Newest() }
		partstest.Eventually(t, "the newest change applied", applied)
		ada := r.Read().Stamp(lease.Origin{Epoch: lease.Epoch(f.Newest()), User: "ada", Account: "acme", Plan: "pro"})
		nobody := r.Read().Stamp(lease.Origin{Epoch: lease.Epoch(f.Newest())})
		before := f.Newest()
		if strings.HasPrefix(url, "postgres") {
			f.Exec(`INSERT INTO users SELECT 'u' || i, 'person', 'acme', 'active' FROM generate_series(1, 12000) i`)
		} else {
			f.Exec(`WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 12000)
				INSERT INTO users (name, kind, account, status) SELECT 'u' || i, 'person', 'acme', 'active' FROM n`)
		}
		partstest.Eventually(t, "the import applied", applied)
		if !r.Fresh(&ada) || r.Fresh(&nobody) {
			t.Errorf("after %d new users in %d changes: ada's answer is valid: %t, that of nobody: %t", rows, f.Newest()-before, r.Fresh(&ada), r.Fresh(&nobody))
		}
		f.Exec(`UPDATE users SET status = 'disabled' WHERE name = 'ada'`)
		partstest.Eventually(t, "the change of ada", func() bool { return !r.Fresh(&ada) })
	})
}

// Deleting old changes does not count as a rewritten history: the replica forgets everything, and
// continues.
func TestAPrunedHistoryIsFollowed(t *testing.T) {
	partstest.Slow(t)
	storetest.OnEach(t, func(t *testing.T, url string) {
		db := storetest.Open(t, store.Config{URL: url})
		f := storetest.SQL{T: t, DB: db.Changes}
		f.Exec(storetest.People...)
		r := storetest.StartReplica(t, db, 500*time.Millisecond)
		for name, prune := range map[string]func(){
			"deleted": func() {
				step(f, 8)
				f.Exec(fmt.Sprintf(`DELETE FROM changes WHERE epoch < %d`, f.Newest()-2))
			},
			"tidied": func() {
				newest := f.Newest()
				f.Exec(fmt.Sprintf(`WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 12000)
					INSERT INTO changes (epoch, id, what, made_at) SELECT %d + i, 'x' || i, 'user:u', 0 FROM n`, newest))
				if strings.HasPrefix(url, "postgres") {
					f.Exec(fmt.Sprintf(`SELECT setval('changes_epoch', %d)`, newest+12000))
				}
				if err := feed.New(db).Tidy(t.Context()); err != nil {
					t.Fatal(err)
				}
				if n := f.Number(`SELECT count(*) FROM changes`); n != 10_001 {
					t.Errorf("%d changes are kept", n)
				}
			},
		} {
			r.AwaitLease(t)
			partstest.Eventually(t, "the newest change applied", func() bool { return r.Position.Load() == f.Newest() })
			before := r.Read().Stamp(lease.Origin{Epoch: lease.Epoch(f.Newest()), User: "ada"})
			if !r.Fresh(&before) {
				t.Errorf("%s: what was just read is not fresh", name)
			}
			r.Gate.Lock()
			prune()
			r.Gate.Unlock()
			partstest.Eventually(t, "the newest change applied", func() bool { return r.Position.Load() == f.Newest() })
			r.AwaitLease(t)
			if r.Fresh(&before) || !strings.Contains(r.Log.String(), "too many to follow one by one, or were deleted") {
				t.Errorf("%s: it was not forgotten", name)
			}
			if err := r.Problem(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if _, err := db.Changes.Exec(`DELETE FROM changes`); err != nil {
			t.Fatal(err)
		}
		partstest.Eventually(t, "the end of the lease, without any history", func() bool { return !r.Held() })
	})
}

// A restored copy of a server's data is refused, even if as many changes were made since as before.
func TestARestoredServerIsRefused(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "keyporter-restore-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil { // t.TempDir is closed to the server's user
		t.Fatal(err)
	}
	server := partstest.StartPostgres(t, parts.PostgresConfig{Major: 18, Dir: dir})
	db := storetest.Open(t, store.Config{URL: server.URL("postgres")})
	f := storetest.SQL{T: t, DB: db.Changes}
	f.Exec(storetest.People...)
	r := storetest.StartReplica(t, db, 500*time.Millisecond)
	r.AwaitLease(t)
	data, backup := filepath.Join(dir, "data"), filepath.Join(dir, "backup")
	down := func(do ...string) {
		t.Helper()
		server.Kill()
		if out, err := exec.Command(do[0], do[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if err := server.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		partstest.Eventually(t, "the database", func() bool { return db.Ping(t.Context()) == nil && f.DB.Ping() == nil })
	}
	down("cp", "-a", data, backup)
	step(f, 20)
	partstest.Eventually(t, "the newest change applied", func() bool { return r.Position.Load() == f.Newest() && r.Held() })
	reached := f.Newest()
	r.Gate.Lock()
	down("sh", "-c", "rm -rf '"+data+"' && cp -a '"+backup+"' '"+data+"'")
	restored := f.Newest()
	for f.Newest() < reached+10 {
		step(f, 1)
	}
	r.Gate.Unlock()
	refuses(t, r, f, db)
	t.Logf("the replica stood at %d, the copy at %d, at its return the database at more than %d", reached, restored, reached+9)
}

// Any change is announced within milliseconds.
func TestAnnouncements(t *testing.T) {
	partstest.Slow(t)
	storetest.OnEach(t, func(t *testing.T, url string) {
		const changes = 50
		db := storetest.Open(t, store.Config{URL: url})
		f := storetest.SQL{T: t, DB: db.Changes}
		f.Exec(storetest.People...)
		r := storetest.StartReplica(t, db, time.Minute) // no renewal of its own interferes
		r.AwaitLease(t)
		time.Sleep(300 * time.Millisecond)
		var took []time.Duration
		for range changes {
			step(f, 1)
			begun, epoch := time.Now(), f.Newest()
			for r.Position.Load() < epoch && time.Since(begun) < partstest.Patience {
				if r.Position.Load() < epoch {
					time.Sleep(100 * time.Microsecond)
				}
				if acked := f.Number(`SELECT max(acked) FROM replicas`); acked >= epoch {
					break
				}
			}
			took = append(took, time.Since(begun))
		}
		slices.Sort(took)
		if took[changes/2] > 100*time.Millisecond {
			t.Errorf("the median is %v", took[changes/2])
		}
		if strings.Contains(r.Log.String(), "PgBouncer") {
			t.Error("a warning")
		}
		t.Logf("%d changes; from the commit to its acknowledgment: median %v, slowest %v", changes, took[changes/2].Round(10*time.Microsecond), took[changes-1].Round(10*time.Microsecond))
	})
}

// If announcements do not arrive, the log says so, and the lease is kept.
func TestAnnouncementsThatDoNotArrive(t *testing.T) {
	partstest.Slow(t)
	t.Parallel()
	w, url := storetest.NewWire(t, partstest.Database(t, 18))
	w.Deaf.Store(true)
	db := storetest.Open(t, store.Config{URL: url})
	f := storetest.SQL{T: t, DB: db.Changes}
	f.Exec(storetest.People...)
	r := storetest.StartReplica(t, db, 400*time.Millisecond)
	r.AwaitLease(t)
	took := partstest.Eventually(t, "a warning", func() bool { return strings.Contains(r.Log.String(), "PgBouncer") })
	step(f, 1)
	epoch := f.Newest()
	partstest.Eventually(t, "the change at the next renewal", func() bool { return r.Position.Load() >= epoch })
	if r.Hinted.Load() != 0 {
		t.Error("there was an announcement")
	}
	t.Logf("warned after %v", took)
}

// A file that was replaced or deleted while it is open is no longer trusted, and the log says what
// to do.
func TestAFileThatIsAnotherOne(t *testing.T) {
	t.Parallel()
	for name, replace := range map[string]func(path string) error{
		"replaced": func(path string) error {
			other, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if err := os.WriteFile(path+".new", other, 0o600); err != nil {
				return err
			}
			return os.Rename(path+".new", path)
		},
		"deleted": os.Remove,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := storetest.Databases["SQLite"](t)
			path := strings.TrimPrefix(url, "sqlite://")
			db := storetest.Open(t, store.Config{URL: url})
			r := storetest.StartReplica(t, db, 500*time.Millisecond)
			r.AwaitLease(t)
			if err := replace(path); err != nil {
				t.Fatal(err)
			}
			took := partstest.Eventually(t, "a refusal", func() bool { return errors.Is(r.Problem(), lease.ErrRewritten) && !r.Held() })
			if text := r.Problem().Error(); !strings.Contains(text, "start this process again") || strings.Contains(text, "accept-history") {
				t.Errorf("it does not say what to do, or also what does not help: %v", r.Problem())
			}
			if err := os.WriteFile(path, nil, 0o600); err != nil { // a new file does not help
				t.Fatal(err)
			}
			r.NotHeldFor(t, time.Second, "the file is another one")
			t.Logf("noticed after %v", took)
		})
	}
}

// A copy written over the open database, as by .restore in the sqlite3 shell, is a rewritten
// history.
func TestACopyOverTheOpenDatabase(t *testing.T) {
	partstest.Slow(t)
	t.Parallel()
	url := storetest.Databases["SQLite"](t)
	db := storetest.Open(t, store.Config{URL: url})
	f := storetest.SQL{T: t, DB: db.Changes}
	f.Exec(storetest.People...)
	backup := filepath.Join(t.TempDir(), "backup.db")
	f.Exec(`VACUUM INTO '` + backup + `'`)
	r := storetest.StartReplica(t, db, 500*time.Millisecond)
	r.AwaitLease(t)
	step(f, 10)
	partstest.Eventually(t, "the newest change applied", func() bool { return r.Position.Load() == f.Newest() })
	shell, err := sql.Open("sqlite", strings.TrimPrefix(url, "sqlite://"))
	if err != nil {
		t.Fatal(err)
	}
	defer shell.Close()
	r.Gate.Lock()
	conn, err := shell.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	err = conn.Raw(func(c any) error {
		copying, err := c.(interface {
			NewRestore(source string) (*sqlite.Backup, error)
		}).NewRestore(backup)
		if err != nil {
			return err
		}
		_, err = copying.Step(-1)
		return errors.Join(err, copying.Finish())
	})
	r.Gate.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	refuses(t, r, f, db)
}

// Another process's writes to a SQLite database are noticed at once, even after an idle period.
func TestAnotherProcessIsNoticed(t *testing.T) {
	partstest.Slow(t)
	t.Parallel()
	url := storetest.Databases["SQLite"](t)
	db := storetest.Open(t, store.Config{URL: url})
	(storetest.SQL{T: t, DB: db.Changes}).Exec(storetest.People...)
	r := storetest.StartReplica(t, db, time.Minute)
	r.AwaitLease(t)
	shell, err := sql.Open("sqlite", strings.TrimPrefix(url, "sqlite://")+"?_pragma=busy_timeout(5000)")
	if err != nil {
		t.Fatal(err)
	}
	defer shell.Close()
	other := storetest.SQL{T: t, DB: shell}
	for name, c := range map[string]struct {
		changes int
		pause   time.Duration
	}{"one after the other": {30, 0}, "after a while": {10, 1200 * time.Millisecond}} {
		var took []time.Duration
		for range c.changes {
			time.Sleep(c.pause)
			step(other, 1)
			hints := r.Hints.Load()
			took = append(took, partstest.Eventually(t, "a hint", func() bool {
				return r.Hints.Load() > hints || other.Number(`SELECT max(acked) FROM replicas`) >= other.Newest()
			}))
		}
		slices.Sort(took)
		if median := took[c.changes/2]; median > 100*time.Millisecond { // half of quietInterval would be 250 ms
			t.Errorf("%s: half of them took %v and more", name, median)
		}
		t.Logf("%d changes %s, the slowest was noticed after %v", c.changes, name, took[c.changes-1])
	}
}

// An idle replica sends few messages to its database, over lasting connections.
func TestAnIdleReplicaAsksLittle(t *testing.T) {
	partstest.Slow(t)
	t.Parallel()
	w, url := storetest.NewWire(t, partstest.Database(t, 18))
	r := storetest.StartReplica(t, storetest.Open(t, store.Config{URL: url}), lease.DefaultLife)
	r.AwaitLease(t)
	time.Sleep(2500 * time.Millisecond) // the probe of announcements is over
	const window = 4500 * time.Millisecond
	messages, renewals, before := w.Sent.Load(), r.Good.Load(), w.Connections()
	time.Sleep(window)
	if n := w.Connections() - before; n != 0 {
		// as when nothing is sent on the connection for announcements
		t.Errorf("%d connections were made anew", n)
	}
	messages, renewals = w.Sent.Load()-messages, r.Good.Load()-renewals
	each := float64(messages) / window.Seconds()
	if each > 4 {
		t.Errorf("%.1f messages a second", each)
	}
	t.Logf("an idle replica with a lease of %v: %.1f messages a second, of which %.1f are renewals", lease.DefaultLife, each, float64(renewals)/window.Seconds())
}

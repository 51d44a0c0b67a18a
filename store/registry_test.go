package store_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lib/pq"
	"modernc.org/sqlite"

	"github.com/keyporter/keyporter/internal/parts"
	"github.com/keyporter/keyporter/internal/parts/partstest"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/lease"
)

// replica is a process that answers from memory, with a lease in a real database.
type replica struct {
	*lease.Lease
	life time.Duration
	log  *logBook
	end  func() // stops it and waits

	lease.Registry
	id       atomic.Pointer[string]
	sent     atomic.Int64 // when the last successful renewal was sent
	good     atomic.Int64 // successful renewals
	bad      atomic.Int64 // failed renewals
	hinted   atomic.Int64 // the newest epoch that was announced
	hints    atomic.Int64
	looks    atomic.Int64
	longer   atomic.Int64 // how often the lease was held for longer than its life
	gate     sync.RWMutex // held to silence the replica
	position atomic.Int64
}

func (r *replica) Register(ctx context.Context) (string, error) {
	id, err := r.Registry.Register(ctx)
	if err == nil {
		r.id.Store(&id)
	}
	return id, err
}

func (r *replica) Renew(ctx context.Context, id string, at lease.Position) (lease.News, error) {
	r.gate.RLock()
	defer r.gate.RUnlock()
	r.position.Store(int64(at.Epoch))
	sent := lease.BootClock()
	news, err := r.Registry.Renew(ctx, id, at)
	if err != nil {
		r.bad.Add(1)
		return news, err
	}
	r.sent.Store(int64(sent))
	r.good.Add(1)
	return news, nil
}

func (r *replica) News(ctx context.Context, at lease.Position) (lease.News, error) {
	r.gate.RLock()
	defer r.gate.RUnlock()
	return r.Registry.News(ctx, at)
}

func (r *replica) Ack(ctx context.Context, id string, at lease.Position, durably bool) error {
	r.gate.RLock()
	defer r.gate.RUnlock()
	return r.Registry.Ack(ctx, id, at, durably)
}

// watch checks continuously that the lease is not held for longer than its life, counted from
// before the last renewal was sent.
func (r *replica) watch(ctx context.Context) {
	for ctx.Err() == nil {
		now := lease.BootClock()
		if r.Held() && int64(now) >= r.sent.Load()+int64(r.life) {
			r.longer.Add(1)
		}
		r.looks.Add(1)
		time.Sleep(500 * time.Microsecond)
	}
}

// logBook keeps the log.
type logBook struct {
	mu   sync.Mutex
	text bytes.Buffer // guarded by mu
}

func (l *logBook) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logBook) says(what string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.text.String(), what)
}

// startReplica starts a replica that ends with the test. At its end it reports if its lease was
// ever held for too long.
func startReplica(t *testing.T, db *store.DB, life time.Duration) *replica {
	t.Helper()
	r := &replica{life: life, log: &logBook{}}
	log := slog.New(slog.NewTextHandler(r.log, nil))
	registry, err := db.Registry(store.Replica{Name: "test", Life: life, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	r.Registry = registry
	r.Lease = lease.New(lease.Config{Registry: r, Life: life, Log: log})
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() { r.Run(ctx) })
	all.Go(func() {
		registry.Watch(ctx, func(epoch lease.Epoch) {
			r.hints.Add(1)
			r.hinted.Store(max(r.hinted.Load(), int64(epoch)))
			r.Hint(epoch)
		})
	})
	all.Go(func() { r.watch(ctx) })
	r.end = sync.OnceFunc(func() {
		cancel()
		all.Wait()
		registry.Close()
		if n := r.longer.Load(); n > 0 {
			t.Errorf("the lease was held for longer than its life at %d of %d looks", n, r.looks.Load())
		}
		if t.Failed() {
			t.Logf("the replica said:\n%s", r.log.text.String())
		}
	})
	t.Cleanup(r.end)
	return r
}

// eventually waits for a condition, and returns how long it took.
func eventually(t *testing.T, within time.Duration, what string, ok func() bool) time.Duration {
	t.Helper()
	begun := time.Now()
	for !ok() {
		if time.Since(begun) > within {
			t.Fatalf("not within %v: %s", within, what)
		}
		time.Sleep(time.Millisecond)
	}
	return time.Since(begun).Round(time.Millisecond)
}

// patience is how long a test waits for a short operation, on a busy machine.
const patience = time.Minute

func (r *replica) held(t *testing.T) time.Duration {
	t.Helper()
	return eventually(t, patience, "the lease", r.Held)
}

// notHeldFor checks that the lease is not held for some time.
func (r *replica) notHeldFor(t *testing.T, d time.Duration, why string) {
	t.Helper()
	for begun := time.Now(); time.Since(begun) < d; time.Sleep(time.Millisecond) {
		if r.Held() {
			t.Errorf("the lease is held: %s", why)
			return
		}
	}
}

// A lease is held and renewed; a fenced replica registers again under another name; and a replica
// that ends leaves the list.
func TestALeaseInADatabase(t *testing.T) {
	partstest.Slow(t)
	onEach(t, func(t *testing.T, url string) {
		db := open(t, store.Config{URL: url})
		const life = 3 * time.Second
		r := startReplica(t, db, life)
		first := r.held(t)
		looks, lost := 0, 0
		for begun := time.Now(); time.Since(begun) < life*3/2; time.Sleep(time.Millisecond) {
			looks++
			if !r.Held() {
				lost++
			}
		}
		if lost > 0 || r.good.Load() < 4 {
			t.Errorf("not held at %d of %d looks; %d renewals", lost, looks, r.good.Load())
		}
		id := *r.id.Load()
		if _, err := db.SQL().Exec(`DELETE FROM replicas`); err != nil {
			t.Fatal(err)
		}
		again := eventually(t, patience, "another registration", func() bool { return *r.id.Load() != id })
		r.held(t)
		replicas, newest, err := db.Replicas(t.Context())
		if err != nil || len(replicas) != 1 || replicas[0].ID != *r.id.Load() || replicas[0].Life != life {
			t.Errorf("listed: %+v, %v", replicas, err)
		}
		eventually(t, patience, "everything acknowledged", func() bool {
			replicas, _, err := db.Replicas(t.Context())
			return err == nil && len(replicas) == 1 && replicas[0].Epoch >= newest && replicas[0].Lag == 0
		})
		r.end()
		if replicas, _, err := db.Replicas(t.Context()); err != nil || len(replicas) != 0 || r.Held() {
			t.Errorf("after the end: %+v, %v, held %v", replicas, err, r.Held())
		}
		t.Logf("held after %v; %d looks, not held at %d; fenced: registered again after %v", first, looks, lost, again)
	})
}

// Even if its connections are killed again and again, a replica never answers for longer than its
// lease, and it recovers.
func TestKilledConnections(t *testing.T) {
	partstest.Slow(t)
	onPostgres(t, func(t *testing.T, url string) {
		db := open(t, store.Config{URL: url})
		r := startReplica(t, db, 600*time.Millisecond)
		r.held(t)
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
		back := r.held(t)
		good := r.good.Load()
		eventually(t, patience, "further renewals", func() bool { return r.good.Load() > good+2 })
		t.Logf("%d connections killed; %d renewals failed, %d did not; not held at %d looks; back %v after the last one; too long at %d of %d looks",
			killed, r.bad.Load(), r.good.Load(), lost, back, r.longer.Load(), r.looks.Load())
	})
}

// A link that swallows data in one direction, or in both, is noticed within two renewals; when it
// works again the lease is renewed over another connection.
func TestAHalfOpenLink(t *testing.T) {
	partstest.Slow(t)
	t.Parallel()
	for name, way := range map[string]func(w *wire) *atomic.Bool{
		"nothing arrives there": func(w *wire) *atomic.Bool { return &w.up },
		"nothing comes back":    func(w *wire) *atomic.Bool { return &w.down },
		"neither":               func(w *wire) *atomic.Bool { return &w.mute },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const life = time.Second
			w, url := newWire(t, partstest.Database(t, 18))
			db := open(t, store.Config{URL: url})
			r := startReplica(t, db, life)
			r.held(t)
			mute := way(w)
			mute.Store(true)
			muted, bad := time.Now(), r.bad.Load()
			// It begins at most one renewal later and is given up after two.
			noticed := eventually(t, patience, "a renewal that fails", func() bool { return r.bad.Load() > bad })
			if limit := 3*lease.Period(life) + 3*time.Second; noticed > limit {
				t.Errorf("noticed after %v, want %v", noticed, limit)
			}
			eventually(t, patience, "the end of the lease", func() bool { return !r.Held() })
			lost := time.Since(muted).Round(time.Millisecond)
			r.notHeldFor(t, life, "the link is dead")
			mute.Store(false)
			back := r.held(t)
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
	f := feed{t, open(t, store.Config{URL: direct}).SQL()}
	f.exec(people...)
	w, url := newWire(t, direct)
	r := startReplica(t, open(t, store.Config{URL: url}), life)
	r.held(t)
	announced := func() time.Duration {
		f.exec(`UPDATE keys SET revoked_at = coalesce(revoked_at, 0) + 1 WHERE id = 'ko'`)
		epoch := f.newest()
		return eventually(t, patience, "an announcement", func() bool { return r.hinted.Load() >= epoch })
	}
	eventually(t, patience, "the connection for announcements", func() bool { return r.hints.Load() > 0 })
	announced()
	w.mute.Store(true)
	time.Sleep(2 * life) // both connections are given up in that time
	f.exec(`UPDATE keys SET revoked_at = 77 WHERE id = 'ko'`)
	hints := r.hints.Load()
	w.mute.Store(false)
	again := eventually(t, patience, "a hint that something may have been missed", func() bool { return r.hints.Load() > hints })
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
	f := feed{t, open(t, store.Config{URL: url}).SQL()}
	f.exec(people...)
	t.Run("two phases", func(t *testing.T) { twoPhases(feed{t, f.db}) })
	set := func(statements ...string) {
		f.exec(append(statements, `SELECT pg_reload_conf()`)...)
		time.Sleep(300 * time.Millisecond)
	}
	connections := func() int64 {
		return f.number(`SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
			AND (query LIKE '%UPDATE replicas%' OR query LIKE 'INSERT INTO replicas%' OR wait_event = 'SyncRep')`)
	}
	r := startReplica(t, open(t, store.Config{URL: url}), life)
	r.held(t)
	set(`ALTER SYSTEM SET synchronous_standby_names = 'nobody'`)
	eventually(t, patience, "the end of the lease", func() bool { return !r.Held() })
	r.notHeldFor(t, 2*life, "there is no standby")
	cancelled := int64(0)
	cancel := func(d time.Duration) {
		for begun := time.Now(); time.Since(begun) < d; time.Sleep(20 * time.Millisecond) {
			cancelled += f.number(`SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'SyncRep'`)
			if r.Held() {
				t.Fatal("held after a wait was cancelled")
			}
		}
	}
	cancel(2 * life)
	waiting := connections()
	for _, commit := range []string{"off", "local"} {
		set(`ALTER SYSTEM SET synchronous_commit = '` + commit + `'`)
		r.notHeldFor(t, life, "synchronous_commit = "+commit)
		cancel(life)
		other := startReplica(t, open(t, store.Config{URL: url}), life) // with new connections
		other.notHeldFor(t, life, "a new replica, synchronous_commit = "+commit)
		other.end()
	}
	r.notHeldFor(t, 3*time.Second, "there is no standby")
	most := connections()
	if most > 5 {
		t.Errorf("%d connections wait on the server", most)
	}
	set(`ALTER SYSTEM RESET synchronous_standby_names`)
	back := r.held(t)
	t.Logf("%d waits cancelled, %d renewals failed, %d and then %d connections waited; back after %v", cancelled, r.bad.Load(), waiting, most, back)
	set(`ALTER SYSTEM RESET synchronous_commit`)
}

// twoPhases shows that PostgreSQL refuses PREPARE TRANSACTION, since we use NOTIFY.
func twoPhases(f feed) {
	before := f.newest()
	conn, err := f.db.Conn(f.Context())
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
	if n := f.number(`SELECT count(*) FROM keys WHERE id = 'ka' AND revoked_at IS NULL`); n != 1 || len(f.since(before)) != 0 {
		f.Errorf("%d keys, changes %q", n, f.since(before))
	}
	f.Logf("PREPARE TRANSACTION: %v", err)
}

// overtake replaces the newest changes of a database by others with the same numbers.
func (f feed) overtake(n int64) {
	f.Helper()
	newest := f.newest()
	f.exec(fmt.Sprintf(`DELETE FROM changes WHERE epoch > %d`, newest-n))
	if _, err := f.db.Exec(`UPDATE sqlite_sequence SET seq = $1 WHERE name = 'changes'`, newest-n); err != nil {
		f.exec(fmt.Sprintf(`SELECT setval('changes_epoch', %d)`, newest-n))
	}
	f.step(int(n) + 3)
	if f.newest() <= newest {
		f.Fatal("the numbers were not reached again")
	}
}

// step makes changes.
func (f feed) step(n int) {
	f.Helper()
	for range n {
		f.exec(`UPDATE keys SET revoked_at = coalesce(revoked_at, 0) + 1 WHERE id = 'ko'`)
	}
}

// refuses checks that a replica refuses the history, until an operator accepts it.
func (r *replica) refuses(t *testing.T, f feed, db *store.DB) {
	t.Helper()
	eventually(t, patience, "a refusal", func() bool { return errors.Is(r.Problem(), lease.ErrRewritten) && !r.Held() })
	f.step(5)
	eventually(t, patience, "the list tells", func() bool { // renewals alone make no replica live
		all, _, err := db.Replicas(t.Context())
		return err == nil && len(all) == 1 && !all[0].Live()
	})
	if _, err := db.SQL().Exec(`DELETE FROM replicas`); err != nil { // registering again does not help
		t.Fatal(err)
	}
	r.notHeldFor(t, 2*r.life, "the history was rewritten")
	if !r.log.says("keyporter replicas accept-history") {
		t.Error("the log does not say what to do")
	}
	c, err := db.AcceptHistory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	back := r.held(t)
	f.step(5)
	good := r.good.Load()
	eventually(t, patience, "further renewals", func() bool { return r.good.Load() > good+2 && r.Held() })
	t.Logf("accepted: %+v, back after %v", c.Took.Round(time.Millisecond), back)
}

// An overtaken history is refused, even if its epochs have caught up.
func TestAnOvertakenHistoryIsRefused(t *testing.T) {
	partstest.Slow(t)
	onEach(t, func(t *testing.T, url string) {
		db := open(t, store.Config{URL: url})
		f := feed{t, db.SQL()}
		f.exec(people...)
		r := startReplica(t, db, 500*time.Millisecond)
		r.held(t)
		f.step(10)
		eventually(t, patience, "the newest change applied", func() bool { return r.position.Load() == f.newest() })
		r.gate.Lock() // or it would see half of it
		f.overtake(5)
		r.gate.Unlock()
		r.refuses(t, f, db)
		r.gate.Lock() // once more: an earlier acceptance does not count
		f.overtake(5)
		r.gate.Unlock()
		r.refuses(t, f, db)
	})
}

// Deleting old changes does not count as a rewritten history: the replica forgets everything, and
// continues.
func TestAPrunedHistoryIsFollowed(t *testing.T) {
	partstest.Slow(t)
	onEach(t, func(t *testing.T, url string) {
		db := open(t, store.Config{URL: url})
		f := feed{t, db.SQL()}
		f.exec(people...)
		r := startReplica(t, db, 500*time.Millisecond)
		for name, prune := range map[string]func(){
			"deleted": func() {
				f.step(8)
				f.exec(fmt.Sprintf(`DELETE FROM changes WHERE epoch < %d`, f.newest()-2))
			},
			"tidied": func() {
				newest := f.newest()
				f.exec(fmt.Sprintf(`WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 12000)
					INSERT INTO changes (epoch, id, what, made_at) SELECT %d + i, 'x' || i, 'user:u', 0 FROM n`, newest))
				if strings.HasPrefix(url, "postgres") {
					f.exec(fmt.Sprintf(`SELECT setval('changes_epoch', %d)`, newest+12000))
				}
				if err := db.Tidy(t.Context()); err != nil {
					t.Fatal(err)
				}
				if n := f.number(`SELECT count(*) FROM changes`); n != 10_001 {
					t.Errorf("%d changes are kept", n)
				}
			},
		} {
			r.held(t)
			eventually(t, patience, "the newest change applied", func() bool { return r.position.Load() == f.newest() })
			before := r.Read().Stamp(lease.Origin{Epoch: lease.Epoch(f.newest()), User: "ada"})
			if !r.Fresh(&before) {
				t.Errorf("%s: what was just read is not fresh", name)
			}
			r.gate.Lock()
			prune()
			r.gate.Unlock()
			eventually(t, patience, "the newest change applied", func() bool { return r.position.Load() == f.newest() })
			r.held(t)
			if r.Fresh(&before) || !r.log.says("too many to follow one by one, or were deleted") {
				t.Errorf("%s: it was not forgotten", name)
			}
			if err := r.Problem(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if _, err := db.SQL().Exec(`DELETE FROM changes`); err != nil {
			t.Fatal(err)
		}
		eventually(t, patience, "the end of the lease, without any history", func() bool { return !r.Held() })
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
	db := open(t, store.Config{URL: server.URL("postgres")})
	f := feed{t, db.SQL()}
	f.exec(people...)
	r := startReplica(t, db, 500*time.Millisecond)
	r.held(t)
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
		eventually(t, patience, "the database", func() bool { return db.Ping(t.Context()) == nil && f.db.Ping() == nil })
	}
	down("cp", "-a", data, backup)
	f.step(20)
	eventually(t, patience, "the newest change applied", func() bool { return r.position.Load() == f.newest() && r.Held() })
	reached := f.newest()
	r.gate.Lock()
	down("sh", "-c", "rm -rf '"+data+"' && cp -a '"+backup+"' '"+data+"'")
	restored := f.newest()
	for f.newest() < reached+10 {
		f.step(1)
	}
	r.gate.Unlock()
	r.refuses(t, f, db)
	t.Logf("the replica stood at %d, the copy at %d, at its return the database at more than %d", reached, restored, reached+9)
}

// Any change is announced within milliseconds.
func TestAnnouncements(t *testing.T) {
	partstest.Slow(t)
	onEach(t, func(t *testing.T, url string) {
		const changes = 50
		db := open(t, store.Config{URL: url})
		f := feed{t, db.SQL()}
		f.exec(people...)
		r := startReplica(t, db, time.Minute) // no renewal of its own interferes
		r.held(t)
		time.Sleep(300 * time.Millisecond)
		var took []time.Duration
		for range changes {
			f.step(1)
			begun, epoch := time.Now(), f.newest()
			for r.position.Load() < epoch && time.Since(begun) < patience {
				if r.position.Load() < epoch {
					time.Sleep(100 * time.Microsecond)
				}
				if acked := f.number(`SELECT max(acked) FROM replicas`); acked >= epoch {
					break
				}
			}
			took = append(took, time.Since(begun))
		}
		slices.Sort(took)
		if took[changes/2] > 100*time.Millisecond {
			t.Errorf("the median is %v", took[changes/2])
		}
		if r.log.says("PgBouncer") {
			t.Error("a warning")
		}
		t.Logf("%d changes; from the commit to its acknowledgment: median %v, slowest %v", changes, took[changes/2].Round(10*time.Microsecond), took[changes-1].Round(10*time.Microsecond))
	})
}

// If announcements do not arrive, the log says so, and the lease is kept.
func TestAnnouncementsThatDoNotArrive(t *testing.T) {
	partstest.Slow(t)
	t.Parallel()
	w, url := newWire(t, partstest.Database(t, 18))
	w.deaf.Store(true)
	db := open(t, store.Config{URL: url})
	f := feed{t, db.SQL()}
	f.exec(people...)
	r := startReplica(t, db, 400*time.Millisecond)
	r.held(t)
	took := eventually(t, patience, "a warning", func() bool { return r.log.says("PgBouncer") })
	f.step(1)
	epoch := f.newest()
	eventually(t, patience, "the change at the next renewal", func() bool { return r.position.Load() >= epoch })
	if r.hinted.Load() != 0 {
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
			url := databases["SQLite"](t)
			path := strings.TrimPrefix(url, "sqlite://")
			db := open(t, store.Config{URL: url})
			r := startReplica(t, db, 500*time.Millisecond)
			r.held(t)
			if err := replace(path); err != nil {
				t.Fatal(err)
			}
			took := eventually(t, patience, "a refusal", func() bool { return errors.Is(r.Problem(), lease.ErrRewritten) && !r.Held() })
			if text := r.Problem().Error(); !strings.Contains(text, "start this process again") || strings.Contains(text, "accept-history") {
				t.Errorf("it does not say what to do, or also what does not help: %v", r.Problem())
			}
			if err := os.WriteFile(path, nil, 0o600); err != nil { // a new file does not help
				t.Fatal(err)
			}
			r.notHeldFor(t, time.Second, "the file is another one")
			t.Logf("noticed after %v", took)
		})
	}
}

// A copy written over the open database, as by .restore in the sqlite3 shell, is a rewritten
// history.
func TestACopyOverTheOpenDatabase(t *testing.T) {
	partstest.Slow(t)
	t.Parallel()
	url := databases["SQLite"](t)
	db := open(t, store.Config{URL: url})
	f := feed{t, db.SQL()}
	f.exec(people...)
	backup := filepath.Join(t.TempDir(), "backup.db")
	f.exec(`VACUUM INTO '` + backup + `'`)
	r := startReplica(t, db, 500*time.Millisecond)
	r.held(t)
	f.step(10)
	eventually(t, patience, "the newest change applied", func() bool { return r.position.Load() == f.newest() })
	shell, err := sql.Open("sqlite", strings.TrimPrefix(url, "sqlite://"))
	if err != nil {
		t.Fatal(err)
	}
	defer shell.Close()
	r.gate.Lock()
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
	r.gate.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	r.refuses(t, f, db)
}

// Another process's writes to a SQLite database are noticed at once, even after an idle period.
func TestAnotherProcessIsNoticed(t *testing.T) {
	partstest.Slow(t)
	t.Parallel()
	url := databases["SQLite"](t)
	db := open(t, store.Config{URL: url})
	(feed{t, db.SQL()}).exec(people...)
	r := startReplica(t, db, time.Minute)
	r.held(t)
	shell, err := sql.Open("sqlite", strings.TrimPrefix(url, "sqlite://")+"?_pragma=busy_timeout(5000)")
	if err != nil {
		t.Fatal(err)
	}
	defer shell.Close()
	other := feed{t, shell}
	for name, c := range map[string]struct {
		changes int
		pause   time.Duration
	}{"one after the other": {30, 0}, "after a while": {10, 1200 * time.Millisecond}} {
		var took []time.Duration
		for range c.changes {
			time.Sleep(c.pause)
			other.step(1)
			hints := r.hints.Load()
			took = append(took, eventually(t, patience, "a hint", func() bool {
				return r.hints.Load() > hints || other.number(`SELECT max(acked) FROM replicas`) >= other.newest()
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
	w, url := newWire(t, partstest.Database(t, 18))
	r := startReplica(t, open(t, store.Config{URL: url}), lease.DefaultLife)
	r.held(t)
	time.Sleep(2500 * time.Millisecond) // the probe of announcements is over
	const window = 4500 * time.Millisecond
	connections := func() int {
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.conns)
	}
	messages, renewals, before := w.sent.Load(), r.good.Load(), connections()
	time.Sleep(window)
	if n := connections() - before; n != 0 {
		// as when nothing is sent on the connection for announcements
		t.Errorf("%d connections were made anew", n/2)
	}
	messages, renewals = w.sent.Load()-messages, r.good.Load()-renewals
	each := float64(messages) / window.Seconds()
	if each > 4 {
		t.Errorf("%.1f messages a second", each)
	}
	t.Logf("an idle replica with a lease of %v: %.1f messages a second, of which %.1f are renewals", lease.DefaultLife, each, float64(renewals)/window.Seconds())
}

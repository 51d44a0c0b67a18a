package feed_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/keyporter/keyporter/internal/parts"
	"github.com/keyporter/keyporter/internal/parts/partstest"
	"github.com/keyporter/keyporter/internal/storetest"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
	"github.com/keyporter/keyporter/store/feed"
)

// Moving the database by logical replication leaves its sequences behind. Epochs still continue
// above the newest one, and no change is refused because of that.
func TestEpochsGoOnWhereTheSequenceIsBehind(t *testing.T) {
	partstest.Slow(t)
	for name, pruned := range map[string]bool{"all changes kept": false, "old changes pruned": true} {
		t.Run(name, func(t *testing.T) {
			db := storetest.Open(t, store.Config{URL: partstest.Database(t, 18)})
			keys := storetest.Format(t)
			storetest.WithAda(t, db)
			_, old, err := directory.NewKeys(db).CreateKey(t.Context(), "ada", keys)
			if err != nil {
				t.Fatal(err)
			}
			f := storetest.SQL{T: t, DB: db.Changes}
			if pruned {
				f.Exec(`SELECT setval('changes_epoch', 20000)`, `UPDATE plans SET credits = 5`)
				if err := feed.New(db).Tidy(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			r := storetest.StartReplica(t, db, time.Second)
			r.AwaitLease(t)
			reading := r.Read()
			_, origin, err := directory.NewLookups(db).ResolveKey(t.Context(), old.Digest())
			if err != nil {
				t.Fatal(err)
			}
			stamp := reading.Stamp(origin)
			f.Exec(`SELECT setval('changes_epoch', 1)`)
			if _, _, c, err := directory.NewKeys(db).RegenerateKey(t.Context(), "ada", keys, directory.Rate{}, ""); err != nil || c.Acknowledged != 1 {
				t.Errorf("regenerating: %+v, %v", c, err)
			}
			if r.Held() && r.Fresh(&stamp) {
				t.Error("it was confirmed, and the old key is still answered from memory")
			}
		})
	}
}

// A role that suppresses warnings does not hide that a commit has no standby: it is no success, and
// no lease rests on it.
func TestWarningsThatNobodyWantsAreHeard(t *testing.T) {
	partstest.Slow(t)
	server := partstest.StartPostgres(t, parts.PostgresConfig{Major: 18})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	exec := func(statements ...string) {
		for _, statement := range statements {
			if _, err := server.SQL(ctx, "postgres", statement); err != nil {
				t.Error(err)
			}
		}
	}
	exec(`ALTER DATABASE postgres SET client_min_messages = error`)
	db := storetest.Open(t, store.Config{URL: server.URL("postgres")})
	r := storetest.StartReplica(t, db, 600*time.Millisecond)
	r.AwaitLease(t)
	exec(`ALTER SYSTEM SET synchronous_standby_names = 'nobody'`, `SELECT pg_reload_conf()`)
	partstest.Eventually(t, "the lease is lost", func() bool { return !r.Held() })
	var all sync.WaitGroup
	stop, end := context.WithCancel(ctx)
	defer all.Wait()
	defer end()
	all.Go(func() {
		for stop.Err() == nil {
			exec(`SET synchronous_commit = local; SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'`)
			time.Sleep(100 * time.Millisecond)
		}
	})
	if _, c, err := directory.New(db).SetPlan(ctx, "pro", directory.PlanChange{}, ""); err == nil || r.Held() {
		t.Errorf("without a standby: %+v, %v; lease held: %v", c, err, r.Held())
	}
	end()
	all.Wait()
	exec(`ALTER SYSTEM RESET synchronous_standby_names`, `SELECT pg_reload_conf()`)
}

// Behind a pooler in transaction mode, transactions run in sessions without our settings. A
// confirmed change survives a crash of the server nevertheless, even if the server's default allows
// its loss.
func TestAConfirmedChangeOutlivesACrashBehindAPooler(t *testing.T) {
	server := partstest.StartPostgres(t, parts.PostgresConfig{Major: 18, Settings: map[string]string{"synchronous_commit": "off"}})
	db := storetest.Open(t, store.Config{URL: server.URL("postgres")})
	keys := storetest.Format(t)
	storetest.WithAda(t, db)
	if _, _, err := directory.NewKeys(db).CreateKey(t.Context(), "ada", keys); err != nil {
		t.Fatal(err)
	}
	var all []*sql.Conn
	for range 4 {
		conn, err := db.Changes.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, conn)
	}
	for _, conn := range all {
		if _, err := conn.ExecContext(t.Context(), `RESET synchronous_commit`); err != nil {
			t.Fatal(err)
		}
		conn.Close()
	}
	_, fresh, _, err := directory.NewKeys(db).RegenerateKey(t.Context(), "ada", keys, directory.Rate{}, "")
	if err != nil {
		t.Fatal(err)
	}
	server.Kill()
	<-server.Done()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := server.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err = directory.NewLookups(db).FindKey(ctx, fresh.Digest()); err != nil {
		t.Error("a confirmed regeneration is gone: ", err)
	}
}

// A process does not confirm changes in a file that was replaced.
func TestAChangeOfAFileThatWasReplacedIsNotConfirmed(t *testing.T) {
	url := storetest.Databases["SQLite"](t)
	path := strings.TrimPrefix(url, "sqlite://")
	db := storetest.Open(t, store.Config{URL: url})
	keys := storetest.Format(t)
	storetest.WithAda(t, db)
	if _, _, err := directory.NewKeys(db).CreateKey(t.Context(), "ada", keys); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Changes.Exec(`VACUUM INTO '` + path + `.new'`); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	_, fresh, c, err := directory.NewKeys(db).RegenerateKey(t.Context(), "ada", keys, directory.Rate{}, "")
	if !errors.Is(err, store.ErrDatabase) {
		t.Errorf("regenerated %+v, %v", c, err)
	}
	if _, err := directory.NewLookups(storetest.Open(t, store.Config{URL: url})).FindKey(t.Context(), fresh.Digest()); err == nil {
		t.Error("the key is in the new file")
	}
}

// Any client that may connect can receive and repeat the probe that a replica sends at its start.
func TestAnAnnouncementThatIsRepeatedDoesNoHarm(t *testing.T) {
	url := partstest.Database(t, 18)
	db := storetest.Open(t, store.Config{URL: url})
	l := pq.NewListener(url, time.Second, time.Second, nil)
	defer l.Close()
	if err := l.Listen("keyporter"); err != nil {
		t.Fatal(err)
	}
	repeated := make(chan error, 1)
	go func() {
		for n := range l.Notify {
			if n != nil && strings.HasPrefix(n.Extra, "probe ") {
				_, err := db.Changes.Exec(`SELECT pg_notify('keyporter', $1), pg_notify('keyporter', '-1'), pg_notify('keyporter', '9223372036854775807')`, n.Extra)
				repeated <- err
				return
			}
		}
	}()
	r := storetest.StartReplica(t, db, time.Second)
	r.AwaitLease(t)
	if err := <-repeated; err != nil {
		t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond) // a panic ends the test
	r.AwaitLease(t)
}

// If the first server of the URL is a standby, announcements are received from the primary.
func TestAnnouncementsComeFromThePrimary(t *testing.T) {
	primary, standby := partstest.StartPostgres(t, parts.PostgresConfig{Major: 18}), partstest.StartPostgres(t, parts.PostgresConfig{Major: 18})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	data, err := standby.SQL(ctx, "postgres", `SHOW data_directory`)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(strings.TrimSpace(data), "standby.signal"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := standby.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	db := storetest.Open(t, store.Config{URL: fmt.Sprintf("postgres://postgres@/postgres?sslmode=disable&host=127.0.0.1,127.0.0.1&port=%d,%d", standby.Port(), primary.Port())})
	storetest.SQL{T: t, DB: db.Changes}.Exec(storetest.People...)
	r := storetest.StartReplica(t, db, 4*time.Second)
	r.AwaitLease(t)
	partstest.Eventually(t, "an announcement is heard", func() bool {
		if _, err := feed.New(db).RollCall(ctx); err != nil {
			t.Fatal(err)
		}
		return r.Hinted.Load() > 0
	})
}

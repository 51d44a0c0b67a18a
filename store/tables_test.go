package store_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/internal/parts/partstest"
	"github.com/keyporter/keyporter/internal/storetest"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
	"github.com/keyporter/keyporter/store/feed"
	"github.com/keyporter/keyporter/store/lease"
)

// A sealed copy is kept only while a seal key is set up and the key is live.
func TestTheSealedCopyDiesWithItsKey(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		db := storetest.Open(t, store.Config{URL: url})
		storetest.WithAda(t, db)
		sealed := func(id string) []byte {
			var b []byte
			if err := db.Changes.QueryRow(`SELECT sealed FROM keys WHERE id = $1`, id).Scan(&b); err != nil {
				t.Fatal(err)
			}
			return b
		}
		without, _, err := directory.NewKeys(db).CreateKey(t.Context(), "ada", storetest.Format(t))
		if err != nil || sealed(without.ID) != nil {
			t.Fatalf("sealed without a seal key: %v %v", sealed(without.ID), err)
		}
		private, err := apikey.NewSealKey()
		if err != nil {
			t.Fatal(err)
		}
		if err := directory.NewKeys(db).SetSealKey(t.Context(), private.Public()); err != nil {
			t.Fatal(err)
		}
		first, token, _, err := directory.NewKeys(db).RegenerateKey(t.Context(), "ada", storetest.Format(t), directory.Rate{}, "")
		if err != nil {
			t.Fatal(err)
		}
		if opened, err := private.Unseal(sealed(first.ID), first.ID); err != nil || opened.Reveal() != token.Reveal() {
			t.Errorf("the sealed copy does not open: %v", err)
		}
		second, _, _, err := directory.NewKeys(db).RegenerateKey(t.Context(), "ada", storetest.Format(t), directory.Rate{}, "")
		if err != nil || sealed(first.ID) != nil || sealed(second.ID) == nil {
			t.Errorf("after regenerate: old %v, new %v, %v", sealed(first.ID), sealed(second.ID) != nil, err)
		}
		if _, _, err := directory.NewKeys(db).RevokeKey(t.Context(), "ada", ""); err != nil || sealed(second.ID) != nil {
			t.Errorf("after revoke: %v %v", sealed(second.ID), err)
		}
	})
}

// The database itself rejects invalid rows from any writer.
func TestTheTablesRefuseWhatMustNotBe(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		db := storetest.Open(t, store.Config{URL: url})
		storetest.WithAda(t, db)
		if _, _, err := directory.NewKeys(db).CreateKey(t.Context(), "ada", storetest.Format(t)); err != nil {
			t.Fatal(err)
		}
		d := bytes.Repeat([]byte{1}, 32)
		for _, try := range []struct {
			what, statement string
			args            []any
		}{
			{"a second live key", `INSERT INTO keys (id, user_name, digest, created_at) VALUES ('k', 'ada', $1, 0)`, []any{d}},
			{"a sealed ended key", `INSERT INTO keys (id, user_name, digest, sealed, created_at, revoked_at) VALUES ('k', 'ada', $1, $1, 0, 0)`, []any{d}},
			{"a short digest", `INSERT INTO keys (id, user_name, digest, created_at, revoked_at) VALUES ('k', 'ada', $1, 0, 0)`, []any{d[:31]}},
			{"a key of nobody", `INSERT INTO keys (id, user_name, digest, created_at) VALUES ('k', 'eve', $1, 0)`, []any{d}},
			{"a plan in use deleted", `DELETE FROM plans WHERE name = 'pro'`, nil},
			{"a user with keys deleted", `DELETE FROM users WHERE name = 'ada'`, nil},
			{"no name", `INSERT INTO users (name, kind, account, status) VALUES (NULL, 'person', 'acme', 'active')`, nil},
			{"a name with a blank", `INSERT INTO users (name, kind, account, status) VALUES ('a b', 'person', 'acme', 'active')`, nil},
			{"a name with a line end", `INSERT INTO users (name, kind, account, status) VALUES ($1, 'person', 'acme', 'active')`, []any{"a\n"}},
			{"a name that begins with a dot", `INSERT INTO users (name, kind, account, status) VALUES ('.a', 'person', 'acme', 'active')`, nil},
			{"a name of 129", `INSERT INTO users (name, kind, account, status) VALUES ($1, 'person', 'acme', 'active')`, []any{strings.Repeat("a", 129)}},
			{"a letter beyond ASCII", `INSERT INTO users (name, kind, account, status) VALUES ('é', 'person', 'acme', 'active')`, nil},
		} {
			if _, err := db.Changes.Exec(try.statement, try.args...); err == nil {
				t.Errorf("%s was taken", try.what)
			}
		}
	})
}

// Eight concurrent migrations of the same empty database all succeed, with one tag secret.
func TestMigratingAtOnce(t *testing.T) {
	partstest.Slow(t)
	storetest.OnEachEmpty(t, func(t *testing.T, url string) {
		var all sync.WaitGroup
		begun := time.Now()
		for range 8 {
			all.Go(func() {
				db, err := store.Open(t.Context(), store.Config{URL: url, Create: true, Migrate: true})
				if err != nil {
					t.Error(err)
					return
				}
				db.Close()
			})
		}
		all.Wait()
		t.Logf("eight took %v", time.Since(begun))
		db := storetest.Open(t, store.Config{URL: url})
		if secrets, err := directory.NewKeys(db).TagSecrets(t.Context()); err != nil || len(secrets) != 1 {
			t.Errorf("%d secrets, %v", len(secrets), err)
		}
	})
}

// Open waits for a new file in use by another process, although SQLite itself does not wait for a
// change of the journal mode.
func TestAFileThatIsLockedIsWaitedFor(t *testing.T) {
	t.Parallel()
	url := storetest.Databases["SQLite"](t)
	// The commit waits for readers.
	other, err := sql.Open("sqlite", strings.TrimPrefix(url, "sqlite://")+"?_pragma=busy_timeout(10000)")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	tx, err := other.Begin()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(`CREATE TABLE theirs (name TEXT)`); err != nil {
		t.Fatal(err)
	}
	var committing sync.WaitGroup
	defer committing.Wait()
	committing.Go(func() {
		time.Sleep(300 * time.Millisecond)
		if err := tx.Commit(); err != nil {
			t.Error(err)
		}
	})
	db, err := store.Open(t.Context(), store.Config{URL: url, Migrate: true})
	if err != nil {
		t.Fatal(err)
	}
	db.Close()
}

// A schema newer than the program is refused, and left unchanged.
func TestASchemaTooNew(t *testing.T) {
	partstest.Slow(t)
	storetest.OnEach(t, func(t *testing.T, url string) {
		db := storetest.Open(t, store.Config{URL: url})
		if _, err := db.Changes.Exec(`INSERT INTO keyporter_schema (version_id, is_applied) VALUES (999, TRUE)`); err != nil {
			t.Fatal(err)
		}
		for _, migrate := range []bool{false, true} {
			_, err := store.Open(t.Context(), store.Config{URL: url, Migrate: migrate})
			if !errors.Is(err, store.ErrSchemaTooNew) || !strings.Contains(err.Error(), "999") {
				t.Errorf("migrate=%v: %v", migrate, err)
			}
		}
	})
}

// Only Create creates a file, which only its owner may read; and the error names the path.
func TestOnlyCreateMakesAFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "odd %20 name?#.db")
	_, err := store.Open(t.Context(), store.Config{URL: "sqlite://" + path})
	if err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("error %v", err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("there is a file: %v", err)
	}
	storetest.Open(t, store.Config{URL: "sqlite://" + path})
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
}

// onceCommitted returns a context that ends soon after the next change is committed, however long
// that takes on a busy machine, or after the patience for a call that changes nothing.
func onceCommitted(t testing.TB, db *store.DB, patience time.Duration) (context.Context, func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	newest := func() (epoch int64) {
		if err := db.Changes.QueryRowContext(ctx, `SELECT coalesce(max(epoch), 0) FROM changes`).Scan(&epoch); err != nil && ctx.Err() == nil {
			t.Error(err)
		}
		return epoch
	}
	before := newest()
	go func() {
		defer cancel()
		for ctx.Err() == nil && newest() == before {
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(100 * time.Millisecond)
	}()
	return ctx, cancel
}

// Changes that affect decisions wait for the replicas; a wait that is cut short is reported with a
// valid result. The replica here has a lease of an hour and acknowledges nothing, so only a context
// can end the wait.
func TestWhatTakesAwayWaits(t *testing.T) {
	partstest.Slow(t)
	storetest.OnEach(t, func(t *testing.T, url string) {
		quick := storetest.Open(t, store.Config{URL: url})
		storetest.WithAda(t, quick)
		if _, _, err := directory.New(quick).SetPlan(t.Context(), "free", directory.PlanChange{}, ""); err != nil {
			t.Fatal(err)
		}
		db, f := quick, storetest.Format(t)
		if _, _, err := directory.NewKeys(db).CreateKey(t.Context(), "ada", f); err != nil {
			t.Fatal(err)
		}
		registry, err := feed.NewRegistry(db, feed.Replica{Life: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { registry.Close() })
		if _, err := registry.Register(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, _, err := directory.NewSessions(db).CreateSession(t.Context(), "ada", time.Hour, f); err != nil {
			t.Fatal(err)
		}
		var fresh apikey.Token
		for _, take := range []struct {
			what string
			call func(ctx context.Context) error
		}{
			{"regenerate", func(ctx context.Context) (err error) {
				_, fresh, _, err = directory.NewKeys(db).RegenerateKey(ctx, "ada", f, directory.Rate{}, "")
				return err
			}},
			{"the same plan again", func(ctx context.Context) error {
				_, _, err := directory.New(db).SetPlan(ctx, "pro", directory.PlanChange{}, "")
				return err
			}},
			{"plan", func(ctx context.Context) error {
				_, _, err := directory.New(db).SetPlan(ctx, "pro", directory.PlanChange{APIAccess: new(false)}, "")
				return err
			}},
			{"account", func(ctx context.Context) error {
				_, _, err := directory.New(db).SetAccount(ctx, "acme", directory.AccountChange{Status: new("suspended")}, "")
				return err
			}},
			{"user", func(ctx context.Context) error {
				_, _, err := directory.New(db).SetUser(ctx, "ada", directory.UserChange{Status: new("disabled")}, "")
				return err
			}},
			{"sessions", func(ctx context.Context) error {
				_, _, err := directory.NewSessions(db).RevokeSessions(ctx, "ada", "")
				return err
			}},
			{"revoke", func(ctx context.Context) error {
				_, _, err := directory.NewKeys(db).RevokeKey(ctx, "ada", "")
				return err
			}},
			{"delete user", func(ctx context.Context) error { _, err := directory.New(db).DeleteUser(ctx, "ada", ""); return err }},
			{"delete account", func(ctx context.Context) error {
				_, err := directory.New(db).DeleteAccount(ctx, "acme", "")
				return err
			}},
			{"delete plan", func(ctx context.Context) error { _, err := directory.New(db).DeletePlan(ctx, "pro", ""); return err }},
		} {
			patience := time.Minute
			if take.what == "the same plan again" {
				patience = 5 * time.Second
			}
			ctx, cancel := onceCommitted(t, db, patience)
			if err := take.call(ctx); !errors.Is(err, lease.ErrUnconfirmed) {
				t.Errorf("%s: %v", take.what, err)
			}
			cancel()
			if take.what == "regenerate" {
				if p, err := directory.NewLookups(db).FindKey(t.Context(), fresh.Digest()); err != nil || p.User != "ada" {
					t.Errorf("the unconfirmed key is not valid: %v", err)
				}
			}
		}
	})
}

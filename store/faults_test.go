package store_test

import (
	"context"
	"errors"
	"os"
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
)

// If the connection breaks during the commit, the result is neither success nor failure.
func TestACommitThatMayHaveBeenMade(t *testing.T) {
	partstest.Slow(t)
	t.Parallel()
	for when, cut := range map[string]int32{"before": 1, "after": 2} {
		w, url := storetest.NewWire(t, partstest.Database(t, 18))
		db := storetest.Open(t, store.Config{URL: url})
		w.Cut.Store(cut)
		_, _, err := directory.New(db).SetPlan(t.Context(), "pro", directory.PlanChange{}, "")
		if !errors.Is(err, store.ErrUnknownOutcome) {
			t.Errorf("cut %s: %v", when, err)
		}
		w.Cut.Store(0)
		w.Down.Drop.Store(false)
		plans, err := directory.New(db).Plans(t.Context())
		if err != nil || len(plans) != int(cut-1) {
			t.Errorf("cut %s: %d plans, %v", when, len(plans), err)
		}
	}
}

// A miss is one message to the server and one answer.
func TestALookUpIsOneRoundTrip(t *testing.T) {
	t.Parallel()
	w, url := storetest.NewWire(t, partstest.Database(t, 18))
	db := storetest.Open(t, store.Config{URL: url})
	for range 2 {
		directory.NewLookups(db).FindKey(t.Context(), apikey.Digest{1})
	}
	before := w.Sent.Load()
	directory.NewLookups(db).FindKey(t.Context(), apikey.Digest{1})
	if n := w.Sent.Load() - before; n != 1 {
		t.Errorf("%d messages", n)
	}
}

// A link that swallows everything ends a look-up in about its second, on old and on new
// connections. When the link works again, a new connection is soon found, although earlier attempts
// to connect are still waiting.
func TestASilentLinkEndsALookUp(t *testing.T) {
	partstest.Slow(t)
	t.Parallel()
	w, url := storetest.NewWire(t, partstest.Database(t, 18))
	db := storetest.Open(t, store.Config{URL: url})
	directory.NewLookups(db).FindKey(t.Context(), apikey.Digest{1})
	w.Silence(true)
	for i := range 3 {
		begun := time.Now()
		_, err := directory.NewLookups(db).FindKey(t.Context(), apikey.Digest{1})
		if took := time.Since(begun); err == nil || errors.Is(err, authz.ErrUnknown) || took > 30*time.Second {
			t.Errorf("look-up %d: %v after %v", i, err, took)
		}
	}
	w.Silence(false)
	partstest.Eventually(t, "a look-up after it", func() bool {
		_, err := directory.NewLookups(db).FindKey(t.Context(), apikey.Digest{1})
		return errors.Is(err, authz.ErrUnknown)
	})
}

// A standby is refused.
func TestAReplicaIsRefused(t *testing.T) {
	partstest.Slow(t)
	t.Parallel()
	dir, err := os.MkdirTemp("", "keyporter-replica-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil { // t.TempDir is closed to the server's user
		t.Fatal(err)
	}
	server := partstest.StartPostgres(t, parts.PostgresConfig{Major: 18, Dir: dir})
	db := storetest.Open(t, store.Config{URL: server.URL("postgres")})
	db.Close()
	if err := os.WriteFile(filepath.Join(dir, "data", "standby.signal"), nil, 0o666); err != nil {
		t.Fatal(err)
	}
	os.Chmod(filepath.Join(dir, "data", "standby.signal"), 0o666)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := server.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	_, err = store.Open(ctx, store.Config{URL: server.URL("postgres")})
	if !errors.Is(err, store.ErrReplica) {
		t.Errorf("error %v", err)
	}
}

// After a restart of the server the first change and the first look-up succeed.
func TestARestartOfTheServerGoesUnnoticed(t *testing.T) {
	t.Parallel()
	server := partstest.StartPostgres(t, parts.PostgresConfig{Major: 18})
	db := storetest.Open(t, store.Config{URL: server.URL("postgres")})
	storetest.WithAda(t, db)
	directory.NewLookups(db).FindKey(t.Context(), apikey.Digest{1})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := server.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	if _, _, err := directory.New(db).SetPlan(ctx, "pro", directory.PlanChange{}, ""); err != nil {
		t.Errorf("a change: %v", err)
	}
	if _, err := directory.NewLookups(db).FindKey(ctx, apikey.Digest{1}); !errors.Is(err, authz.ErrUnknown) {
		t.Errorf("a look-up: %v", err)
	}
}

// A commit that no standby has is not reported as made, even if the caller or an administrator ends
// the wait for the standby.
func TestACommitWithoutItsStandbyIsUnknown(t *testing.T) {
	t.Parallel()
	server := partstest.StartPostgres(t, parts.PostgresConfig{Major: 18})
	db := storetest.Open(t, store.Config{URL: server.URL("postgres")})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	sql := func(statement string) {
		if _, err := server.SQL(ctx, "postgres", statement); err != nil {
			t.Error(err)
		}
	}
	sql(`ALTER SYSTEM SET synchronous_standby_names = 'nobody'`)
	sql(`SELECT pg_reload_conf()`)
	time.Sleep(500 * time.Millisecond)

	short, end := context.WithTimeout(ctx, 700*time.Millisecond)
	defer end()
	var cancelling sync.WaitGroup
	cancelling.Go(func() {
		time.Sleep(2 * time.Second)
		sql(`SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'`)
	})
	begun := time.Now()
	_, _, err := directory.New(db).SetPlan(short, "pro", directory.PlanChange{}, "")
	if !errors.Is(err, store.ErrUnknownOutcome) {
		t.Errorf("error %v after %v", err, time.Since(begun))
	}
	cancelling.Wait()
	sql(`ALTER SYSTEM RESET synchronous_standby_names`)
	sql(`SELECT pg_reload_conf()`)
}

// No password is shown.
func TestNoPasswordIsShown(t *testing.T) {
	t.Parallel()
	const secret = "canary-password"
	for _, url := range []string{
		"postgres://ada:" + secret + "@127.0.0.1:1/x?sslmode=disable",
		"postgres://ada@127.0.0.1:1/x?sslmode=disable&password=" + secret,
		"postgres://ada:" + secret + "%zz@127.0.0.1:1/x",
		"postgres://ada:" + secret + "@127.0.0.1:1/x?sslmode=nonsense",
		"host=127.0.0.1 password=" + secret,
		"mysql://ada:" + secret + "@127.0.0.1/x",
	} {
		_, err := store.Open(t.Context(), store.Config{URL: url})
		if err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("error %v", err)
		}
	}
}

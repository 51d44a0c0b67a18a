package store_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/internal/parts"
	"github.com/keyporter/keyporter/internal/parts/partstest"
	"github.com/keyporter/keyporter/store"
)

// wire lies between the store and PostgreSQL and can be cut.
type wire struct {
	net.Listener
	to string

	sent atomic.Int64 // chunks from the client
	slow atomic.Int64 // the delay of a new connection, in nanoseconds
	mute atomic.Bool  // swallow everything
	up   atomic.Bool  // swallow data from the client
	down atomic.Bool  // swallow data from the server
	deaf atomic.Bool  // swallow announcements on new connections
	cut  atomic.Int32 // at COMMIT: 1 before it is passed on, 2 after

	mu    sync.Mutex
	conns []net.Conn // guarded by mu
	all   sync.WaitGroup
}

func newWire(t *testing.T, url string) (*wire, string) {
	t.Helper()
	host := url[strings.Index(url, "@")+1:]
	host = host[:strings.Index(host, "/")]
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{Listener: l, to: host}
	w.all.Go(w.serve)
	t.Cleanup(func() {
		l.Close()
		w.mu.Lock()
		for _, c := range w.conns {
			c.Close()
		}
		w.mu.Unlock()
		w.all.Wait()
	})
	return w, strings.Replace(url, host, l.Addr().String(), 1)
}

func (w *wire) serve() {
	for {
		client, err := w.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", w.to)
		if err != nil {
			client.Close()
			continue
		}
		w.mu.Lock()
		w.conns = append(w.conns, client, server)
		w.mu.Unlock()
		takes := time.Duration(w.slow.Load())
		w.all.Go(func() { time.Sleep(takes); w.copy(server, client, true) })
		w.all.Go(func() { w.copy(client, server, false) })
	}
}

func (w *wire) copy(to, from net.Conn, up bool) {
	defer to.Close()
	defer from.Close()
	if !up && w.deaf.Load() {
		withoutAnnouncements(to, from)
		return
	}
	b := make([]byte, 64<<10)
	for {
		n, err := from.Read(b)
		if err != nil {
			return
		}
		if w.mute.Load() || up && w.up.Load() || !up && w.down.Load() {
			io.Copy(io.Discard, from)
			return
		}
		commit := up && bytes.Contains(b[:n], []byte("COMMIT"))
		if up {
			w.sent.Add(1)
		}
		if commit && w.cut.Load() == 1 {
			return
		}
		if commit && w.cut.Load() == 2 {
			w.mute.Store(true) // no answer comes back
		}
		if _, err := to.Write(b[:n]); err != nil {
			return
		}
		if commit && w.cut.Load() == 2 {
			time.Sleep(200 * time.Millisecond) // the server has it
			return
		}
	}
}

// withoutAnnouncements passes on a server's data without announcements, like a pooler with other
// sessions behind it.
func withoutAnnouncements(to io.Writer, from io.Reader) {
	const notificationResponse, header = 'A', 5
	head := make([]byte, header)
	for {
		if _, err := io.ReadFull(from, head); err != nil {
			return
		}
		body := make([]byte, binary.BigEndian.Uint32(head[1:])-4)
		if _, err := io.ReadFull(from, body); err != nil {
			return
		}
		if head[0] == notificationResponse {
			continue
		}
		if _, err := to.Write(slices.Concat(head, body)); err != nil {
			return
		}
	}
}

// If the connection breaks during the commit, the result is neither success nor failure.
func TestACommitThatMayHaveBeenMade(t *testing.T) {
	partstest.Slow(t)
	t.Parallel()
	for when, cut := range map[string]int32{"before": 1, "after": 2} {
		w, url := newWire(t, partstest.Database(t, 18))
		db := open(t, store.Config{URL: url})
		w.cut.Store(cut)
		_, _, err := db.SetPlan(t.Context(), "pro", store.PlanChange{}, "")
		if !errors.Is(err, store.ErrUnknownOutcome) {
			t.Errorf("cut %s: %v", when, err)
		}
		w.cut.Store(0)
		w.mute.Store(false)
		plans, err := db.Plans(t.Context())
		if err != nil || len(plans) != int(cut-1) {
			t.Errorf("cut %s: %d plans, %v", when, len(plans), err)
		}
	}
}

// A miss is one message to the server and one answer.
func TestALookUpIsOneRoundTrip(t *testing.T) {
	t.Parallel()
	w, url := newWire(t, partstest.Database(t, 18))
	db := open(t, store.Config{URL: url})
	for range 2 {
		db.FindKey(t.Context(), apikey.Digest{1})
	}
	before := w.sent.Load()
	db.FindKey(t.Context(), apikey.Digest{1})
	if n := w.sent.Load() - before; n != 1 {
		t.Errorf("%d messages", n)
	}
}

// A link that swallows everything ends a look-up in about its second, on old and on new
// connections. When the link works again, a new connection is soon found, although earlier attempts
// to connect are still waiting.
func TestASilentLinkEndsALookUp(t *testing.T) {
	partstest.Slow(t)
	t.Parallel()
	w, url := newWire(t, partstest.Database(t, 18))
	db := open(t, store.Config{URL: url})
	db.FindKey(t.Context(), apikey.Digest{1})
	w.mute.Store(true)
	for i := range 3 {
		begun := time.Now()
		_, err := db.FindKey(t.Context(), apikey.Digest{1})
		if took := time.Since(begun); err == nil || errors.Is(err, authz.ErrUnknown) || took > 30*time.Second {
			t.Errorf("look-up %d: %v after %v", i, err, took)
		}
	}
	w.mute.Store(false)
	eventually(t, patience, "a look-up after it", func() bool {
		_, err := db.FindKey(t.Context(), apikey.Digest{1})
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
	db := open(t, store.Config{URL: server.URL("postgres")})
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
	db := open(t, store.Config{URL: server.URL("postgres")})
	withAda(t, db)
	db.FindKey(t.Context(), apikey.Digest{1})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := server.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	if _, _, err := db.SetPlan(ctx, "pro", store.PlanChange{}, ""); err != nil {
		t.Errorf("a change: %v", err)
	}
	if _, err := db.FindKey(ctx, apikey.Digest{1}); !errors.Is(err, authz.ErrUnknown) {
		t.Errorf("a look-up: %v", err)
	}
}

// A commit that no standby has is not reported as made, even if the caller or an administrator ends
// the wait for the standby.
func TestACommitWithoutItsStandbyIsUnknown(t *testing.T) {
	t.Parallel()
	server := partstest.StartPostgres(t, parts.PostgresConfig{Major: 18})
	db := open(t, store.Config{URL: server.URL("postgres")})
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
	_, _, err := db.SetPlan(short, "pro", store.PlanChange{}, "")
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

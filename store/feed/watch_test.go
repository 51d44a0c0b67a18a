package feed

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/keyporter/keyporter/store"
)

// until returns the events before the first event of a file.
func until(t *testing.T, w writeWatch, file string) (events []fsnotify.Event) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		select {
		case e := <-w.told():
			if strings.HasSuffix(e.Name, file) {
				return events
			}
			events = append(events, e)
		case err := <-w.lost():
			t.Fatal(err)
		case <-ctx.Done():
			t.Fatal("nothing is told of", file)
		}
	}
}

// A write to a SQLite database is reported, even if the database is named by a link. Reads are not:
// a process that only looks would keep itself awake.
func TestWritesAreToldAndReadingIsNot(t *testing.T) {
	folder := t.TempDir()
	file := filepath.Join(folder, "keyporter.db")
	db, err := store.Open(t.Context(), store.Config{URL: "sqlite://" + file, Create: true, Migrate: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	link := filepath.Join(t.TempDir(), "link.db")
	if err := os.Symlink(file, link); err != nil {
		t.Skip("no links here:", err)
	}
	watch := newWriteWatch(link)
	defer watch.close()
	if !watch.tells() {
		t.Skip("this system tells of no writes")
	}
	mark := func(name string) {
		if err := os.Mkdir(filepath.Join(folder, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	mark("before")
	until(t, watch, "before")
	for range 100 {
		var users int
		if err := db.Changes.QueryRowContext(t.Context(), `SELECT count(*) FROM users`).Scan(&users); err != nil {
			t.Fatal(err)
		}
	}
	mark("after")
	if events := until(t, watch, "after"); len(events) > 0 {
		t.Errorf("reading was told: %v", events)
	}
	if _, err := db.Changes.ExecContext(t.Context(), `INSERT INTO plans (name, api_access, rate_window, pool) VALUES ('gold', TRUE, 60000, 'user')`); err != nil {
		t.Fatal(err)
	}
	until(t, watch, "keyporter.db-wal")
}

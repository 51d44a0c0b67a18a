package store_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyporter/keyporter/store"
)

// A path is taken literally, with any characters, and may be relative.
func TestPathsAreTakenLiterally(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	names := []string{
		"plain.db", "with space.db", "100%.db", "%41.db", "%zz.db", "a?b.db", "a?mode=memory", "a#b.db", "a&b=c.db", "a+b.db", "é漢.db",
		"-dash.db", "semi;colon.db", "quote'\".db", "back\\slash.db", "a:b.db", "file:x.db",
	}
	for _, name := range names {
		for form, url := range map[string]string{"relative": "sqlite://r-" + name, "absolute": "sqlite://" + filepath.Join(dir, "a-"+name)} {
			t.Run(form+" "+name, func(t *testing.T) {
				db, err := store.Open(t.Context(), store.Config{URL: url, Create: true, Migrate: true})
				if err != nil {
					t.Fatal(err)
				}
				if err := db.Close(); err != nil {
					t.Error(err)
				}
				info, err := os.Stat(filepath.Join(dir, form[:1]+"-"+name))
				if err != nil {
					t.Fatal(err)
				}
				if info.Mode().Perm() != 0o600 {
					t.Errorf("mode %v", info.Mode())
				}
				db, err = store.Open(t.Context(), store.Config{URL: url})
				if err != nil {
					t.Fatal(err)
				}
				db.Close()
			})
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if want := 2 * len(names); len(entries) != want {
		t.Errorf("%d files, want %d: %v", len(entries), want, entries)
	}
}

// An impossible database is refused by name, and no file is created.
func TestWhatIsNoDatabaseIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	notOne := filepath.Join(dir, "not-one.db")
	if err := os.WriteFile(notOne, []byte(strings.Repeat("text ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		url  string
		says string
		kind error
	}{
		"missing":           {"sqlite://" + filepath.Join(dir, "missing.db"), "missing.db", store.ErrDatabase},
		"missing folder":    {"sqlite://" + filepath.Join(dir, "no", "x.db"), "x.db", store.ErrDatabase},
		"directory":         {"sqlite://" + dir, dir, store.ErrDatabase},
		"directory, slash":  {"sqlite://" + dir + "/", dir, store.ErrDatabase},
		"no path":           {"sqlite://", "sqlite://PATH", store.ErrDatabase},
		"memory":            {"sqlite://:memory:", "sqlite://PATH", store.ErrDatabase},
		"text":              {"sqlite://" + notOne, notOne, nil},
		"another scheme":    {"mysql://root:hunter2@127.0.0.1/x", "postgres://", store.ErrDatabase},
		"no scheme":         {"keyporter.db", "sqlite://", store.ErrDatabase},
		"nothing":           {"", "sqlite://", store.ErrDatabase},
		"one slash":         {"sqlite:/x.db", "sqlite://", store.ErrDatabase},
		"upper case scheme": {"SQLITE://" + notOne, "sqlite://", store.ErrDatabase},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := store.Open(t.Context(), store.Config{URL: test.url})
			if err == nil || !strings.Contains(err.Error(), test.says) || strings.Contains(err.Error(), "hunter2") {
				t.Fatalf("error %v, want one that says %q", err, test.says)
			}
			if test.kind != nil && !errors.Is(err, test.kind) {
				t.Errorf("error %v, want %v", err, test.kind)
			}
		})
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("made %v", entries)
	}
}

// No part of a password is shown, even if it is badly escaped in the URL.
func TestNoPartOfAPasswordIsShown(t *testing.T) {
	t.Parallel()
	for _, url := range []string{
		"postgres://ada:hunter2@127.0.0.1:1/x",
		"postgres://ada:hunter2 x@127.0.0.1:1/x",
		"postgres://ada:a/hunter2@127.0.0.1:1/x",
		"postgres://ada:a#hunter2@127.0.0.1:1/x",
		"postgres://ada:a?hunter2@127.0.0.1:1/x",
		"postgres://localhost:12/hunter2@127.0.0.1:1/x",
		"postgres://localhost:12#hunter2@127.0.0.1:1/x",
		"postgres://localhost:12?hunter2@127.0.0.1:1/x",
		"postgres://ada:%zzhunter2@127.0.0.1:1/x",
		"postgres://ada@127.0.0.1:1/x?password=hunter2",
		"postgres://ada@127.0.0.1:1/x?password=hunter2&x=%zz",
		"postgres://127.0.0.1:1/x?user=ada&password=hunter2&sslmode=nonsense",
		"postgres://ada:hunter2@127.0.0.1:99999/x",
		"postgres://ada:hunter2@[::1/x",
		"postgres://ada:1@localhost:1/hunter2@127.0.0.1:1/x",
		"postgres://:hunter2",
		"postgres:ada:hunter2@127.0.0.1",
		"postgresql://ada:hunter2@127.0.0.1:1,127.0.0.1:1/x",
	} {
		_, err := store.Open(t.Context(), store.Config{URL: url})
		if err == nil {
			t.Errorf("opened %s", url)
			continue
		}
		if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", url, err)
		}
	}
}

// A database without the schema is refused unless it may be migrated.
func TestAnEmptyDatabaseNeedsMigrate(t *testing.T) {
	t.Parallel()
	c := store.Config{URL: "sqlite://" + filepath.Join(t.TempDir(), "keyporter.db"), Create: true}
	for range 2 {
		if _, err := store.Open(t.Context(), c); !errors.Is(err, store.ErrMigration) {
			t.Errorf("error %v, want %v", err, store.ErrMigration)
		}
	}
	c.Migrate = true
	for range 2 {
		db, err := store.Open(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
		c.Migrate = false
	}
}

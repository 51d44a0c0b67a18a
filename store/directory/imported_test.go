package directory_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/internal/storetest"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
)

// An imported key makes a change that only adds, and names its import. It is found as an imported
// key until it is revoked, and all keys of its import are listed, revoked ones too. No other key is.
func TestImportedKeys(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		db := storetest.Open(t, store.Config{URL: url})
		storetest.WithAda(t, db)
		f, lookups := storetest.SQL{T: t, DB: db.Changes}, directory.NewLookups(db)
		made := map[string]apikey.Digest{}
		add := func(id, user, number string) []string {
			t.Helper()
			before, digest := f.Newest(), sha256.Sum256([]byte(id))
			made[id] = digest
			if _, err := db.Changes.Exec(`INSERT INTO keys (id, user_name, digest, imported, created_at) VALUES ($1, $2, $3, `+number+`, 5)`, id, user, digest[:]); err != nil {
				t.Fatal(err)
			}
			return f.Since(before)
		}
		f.Exec(`INSERT INTO users (name, kind, account, status) SELECT 'bob', kind, account, status FROM users WHERE name = 'ada'`)
		if got := add("own", "bob", "NULL"); !slices.Equal(got, []string{"added"}) {
			t.Errorf("a key of ours: %q", got)
		}
		if got := add("one", "ada", "7"); !slices.Equal(got, []string{"imported:7"}) {
			t.Errorf("an imported key: %q", got)
		}
		listed := func(number string) (all []uint64) {
			t.Helper()
			if err := lookups.EachImported(t.Context(), number, func(mark uint64) error { all = append(all, mark); return nil }); err != nil {
				t.Fatal(err)
			}
			slices.Sort(all)
			return all
		}
		marks := func(ids ...string) (all []uint64) {
			for _, id := range ids {
				all = append(all, directory.Mark(made[id]))
			}
			slices.Sort(all)
			return all
		}
		if p, err := lookups.FindImported(t.Context(), made["one"]); err != nil || p.User != "ada" {
			t.Errorf("%+v, %v", p, err)
		}
		if _, err := lookups.FindImported(t.Context(), made["own"]); !errors.Is(err, authz.ErrUnknown) {
			t.Errorf("a key of ours as an imported one: %v", err)
		}
		before := f.Newest()
		f.Exec(`UPDATE keys SET revoked_at = 6 WHERE id = 'one'`)
		if got := f.Names(before); !slices.Contains(got, "user:ada") {
			t.Errorf("a revocation: %q", got)
		}
		if _, err := lookups.FindImported(t.Context(), made["one"]); !errors.Is(err, authz.ErrRevoked) {
			t.Errorf("a revoked one: %v", err)
		}
		add("two", "ada", "-8")
		before = f.Newest()
		f.Exec(`UPDATE keys SET imported = 9 WHERE id = 'own'`)
		if got := f.Names(before); !slices.Contains(got, "imported:9") || !slices.Contains(got, "user:bob") {
			t.Errorf("a key that becomes imported: %q", got)
		}
		for number, want := range map[string][]uint64{
			"": marks("one", "two", "own"), "7": marks("one"), "-8": marks("two"), "9": marks("own"), "10": nil, "x": nil,
		} {
			if got := listed(number); !slices.Equal(got, want) {
				t.Errorf("import %q: %v, want %v", number, got, want)
			}
		}
		keys, err := directory.NewKeys(db).Keys(t.Context(), "ada")
		if err != nil || len(keys) != 2 || !keys[0].Imported {
			t.Errorf("%+v, %v", keys, err)
		}
	})
}

// An import of many keys in one transaction is one change on PostgreSQL, and on SQLite many with
// one name.
func TestManyImportedKeys(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		db := storetest.Open(t, store.Config{URL: url})
		storetest.WithAda(t, db)
		f := storetest.SQL{T: t, DB: db.Changes}
		before := f.Newest()
		tx, err := db.Changes.Begin()
		if err != nil {
			t.Fatal(err)
		}
		for i := range 2500 {
			digest := sha256.Sum256(fmt.Append(nil, i))
			for _, statement := range []string{
				`INSERT INTO users (name, kind, account, status) SELECT 'user' || $1, kind, account, status FROM users WHERE name = 'ada'`,
				`INSERT INTO keys (id, user_name, digest, imported, created_at) VALUES ('k' || $1, 'user' || $1, $2, 7, 5)`,
			} {
				args := []any{fmt.Sprint(i), digest[:]}
				if statement[12] == 'u' {
					args = args[:1]
				}
				if _, err := tx.Exec(statement, args...); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := tx.Commit(); err != nil {
			t.Fatal(err)
		}
		if got := f.Names(before); !slices.Equal(got, []string{"added", "imported:7"}) {
			t.Errorf("%q", got)
		}
		n := 0
		err = directory.NewLookups(db).EachImported(t.Context(), "7", func(uint64) error { n++; return nil })
		if err != nil || n != 2500 {
			t.Errorf("%d keys, %v", n, err)
		}
	})
}

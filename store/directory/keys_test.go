package directory_test

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
)

// An impossible name is an answer and not a failure, even if PostgreSQL would reject its text.
func TestKeysOfANameThatCannotBe(t *testing.T) {
	t.Parallel()
	db, err := store.Open(t.Context(), store.Config{
		URL: "sqlite://" + filepath.Join(t.TempDir(), "keyporter.db"), Create: true, Migrate: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, name := range []string{"a\x00b", "\xff", "a b"} {
		if _, err := directory.NewKeys(db).LiveKey(t.Context(), name); !errors.Is(err, store.ErrInvalid) {
			t.Errorf("LiveKey of %q: %v", name, err)
		}
		if _, err := directory.NewKeys(db).Keys(t.Context(), name); !errors.Is(err, store.ErrInvalid) {
			t.Errorf("Keys of %q: %v", name, err)
		}
	}
	if keys, err := directory.NewKeys(db).Keys(t.Context(), ""); err != nil || keys == nil || len(keys) != 0 {
		t.Errorf("all keys: %v, %v", keys, err)
	}
}

package directory_test

import (
	"testing"
	"unsafe"

	"github.com/keyporter/keyporter/internal/storetest"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
)

// The names in a look-up are one object: they are kept for each key in memory, and the garbage
// collector visits each object.
func TestNamesAreOneObject(t *testing.T) {
	db := storetest.Open(t, store.Config{URL: storetest.Databases["SQLite"](t)})
	storetest.WithAda(t, db)
	_, token, err := directory.NewKeys(db).CreateKey(t.Context(), "ada", storetest.Format(t))
	if err != nil {
		t.Fatal(err)
	}
	p, _, err := directory.NewLookups(db).ResolveKey(t.Context(), token.Digest())
	if err != nil {
		t.Fatal(err)
	}
	names := []string{p.KeyID, p.User, p.Account, p.Plan}
	for i, name := range names[1:] {
		before := names[i]
		if len(before) == 0 || len(name) == 0 {
			t.Fatalf("a name is missing: %q", names)
		}
		if unsafe.Add(unsafe.Pointer(unsafe.StringData(before)), len(before)) != unsafe.Pointer(unsafe.StringData(name)) {
			t.Errorf("%q is not behind %q in memory", name, before)
		}
	}
}

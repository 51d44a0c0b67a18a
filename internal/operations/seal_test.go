package operations_test

import (
	"path/filepath"
	"testing"

	"github.com/keyporter/keyporter/internal/operations"
	"github.com/keyporter/keyporter/internal/storetest"
	"github.com/keyporter/keyporter/store"
)

// A refusal about the seal key has a kind, so that it is not taken for a failure of the database.
func TestARefusalOfTheSealHasAKind(t *testing.T) {
	db := storetest.Open(t, store.Config{URL: "sqlite://" + filepath.Join(t.TempDir(), "k.db")})
	seal, file := operations.By(actor, db).Seal(), filepath.Join(t.TempDir(), "seal.key")
	_, err := seal.Rotate(t.Context(), operations.Rotation{File: file})
	if got := operations.KindOf(err); got != operations.NotFound {
		t.Errorf("a missing seal key is replaced: kind %d, want %d: %v", got, operations.NotFound, err)
	}
	if err := seal.Init(t.Context(), file); err != nil {
		t.Fatal(err)
	}
	err = seal.Make(t.Context(), func([]byte) error { return nil })
	if got := operations.KindOf(err); got != operations.Exists {
		t.Errorf("a second seal key is made: kind %d, want %d: %v", got, operations.Exists, err)
	}
	_, err1 := seal.Rotate(t.Context(), operations.Rotation{File: file, Prepare: true})
	_, err2 := seal.Rotate(t.Context(), operations.Rotation{File: file, KeepOld: true})
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	_, err = seal.Rotate(t.Context(), operations.Rotation{File: file, Prepare: true})
	if got := operations.KindOf(err); got != operations.Refused {
		t.Errorf("a rotation begins in another: kind %d, want %d: %v", got, operations.Refused, err)
	}
}

package main

import (
	"bytes"
	"path/filepath"
	"testing"

	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/requests"
)

// A start that fails loses no rate log: the next start takes it over.
func TestAFailedStartKeepsTheRateLog(t *testing.T) {
	t.Parallel()
	url := "sqlite://" + filepath.Join(t.TempDir(), "k.db")
	prepare(t, url, "migrate")
	db, err := store.Open(t.Context(), store.Config{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	piece := []byte("a piece")
	if err := requests.New(db).SaveRateLog(t.Context(), piece); err != nil {
		t.Fatal(err)
	}
	s := serveIn(t, url, "--listen-http", "127.0.0.1:0", "--seal-key-file", filepath.Join(t.TempDir(), "missing.key"))
	s.ends(exitFailed, "--seal-key-file")
	pieces, _, err := requests.New(db).TakeRateLogs(t.Context())
	if err != nil || len(pieces) != 1 || !bytes.Equal(pieces[0], piece) {
		t.Errorf("after a start that failed, %q is left, %v, want %q", pieces, err, piece)
	}
}

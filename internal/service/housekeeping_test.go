package service

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/internal/config"
	"github.com/keyporter/keyporter/internal/operations"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/usage"
)

// A replica without a request log deletes no requests that others keep.
func TestAReplicaWithoutALogKeepsThatOfOthers(t *testing.T) {
	t.Parallel()
	url := "sqlite://" + filepath.Join(t.TempDir(), "k.db")
	db, err := store.Open(t.Context(), store.Config{URL: url, Create: true, Migrate: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	plan, account := "pro", "acme"
	_, _, err1 := db.SetPlan(t.Context(), plan, store.PlanChange{}, "")
	_, _, err2 := db.SetAccount(t.Context(), account, store.AccountChange{Plan: &plan}, "")
	_, _, err3 := db.SetUser(t.Context(), "ada", store.UserChange{Account: &account}, "")
	format, _, err4 := operations.Formats(t.Context(), db, config.Config{KeyPrefix: apikey.DefaultPrefix})
	key, _, err5 := db.CreateKey(t.Context(), "ada", format)
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
		t.Fatal(err)
	}
	record := usage.Record{User: "ada", KeyID: key.ID, At: time.Now().Add(-40 * 24 * time.Hour), Method: "GET", Path: "/"}
	if err := db.SaveRequests(t.Context(), []usage.Record{record}, nil); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		retention time.Duration
		left      int
	}{{0, 1}, {960 * time.Hour, 0}} {
		h := &housekeeper{db: db, retention: deletesAfter(row.retention)}
		h.tidyRequests(t.Context())
		if records, _, err := db.Requests(t.Context(), "ada", "", 10); err != nil || len(records) != row.left {
			t.Errorf("--request-log-retention %v: %d requests are left, %v, want %d", row.retention, len(records), err, row.left)
		}
	}
}

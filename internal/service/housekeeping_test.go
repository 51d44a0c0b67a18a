package service

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/internal/operations"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
	"github.com/keyporter/keyporter/store/requests"
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
	_, _, err1 := directory.New(db).SetPlan(t.Context(), plan, directory.PlanChange{}, "")
	_, _, err2 := directory.New(db).SetAccount(t.Context(), account, directory.AccountChange{Plan: &plan}, "")
	_, _, err3 := directory.New(db).SetUser(t.Context(), "ada", directory.UserChange{Account: &account}, "")
	formats, err4 := operations.ReadFormats(t.Context(), db, apikey.FormatConfig{})
	key, _, err5 := directory.NewKeys(db).CreateKey(t.Context(), "ada", formats.Keys)
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
		t.Fatal(err)
	}
	record := usage.Record{User: "ada", KeyID: key.ID, At: time.Now().Add(-40 * 24 * time.Hour), Method: "GET", Path: "/"}
	if err := requests.New(db).Save(t.Context(), []usage.Record{record}, nil); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		retention time.Duration
		left      int
	}{{0, 1}, {960 * time.Hour, 0}} {
		h := &housekeeper{saved: requests.New(db), retention: deletesAfter(row.retention)}
		h.tidyRequests(t.Context())
		if records, _, err := requests.New(db).List(t.Context(), "ada", "", 10); err != nil || len(records) != row.left {
			t.Errorf("--request-log-retention %v: %d requests are left, %v, want %d", row.retention, len(records), err, row.left)
		}
	}
}

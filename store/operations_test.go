package store_test

import (
	"context"
	"errors"
	"maps"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/credits/ledger"
	"github.com/keyporter/keyporter/internal/storetest"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
	"github.com/keyporter/keyporter/store/feed"
	"github.com/keyporter/keyporter/store/lease"
	storeledger "github.com/keyporter/keyporter/store/ledger"
	"github.com/keyporter/keyporter/store/requests"
)

// A failed call is counted once, by its purpose, and no name stands for two purposes.
func TestFailuresAreCountedByWhatTheyAreFor(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	db, err := store.Open(t.Context(), store.Config{
		URL: "sqlite://" + filepath.Join(t.TempDir(), "keyporter.db"), Create: true, Migrate: true, Metrics: registry,
	})
	if err != nil {
		t.Fatal(err)
	}
	replica, err := feed.NewRegistry(db, feed.Replica{Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	replica.Close() // so that everything fails
	db.Close()
	for _, call := range []struct {
		operation string
		of        func(context.Context) error
	}{
		{"lookup", func(ctx context.Context) error {
			_, _, err := directory.NewLookups(db).ResolveKey(ctx, apikey.Digest{})
			return err
		}},
		{"lease", func(ctx context.Context) error { _, err := replica.Register(ctx); return err }},
		{"lease", func(ctx context.Context) error { _, err := replica.Renew(ctx, "x", lease.Position{}); return err }},
		{"credit_report", func(ctx context.Context) error {
			_, err := storeledger.New(db).Report(ctx, ledger.Report{Holder: "x", Seq: 1})
			return err
		}},
		{"credit_recall", func(ctx context.Context) error { _, err := storeledger.New(db).Recalled(ctx); return err }},
		{"request_log", func(ctx context.Context) error { _, err := requests.New(db).KeyUsage(ctx, "ada", "x"); return err }},
		{"rate_log", func(ctx context.Context) error { return requests.New(db).SaveRateLog(ctx, nil) }},
		{"rate_log", func(ctx context.Context) error { _, _, err := requests.New(db).TakeRateLogs(ctx); return err }},
		{"replicas", func(ctx context.Context) error { _, err := feed.New(db).LiveReplicas(ctx); return err }},
		{"housekeeping", func(ctx context.Context) error { _, err := feed.New(db).RollCall(ctx); return err }},
		{"housekeeping", feed.New(db).Tidy},
		{"change", func(ctx context.Context) error {
			_, _, err := directory.NewKeys(db).RevokeKey(ctx, "ada", "")
			return err
		}},
		{"list", func(ctx context.Context) error { _, err := directory.New(db).Users(ctx); return err }},
	} {
		before := failures(t, registry)
		if err := call.of(t.Context()); err == nil {
			t.Errorf("%s: no error, although the database is closed", call.operation)
		}
		for operation, n := range failures(t, registry) {
			want := before[operation]
			if operation == call.operation {
				want++
			}
			if n != want {
				t.Errorf("after a failed %s, %s is counted %v times, want %v", call.operation, operation, n, want)
			}
		}
	}
	if problems, err := testutil.GatherAndLint(registry); err != nil || len(problems) > 0 {
		t.Error(problems, err)
	}
}

// Refusing a user is no failure of the database: a user who presses a button too often, or in two
// tabs, triggers no alert.
func TestARefusalIsNoFailure(t *testing.T) {
	registry := prometheus.NewRegistry()
	db, f := storetest.Open(t, store.Config{URL: "sqlite://" + filepath.Join(t.TempDir(), "keyporter.db"), Metrics: registry}), storetest.Format(t)
	storetest.WithAda(t, db)
	key, _, err := directory.NewKeys(db).CreateKey(t.Context(), "ada", f)
	if err != nil {
		t.Fatal(err)
	}
	before := failures(t, registry)
	_, _, _, other := directory.NewKeys(db).ReplaceKey(t.Context(), "ada", "key_0", f, directory.Rate{}, "")
	_, _, _, often := directory.NewKeys(db).RegenerateKey(t.Context(), "ada", f, directory.Rate{N: 1, Per: time.Hour}, "")
	again := directory.NewAudit(db).RecordReveal(t.Context(), "ada", key.ID, directory.Rate{N: 1, Per: time.Hour})
	shown := directory.NewAudit(db).RecordReveal(t.Context(), "ada", key.ID, directory.Rate{N: 1, Per: time.Hour})
	if !errors.As(other, new(directory.ReplacedError)) || !errors.As(often, new(directory.TooOftenError)) || again != nil || !errors.As(shown, new(directory.TooOftenError)) {
		t.Fatalf("%v; %v; %v; %v", other, often, again, shown)
	}
	if after := failures(t, registry); !maps.Equal(before, after) {
		t.Errorf("counted as failed: %v, before %v", after, before)
	}
}

// failures returns the failed calls: operation → number.
func failures(t *testing.T, registry *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]float64{}
	for _, family := range families {
		if family.GetName() != "keyporter_store_errors_total" {
			continue
		}
		for _, m := range family.GetMetric() {
			all[m.GetLabel()[0].GetValue()] = m.GetCounter().GetValue()
		}
	}
	return all
}

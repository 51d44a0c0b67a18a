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
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/lease"
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
	replica, err := db.Registry(store.Replica{Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	replica.Close() // so that everything fails
	db.Close()
	for _, call := range []struct {
		operation string
		of        func(context.Context) error
	}{
		{"lookup", func(ctx context.Context) error { _, _, err := db.ResolveKey(ctx, apikey.Digest{}); return err }},
		{"lease", func(ctx context.Context) error { _, err := replica.Register(ctx); return err }},
		{"lease", func(ctx context.Context) error { _, err := replica.Renew(ctx, "x", lease.Position{}); return err }},
		{"credit_report", func(ctx context.Context) error {
			_, err := db.Report(ctx, ledger.Report{Holder: "x", Seq: 1})
			return err
		}},
		{"credit_recall", func(ctx context.Context) error { _, err := db.Recalled(ctx); return err }},
		{"request_log", func(ctx context.Context) error { _, err := db.KeyUsage(ctx, "ada", "x"); return err }},
		{"rate_log", func(ctx context.Context) error { return db.SaveRateLog(ctx, nil) }},
		{"rate_log", func(ctx context.Context) error { _, _, err := db.TakeRateLogs(ctx); return err }},
		{"replicas", func(ctx context.Context) error { _, err := db.LiveReplicas(ctx); return err }},
		{"housekeeping", func(ctx context.Context) error { _, err := db.RollCall(ctx); return err }},
		{"housekeeping", db.Tidy},
		{"change", func(ctx context.Context) error { _, _, err := db.RevokeKey(ctx, "ada", ""); return err }},
		{"list", func(ctx context.Context) error { _, err := db.Users(ctx); return err }},
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
	db, f := open(t, store.Config{URL: "sqlite://" + filepath.Join(t.TempDir(), "keyporter.db"), Metrics: registry}), format(t)
	withAda(t, db)
	key, _, err := db.CreateKey(t.Context(), "ada", f)
	if err != nil {
		t.Fatal(err)
	}
	before := failures(t, registry)
	_, _, _, other := db.ReplaceKey(t.Context(), "ada", "key_0", f, store.Pace{}, "")
	_, _, _, often := db.RegenerateKey(t.Context(), "ada", f, store.Pace{N: 1, Per: time.Hour}, "")
	again := db.RecordReveal(t.Context(), "ada", key.ID, store.Pace{N: 1, Per: time.Hour})
	shown := db.RecordReveal(t.Context(), "ada", key.ID, store.Pace{N: 1, Per: time.Hour})
	if !errors.As(other, new(store.ReplacedError)) || !errors.As(often, new(store.TooOftenError)) || again != nil || !errors.As(shown, new(store.TooOftenError)) {
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

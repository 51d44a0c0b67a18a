package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/envoy/bootstrap"
)

// Envoy's configuration has to follow a change that only moves lines to other places.
func TestRoutesOfTwoHostsThatChangePlacesAreADifference(t *testing.T) {
	with := func(first, second authz.Destination) *config {
		table, err := authz.NewRouteTable([]authz.Rule{
			{Path: "/x", Kind: authz.KindPublic, Hosts: []string{"a.example"}, To: first},
			{Path: "/x", Kind: authz.KindPublic, Hosts: []string{"b.example"}, To: second},
		})
		if err != nil {
			t.Fatal(err)
		}
		return &config{Routes: table, Upstreams: map[string]bootstrap.Upstream{"one": {URL: "http://one"}, "two": {URL: "http://two"}}}
	}
	before := with("one", "two")
	if _, _, differs := before.bootstrapDifference(with("two", "one")); !differs {
		t.Error("two hosts have changed their upstreams, and nobody is told")
	}
	if _, _, differs := before.bootstrapDifference(with("one", "two")); differs {
		t.Error("a table differs from itself")
	}
}

// A file that is written in pieces is read once, after its last change.
func TestNoFileIsReadHalfWritten(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keyporter.yaml")
	put := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("before")
	synctest.Test(t, func(t *testing.T) {
		var read []string
		load := func() (config, error) {
			text, err := os.ReadFile(file)
			read = append(read, string(text))
			return config{}, errors.Join(err, errors.New("refused, so that nothing else happens"))
		}
		c := config{file: file}
		c.seen = c.look()
		r := newReloader(load, reloadable{config: c}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
		go r.run(t.Context(), nil)
		for _, text := range []string{"after,", "after, bit", "after, bit by bit"} {
			time.Sleep(reloadInterval)
			synctest.Wait()
			put(text)
		}
		time.Sleep(5 * reloadInterval)
		synctest.Wait()
		if want := []string{"after, bit by bit"}; !slices.Equal(read, want) {
			t.Errorf("read %q, want %q", read, want)
		}
	})
}

// A file that cannot be read to its end, such as a pipe in place of a file with a secret, is
// reported, and blocks neither later changes nor the stop of the service.
func TestAFileThatNeverEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		over := make(chan struct{})
		defer close(over)
		load := func() (config, error) {
			<-over
			return config{}, errors.New("too late")
		}
		metrics := prometheus.NewRegistry()
		r := newReloader(load, reloadable{}, slog.New(slog.DiscardHandler), metrics)
		ctx, cancel := context.WithCancel(t.Context())
		asked, stopped := make(chan os.Signal), make(chan struct{})
		go func() { defer close(stopped); r.run(ctx, asked) }()
		for want := range 2 {
			asked <- syscall.SIGHUP // received once the previous reload has been abandoned
			if got := testutil.ToFloat64(r.reloads.WithLabelValues(reloadRefused)); got != float64(want) {
				t.Errorf("%v readings were refused, want %d", got, want)
			}
		}
		cancel()
		<-stopped
	})
}

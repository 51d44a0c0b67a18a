package service

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

	"github.com/keyporter/keyporter/internal/config"
)

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
		load := func() (config.Config, error) {
			text, err := os.ReadFile(file)
			read = append(read, string(text))
			return config.Config{}, errors.Join(err, errors.New("refused, so that nothing else happens"))
		}
		c := config.Config{File: file}
		r := newReloader(reloader{
			load: load, current: reloadable{config: c}, seen: c.FileStates(), log: slog.New(slog.DiscardHandler),
		}, prometheus.NewRegistry())
		go r.run(t.Context())
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
		load := func() (config.Config, error) {
			<-over
			return config.Config{}, errors.New("too late")
		}
		metrics := prometheus.NewRegistry()
		asked, stopped := make(chan os.Signal), make(chan struct{})
		r := newReloader(reloader{load: load, asked: asked, log: slog.New(slog.DiscardHandler)}, metrics)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { defer close(stopped); r.run(ctx) }()
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

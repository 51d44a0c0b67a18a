package service

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyporter/keyporter/bearer"
	"github.com/keyporter/keyporter/internal/config"
)

// reloadable is the part of the configuration that a running service reloads from its files.
type reloadable struct {
	config      config.Config // the route table; all other settings are only compared
	grpcToken   bearer.Token
	settleToken bearer.Token
}

// reloader watches the files of the service and applies changes of the route table and the tokens.
// A file that is unreadable or invalid changes nothing.
type reloader struct {
	load  func() (config.Config, error)
	asked <-chan os.Signal // each signal requests a reload
	// take enforces the new values for all requests that begin afterwards.
	take func(context.Context, reloadable)
	// takeAdmin enforces new tokens of the operators' API.
	takeAdmin func(bearer.Named)
	log       *slog.Logger
	started   config.Config // configuration at the start, with the settings that take cannot change
	current   reloadable
	seen      []fs.FileInfo // state of the files at their last read; nil for a file without one
	reloads   *prometheus.CounterVec
}

// reloadInterval is how often the files are checked. A change is applied once two checks in a row
// find the same state, so that no half-written file is read.
const reloadInterval = time.Second

// reloadTime bounds a reload. A slower one, for example from a pipe in place of a file with a
// secret, is abandoned.
const reloadTime = 10 * time.Second

// Results of a reload.
const (
	reloadTaken   = "taken"
	reloadRefused = "refused"
)

// newReloader returns nil if there is nothing that loads the configuration.
func newReloader(r reloader, metrics prometheus.Registerer) *reloader {
	if r.load == nil {
		return nil
	}
	r.started = r.current.config
	r.reloads = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "keyporter_config_reloads_total", Help: "Reloads of the route table and the tokens, by what became of them.",
	}, []string{"result"})
	for _, result := range []string{reloadTaken, reloadRefused} {
		r.reloads.WithLabelValues(result)
	}
	metrics.MustRegister(r.reloads)
	return &r
}

// run checks the files at each interval, and reloads at once on a request, until ctx ends.
func (r *reloader) run(ctx context.Context) {
	if r == nil {
		return
	}
	ticker := time.NewTicker(reloadInterval)
	defer ticker.Stop()
	last := r.seen
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.asked:
			last = r.started.FileStates()
			r.reload(ctx, last, "it was asked for")
		case <-ticker.C:
			now := r.started.FileStates()
			if config.SameFiles(now, last) && !config.SameFiles(now, r.seen) {
				r.reload(ctx, now, "a file has changed")
			}
			last = now
		}
	}
}

// read reads the configuration and the tokens again, from the files of the start. An error explains
// why nothing can be applied.
func (r *reloader) read(now []fs.FileInfo, before *config.Config) (fresh reloadable, err error) {
	for i, name := range r.started.Files() {
		if now[i] != nil && !now[i].Mode().IsRegular() {
			return reloadable{}, fmt.Errorf("%s is no file that can be read again, such as a pipe or a folder", name)
		}
	}
	if fresh.config, err = r.load(); err != nil {
		return reloadable{}, err
	}
	switch c := &fresh.config; {
	case c.ShippedRoutes() && !before.ShippedRoutes():
		return reloadable{}, fmt.Errorf("%s has no `routes` any more: restart the service if it is to have the table that Keyporter ships with", c.File)
	case c.PagePath != r.started.PagePath:
		return reloadable{}, fmt.Errorf("the page is at %s until the service is restarted, and its rules would be for %s", r.started.PagePath, c.PagePath)
	}
	grpc, problem := r.started.GRPCToken()
	settle, other := r.started.SettleToken()
	fresh.grpcToken, fresh.settleToken = grpc, settle
	return fresh, errors.Join(problem, other)
}

// reload reads everything again and applies the changes.
func (r *reloader) reload(ctx context.Context, now []fs.FileInfo, why string) {
	r.seen = now
	limited, cancel := context.WithTimeout(ctx, reloadTime)
	defer cancel()
	mistake := r.admit(limited)
	before := r.current
	fresh, err := config.UnlessEnded(limited, func() (reloadable, error) { return r.read(now, &before.config) })
	err = errors.Join(err, mistake)
	if ctx.Err() != nil {
		return
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("reading took longer than %v: one of the files has no end, as a pipe into which nobody writes; put a regular file there", reloadTime)
	}
	if err != nil {
		r.reloads.WithLabelValues(reloadRefused).Inc()
		r.log.Error("the configuration was read again and refused: the previous one stays", "why", why, "error", err)
		return
	}
	r.reloads.WithLabelValues(reloadTaken).Inc()
	r.take(ctx, fresh)
	r.current = fresh
	r.log.Info("the configuration was read again", "why", why, "routes", fresh.config.RoutesHash(),
		"routes_changed", fresh.config.RoutesHash() != before.config.RoutesHash())
	if later := r.started.ChangedSettings(&fresh.config); len(later) > 0 {
		r.log.Warn("these settings have changed in the file: restart the service to apply them", "settings", later)
	}
	r.tellEnvoy(&before.config, &fresh.config)
}

// admit applies the tokens of the operators' API alone, so that a mistake in another file does not
// keep one that was removed. It returns a mistake in them; the previous ones stay then. It leaves a
// file that is no regular one to read, which says so.
func (r *reloader) admit(ctx context.Context) error {
	if !r.started.ServesAdmin() {
		return nil
	}
	if info, err := os.Stat(r.started.AdminTokensFile); err == nil && !info.Mode().IsRegular() {
		return nil
	}
	named, err := config.UnlessEnded(ctx, r.started.AdminTokens)
	if err == nil {
		r.takeAdmin(named)
	}
	return err
}

// tellEnvoy logs that Envoy's configuration has to follow, and the lines that differ.
func (r *reloader) tellEnvoy(before, after *config.Config) {
	if removed, added, differs := before.BootstrapDifference(after); differs {
		r.log.Warn("Envoy's configuration does not fit the route table any more: print it again (keyporter envoy), and load it",
			"removed", removed, "added", added)
	}
}

package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyporter/keyporter/bearer"
	"github.com/keyporter/keyporter/envoy/bootstrap"
	"github.com/keyporter/keyporter/internal/routes"
)

// reloadable is the part of the configuration that a running service reloads from its files.
type reloadable struct {
	config      config // the route table; all other settings are only compared
	grpcToken   bearer.Token
	settleToken bearer.Token
}

// reloader watches the files of the service and applies changes of the route table and the tokens.
// A file that is unreadable or invalid changes nothing.
type reloader struct {
	load func() (config, error)
	// take enforces the new values for all requests that begin afterwards.
	take    func(context.Context, reloadable)
	log     *slog.Logger
	started config // configuration at the start, with the settings that take cannot change
	current reloadable
	seen    []fs.FileInfo // state of the files at their last read; nil for a file without one
	reloads *prometheus.CounterVec
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

func newReloader(load func() (config, error), current reloadable, log *slog.Logger, metrics prometheus.Registerer) *reloader {
	r := &reloader{load: load, started: current.config, current: current, log: log, reloads: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "keyporter_config_reloads_total", Help: "Reloads of the route table and the tokens, by what became of them.",
	}, []string{"result"})}
	for _, result := range []string{reloadTaken, reloadRefused} {
		r.reloads.WithLabelValues(result)
	}
	metrics.MustRegister(r.reloads)
	r.seen = current.config.seen
	return r
}

// files returns the names of the watched files. Links are followed, because Kubernetes swaps them.
func (c *config) files() []string {
	names := []string{c.file, c.GRPCTokenFile}
	if c.settles() {
		names = append(names, c.SettleTokenFile)
	}
	return slices.DeleteFunc(names, func(name string) bool { return name == "" })
}

// look returns the state of the watched files.
func (c *config) look() (seen []fs.FileInfo) {
	for _, name := range c.files() {
		info, err := os.Stat(name)
		if err != nil {
			info = nil
		}
		seen = append(seen, info)
	}
	return seen
}

// sameFiles reports whether no file differs between two states.
func sameFiles(a, b []fs.FileInfo) bool {
	return slices.EqualFunc(a, b, func(x, y fs.FileInfo) bool {
		if x == nil || y == nil {
			return x == y
		}
		return os.SameFile(x, y) && x.ModTime().Equal(y.ModTime()) && x.Size() == y.Size() && x.Mode() == y.Mode()
	})
}

// run checks the files at each interval, and reloads at once on a request, until ctx ends.
func (r *reloader) run(ctx context.Context, asked <-chan os.Signal) {
	ticker := time.NewTicker(reloadInterval)
	defer ticker.Stop()
	last := r.seen
	for {
		select {
		case <-ctx.Done():
			return
		case <-asked:
			last = r.started.look()
			r.reload(ctx, last, "it was asked for")
		case <-ticker.C:
			now := r.started.look()
			if sameFiles(now, last) && !sameFiles(now, r.seen) {
				r.reload(ctx, now, "a file has changed")
			}
			last = now
		}
	}
}

// read reads the configuration and the tokens again, from the files of the start. An error explains
// why nothing can be applied.
func (r *reloader) read(now []fs.FileInfo, before *config) (fresh reloadable, err error) {
	for i, name := range r.started.files() {
		if now[i] != nil && !now[i].Mode().IsRegular() {
			return reloadable{}, fmt.Errorf("%s is no file that can be read again, such as a pipe or a folder", name)
		}
	}
	if fresh.config, err = r.load(); err != nil {
		return reloadable{}, err
	}
	switch c := &fresh.config; {
	case c.sources["routes"] == "default" && before.sources["routes"] != "default":
		return reloadable{}, fmt.Errorf("%s has no `routes` any more: restart the service if it is to have the table that Keyporter ships with", c.file)
	case c.PagePath != r.started.PagePath:
		return reloadable{}, fmt.Errorf("the page is at %s until the service is restarted, and its rules would be for %s", r.started.PagePath, c.PagePath)
	}
	grpc, problem := r.started.grpcToken()
	settle, other := r.started.settleToken()
	fresh.grpcToken, fresh.settleToken = grpc, settle
	return fresh, errors.Join(problem, other)
}

// reload reads everything again and applies the changes.
func (r *reloader) reload(ctx context.Context, now []fs.FileInfo, why string) {
	r.seen = now
	limited, cancel := context.WithTimeout(ctx, reloadTime)
	defer cancel()
	before := r.current
	fresh, err := unlessEnded(limited, func() (reloadable, error) { return r.read(now, &before.config) })
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
	r.log.Info("the configuration was read again", "why", why, "routes", fresh.config.routesHash(),
		"routes_changed", fresh.config.routesHash() != before.config.routesHash())
	if later := r.started.settingsBeside(&fresh.config); len(later) > 0 {
		r.log.Warn("these settings have changed in the file: restart the service to have them in force", "settings", later)
	}
	r.tellEnvoy(&before.config, &fresh.config)
}

// tellEnvoy logs that Envoy's configuration has to follow, and the lines that differ.
func (r *reloader) tellEnvoy(before, after *config) {
	if removed, added, differs := before.bootstrapDifference(after); differs {
		r.log.Warn("Envoy's configuration does not fit the route table any more: print it again (keyporter envoy), and load it",
			"removed", removed, "added", added)
	}
}

// settingsBeside returns the names of the settings that differ between two configurations.
func (c *config) settingsBeside(other *config) (names []string) {
	for _, s := range settings {
		if c.values[s.name] != other.values[s.name] {
			names = append(names, s.key())
		}
	}
	return names
}

// routesHash identifies a route table: tables with the same hash decide alike.
func (c *config) routesHash() string {
	sum := sha256.Sum256([]byte(routes.FormatCORS(c.CORS, "") + routes.Format(c.Rules)))
	return hex.EncodeToString(sum[:6])
}

// maxDifference bounds the lines of a difference that are logged.
const maxDifference = 20

// bootstrapDifference reports whether the printed bootstrap differs between two configurations, and
// returns the lines that only one of them has. There are none if lines only changed places, such as
// the routes of two hosts.
func (c *config) bootstrapDifference(other *config) (removed, added []string, differs bool) {
	lines := func(c *config) []string {
		text, err := bootstrap.YAML(bootstrap.Config{Routes: c.Routes, Upstreams: c.Upstreams})
		if err != nil {
			return []string{fmt.Sprint(err)}
		}
		return strings.Split(string(text), "\n")
	}
	before, after := lines(c), lines(other)
	return without(before, after), without(after, before), !slices.Equal(before, after)
}

// without returns the first few of the lines that are not in others.
func without(lines, others []string) (left []string) {
	known := map[string]bool{}
	for _, line := range others {
		known[line] = true
	}
	for _, line := range lines {
		if known[line] {
			continue
		}
		if len(left) == maxDifference {
			return append(left, "…")
		}
		left = append(left, strings.TrimSpace(line))
	}
	return left
}

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

	"github.com/keyporter/keyporter/envoy"
	"github.com/keyporter/keyporter/internal/routes"
)

// reloadable is what a running service takes over from its files without a restart.
type reloadable struct {
	config      config // its route table, and what the other settings were
	grpcToken   envoy.Token
	settleToken envoy.Token
}

// reloader looks at the files that the service has read, and takes over what has changed: the route
// table and the tokens. What cannot be read, or is wrong, changes nothing.
type reloader struct {
	load func() (config, error)
	// take puts what was read into force, for all requests that begin afterwards.
	take    func(context.Context, reloadable)
	log     *slog.Logger
	started config // what the service was started with: all but what take puts into force
	current reloadable
	seen    []fs.FileInfo // of files, when they were last read; nil for one that could not be looked at
	reloads *prometheus.CounterVec
}

// reloadInterval is how often the files are looked at. A change is taken over when it has not
// changed again at the next look, so that no file is read that is half written.
const reloadInterval = time.Second

// reloadTime is how long reading the files again may take. What takes longer, such as a pipe in
// place of a file with a secret, is left behind.
const reloadTime = 10 * time.Second

// What becomes of a reload.
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

// files are the names of those that are looked at. A link is looked through: Kubernetes swaps it.
func (c *config) files() []string {
	names := []string{c.file, c.GRPCTokenFile}
	if c.settles() {
		names = append(names, c.SettleTokenFile)
	}
	return slices.DeleteFunc(names, func(name string) bool { return name == "" })
}

// look looks at the files.
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

// sameFiles reports whether no file has changed between two looks.
func sameFiles(a, b []fs.FileInfo) bool {
	return slices.EqualFunc(a, b, func(x, y fs.FileInfo) bool {
		if x == nil || y == nil {
			return x == y
		}
		return os.SameFile(x, y) && x.ModTime().Equal(y.ModTime()) && x.Size() == y.Size() && x.Mode() == y.Mode()
	})
}

// run looks at the files now and then, and at once when somebody asks for it, until ctx ends.
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

// read reads the configuration again, and the tokens from the files that they came from at the
// start. An error says why nothing of it can be taken over.
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

// reload reads everything again and takes over what has changed.
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

// tellEnvoy says that Envoy's configuration has to follow, and where it differs.
func (r *reloader) tellEnvoy(before, after *config) {
	if removed, added, differs := before.bootstrapDifference(after); differs {
		r.log.Warn("Envoy's configuration does not fit the route table any more: print it again (keyporter envoy), and load it",
			"removed", removed, "added", added)
	}
}

// settingsBeside returns the names of the settings whose values differ in another configuration.
func (c *config) settingsBeside(other *config) (names []string) {
	for _, s := range settings {
		if c.values[s.name] != other.values[s.name] {
			names = append(names, s.key())
		}
	}
	return names
}

// routesHash names a route table: tables with one hash decide alike.
func (c *config) routesHash() string {
	sum := sha256.Sum256([]byte(routes.FormatCORS(c.CORS, "") + routes.Format(c.Rules)))
	return hex.EncodeToString(sum[:6])
}

// maxDifference is how many lines of a difference are told.
const maxDifference = 20

// bootstrapDifference reports whether the printed bootstrap differs in another configuration, and
// returns the lines that only one of them has: none where lines have changed places, such as routes
// of two hosts.
func (c *config) bootstrapDifference(other *config) (removed, added []string, differs bool) {
	lines := func(c *config) []string {
		text, err := envoy.Bootstrap(envoy.BootstrapConfig{Routes: c.Routes, Upstreams: c.Upstreams})
		if err != nil {
			return []string{fmt.Sprint(err)}
		}
		return strings.Split(string(text), "\n")
	}
	before, after := lines(c), lines(other)
	return without(before, after), without(after, before), !slices.Equal(before, after)
}

// without returns the first few of the lines that others do not have.
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

package config

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/keyporter/keyporter/envoy/bootstrap"

	"github.com/keyporter/keyporter/internal/routes"
)

// Files returns the names of the watched files. Links are followed, because Kubernetes swaps them.
func (c *Config) Files() []string {
	names := []string{c.File, c.GRPCTokenFile}
	if c.Settles() {
		names = append(names, c.SettleTokenFile)
	}
	if c.ServesAdmin() {
		names = append(names, c.AdminTokensFile)
	}
	return slices.DeleteFunc(names, func(name string) bool { return name == "" })
}

// FileStates returns the state of the watched files.
func (c *Config) FileStates() (seen []fs.FileInfo) {
	for _, name := range c.Files() {
		info, err := os.Stat(name)
		if err != nil {
			info = nil
		}
		seen = append(seen, info)
	}
	return seen
}

// SameFiles reports whether no file differs between two states.
func SameFiles(a, b []fs.FileInfo) bool {
	return slices.EqualFunc(a, b, func(x, y fs.FileInfo) bool {
		if x == nil || y == nil {
			return x == y
		}
		return os.SameFile(x, y) && x.ModTime().Equal(y.ModTime()) && x.Size() == y.Size() && x.Mode() == y.Mode()
	})
}

// ChangedSettings returns the names of the settings that differ between two configurations.
func (c *Config) ChangedSettings(other *Config) (names []string) {
	for _, s := range settings {
		if c.values[s.Name] != other.values[s.Name] {
			names = append(names, s.key())
		}
	}
	return names
}

// RoutesHash identifies a route table: tables with the same hash decide alike.
func (c *Config) RoutesHash() string {
	sum := sha256.Sum256([]byte(routes.FormatCORS(c.CORS, "") + routes.FormatKeyFormats(c.KeyFormats, "") + routes.Format(c.Rules)))
	return hex.EncodeToString(sum[:6])
}

// maxDifference bounds the lines of a difference that are logged.
const maxDifference = 20

// BootstrapDifference reports whether the printed bootstrap differs between two configurations, and
// returns the lines that only one of them has. There are none if lines only changed places, such as
// the routes of two hosts.
func (c *Config) BootstrapDifference(other *Config) (removed, added []string, differs bool) {
	lines := func(c *Config) []string {
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

// ShippedRoutes reports whether the route table is the one that Keyporter ships with.
func (c *Config) ShippedRoutes() bool { return c.sources["routes"] == "default" }

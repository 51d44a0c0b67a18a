package e2e_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	gobuild "go/build"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// layers lists the files of packages with layers, lowest first. A file uses only lower ones.
var layers = map[string][]string{
	"authz": {
		"text.go", "accept.go", "reason.go", "problem.go", "request.go", "principal.go", "charge.go", "span.go", "rule.go", "target.go", "normal.go",
		"host.go", "cors.go", "timeouts.go", "rulecheck.go", "routes.go", "keyformats.go", "crossorigin.go", "warnings.go", "page.go", "credential.go", "cookie.go",
		"sessions.go", "authz.go", "strip.go", "decide.go", "key.go", "explain.go",
	},
	"internal/operations": {"kind.go", "operations.go", "formats.go", "plans.go", "accounts.go", "users.go", "keys.go", "sessions.go", "credits.go", "batch.go", "usage.go", "audit.go", "events.go", "replicas.go", "seal.go", "import.go"},
	"internal/service": {
		"build.go", "gc.go", "guests.go", "peerusers_linux.go", "peerusers_other.go", "peers.go", "listen.go", "pprof.go", "causes.go", "calmlog.go", "ops.go", "health.go", "caches.go", "tokens.go", "logins.go",
		"replicacount.go", "ratelog.go", "replica.go", "meters.go", "page.go", "logwatch.go", "reload.go", "tls.go", "live.go", "webhooks.go", "admin.go", "servers.go", "housekeeping.go",
		"startup.go", "service.go", "serve.go",
	},
	"credits": {"recalls.go", "spender.go", "wallet.go", "shard.go", "outcomes.go", "metrics.go", "credits.go", "reporter.go"},
	"envoy": {
		"kind.go", "loglimiter.go", "metrics.go", "deadline.go", "failure.go", "unreported.go", "callers.go", "client.go", "server.go", "accesslog.go",
		"check.go", "grpc.go", "transport.go", "serve.go",
	},
	"envoy/transport": {
		"limits.go", "write.go", "config.go", "headers.go", "input.go", "message.go", "conn.go", "output.go", "stream.go", "streaming.go",
		"response.go", "handover.go", "answer.go", "life.go", "frames.go", "loop.go", "server.go",
	},
	"jwt":       {"refused.go", "text.go", "config.go", "read.go", "keys.go", "jwt.go"},
	"portal":    {"config.go", "clean.go", "texts.go", "addresses.go", "assets.go", "view.go", "quota.go", "request.go", "page.go", "answer.go", "overviewdata.go", "overviewjson.go", "overview.go", "static.go", "login.go", "regenerate.go", "portal.go"},
	"ratelimit": {"attempt.go", "slidinglog.go", "recent.go", "memory.go", "snapshot.go", "backlog.go", "batches.go", "valkey.go", "probe.go", "metrics.go", "shared.go"},
	"store/directory": {
		"fix.go", "condition.go", "directory.go", "plans.go", "accounts.go", "users.go", "keys.go", "batch.go", "seal.go", "sessions.go", "links.go", "audit.go", "lookup.go", "imported.go", "import.go", "export.go",
	},
}

// Inside a package no file of a lower layer uses a higher one: neither a name, nor a method, nor a
// field.
func TestFilesUseLowerLayersOnly(t *testing.T) {
	t.Parallel()
	exports := exportData(t)
	for name, files := range layers {
		for _, use := range usesBetween(t, name, exports) {
			user, used := slices.Index(files, use.user), slices.Index(files, use.used)
			if user < 0 || used < 0 {
				t.Errorf("%s: %s or %s has no layer: add it here", name, use.user, use.used)
			} else if used > user {
				t.Errorf("%s: %s uses %s of %s, a higher layer", name, use.user, use.name, use.used)
			}
		}
	}
}

// use is a use of something in another file of the same package.
type use struct{ user, used, name string }

// usesBetween returns the uses between the files of a package.
func usesBetween(t *testing.T, name string, exports map[string]string) (all []use) {
	t.Helper()
	dir := filepath.Join(root, name)
	fset := token.NewFileSet()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var files []*ast.File
	for _, entry := range entries {
		if here, err := gobuild.Default.MatchFile(dir, entry.Name()); err != nil {
			t.Fatal(err)
		} else if !here || !strings.HasSuffix(entry.Name(), ".go") || strings.HasSuffix(entry.Name(), "_test.go") {
			continue // also what only other systems and tags build
		}
		file, err := parser.ParseFile(fset, filepath.Join(dir, entry.Name()), nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	config := types.Config{Importer: importer.ForCompiler(fset, "gc", func(path string) (io.ReadCloser, error) {
		return os.Open(exports[path])
	})}
	info := &types.Info{Uses: map[*ast.Ident]types.Object{}}
	if _, err := config.Check(module+name, fset, files, info); err != nil {
		t.Fatal(err)
	}
	base := func(pos token.Pos) string { return filepath.Base(fset.Position(pos).Filename) }
	for ident, object := range info.Uses {
		if object.Pkg() == nil || object.Pkg().Path() != module+name || !object.Pos().IsValid() {
			continue
		}
		if user, used := base(ident.Pos()), base(object.Pos()); user != used {
			all = append(all, use{user, used, object.Name()})
		}
	}
	slices.SortFunc(all, func(a, b use) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	return slices.Compact(all)
}

// exportData returns the files with the compiled interfaces of all packages that the layered ones
// import.
func exportData(t *testing.T) map[string]string {
	t.Helper()
	args := []string{"list", "-export", "-deps", "-json=ImportPath,Export"}
	for name := range layers {
		args = append(args, module+name)
	}
	out, err := exec.Command("go", args...).Output()
	if err != nil {
		t.Fatal(err)
	}
	exports := map[string]string{}
	for decoder := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct{ ImportPath, Export string }
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			return exports
		} else if err != nil {
			t.Fatal(err)
		}
		exports[p.ImportPath] = p.Export
	}
}

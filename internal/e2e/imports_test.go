package e2e_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/keyporter/keyporter/"

// mayImport lists, for each of our packages, the other ones that it may import. Imports point
// inwards only: store, cache, envoy and portal never know one another; only internal/service
// knows them all. What store and cache share is the lease.
var mayImport = map[string][]string{
	"admin":                    {"authz", "bearer", "internal/operations", "store", "store/directory", "store/feed", "usage"},
	"apikey":                   {},
	"authz":                    {"apikey", "usage"},
	"bearer":                   {},
	"client":                   {"usage"},
	"examples/billing":         {"client"},
	"internal/storetest":       {"apikey", "authz", "credits/ledger", "internal/parts/partstest", "store", "store/directory", "store/feed", "store/lease", "store/ledger", "usage"},
	"cmd/keyporter":            {"apikey", "authz", "client", "envoy/bootstrap", "envoy/inspect", "internal/config", "internal/demo", "internal/drill", "internal/operations", "internal/routes", "internal/sealfile", "internal/service", "internal/terminal", "store", "store/directory", "store/feed", "store/lease", "usage"},
	"credits":                  {"credits/ledger", "usage"},
	"credits/ledger":           {"usage"},
	"credits/ledgertest":       {"credits", "credits/ledger", "usage"},
	"envoy":                    {"authz", "bearer", "envoy/codec", "envoy/transport", "nowait", "usage"},
	"envoy/bootstrap":          {"authz", "bearer"},
	"envoy/codec":              {"authz", "envoy/wire", "usage"},
	"envoy/codec/codectest":    {},
	"envoy/inspect":            {},
	"envoy/transport":          {},
	"envoy/wire":               {},
	"events":                   {"store/outbox"},
	"internal/config":          {"apikey", "authz", "bearer", "client", "envoy", "envoy/bootstrap", "envoy/codec", "events", "internal/routes", "internal/sealfile", "internal/terminal", "internal/tlsport", "jwt", "portal", "ratelimit", "store", "store/directory", "store/feed", "store/lease", "store/outbox"},
	"internal/contract":        {},
	"internal/demo":            {"envoy/bootstrap", "internal/config", "internal/parts", "internal/service"},
	"internal/drill":           {"apikey", "authz", "envoy", "internal/config", "internal/operations", "store", "store/directory", "store/feed", "usage"},
	"internal/e2e":             {},
	"internal/operations":      {"apikey", "authz", "internal/sealfile", "portal", "store", "store/directory", "store/feed", "store/lease", "store/ledger", "store/outbox", "store/requests", "usage"},
	"internal/parts":           {},
	"internal/parts/partstest": {"internal/parts"},
	"internal/routes":          {"apikey", "authz", "usage"},
	"internal/service":         {"admin", "apikey", "authz", "bearer", "credits", "envoy", "events", "internal/config", "internal/operations", "internal/sealfile", "internal/tlsport", "jwt", "meter", "meter/settle", "portal", "portal/requestlog", "ratelimit", "receipt", "store", "store/cache", "store/directory", "store/feed", "store/lease", "store/ledger", "store/outbox", "store/requests", "usage"},
	"internal/sealfile":        {"apikey"},
	"internal/terminal":        {},
	"internal/tlsport":         {},
	"jwt":                      {"nowait"},
	"meter":                    {"authz", "credits", "credits/ledger", "nowait", "ratelimit", "receipt", "usage"},
	"meter/settle":             {"receipt"},
	"nowait":                   {},
	"portal":                   {"apikey", "authz", "usage"},
	"portal/requestlog":        {"authz", "usage"},
	"ratelimit":                {"nowait", "usage"},
	"receipt":                  {"usage"},
	"store":                    {"store/lease", "usage"},
	"store/cache":              {"nowait", "store/lease"},
	"store/directory":          {"apikey", "authz", "store", "store/feed", "store/lease", "usage"},
	"store/feed":               {"store", "store/lease"},
	"store/lease":              {"nowait"},
	"store/ledger":             {"credits/ledger", "store", "store/feed", "usage"},
	"store/outbox":             {"store", "store/feed", "usage"},
	"store/requests":           {"store", "usage"},
	"usage":                    {},
}

// only lists, for each third-party module, the only package that may import it. Each package makes
// its own metrics.
var only = map[string][]string{
	"github.com/fsnotify/fsnotify":                 {"store/feed"},
	"github.com/lib/pq":                            {"store"},
	"modernc.org/sqlite":                           {"store"},
	"github.com/pressly/goose/v3":                  {"store"},
	"github.com/hashicorp/golang-lru/v2":           {"store/cache"},
	"github.com/envoyproxy/go-control-plane/envoy": {"envoy", "envoy/codec", "envoy/codec/codectest", "envoy/inspect"},
	"golang.org/x/net/http2":                       {"envoy/transport"},
	"golang.org/x/net/http/httpguts":               {"envoy/transport"},
	"google.golang.org/grpc":                       {"envoy", "envoy/codec"},
	"google.golang.org/genproto":                   {"envoy/codec"},
	"google.golang.org/protobuf":                   {"envoy", "envoy/codec", "envoy/codec/codectest", "envoy/inspect", "envoy/wire"},
	"github.com/valkey-io/valkey-go":               {"ratelimit"},
	"github.com/go-jose/go-jose/v4":                {"jwt"},
	"github.com/spf13/cobra":                       {"cmd/keyporter"},
	"github.com/spf13/pflag":                       {"cmd/keyporter", "internal/config"},
	"go.yaml.in/yaml/v4":                           {"cmd/keyporter", "internal/config", "internal/routes"},
	"golang.org/x/sync":                            {"internal/service"},
	"golang.org/x/text":                            {"authz", "portal"},
	"golang.org/x/time":                            {"admin", "internal/service"},
	"golang.org/x/sys":                             {"store/lease"},
	"github.com/prometheus/client_golang":          {"admin", "credits", "envoy", "events", "internal/service", "portal", "portal/requestlog", "ratelimit", "store", "store/cache", "store/lease"},
}

// pkg is the part of the output of `go list -json` that the test needs.
type pkg struct {
	ImportPath string
	Imports    []string
}

// The import rules of ARCHITECTURE.md hold.
func TestImportsFollowTheArchitecture(t *testing.T) {
	t.Parallel()
	packages := list(t)
	if len(packages) < len(mayImport) {
		t.Errorf("%d packages listed, %d have rules", len(packages), len(mayImport))
	}
	for _, p := range packages {
		name := strings.TrimPrefix(p.ImportPath, module)
		ours, ruled := mayImport[name]
		if !ruled {
			t.Errorf("%s has no import rule: add it here and to ARCHITECTURE.md", name)
		}
		for _, imported := range p.Imports {
			if own, ok := strings.CutPrefix(imported, module); ok {
				if !slices.Contains(ours, own) {
					t.Errorf("%s imports %s", name, own)
				}
				continue
			}
			if !strings.Contains(strings.Split(imported, "/")[0], ".") {
				continue // standard library
			}
			if owner := ownerOf(imported); !slices.Contains(owner, name) {
				t.Errorf("%s imports %s, which only %v may", name, imported, owner)
			}
		}
	}
}

// ownerOf returns the packages that may import a package of a third-party module.
func ownerOf(imported string) []string {
	for prefix, owner := range only {
		if imported == prefix || strings.HasPrefix(imported, prefix+"/") {
			return owner
		}
	}
	return nil
}

func list(t *testing.T) []pkg {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", module+"...").Output()
	if err != nil {
		t.Fatal(err)
	}
	var all []pkg
	for decoder := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

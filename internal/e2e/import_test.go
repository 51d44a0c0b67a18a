package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyporter/keyporter/internal/parts/partstest"
)

const formatsConfig = `
key_formats:
  - {prefix: sk_live_, pattern: "[0-9a-z]{24}"}
  - {pattern: "[0-9a-f]{32}"}
routes:
  - {paths: "/v1/*", kind: api_key}
  - {paths: /open, kind: public}
`

// A key of another system passes on every replica once its import has returned. The upstream sees
// nothing of it, and no log holds it. A guess is 401 without a look-up. The key ends everywhere
// when it is regenerated.
func TestKeysOfAnotherSystem(t *testing.T) {
	partstest.Slow(t)
	for name, database := range databases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			replicas := 3
			if name == "SQLite" {
				replicas = 1
			}
			s := start(t, stackConfig{database: database(t), replicas: replicas, config: formatsConfig})
			const users = 20
			var lines strings.Builder
			keys := make([]string, users)
			lines.WriteString("user,account,plan,key\n")
			for i := range keys {
				keys[i] = fmt.Sprintf("sk_live_canary%018d", i)
				fmt.Fprintf(&lines, "user%d,acme,pro,%s\n", i, keys[i])
			}
			bare := strings.Repeat("cafe", 8)
			fmt.Fprintf(&lines, "bare,acme,pro,%s\n", bare)
			s.run("plan", "set", "pro", "--rate-limit", "unlimited", "--credits", "unlimited")
			file := filepath.Join(t.TempDir(), "users.csv")
			if err := os.WriteFile(file, []byte(lines.String()), 0o600); err != nil {
				t.Fatal(err)
			}
			var checkers []*checker
			for _, r := range s.replicas {
				checkers = append(checkers, newChecker(t, r))
			}
			s.run("import", file)
			for _, key := range append(keys, bare) {
				for i, c := range checkers {
					if got := keyIs(t, c, key); got != 200 {
						t.Fatalf("an imported key on replica %d: %d", i, got)
					}
				}
			}
			s.importedKeysAreStripped(t, keys[0])
			s.guessesCostNothing(t)
			ours := s.key("regenerate", "user7")
			for i, c := range checkers {
				if old, new := keyIs(t, c, keys[7]), keyIs(t, c, ours); old != 401 || new != 200 {
					t.Errorf("after regenerating, on replica %d: %d with the imported key, %d with the new one", i, old, new)
				}
			}
			if all := s.written(); strings.Contains(all, "canary") {
				at := strings.Index(all, "canary")
				t.Errorf("a log holds an imported key: %.200s", all[max(0, at-120):])
			}
		})
	}
}

// keyIs returns the status of a request with a key.
func keyIs(t *testing.T, c *checker, key string) int {
	t.Helper()
	status, err := c.status("/v1/a", "x-api-key", key)
	if err != nil {
		t.Fatal(err)
	}
	return status
}

// importedKeysAreStripped sends a key in each place, through Envoy.
func (s *stack) importedKeysAreStripped(t *testing.T, key string) {
	t.Helper()
	for i, row := range []struct {
		target string
		header []string
		status int
	}{
		{"/v1/a", []string{"x-api-key: " + key}, 200},
		{"/v1/a", []string{"authorization: Bearer " + key}, 200},
		{"/v1/a?b=1&api_key=" + key + "&c", nil, 200},
		{"/open?api_key=" + key, []string{"authorization: Token " + key, "x-api-key: " + key, "sec-websocket-protocol: a, key." + key}, 200},
		{"/v1/a", []string{"x-api-key: " + key, "authorization: Basic x, Bearer " + key}, 200},
		{"/v2/" + key, nil, 404},
		{"/v1/" + key + "/b", nil, 401},
	} {
		id := fmt.Sprintf("imported%d", i)
		a := s.send(request{target: row.target, header: append(row.header, "x-test-id: "+id)})
		if a.status != row.status {
			t.Errorf("%s %v: %d", row.target, row.header, a.status)
		}
		if seen, arrived := s.upstream.take(id); arrived != (row.status == 200) || strings.Contains(seen.target+fmt.Sprint(seen.header), key) {
			t.Errorf("%s %v: the upstream sees %+v", row.target, row.header, seen)
		}
	}
}

// guessesCostNothing sends many guesses at imported keys, and looks at the replica's look-ups.
func (s *stack) guessesCostNothing(t *testing.T) {
	t.Helper()
	r := s.replicas[0]
	partstest.EventuallyNil(t, "the list of imported keys is complete", func() error {
		if complete := r.metric(t, "keyporter_imported_list_complete"); complete != "1" {
			return fmt.Errorf("it is %s", complete)
		}
		return nil
	})
	const misses = `keyporter_cache_lookups_total{cache="imported",result="miss"}`
	const refused = `keyporter_cache_lookups_total{cache="imported",result="negative"}`
	before, negative := r.number(t, misses), r.number(t, refused)
	c := newChecker(t, r)
	const guesses = 500
	for i := range guesses {
		if got := keyIs(t, c, fmt.Sprintf("sk_live_guess%019d", i)); got != 401 {
			t.Fatalf("a guess: %d", got)
		}
	}
	if read, known := r.number(t, misses)-before, r.number(t, refused)-negative; read != 0 || known != guesses {
		t.Errorf("%d guesses: %v look-ups in the database, %v from the list", guesses, read, known)
	}
}

package e2e_test

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

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

// A million users are imported in two minutes, in memory that does not grow with the file, while
// existing users are answered from memory as before. See `make import`.
func TestAMillionImported(t *testing.T) {
	if !importing {
		t.Skip("takes minutes: make import")
	}
	const lines, limit, maxMemory = 1_000_000, 2 * time.Minute, 200 << 20
	s := start(t, stackConfig{database: partstest.Database(t, 18), noEnvoy: true, config: formatsConfig, flags: patient})
	var keys []string
	for i := range 20 {
		keys = append(keys, s.user(fmt.Sprintf("old%d", i), "pro"))
	}
	file := filepath.Join(t.TempDir(), "users.csv")
	writeMillion(t, file, lines)

	r, c := s.replicas[0], newChecker(t, s.replicas[0])
	const hits, all = `keyporter_cache_lookups_total{cache="keys",result="hit"}`, `keyporter_cache_lookups_total{cache="keys",result="miss"}`
	for _, key := range keys {
		keyIs(t, c, key)
	}
	hit, miss := r.number(t, hits), r.number(t, all)
	done := make(chan int)
	stop := make(chan struct{})
	go func() {
		asked := 0
		for {
			select {
			case <-stop:
				done <- asked
				return
			default:
			}
			if status, err := c.status("/v1/a", "x-api-key", keys[asked%len(keys)]); err != nil || status != 200 {
				t.Errorf("an existing key during the import: %d, %v", status, err)
			}
			asked++
			time.Sleep(5 * time.Millisecond)
		}
	}()
	command := exec.Command(s.program, "import", file, "--database", s.database, "--config", s.config)
	began := time.Now()
	out, err := command.CombinedOutput()
	took := time.Since(began)
	close(stop)
	asked := <-done
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	memory := int64(command.ProcessState.SysUsage().(*syscall.Rusage).Maxrss) << 10
	hit, miss = r.number(t, hits)-hit, r.number(t, all)-miss
	t.Logf("%s%d lines in %v, %d MiB of memory; %d requests of existing users meanwhile, %.0f answered from memory, %.0f read", out, lines, took.Round(100*time.Millisecond), memory>>20, asked, hit, miss)
	if took > limit || memory > maxMemory {
		t.Errorf("it took %v and %d MiB, not %v and %d MiB at most", took, memory>>20, limit, maxMemory>>20)
	}
	if miss > 0 {
		t.Errorf("%.0f keys of existing users were read again", miss)
	}
	if got := keyIs(t, c, millionKey(lines-1)); got != 200 {
		t.Errorf("the last key: %d", got)
	}
	s.guessesCostNothing(t)
}

func millionKey(i int) string { return fmt.Sprintf("sk_live_%024d", i) }

func writeMillion(t *testing.T, file string, lines int) {
	t.Helper()
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	w := bufio.NewWriter(f)
	fmt.Fprintln(w, "user,account,plan,key_sha256,credits_used")
	for i := range lines {
		fmt.Fprintf(w, "user%d,account%d,pro,%x,%d\n", i, i/4, sha256.Sum256([]byte(millionKey(i))), i%7)
	}
	if err := errors.Join(w.Flush(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

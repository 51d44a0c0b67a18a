package partstest_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/keyporter/keyporter/internal/parts"
	"github.com/keyporter/keyporter/internal/parts/partstest"
)

func TestMain(m *testing.M) { partstest.Main(m) }

// recorder is a test that only records how it ends.
type recorder struct {
	testing.TB
	outcome string
}

func (r *recorder) Helper()      {}
func (r *recorder) Skip(...any)  { r.end("skipped") }
func (r *recorder) Fatal(...any) { r.end("failed") }

func (r *recorder) end(outcome string) {
	r.outcome = outcome
	runtime.Goexit()
}

// CI must not pass by skipping everything because a program is missing.
func TestRequire(t *testing.T) {
	missing := fmt.Errorf("starting: %w", &parts.MissingError{Part: "Envoy", Env: "ENVOY"})
	for _, c := range []struct {
		ci   string
		err  error
		want string
	}{
		{"", nil, ""},
		{"", missing, "skipped"},
		{"true", missing, "failed"},
		{"", errors.New("broken"), "failed"},
		{"true", errors.New("broken"), "failed"},
	} {
		t.Setenv("CI", c.ci)
		test := &recorder{}
		done := make(chan struct{})
		go func() {
			defer close(done)
			partstest.Require(test, c.err)
		}()
		<-done
		if test.outcome != c.want {
			t.Errorf("CI=%q, %v: %q, want %q", c.ci, c.err, test.outcome, c.want)
		}
	}
}

func sql(t *testing.T, address, statements string) (string, error) {
	t.Helper()
	parsed, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	out, err := partstest.Postgres(t, 18).SQL(t.Context(), strings.TrimPrefix(parsed.Path, "/"), statements)
	return strings.TrimSpace(out), err
}

// Concurrent tests, with names in the form of Go, do not see each other's tables.
func TestDatabaseIsOfOneTestAlone(t *testing.T) {
	for range 3 {
		t.Run("with \"odd\" names, longer than what PostgreSQL lets a database have", func(t *testing.T) {
			t.Parallel()
			address := partstest.Database(t, 18)
			if _, err := sql(t, address, "CREATE TABLE mine (a int)"); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestDatabaseGoesWithItsTest(t *testing.T) {
	var address string
	t.Run("inner", func(t *testing.T) { address = partstest.Database(t, 18) })
	if _, err := sql(t, address, "SELECT 1"); err == nil {
		t.Errorf("%s is still there", address)
	}
}

// number of templates that TestDatabaseFrom made: with -count it runs several times in one process
var templates int

// Every copy contains the result of fill, but no changes of other tests, and fill runs once.
func TestDatabaseFrom(t *testing.T) {
	templates++
	name := fmt.Sprint("prepared_", templates)
	filled := 0
	fill := func(address string) error {
		filled++
		_, err := sql(t, address, "CREATE TABLE prepared (a int)")
		return err
	}
	for range 3 {
		address := partstest.DatabaseFrom(t, 18, name, fill)
		if _, err := sql(t, address, "INSERT INTO prepared VALUES (1)"); err != nil {
			t.Fatal(err)
		}
		if got, err := sql(t, address, "SELECT count(*) FROM prepared"); err != nil || got != "1" {
			t.Errorf("%s rows, %v", got, err)
		}
	}
	if filled != 1 {
		t.Errorf("filled %d times", filled)
	}
}

// Main stops the servers shared by the tests of a package, and removes their files.
func TestMainStopsSharedServers(t *testing.T) {
	partstest.Slow(t)
	_, err := parts.FindPostgres(18)
	partstest.Require(t, err)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(context.Background(), self, "-test.run=^TestDatabaseGoesWithItsTest$")
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "PASS") {
		t.Fatalf("%v\n%s", err, out)
	}
	left, err := filepath.Glob(filepath.Join(os.TempDir(), fmt.Sprintf("keyporter-parts-*-%d-*", cmd.Process.Pid)))
	if err != nil {
		t.Fatal(err)
	}
	if len(left) != 0 {
		t.Errorf("left behind: %q", left)
	}
}

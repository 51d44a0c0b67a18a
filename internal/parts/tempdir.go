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

// tempDir makes a folder for one program's files. Its name holds this process's PID, by which a later
// process finds what was left by one that was killed.
func tempDir() (string, error) {
	base := tempBase()
	sweepOnce.Do(func() { removeStale(base) })
	dir, err := os.MkdirTemp(base, fmt.Sprintf("%s%s-%d-", tempPrefix, pidSpace(), os.Getpid()))
	if err != nil {
		return "", err
	}
	// The unprivileged user that PostgreSQL runs as must get through to its own folders inside.
	return dir, os.Chmod(dir, 0o711)
}

// tempBase returns the system's temporary folder, or /tmp if root's own is one that nobody else can enter.
func tempBase() string {
	base := os.TempDir()
	if unprivileged() != nil && !openToAll(base) {
		return "/tmp"
	}
	return base
}

// openToAll tells whether every user may pass through dir and all folders above it.
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

// removeStale removes the folders of processes that are dead. It leaves those of another PID
// namespace alone, as it cannot tell whether their owners live.
func removeStale(base string) {
	dirs, _ := filepath.Glob(filepath.Join(base, tempPrefix+pidSpace()+"-*-*")) // the pattern is sound
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
		_ = os.RemoveAll(dir) // what cannot be removed now is tried again at the next start
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

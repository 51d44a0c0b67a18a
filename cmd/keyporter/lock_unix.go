//go:build unix && !aix && !solaris

package main

import (
	"errors"
	"io"
	"os"
	"syscall"
)

// lockDirectory keeps others who lock the same directory out until it is closed or the process ends; they get
// errLocked. A file system without locks keeps nobody out.
func lockDirectory(path string) (io.Closer, error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(dir.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); errors.Is(err, syscall.EWOULDBLOCK) {
		dir.Close()
		return nil, errLocked
	}
	return directoryLock{dir}, nil
}

type directoryLock struct{ *os.File }

// Close unlocks first: a process that was begun meanwhile may have the directory open for a moment.
func (l directoryLock) Close() error {
	_ = syscall.Flock(int(l.Fd()), syscall.LOCK_UN) // it ends with the process in any case
	return l.File.Close()
}

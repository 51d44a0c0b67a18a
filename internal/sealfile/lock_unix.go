//go:build unix && !aix && !solaris

package sealfile

import (
	"errors"
	"io"
	"os"
	"syscall"
)

// LockDirectory takes an exclusive lock on a directory, held until Close or the end of the process.
// While another process holds it, LockDirectory returns [ErrLocked]. On a file system without locks
// it locks nothing.
func LockDirectory(path string) (io.Closer, error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(dir.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); errors.Is(err, syscall.EWOULDBLOCK) {
		dir.Close()
		return nil, ErrLocked
	}
	return directoryLock{dir}, nil
}

type directoryLock struct{ *os.File }

// Close unlocks explicitly, because a child process that was just started may still have the
// directory open.
func (l directoryLock) Close() error {
	_ = syscall.Flock(int(l.Fd()), syscall.LOCK_UN) // the lock ends with the process in any case
	return l.File.Close()
}

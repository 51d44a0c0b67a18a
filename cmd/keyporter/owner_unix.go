//go:build unix

package main

import (
	"os"
	"syscall"
)

// sameOwner gives a file that replaces another one its owner, where that is possible: the page may run as
// another user than the operator.
func sameOwner(file *os.File, path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); ok && os.Geteuid() == 0 {
		return file.Chown(int(owner.Uid), int(owner.Gid))
	}
	return nil
}

//go:build unix

package sealfile

import (
	"os"
	"syscall"
)

// sameOwner gives a replacement file the owner of the replaced one, if possible: the page may run
// as another user than the operator.
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

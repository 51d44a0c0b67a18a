//go:build unix

package parts

import (
	"io/fs"
	"os"
	"os/user"
	"strconv"
	"syscall"
)

const (
	sigStop = syscall.SIGSTOP
	sigCont = syscall.SIGCONT
)

func signalPID(pid int, sig syscall.Signal) {
	_ = syscall.Kill(pid, sig) // an error means that it has ended
}

func (a *account) credential() *syscall.Credential {
	if a == nil {
		return nil
	}
	return &syscall.Credential{Uid: uint32(a.uid), Gid: uint32(a.gid)}
}

// unprivileged returns the user for programs that refuse to run as root; nil means the current
// user.
func unprivileged() *account {
	if os.Geteuid() != 0 {
		return nil
	}
	nobody := &account{uid: 65534, gid: 65534}
	found, err := user.Lookup("nobody")
	if err != nil {
		return nobody
	}
	uid, uidErr := strconv.ParseUint(found.Uid, 10, 32)
	gid, gidErr := strconv.ParseUint(found.Gid, 10, 32)
	if uidErr != nil || gidErr != nil || uid == 0 {
		return nobody
	}
	return &account{uid: int(uid), gid: int(gid)}
}

func ownedByUs(info fs.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(stat.Uid) == os.Geteuid()
}

// alive reports whether a process with this PID exists, of any user.
func alive(pid int) bool {
	err := syscall.Kill(pid, 0)
	return err == nil || err == syscall.EPERM
}

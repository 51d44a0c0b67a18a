//go:build unix && !linux

package parts

import (
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

// sysProcAttr returns no parent-death signal, which only Linux supports.
func sysProcAttr(_ syscall.Signal, user *account) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Credential: user.credential()}
}

// parents returns the children of each process: PID → children.
func parents() map[int][]int {
	children := map[int][]int{}
	out, err := exec.Command("ps", "-A", "-o", "pid=,ppid=").Output()
	if err != nil {
		return children
	}
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		if len(fields) != 2 {
			continue
		}
		pid, pidErr := strconv.Atoi(fields[0])
		parent, parentErr := strconv.Atoi(fields[1])
		if pidErr == nil && parentErr == nil {
			children[parent] = append(children[parent], pid)
		}
	}
	return children
}

func running(pid int) bool { return alive(pid) }

func pidSpace() string { return "0" }

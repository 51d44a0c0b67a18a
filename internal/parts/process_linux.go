package parts

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

func sysProcAttr(death syscall.Signal, user *account) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: death, Credential: user.credential()}
}

// parents returns the children of each process, from /proc: PID → children.
func parents() map[int][]int {
	children := map[int][]int{}
	dirs, _ := filepath.Glob("/proc/[0-9]*") // the pattern is valid
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		if fields := statFields(pid); len(fields) > 1 {
			if parent, err := strconv.Atoi(string(fields[1])); err == nil {
				children[parent] = append(children[parent], pid)
			}
		}
	}
	return children
}

// statFields returns the fields of a process in /proc from its state and its parent's PID on; none
// if the process is gone.
func statFields(pid int) [][]byte {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return nil
	}
	// the name before it may contain spaces
	return bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
}

// running reports whether a process still runs. A zombie, which stays in a container without an
// init, does not.
func running(pid int) bool {
	fields := statFields(pid)
	return len(fields) > 0 && !bytes.Equal(fields[0], []byte("Z")) && !bytes.Equal(fields[0], []byte("X"))
}

// pidSpace identifies the PID namespace of this process: two containers that share a temporary
// folder have different ones.
func pidSpace() string {
	link, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return "0"
	}
	return digits(link)
}

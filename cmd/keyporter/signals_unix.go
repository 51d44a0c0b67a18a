//go:build unix

package main

import (
	"os"
	"syscall"
)

var (
	// moreEnding has the signal for the soft limit of CPU time; the hard limit follows.
	moreEnding = []os.Signal{syscall.SIGXCPU}
	// harmless are signals without a meaning for any command. SIGXFSZ is the limit of a file's
	// size: the write fails.
	harmless = []os.Signal{syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGALRM, syscall.SIGVTALRM, syscall.SIGIO, syscall.SIGXFSZ}
	// terminalStops stop a process that reads from or writes to a terminal in the background.
	terminalStops = []os.Signal{syscall.SIGTTIN, syscall.SIGTTOU}
)

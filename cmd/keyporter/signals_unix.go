//go:build unix

package main

import (
	"os"
	"syscall"
)

var (
	// moreEnding: a limit of CPU time; the hard limit follows.
	moreEnding = []os.Signal{syscall.SIGXCPU}
	// harmless are those that mean nothing to any command. SIGXFSZ is a limit of a file's size, by
	// which a write fails.
	harmless = []os.Signal{syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGALRM, syscall.SIGVTALRM, syscall.SIGIO, syscall.SIGXFSZ}
	// terminalStops stop what reads from or writes to a terminal in the background.
	terminalStops = []os.Signal{syscall.SIGTTIN, syscall.SIGTTOU}
)

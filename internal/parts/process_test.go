//go:build unix

package parts_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/keyporter/keyporter/internal/parts"
	"github.com/keyporter/keyporter/internal/parts/partstest"
)

func shell(t *testing.T, script string) *parts.Process { return shellFor(t, 0, script) }

// shellFor starts a script with a time limit for its end after Stop; 0: the default.
func shellFor(t *testing.T, wait time.Duration, script string) *parts.Process {
	t.Helper()
	process, err := parts.Start(parts.Command{Path: "/bin/sh", Args: []string{"-c", script}, Wait: wait})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(process.Kill)
	return process
}

func awaitOutput(t *testing.T, process *parts.Process, want string) {
	t.Helper()
	partstest.EventuallyNil(t, fmt.Sprintf("output with %q", want), func() error {
		if output := process.Output(); !strings.Contains(output, want) {
			return fmt.Errorf("%q", output)
		}
		return nil
	})
}

func TestStopAsksFirst(t *testing.T) {
	process := shell(t, `trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.01; done`)
	awaitOutput(t, process, "up")
	for range 2 { // the second is harmless
		if err := process.Stop(); err != nil {
			t.Error(err)
		}
	}
	if got := process.Output(); got != "up\nbye\n" {
		t.Errorf("output %q", got)
	}
}

func TestStopKillsWhatDoesNotListen(t *testing.T) {
	process := shellFor(t, 200*time.Millisecond, `trap '' TERM; echo up; while :; do sleep 0.01; done`)
	awaitOutput(t, process, "up")
	if err := process.Stop(); err == nil || !strings.Contains(err.Error(), "was killed") {
		t.Errorf("Stop = %v, want a word that it was killed", err)
	}
	if process.Wait() == nil {
		t.Error("Wait = nil after a kill")
	}
}

func TestStopTellsThatItHadEndedByItself(t *testing.T) {
	process := shell(t, `echo broken >&2; exit 7`)
	<-process.Done()
	if err := process.Stop(); err == nil || !strings.Contains(err.Error(), "exit status 7") {
		t.Errorf("Stop = %v, want exit status 7 in it", err)
	}
	if got := process.Output(); got != "broken\n" {
		t.Errorf("output %q, want what it wrote to stderr", got)
	}
}

func TestSignalIsNotAnEndByItself(t *testing.T) {
	process := shell(t, `trap 'exit 3' USR1; echo up; while :; do sleep 0.01; done`)
	awaitOutput(t, process, "up")
	if err := process.Signal(syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	if err := process.Wait(); err == nil || err.Error() != "exit status 3" {
		t.Errorf("Wait = %v, want exit status 3", err)
	}
	if err := process.Stop(); err != nil {
		t.Error(err)
	}
}

// Output that a program writes to its stdout and output to a second opening of it do not overwrite
// each other.
func TestOutputOfTwoOpenings(t *testing.T) {
	process := shell(t, `echo one; echo two >>/dev/stdout; echo three; echo four >>/dev/stderr; echo five`)
	<-process.Done()
	if got := process.Output(); got != "one\ntwo\nthree\nfour\nfive\n" {
		t.Errorf("output %q", got)
	}
}

func TestStopOfAPausedProcess(t *testing.T) {
	process := shell(t, `trap 'exit 0' TERM; echo up; while :; do sleep 0.01; done`)
	awaitOutput(t, process, "up")
	process.Pause()
	if err := process.Stop(); err != nil {
		t.Error(err)
	}
}

// Kill ends all descendants, even in their own process group.
func TestKillEndsDescendants(t *testing.T) {
	process := shell(t, `set -m; sleep 1000 & sh -c 'set -m; sleep 1000 & wait' & wait`)
	var below []int
	partstest.Eventually(t, "three descendants", func() bool {
		below = parts.Descendants(process.PID())
		return len(below) >= 3
	})
	process.Kill()
	for _, pid := range below {
		if parts.Running(pid) {
			t.Errorf("process %d still runs", pid)
		}
	}
}

func TestPauseHoldsDescendantsToo(t *testing.T) {
	process := shell(t, `sh -c 'while :; do echo x; sleep 0.001; done' & wait`)
	awaitOutput(t, process, "x")
	process.Pause()
	before := process.Output()
	time.Sleep(50 * time.Millisecond)
	if after := process.Output(); len(after) > len(before) {
		t.Errorf("it wrote %d bytes while paused", len(after)-len(before))
	}
	process.Resume()
	awaitOutput(t, process, before+"x")
}

// The death signal is bound to the OS thread that started the child. Threads that end while the Go
// program continues must not end the child.
func TestChildOutlivesThreads(t *testing.T) {
	var children []*parts.Process
	for range 4 { // at most one of them is on the program's main thread, which never ends
		starting := make(chan *parts.Process)
		go func() {
			runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
			process, err := parts.Start(parts.Command{Path: "/bin/sh", Args: []string{"-c", "sleep 1000"}})
			if err != nil {
				t.Error(err)
			}
			starting <- process
		}()
		if process := <-starting; process != nil {
			t.Cleanup(process.Kill)
			children = append(children, process)
		}
	}
	var threads sync.WaitGroup
	for range 100 {
		threads.Go(runtime.LockOSThread)
	}
	threads.Wait()
	time.Sleep(100 * time.Millisecond)
	for _, child := range children {
		select {
		case <-child.Done():
			t.Errorf("the child ended with a thread: %v", child.Wait())
		default:
		}
	}
}

func TestRunKillsAtTheDeadline(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := parts.Run(ctx, parts.Command{Path: "/bin/sleep", Args: []string{"1000"}})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Run = %v", err)
	}
}

func TestStartOfNothing(t *testing.T) {
	if _, err := parts.Start(parts.Command{Path: "/no/such/program"}); err == nil {
		t.Error("no error")
	}
}

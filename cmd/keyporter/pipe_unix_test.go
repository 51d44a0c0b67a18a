//go:build unix

package main

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// A pipe into which nobody writes, and an input that nobody types, can be given up.
func TestACheckThatWaitsForItsInputCanBeEnded(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(file, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	status := make(chan int)
	go func() { status <- run(ctx, []string{"envoy", "check", file}, io.Discard, io.Discard) }()
	pipe, err := os.OpenFile(file, os.O_WRONLY, 0) // waits until it is read
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if got := <-status; got != exitFailed {
		t.Errorf("exit status %d, want %d", got, exitFailed)
	}
	pipe.Close() // what was left behind ends
}

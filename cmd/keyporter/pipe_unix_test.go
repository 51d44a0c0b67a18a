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

// A command that waits for a pipe without a writer, or for input on a terminal, can be interrupted.
func TestACheckThatWaitsForItsInputCanBeEnded(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(file, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	status := make(chan int)
	go func() { status <- run(ctx, []string{"envoy", "check", file}, io.Discard, io.Discard) }()
	pipe, err := os.OpenFile(file, os.O_WRONLY, 0) // blocks until it is read
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if got := <-status; got != exitFailed {
		t.Errorf("exit status %d, want %d", got, exitFailed)
	}
	pipe.Close() // ends the abandoned read
}

package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
)

// signals delivers the signals of the process to its command. docs/operations.md describes each of
// them, and TestEverySignalLosesNothing proves it.
type signals struct {
	ctx     context.Context // ends at the first signal that ends the command
	end     context.CancelCauseFunc
	hangups <-chan os.Signal // SIGHUP: `serve` rereads its files, other commands end
	// SIGHUP was ignored at the start of the process, so it ends no command
	nohup   bool
	release func()         // stops the signal goroutines, and waits for them
	waiting sync.WaitGroup // counts these goroutines
}

// ending are the signals that end a command in good order. SIGQUIT is one of them: Go's default, to
// print all goroutines and exit, would lose the credits that a service holds.
var ending = append([]os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGQUIT}, moreEnding...)

// catchSignals handles every signal that would otherwise end the process. A second ending signal
// changes nothing, because the stop has its own limit.
func catchSignals() *signals {
	hangups, over := make(chan os.Signal, 1), make(chan struct{})
	s := &signals{hangups: hangups, nohup: signal.Ignored(syscall.SIGHUP)}
	s.ctx, s.end = context.WithCancelCause(context.Background())
	all := make(chan os.Signal, 8)
	signal.Notify(all, slices.Concat(ending, harmless, []os.Signal{syscall.SIGHUP})...)

	s.waiting.Go(func() {
		for {
			select {
			case got := <-all:
				if got == syscall.SIGHUP {
					select {
					case hangups <- got:
					default: // one is already pending
					}
				}
				if slices.Contains(ending, got) {
					s.end(endedBy{got})
				}
			case <-over:
				return
			}
		}
	})
	s.release = func() { close(over); s.end(nil); s.waiting.Wait() }
	return s
}

// endedBy is the cause of a context ended by a signal.
type endedBy struct{ signal os.Signal }

func (e endedBy) Error() string { return fmt.Sprintf("ended by a signal (%v)", e.signal) }

// endAtHangup makes SIGHUP, sent when the terminal closes, end any command but `serve`.
func (s *signals) endAtHangup(command string) {
	if s == nil || s.nohup || command == "serve" {
		return
	}
	s.waiting.Go(func() {
		select {
		case got := <-s.hangups:
			s.end(endedBy{got})
		case <-s.ctx.Done():
		}
	})
}

// outliveOutput is for commands that continue when their output is no longer read. A closed pipe
// does not end them, and their output is dropped. A terminal does not stop them when they write to
// it from the background.
func outliveOutput() {
	// caught, so that the write fails and the process lives
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	signal.Ignore(terminalStops...)
}

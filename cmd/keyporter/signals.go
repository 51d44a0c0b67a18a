package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
)

// signals are those of the process, as its command sees them. docs/operations.md says what each one
// does, and TestEverySignalLosesNothing proves it.
type signals struct {
	ctx     context.Context // ends at the first signal that asks the command to end
	end     context.CancelCauseFunc
	hangups <-chan os.Signal // SIGHUP: `serve` reads its files again, other commands end
	nohup   bool             // SIGHUP was ignored when the process began: it ends no command
	release func()           // ends the goroutines that wait for signals, and waits for them
	waiting sync.WaitGroup   // these goroutines
}

// ending are the signals that ask a command to end in good order. SIGQUIT is one of them: what Go
// does by itself, print all goroutines and exit, would lose the credits that a service holds.
var ending = append([]os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGQUIT}, moreEnding...)

// catchSignals decides what each signal does that would else end the process. A second one that
// asks the command to end changes nothing: a stop has a limit of its own.
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
					default: // one is waiting already
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

// endedBy is the cause of a context that a signal has ended.
type endedBy struct{ signal os.Signal }

func (e endedBy) Error() string { return fmt.Sprintf("ended by a signal (%v)", e.signal) }

// endAtHangup lets SIGHUP, which comes when the terminal goes, end any command but `serve`.
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

// outliveOutput is for commands that go on where nobody reads their output any more. A closed pipe
// does not end them: what they write there is dropped. Nor does a terminal stop them at which they
// run in the background.
func outliveOutput() {
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) // caught, so that a write fails in place of the process
	signal.Ignore(terminalStops...)
}

// served is the error of a service that was ready: it has its own stop in good order.
type served struct{ error }

func (e served) Unwrap() error { return e.error }

// endedEarly makes a good end of a start that a signal has ended. Whatever it was waiting for then
// is an error, and is not one of the service.
func endedEarly(ctx context.Context, err error, log *slog.Logger) error {
	if ready := (served{}); err == nil || ctx.Err() == nil || errors.As(err, &ready) {
		return err
	}
	log.Info("the service was stopped before it was ready", "why", context.Cause(ctx), "error", err)
	return nil
}

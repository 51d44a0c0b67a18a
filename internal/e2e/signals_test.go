//go:build unix

package e2e_test

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/keyporter/keyporter/internal/parts"
	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// Effects of each signal on a service, as in docs/operations.md.
var (
	endingSignals   = []syscall.Signal{syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGXCPU}
	harmlessSignals = []syscall.Signal{
		syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGPIPE, syscall.SIGALRM, syscall.SIGVTALRM,
		syscall.SIGIO, syscall.SIGXFSZ,
	}
	// terminalSignals stop commands, but not services.
	terminalSignals = []syscall.Signal{syscall.SIGTTIN, syscall.SIGTTOU}
)

// With any signal at any time, while a service starts, serves or stops, it continues, or ends
// gracefully with status 0. No credit is lost, and no goroutine trace is printed.
func TestEverySignalLosesNothing(t *testing.T) {
	t.Parallel()
	partstest.Slow(t)
	t.Run("before it has read its configuration", signalledBeforeItsConfiguration)
	t.Run("while it waits at a pipe", signalledAtAPipe)
	t.Run("while it waits for its database", signalledBeforeItsDatabase)
	s := start(t, stackConfig{noEnvoy: true, flags: append([]string{"--lease", "1s", "--drain-delay", "300ms"}, patient...)})
	c := &signalled{t: t, s: s, r: s.replicas[0], key: s.user("ann", "metered", "--credits", "1000000")}
	t.Run("under load", func(t *testing.T) { c.underLoad(t) })
}

// signalledBeforeItsConfiguration sends signals to a program that has only opened its configuration
// file, which is a pipe without content. The program does not know yet whether it is a service.
func signalledBeforeItsConfiguration(t *testing.T) {
	t.Parallel()
	for _, last := range endingSignals {
		file := filepath.Join(t.TempDir(), "pipe")
		if err := syscall.Mkfifo(file, 0o600); err != nil {
			t.Fatal(err)
		}
		process := serveProcess(t, "--config", file, "--database", "sqlite://"+filepath.Join(t.TempDir(), "keyporter.db"))
		pipe, err := os.OpenFile(file, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, harmless := range harmlessSignals {
			send(t, process, harmless)
		}
		fmt.Fprintln(pipe, "log_format: json")
		send(t, process, last)
		fmt.Fprintln(pipe, "log_level: info")
		pipe.Close()
		endsWell(t, process, last)
	}
}

// signalledAtAPipe ends programs that read from a pipe without a writer.
func signalledAtAPipe(t *testing.T) {
	t.Parallel()
	for _, flag := range []string{"--config", "--database-file", "--grpc-token-file"} {
		file := filepath.Join(t.TempDir(), "pipe")
		if err := syscall.Mkfifo(file, 0o600); err != nil {
			t.Fatal(err)
		}
		flags := []string{flag, file}
		if flag != "--database-file" {
			flags = append(flags, "--database", "sqlite://"+filepath.Join(t.TempDir(), "keyporter.db"))
		}
		process := serveProcess(t, flags...)
		pipe, err := os.OpenFile(file, os.O_WRONLY, 0) // blocks until the program has opened it
		if err != nil {
			t.Fatal(err)
		}
		defer pipe.Close()
		send(t, process, syscall.SIGTERM)
		endsWell(t, process, syscall.SIGTERM)
	}
}

// signalledBeforeItsDatabase sends signals to a service whose database does not answer.
func signalledBeforeItsDatabase(t *testing.T) {
	t.Parallel()
	var waiting []*parts.Process
	for range endingSignals {
		// It accepts connections and never answers. Each service has its own, because services
		// connect once a second, and a connection of one must not be mistaken for that of another
		// that has only just started.
		silent, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer silent.Close()
		process := serveProcess(t, "--database", "postgres://nobody@"+silent.Addr().String()+"/none?sslmode=disable&connect_timeout=1")
		conn, err := silent.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		waiting = append(waiting, process)
	}
	for i, process := range waiting {
		for _, harmless := range slices.Concat(harmlessSignals, terminalSignals) {
			send(t, process, harmless)
		}
		send(t, process, endingSignals[i])
	}
	for i, process := range waiting {
		endsWell(t, process, endingSignals[i])
	}
}

func serveProcess(t *testing.T, flags ...string) *parts.Process {
	t.Helper()
	process, err := parts.Start(parts.Command{Path: keyporter(t), Args: append([]string{
		"serve", "--listen-grpc", address(t), "--listen-http", "off", "--listen-ops", address(t), "--drain-delay", "0s",
	}, flags...)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(process.Kill)
	return process
}

func send(t *testing.T, process *parts.Process, what syscall.Signal) {
	t.Helper()
	if err := process.Signal(what); err != nil {
		t.Fatalf("sending %v: %v\n%s", what, err, process.Output())
	}
}

// endsWell waits for the end of a service after a signal.
func endsWell(t *testing.T, process *parts.Process, by syscall.Signal) {
	t.Helper()
	select {
	case <-process.Done():
	case <-time.After(time.Minute):
		t.Fatalf("%v did not end the service:\n%s", by, process.Output())
	}
	if err := process.Wait(); err != nil {
		t.Errorf("after %v: %v, want exit status 0\n%s", by, err, process.Output())
	}
	if out := process.Output(); strings.Contains(out, "goroutine ") || !strings.Contains(out, "ended by a signal") {
		t.Errorf("after %v the service says\n%s\nwant no goroutines, and what has ended it", by, out)
	}
}

// signalled is a service that receives signals under load.
type signalled struct {
	t   *testing.T
	s   *stack
	r   *replica
	key string

	// Checks: allowed; without an answer, because the service has ended
	allowed, unknown atomic.Int64
}

func (c *signalled) underLoad(t *testing.T) {
	for i, last := range endingSignals {
		if i > 0 {
			c.s.launch(c.r)
			c.s.await(c.r)
		}
		end := c.load()
		c.flows(t, 50)
		if i == 0 {
			c.goesOn(t)
		}
		send(t, c.r.process, last)
		partstest.EventuallyNil(t, "it begins to stop", func() error { return logged(c.r, `"msg":"stopping"`) })
		for _, more := range slices.Concat(harmlessSignals, terminalSignals, endingSignals) {
			c.r.process.Signal(more) // it may have ended already
		}
		endsWell(t, c.r.process, last)
		end()
		c.nothingIsLost(t, last)
	}
}

// goesOn sends signals that must not end the service, and pauses it for longer than its lease.
func (c *signalled) goesOn(t *testing.T) {
	for _, harmless := range slices.Concat(harmlessSignals, terminalSignals) {
		send(t, c.r.process, harmless)
		c.flows(t, 20)
	}
	partstest.EventuallyNil(t, "SIGHUP has the files read again", func() error { return logged(c.r, "the configuration was read again") })
	send(t, c.r.process, syscall.SIGTSTP)
	time.Sleep(1200 * time.Millisecond)
	send(t, c.r.process, syscall.SIGCONT)
	c.flows(t, 50)
}

// load sends Checks until the returned function is called.
func (c *signalled) load() (end func()) {
	var wg sync.WaitGroup
	var over atomic.Bool
	for range 4 {
		checker := newChecker(c.t, c.r)
		wg.Go(func() {
			for !over.Load() {
				switch status, err := checker.key(c.key); {
				case err != nil:
					c.unknown.Add(1)
					time.Sleep(5 * time.Millisecond)
				case status == 200:
					c.allowed.Add(1)
				case status != 503:
					c.t.Errorf("a live key: %d", status)
				}
			}
		})
	}
	return func() { over.Store(true); wg.Wait() }
}

// flows waits for n more allowed Checks.
func (c *signalled) flows(t *testing.T, n int64) {
	t.Helper()
	before := c.allowed.Load()
	partstest.EventuallyNil(t, "Checks are allowed", func() error {
		select {
		case <-c.r.process.Done():
			t.Fatalf("the service has ended:\n%s", c.r.process.Output())
		default:
		}
		if more := c.allowed.Load() - before; more < n {
			return fmt.Errorf("%d", more)
		}
		return nil
	})
}

// nothingIsLost compares the charges with the allowed Checks.
func (c *signalled) nothingIsLost(t *testing.T, after syscall.Signal) {
	t.Helper()
	var shown struct{ Used, Outstanding, Lost int64 }
	c.s.decode(c.s.run("credits", "show", "ann", "--output", "json"), &shown)
	allowed, unknown := c.allowed.Load(), c.unknown.Load()
	if shown.Lost != 0 || shown.Outstanding != 0 || shown.Used < allowed || shown.Used > allowed+unknown {
		t.Errorf("after %v: %d were allowed, %d not answered, and the ledger says %+v", after, allowed, unknown, shown)
	}
	c.s.ledgerAddsUp()
}

// A service continues when its log has no reader any more, and ends gracefully.
func TestAClosedLogEndsNothing(t *testing.T) {
	t.Parallel()
	s := start(t, stackConfig{noEnvoy: true, flags: patient})
	key := s.user("ann", "pro")
	s.replicas[0].process.Stop()

	r := s.replicas[0]
	command := exec.Command(s.program, "serve", "--database", s.database, "--listen-grpc", r.grpc, "--listen-http", "off",
		"--listen-ops", r.ops, "--drain-delay", "0s", "--check-timeout", "5s")
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	command.Stdout, command.Stderr = write, write
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { command.Process.Kill() })
	write.Close()
	for lines := bufio.NewScanner(read); lines.Scan() && !strings.Contains(lines.Text(), `"msg":"serving"`); {
	}
	read.Close()
	for range 3 { // each writes a line
		command.Process.Signal(syscall.SIGHUP)
		if err := is(200)(newChecker(t, r).key(key)); err != nil {
			t.Error(err)
		}
	}
	partstest.EventuallyNil(t, "the files are read again", func() error {
		if got := r.metric(t, `keyporter_config_reloads_total{result="taken"}`); got == "0" {
			return errors.New(got)
		}
		return nil
	})
	if status, err := newChecker(t, r).key(key); err != nil || status != 200 {
		t.Errorf("%d, %v, want 200", status, err)
	}
	command.Process.Signal(syscall.SIGTERM)
	if err := command.Wait(); err != nil {
		t.Errorf("it ended with %v, want exit status 0", err)
	}
}

// A signal ends the demo, with all its processes and files.
func TestASignalEndsTheDemo(t *testing.T) {
	t.Parallel()
	partstest.Slow(t)
	if _, err := parts.FindEnvoy(); err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	process, err := parts.Start(parts.Command{Path: keyporter(t), Args: []string{"demo"}, Env: append(os.Environ(), "TMPDIR="+dir)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(process.Kill)
	partstest.EventuallyNil(t, "the demo begins", func() error {
		if !strings.Contains(process.Output(), "$ keyporter") {
			return errors.New(process.Output())
		}
		return nil
	})
	send(t, process, syscall.SIGUSR1)
	send(t, process, syscall.SIGPIPE)
	if signal.Ignored(syscall.SIGHUP) { // nohup still applies
		send(t, process, syscall.SIGQUIT)
	}
	send(t, process, syscall.SIGHUP) // like a closed terminal
	<-process.Done()
	if out := process.Output(); !strings.Contains(out, "ended by a signal") || strings.Contains(out, "goroutine ") {
		t.Errorf("it says\n%s", out)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("%v is left behind, %v", left, err)
	}
}

package parts

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	defaultGrace  = 10 * time.Second
	readyInterval = 20 * time.Millisecond
)

var after = time.After

// Command is a program to start, and the way to end it.
type Command struct {
	Path string        // the program
	Args []string      // its arguments, without the program's name
	Env  []string      // nil: this process's own
	Dir  string        // its working directory; "": this process's own
	Stop os.Signal     // the signal that asks it to end; nil: SIGTERM
	Wait time.Duration // how long Stop waits before it kills the process; 0: 10 s

	// Death is the signal that the program gets when this process dies for any reason; 0: SIGKILL.
	// Only Linux supports it; elsewhere a killed parent leaves the program running.
	Death syscall.Signal

	user  *account // nil: the user of this process
	ended func()   // called once after the process has ended, before Done is closed
}

// account is the user and group of a program.
type account struct{ uid, gid int }

func (c Command) name() string { return filepath.Base(c.Path) }

// Process is a started program. Its methods are safe for concurrent use.
type Process struct {
	name   string
	stop   os.Signal
	grace  time.Duration
	cmd    *exec.Cmd
	output *os.File
	asked  atomic.Bool   // Stop, Kill or Signal was called: its end is expected
	forced atomic.Bool   // Stop had to kill it
	done   chan struct{} // closed once it has ended and err is set
	err    error         // how it ended; read only after done is closed
}

// Start starts a program in its own process group, and captures stdout and stderr for Output.
func Start(command Command) (*Process, error) {
	output, err := outputFile()
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", command.name(), err)
	}
	cmd := exec.Command(command.Path, command.Args...)
	cmd.Env, cmd.Dir = command.Env, command.Dir
	cmd.Stdout, cmd.Stderr = output, output
	death := command.Death
	if death == 0 {
		death = syscall.SIGKILL
	}
	cmd.SysProcAttr = sysProcAttr(death, command.user)
	p := &Process{name: command.name(), stop: command.Stop, grace: command.Wait, cmd: cmd, output: output, done: make(chan struct{})}
	if p.stop == nil {
		p.stop = syscall.SIGTERM
	}
	if p.grace == 0 {
		p.grace = defaultGrace
	}
	started := make(chan error)
	go p.own(command.ended, started)
	if err := <-started; err != nil {
		output.Close()
		return nil, fmt.Errorf("starting %s: %w", command.name(), err)
	}
	return p, nil
}

// own starts the program and waits for its end on one locked OS thread. The kernel sends the
// parent-death signal when the thread that started the child ends, and the Go runtime may end any
// thread without a locked goroutine.
func (p *Process) own(ended func(), started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := p.cmd.Start()
	started <- err
	if err != nil {
		return
	}
	p.err = p.cmd.Wait()
	if ended != nil {
		ended()
	}
	close(p.done)
}

// outputFile returns a file without a name. The program writes to it directly, without a goroutine
// of this process, so a program that is paused or outlives us never blocks on a pipe, and nothing
// is left behind. It is opened for appending: a program may open /dev/stdout again, for example for
// an access log, and the two would otherwise overwrite each other.
func outputFile() (*os.File, error) {
	named, err := os.CreateTemp("", tempPrefix+"output-")
	if err != nil {
		return nil, err
	}
	defer named.Close()
	output, err := os.OpenFile(named.Name(), os.O_RDWR|os.O_APPEND, 0)
	if removeErr := os.Remove(named.Name()); removeErr != nil && runtime.GOOS != "windows" {
		err = errors.Join(err, removeErr)
	}
	if err != nil {
		_ = output.Close() // a nil file is fine
		return nil, err
	}
	return output, nil
}

// PID returns the process ID.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Output returns the output of the process so far, stdout and stderr in their order.
func (p *Process) Output() string {
	data, err := io.ReadAll(io.NewSectionReader(p.output, 0, 1<<40))
	if err != nil {
		return fmt.Sprintf("(output of %s cannot be read: %v)", p.name, err)
	}
	return string(data)
}

// Done is closed once the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits for the end of the process and returns how it ended; nil means exit status 0.
func (p *Process) Wait() error {
	<-p.done
	return p.err
}

// Stop asks the process to end, kills it after the time limit, and returns once it is gone. The
// error reports that Stop had to kill it, or that it had already ended by itself. A second Stop, or
// one after Kill, is harmless.
func (p *Process) Stop() error {
	select {
	case <-p.done:
		return p.ending()
	default:
	}
	p.asked.Store(true)
	p.Resume()
	if p.cmd.Process.Signal(p.stop) != nil {
		p.Kill()
		return p.ending()
	}
	select {
	case <-p.done:
	case <-after(p.grace):
		p.forced.Store(true)
		p.Kill()
	}
	return p.ending()
}

// ending converts the end of the process into Stop's error.
func (p *Process) ending() error {
	<-p.done
	if p.forced.Load() {
		return fmt.Errorf("%s did not end within %s and was killed", p.name, p.grace)
	}
	if !p.asked.Load() {
		return fmt.Errorf("%s ended by itself: %w", p.name, errors.Join(p.err, errUnasked))
	}
	return nil
}

var errUnasked = errors.New("nobody asked it to")

// Signal sends a signal to the process alone, and does not wait for an effect. If the process ends,
// Stop does not report that it ended by itself.
func (p *Process) Signal(signal os.Signal) error {
	p.asked.Store(true)
	return p.cmd.Process.Signal(signal)
}

// Kill ends the process and all its descendants at once, like a crash of the machine, and returns
// once they are gone.
func (p *Process) Kill() {
	select {
	case <-p.done:
		return
	default:
	}
	p.asked.Store(true)
	children := p.freeze()
	_ = p.cmd.Process.Kill() // an error means that it has ended
	for _, pid := range children {
		signalPID(pid, syscall.SIGKILL)
	}
	<-p.done
	for _, pid := range children {
		for end := time.Now().Add(defaultGrace); running(pid) && time.Now().Before(end); {
			time.Sleep(time.Millisecond)
		}
	}
}

// Pause stops the process and all its descendants: its sockets stay open without an answer. Resume
// continues them.
func (p *Process) Pause() { p.freeze() }

// Resume undoes Pause. Without a Pause it does nothing.
func (p *Process) Resume() {
	for _, pid := range descendants(p.PID()) {
		signalPID(pid, sigCont)
	}
	_ = p.cmd.Process.Signal(sigCont) // an error means that it has ended
}

// freeze stops the process and all its descendants, and returns the PIDs of the descendants. It
// repeats the search until it finds no new ones, because a stop signal takes effect with a delay.
func (p *Process) freeze() []int {
	_ = p.cmd.Process.Signal(sigStop) // an error means that it has ended
	frozen := map[int]bool{}          // PID → seen
	for quiet := 0; quiet < 2; quiet++ {
		for _, pid := range descendants(p.PID()) {
			if frozen[pid] {
				continue
			}
			frozen[pid] = true
			quiet = 0
			signalPID(pid, sigStop)
		}
		time.Sleep(2 * time.Millisecond)
	}
	pids := make([]int, 0, len(frozen))
	for pid := range frozen {
		pids = append(pids, pid)
	}
	return pids
}

// descendants returns the descendants of pid, nearest first.
func descendants(pid int) []int {
	below := parents()
	var found []int
	for queue := []int{pid}; len(queue) > 0; queue = queue[1:] {
		found = append(found, below[queue[0]]...)
		queue = append(queue, below[queue[0]]...)
	}
	return found
}

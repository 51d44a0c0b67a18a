package load

import (
	"encoding/binary"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ticks is a kernel timer. Go's own timers may be up to a millisecond late in an otherwise idle
// program, which is more than the time for an answer.
type ticks struct{ *os.File }

func newTicks(first, interval time.Duration) (*ticks, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("making a timer: %w", err)
	}
	t := &ticks{os.NewFile(uintptr(fd), "timer")}
	times := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(first)), Interval: unix.NsecToTimespec(int64(interval))}
	if err := unix.TimerfdSettime(fd, 0, &times, nil); err != nil {
		t.Close()
		return nil, fmt.Errorf("starting a timer: %w", err)
	}
	return t, nil
}

// wait returns the number of ticks since the last call, at least one. It fails once the timer is
// closed.
func (t *ticks) wait() (int, error) {
	var count [8]byte
	if _, err := t.Read(count[:]); err != nil {
		return 0, err
	}
	return int(binary.NativeEndian.Uint64(count[:])), nil
}

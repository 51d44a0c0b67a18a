//go:build unix && !linux

package lease

import (
	"time"

	"golang.org/x/sys/unix"
)

// BootClock is a clock that runs on while the machine is suspended: on macOS and the BSDs the
// monotonic one does.
func BootClock() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		panic(err) // cannot be: POSIX
	}
	return time.Duration(t.Nano())
}

//go:build unix && !linux

package lease

import (
	"time"

	"golang.org/x/sys/unix"
)

// BootClock returns the time of a clock that keeps running while the machine is suspended. On macOS
// and the BSDs the monotonic clock does.
func BootClock() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		panic(err) // impossible under POSIX
	}
	return time.Duration(t.Nano())
}

package lease

import (
	"time"

	"golang.org/x/sys/unix"
)

// BootClock is the time since the machine was started, the time it was suspended included. Go's own
// clock stands still then.
func BootClock() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic(err) // cannot be: the kernel has had the clock since 2.6.39
	}
	return time.Duration(t.Nano())
}

package lease

import (
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// BootClock returns the time since the machine was started, including suspensions. Go's monotonic
// clock stands still during those.
func BootClock() time.Duration { return machine.read() }

var machine = bootClock{readings: readGoClocks, boot: readBootClock}

// bootClock reads the boot clock of the machine without a system call, which takes several times as
// long as the rest of a look-up in memory. When the kernel adds the time of a suspension to the
// boot clock, it adds it to the wall clock in the same step; otherwise all clocks run equally fast.
// So while the wall clock keeps its distance to Go's monotonic clock, there was no suspension. If
// the distance changes, also because the wall clock was set, bootClock asks the system.
//
// One case deceives it: after a suspension the wall clock is set back by the same time, within a
// millisecond, before anyone has read this clock.
type bootClock struct {
	readings func() (wall, monotonic time.Duration)
	boot     func() time.Duration // asks the system
	known    atomic.Pointer[reference]
}

// reference holds how far two clocks were ahead of the monotonic one when the system was asked.
type reference struct{ wall, boot time.Duration }

const (
	// tolerance is how far the distance of the wall clock may seem to change, since the two
	// readings are not simultaneous.
	tolerance = time.Millisecond
	// precise is the maximum duration of a usable answer of the system. This clock may be fast by
	// as much, and a lease too long.
	precise = 100 * time.Microsecond
	// attempts is the maximum number of calls for one such answer, on a machine that is too busy.
	attempts = 10
)

func (c *bootClock) read() time.Duration {
	wall, monotonic := c.readings()
	if known := c.known.Load(); known != nil && (wall-monotonic-known.wall).Abs() <= tolerance {
		return monotonic + known.boot
	}
	c.learn()
	return c.boot()
}

// learn asks the system how far the clocks are ahead, and forgets the reference if the system is
// too busy.
func (c *bootClock) learn() {
	for range attempts {
		wall, before := c.readings()
		boot := c.boot()
		if _, after := c.readings(); after-before <= precise {
			c.known.Store(&reference{wall: wall - before, boot: boot - before})
			return
		}
	}
	c.known.Store(nil)
}

var began = time.Now()

// readGoClocks reads the clock twice, because a Time in a year far outside the usual range has no
// monotonic reading.
func readGoClocks() (wall, monotonic time.Duration) {
	return time.Duration(time.Now().UnixNano()), time.Since(began)
}

func readBootClock() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic(err) // impossible: the kernel has had the clock since 2.6.39
	}
	return time.Duration(t.Nano())
}

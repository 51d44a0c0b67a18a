package lease

import (
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// BootClock is the time since the machine was started, the time it was suspended included. Go's own
// clock stands still then.
func BootClock() time.Duration { return machine.read() }

var machine = bootClock{readings: readGoClocks, boot: readBootClock}

// bootClock reads the boot clock of the machine without asking the system for it, which takes several times as
// long as the rest of a look-up in memory. When the kernel adds the time of a suspension to the boot clock, it adds it
// to the wall clock in the same step; otherwise all clocks run equally fast. So as long as the wall
// clock is as far ahead of Go's monotonic one as it was, there was no suspension. If it is not, be it that
// somebody has set it, the system is asked.
//
// What deceives it is a suspension after which the wall clock is set back by exactly as long, to a thousandth
// of a second, before anybody has read this clock.
type bootClock struct {
	readings func() (wall, monotonic time.Duration)
	boot     func() time.Duration // asks the system
	known    atomic.Pointer[reference]
}

// reference is how far two clocks were ahead of the monotonic one when the system was asked.
type reference struct{ wall, boot time.Duration }

const (
	// tolerance is how much further ahead the wall clock may seem to be: the two readings are not of the
	// same moment.
	tolerance = time.Millisecond
	// precise is how long it may take to ask the system: by so much this clock may be fast, and a lease too long.
	precise = 100 * time.Microsecond
	// attempts bounds how often it is asked for that at a time, on a machine that is too busy.
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

// learn asks the system how far the clocks are ahead, unless it is too busy to tell.
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

// readGoClocks asks twice: a Time of a year for which the wall clock was hardly meant has no monotonic reading.
func readGoClocks() (wall, monotonic time.Duration) {
	return time.Duration(time.Now().UnixNano()), time.Since(began)
}

func readBootClock() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic(err) // cannot be: the kernel has had the clock since 2.6.39
	}
	return time.Duration(t.Nano())
}

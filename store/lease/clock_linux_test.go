package lease

import (
	"testing"
	"time"
)

// clocks are the clocks of a machine.
type clocks struct {
	wall, monotonic, boot time.Duration
	slow                  int // how many of the system's next answers take a second
	asked                 int // how often the system was asked
	clock                 bootClock
}

func newClocks() *clocks {
	c := &clocks{wall: 56 * 365 * 24 * time.Hour, monotonic: time.Second, boot: 40 * 24 * time.Hour}
	c.clock = bootClock{
		readings: func() (time.Duration, time.Duration) { c.pass(30); return c.wall, c.monotonic },
		boot: func() time.Duration {
			c.asked++
			if c.slow > 0 {
				c.slow--
				c.pass(time.Second)
			}
			return c.boot
		},
	}
	return c
}

func (c *clocks) pass(d time.Duration)    { c.wall += d; c.monotonic += d; c.boot += d }
func (c *clocks) suspend(d time.Duration) { c.wall += d; c.boot += d }
func (c *clocks) set(d time.Duration)     { c.wall += d }

// The clock shows the boot clock of the machine regardless of the other clocks, and asks the system
// only after one of them has jumped.
func TestTheBootClockIsRightWithoutBeingAsked(t *testing.T) {
	for _, row := range []struct {
		name  string
		event func(c *clocks)
		asks  int
	}{
		{"time passes", func(c *clocks) { c.pass(24 * time.Hour) }, 0},
		{"the machine is suspended for a minute", func(c *clocks) { c.suspend(time.Minute) }, 2},
		{"the machine is suspended for two milliseconds", func(c *clocks) { c.suspend(2 * time.Millisecond) }, 2},
		{"the machine is suspended again and again, each time too shortly to be seen", func(c *clocks) {
			for range 1000 {
				c.suspend(tolerance / 2)
				c.clock.read()
			}
		}, 666},
		{"the wall clock is set forth", func(c *clocks) { c.set(time.Hour) }, 2},
		{"the wall clock is set back", func(c *clocks) { c.set(-time.Hour) }, 2},
		{"a suspension, and the wall clock is set back by a little less", func(c *clocks) { c.suspend(time.Minute); c.set(-59 * time.Second) }, 2},
		{"a suspension while the system is busy", func(c *clocks) { c.suspend(time.Minute); c.slow = 5 }, 7},
	} {
		c := newClocks()
		c.clock.read()
		c.asked = 0
		row.event(c)
		if got := c.clock.read(); (got - c.boot).Abs() > tolerance+precise {
			t.Errorf("%s: %v, want %v", row.name, got, c.boot)
		}
		if c.asked != row.asks {
			t.Errorf("%s: the system was asked %d times, want %d", row.name, c.asked, row.asks)
		}
	}
}

// A machine that is too busy for a quick answer is asked each time, and no reference is kept. The
// clock is right then and later, and the number of questions is limited.
func TestABusyMachineIsAskedEachTime(t *testing.T) {
	c := newClocks()
	c.slow = 1 << 30
	for range 2 {
		c.asked = 0
		if got := c.clock.read(); got != c.boot || c.asked != attempts+1 {
			t.Errorf("%v, want %v; asked %d times", got, c.boot, c.asked)
		}
	}
	c.slow = 0
	for _, suspended := range []bool{false, true} {
		if suspended {
			c.suspend(time.Minute)
			c.slow = 3
		}
		if got := c.clock.read(); got != c.boot {
			t.Errorf("when it is not busy any more, suspended %v: %v, want %v", suspended, got, c.boot)
		}
	}
}

// The clock of this machine is its boot clock.
func TestBootClock(t *testing.T) {
	for range 1000 {
		before := readBootClock()
		got := BootClock()
		if after := readBootClock(); got < before-precise-tolerance || got > after+precise+tolerance {
			t.Fatalf("%v is not between %v and %v", got, before, after)
		}
	}
}

func BenchmarkBootClock(b *testing.B) {
	b.Run("asked", func(b *testing.B) {
		for b.Loop() {
			readBootClock()
		}
	})
	b.Run("read", func(b *testing.B) {
		for b.Loop() {
			BootClock()
		}
	})
}

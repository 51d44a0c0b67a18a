package load

import (
	"errors"
	"fmt"
	"sync"
	"time"
)

// pacedConn is a connection that sends at regular intervals, regardless of answers. One goroutine
// sends, another one reads.
type pacedConn struct {
	*checkConn
	// delay of the first Check, so that the connections do not all send at once
	first    time.Duration
	interval time.Duration // between two Checks

	mu    sync.Mutex // guards the fields below, and all of checkConn except its reading
	start time.Time
	due   int // Checks that should have been sent by now
	sent  int
}

// paced returns the connections with their shares of the rate.
func (c *Checks) paced() []*pacedConn {
	interval := time.Duration(float64(len(c.connections)) / c.rate * float64(time.Second))
	var all []*pacedConn
	for i, conn := range c.connections {
		// a timer cannot be set to 0
		first := interval*time.Duration(i)/time.Duration(len(c.connections)) + 1
		all = append(all, &pacedConn{checkConn: conn, first: first, interval: interval})
	}
	return all
}

func (c *pacedConn) ask(stop time.Time, latencies []time.Duration) ([]time.Duration, error) {
	c.latencies, c.start = latencies, time.Now()
	total := int((stop.Sub(c.start)-c.first)/c.interval) + 1
	ticks, err := newTicks(c.first, c.interval)
	if err != nil {
		return nil, fmt.Errorf("pacing Checks: %w", err)
	}
	sender := make(chan error, 1)
	go func() {
		err := c.sendAll(ticks, total)
		if err != nil {
			// otherwise the reader would wait for answers to Checks that were never sent
			interrupt(c)
		}
		sender <- err
	}()
	err = c.readAll(total)
	return c.latencies, errors.Join(err, ticks.Close(), <-sender)
}

// sendAll sends a Check at each tick, until it has sent total Checks.
func (c *pacedConn) sendAll(ticks *ticks, total int) error {
	for left := total; left > 0; {
		n, err := ticks.wait()
		if err != nil {
			return fmt.Errorf("waiting for the next Check: %w", err)
		}
		n = min(n, left)
		left -= n
		if err := c.sendDue(n); err != nil {
			return err
		}
	}
	return nil
}

// sendDue sends all due Checks, including those that could not be sent before. more is the number
// that became due since the last call.
func (c *pacedConn) sendDue(more int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.due += more
	for c.sent < c.due {
		sent, err := c.sendNext(c.start.Add(c.first + time.Duration(c.sent)*c.interval))
		if err != nil {
			return err
		}
		if !sent {
			break
		}
		c.sent++
	}
	return c.writer.Flush()
}

// readAll reads until total Checks are answered.
func (c *pacedConn) readAll(total int) error {
	for range total {
		if err := c.readAnswer(); err != nil {
			return err
		}
	}
	return nil
}

// readAnswer reads until one more Check is answered.
func (c *pacedConn) readAnswer() error {
	for before := len(c.latencies); len(c.latencies) == before; {
		frame, err := c.framer.ReadFrame()
		if err != nil {
			return fmt.Errorf("reading answers: %w", err)
		}
		c.mu.Lock()
		err = c.handle(frame, time.Now())
		c.mu.Unlock()
		if err != nil {
			return err
		}
		if err := c.sendDue(0); err != nil { // the frame may have made room
			return err
		}
	}
	return nil
}

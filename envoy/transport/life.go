package transport

import (
	"io"
	"time"

	"golang.org/x/net/http2"
)

// The data of our pings: whether the peer is there, and whether it has read GOAWAY.
var (
	pingAlive = [8]byte{'a', 'l', 'i', 'v', 'e'}
	pingAway  = [8]byte{'a', 'w', 'a', 'y'}
)

// grow looks at the age of a connection and at the silence of its peer.
func (c *conn) grow(now time.Time) error {
	l, config := &c.life, &c.shared.Config
	switch {
	case l.final && len(c.streams) == 0:
		return io.EOF
	case now.After(l.end.Add(config.Grace)):
		return peerError{Slow, "calls are left at the end of the grace period"}
	case now.After(l.end):
		c.drain()
	}
	if now.Sub(l.asked) >= awayTimeout {
		c.refuseStreams() // a peer that does not answer the ping keeps nobody waiting
	}
	if l.seen.Before(c.arrived) {
		l.seen, l.pinged = c.arrived, time.Time{}
	}
	switch {
	case !l.pinged.IsZero() && now.Sub(l.pinged) > config.PingTimeout:
		return peerError{Silent, "the peer does not answer a ping"}
	case l.pinged.IsZero() && now.Sub(l.seen) > config.PingAfter:
		l.pinged = now
		c.out = appendPing(c.out, 0, pingAlive)
	}
	return nil
}

// drain tells the peer to open no more streams. Those that it opens before it reads this are still
// answered: the number of the last one follows when it has answered a ping.
func (c *conn) drain() {
	if c.life.draining {
		return
	}
	now := time.Now()
	c.life.asked = now
	if !c.greeted {
		c.life.early = true // its first calls may be on their way
		_ = c.net.SetReadDeadline(now.Add(awayTimeout))
		return
	}
	_ = c.net.SetReadDeadline(now) // its goroutine wakes, and sets the time of its next look
	if now.Before(c.life.end) {
		c.life.end = now
	}
	c.life.draining = true
	c.out = appendGoAway(c.out, maxWindow, http2.ErrCodeNo, "")
	c.out = appendPing(c.out, 0, pingAway)
}

// pong handles the answer to a ping.
func (c *conn) pong(data [8]byte) error {
	if data == pingAway {
		c.refuseStreams()
	}
	return nil
}

// refuseStreams names the last stream that is answered, to a peer that was asked to open no more.
func (c *conn) refuseStreams() {
	if c.life.draining && !c.life.final {
		c.life.final = true
		c.out = appendGoAway(c.out, c.last, http2.ErrCodeNo, "")
	}
}

// rearm sets the time at which the connection's goroutine looks at what takes too long.
func (c *conn) rearm() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := c.tickAt
	if l := &c.life; (l.draining || l.early) && !l.final && l.asked.Add(awayTimeout).Before(at) {
		at = l.asked.Add(awayTimeout)
	}
	return c.net.SetReadDeadline(at)
}

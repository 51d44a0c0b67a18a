package transport

import (
	"errors"
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
		return errors.New("calls are left at the end of the grace period")
	case now.After(l.end):
		c.drain()
	}
	if l.seen.Before(c.arrived) {
		l.seen, l.pinged = c.arrived, time.Time{}
	}
	switch {
	case !l.pinged.IsZero() && now.Sub(l.pinged) > config.PingTimeout:
		return errors.New("the peer does not answer a ping")
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
	if !c.greeted {
		c.net.Close() // nothing was asked yet
		return
	}
	if now := time.Now(); now.Before(c.life.end) {
		c.life.end = now
	}
	c.life.draining = true
	c.out = appendGoAway(c.out, maxWindow, http2.ErrCodeNo, "")
	c.out = appendPing(c.out, 0, pingAway)
}

// pong handles the answer to a ping.
func (c *conn) pong(data [8]byte) error {
	if data != pingAway || !c.life.draining || c.life.final {
		return nil
	}
	c.life.final = true
	c.out = appendGoAway(c.out, c.last, http2.ErrCodeNo, "")
	return nil
}

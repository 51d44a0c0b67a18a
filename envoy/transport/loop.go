package transport

import (
	"bytes"
	"errors"
	"io"
	"net"
	"runtime"
	"time"

	"golang.org/x/net/http2"
)

// serve answers calls until the connection ends.
func (c *conn) serve() {
	defer c.net.Close()
	defer c.abandon()
	c.guard(c.loop)
}

func (c *conn) loop() {
	err := c.handshake()
	for err == nil {
		err = c.next()
	}
	var e connError
	var ended peerError
	switch {
	case errors.As(err, &e):
		c.shared.Ended(c.net, e.cause())
		_ = c.answerReady()
		c.mu.Lock()
		c.out = appendGoAway(c.out, c.last, e.code, e.text)
		c.mu.Unlock()
	case errors.As(err, &ended):
		c.shared.Ended(c.net, ended.cause)
		return
	case !errors.Is(err, io.EOF):
		return
	}
	c.cancel() // no answer of a call that waits can be sent any more
	c.settle()
	c.linger()
}

// abandon ends the remaining calls.
func (c *conn) abandon() {
	c.cancel()
	c.in.giveBack()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failed == nil {
		c.failed = net.ErrClosed
	}
	for i := range c.ready {
		c.forget(c.ready[i].kept)
	}
	for _, s := range c.streams {
		c.close(s)
	}
}

// linger lets the peer read what was sent last. With data that is not read, closing would destroy
// it.
func (c *conn) linger() {
	if half, ok := c.net.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
	_ = c.net.SetReadDeadline(time.Now().Add(lastReads))
	_, _ = io.CopyN(io.Discard, c.net, 1<<20)
}

// handshake reads the preface and sends our settings.
func (c *conn) handshake() error {
	now := time.Now()
	c.tickAt = now.Add(handshakeTimeout)
	if err := c.rearm(); err != nil {
		return err
	}
	if err := c.preface(); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.out = appendSettings(c.out, http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: uint32(c.shared.MaxStreams)},
		http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: maxFields})
	c.out = appendWindowUpdate(c.out, 0, connWindow-(64<<10-1))
	return nil
}

// preface reads the beginning of a connection, and answers HTTP/1 with a text.
func (c *conn) preface() error {
	for n := 1; n <= len(http2.ClientPreface); n = max(n+1, min(c.in.len(), len(http2.ClientPreface))) {
		got, err := c.peek(n)
		if err != nil {
			return err
		}
		if string(got) == http2.ClientPreface[:n] {
			continue
		}
		if looksLikeHTTP1(c.in.peek(c.in.len())) {
			_ = c.write([]byte(http1Answer))
		}
		return peerError{NotHTTP2, "the connection does not begin like HTTP/2"}
	}
	c.in.discard(len(http2.ClientPreface))
	return nil
}

const (
	http1Text   = "This port speaks gRPC over HTTP/2, without an upgrade.\n"
	http1Answer = "HTTP/1.1 505 HTTP Version Not Supported\r\nContent-Type: text/plain; charset=utf-8\r\n" +
		"Connection: close\r\n\r\n" + http1Text
)

// looksLikeHTTP1 reports whether bytes begin with a request line of HTTP/1.
func looksLikeHTTP1(b []byte) bool {
	line, _, _ := bytes.Cut(b, []byte{'\r'})
	return bytes.Contains(line, []byte(" HTTP/1."))
}

// next handles one frame. After many in a row, other goroutines have their turn.
func (c *conn) next() error {
	head, err := c.peek(frameHead)
	if err != nil {
		return err
	}
	f := parseFrame(head)
	if f.length > maxFrame {
		return connError{http2.ErrCodeFrameSize, "a frame is longer than the settings allow"}
	}
	whole, err := c.peek(frameHead + f.length)
	if err != nil {
		return err
	}
	f.payload = whole[frameHead:]
	err = c.handle(f, whole)
	c.in.discard(len(whole))
	c.began = time.Time{}
	if c.round++; c.round >= maxRound {
		c.round = 0
		runtime.Gosched()
	}
	return err
}

// readAhead reads more, if there is more, before the calls that have arrived are answered: after a
// pause, their peer may have given some of them up. After much, it also waits a little for bytes on
// their way. It reports whether it has read.
func (c *conn) readAhead(n int) (bool, error) {
	const much = 2 // reads: more than a large buffer
	if len(c.ready) == 0 || !c.in.filled && c.ahead < much || c.ahead >= maxAhead || !c.keepReady() {
		return false, nil
	}
	c.ahead++
	if err := c.net.SetReadDeadline(time.Now().Add(aheadTimeout)); err != nil {
		return false, err
	}
	k, err := c.net.Read(c.in.room(n))
	if again := c.rearm(); k == 0 && !isTimeout(err) {
		return false, errors.Join(err, again)
	}
	c.in.add(k)
	if k > 0 {
		c.arrived = time.Now()
	}
	return k > 0, nil
}

// peek returns the next n bytes. Before it waits for them, it sends all answers.
func (c *conn) peek(n int) ([]byte, error) {
	for c.in.len() < n {
		if err := c.read(n); err != nil {
			return nil, err
		}
	}
	return c.in.peek(n), nil
}

// read answers the calls that have arrived, and waits until some bytes arrive.
func (c *conn) read(n int) error {
	if more, err := c.readAhead(n); more || err != nil {
		return err
	}
	c.ahead = 0
	if err := errors.Join(c.answerReady(), c.pause()); err != nil {
		return err
	}
	defer c.resume()
	if c.in.len() > 0 && c.began.IsZero() {
		c.began = c.arrived
	}
	room := c.in.room(n)
	for {
		if err := c.rest(); err != nil {
			return err
		}
		k, err := c.net.Read(room)
		if k > 0 {
			c.in.add(k)
			c.arrived = time.Now()
			return nil
		}
		switch {
		case err == nil:
			return io.ErrNoProgress
		case !isTimeout(err):
			return err
		}
		if err := c.tick(time.Now()); err != nil {
			return err
		}
	}
}

// tick ends what takes too long.
func (c *conn) tick(now time.Time) error {
	switch {
	case !c.greeted:
		return peerError{Slow, "no handshake"}
	case !c.began.IsZero() && now.Sub(c.began) > stallTimeout:
		return peerError{Slow, "the rest of a frame does not arrive"}
	case c.block.stream != 0 && now.Sub(c.block.began) > stallTimeout:
		return peerError{Slow, "the rest of the headers does not arrive"}
	}
	c.mu.Lock()
	c.strikes /= 2
	for _, s := range c.streams {
		if s.stalled(now) {
			c.reset(s, http2.ErrCodeCancel)
		}
	}
	err := c.grow(now)
	c.mu.Unlock()
	if err := errors.Join(err, c.flush()); err != nil {
		return err
	}
	c.tickAt = now.Add(c.shared.tick())
	return c.rearm()
}

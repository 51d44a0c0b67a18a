package transport

import (
	"slices"
	"time"

	"golang.org/x/net/http2"
)

// newStream opens a stream. It reuses one that nothing refers to.
func (c *conn) newStream(id uint32, h *head) *stream {
	s := c.spare
	if s == nil {
		s = &stream{}
	}
	c.spare = nil
	*s = stream{id: id, head: h, window: c.perStream, room: streamWindow, began: c.arrived}
	c.streams[id] = s
	return s
}

// keep reports whether n more bytes of messages may be held, and counts them if so.
func (c *conn) keep(n int) bool {
	if c.held+n > maxHeld/4 {
		return false
	}
	if c.shared.held.Add(int64(n)) > maxHeld {
		c.shared.held.Add(-int64(n))
		return false
	}
	c.held += n
	return true
}

// forget counts n bytes of messages that are not held any more.
func (c *conn) forget(n int) {
	c.held -= n
	c.shared.held.Add(-int64(n))
}

// mayWait takes a place among the goroutines of calls, of the server and of the connection.
func (c *conn) mayWait() bool {
	if c.waiting >= max(1, cap(c.shared.waiting)/4) {
		return false
	}
	select {
	case c.shared.waiting <- struct{}{}:
		c.waiting++
		return true
	default:
		return false
	}
}

// waited gives the place back.
func (c *conn) waited() {
	<-c.shared.waiting
	c.waiting--
}

// release drops the held part of a message.
func (c *conn) release(s *stream) {
	c.forget(len(s.message))
	s.message = nil
}

// giveBack returns bytes to the peer's window for the connection, by a frame as soon as they are
// worth one.
func (c *conn) giveBack(n int) {
	if c.received += uint32(n); c.received >= connWindow/4 {
		c.out = appendWindowUpdate(c.out, 0, c.received)
		c.open += int64(c.received)
		c.received = 0
	}
}

// remember keeps how a stream ended, for a while.
func (c *conn) remember(e ended) {
	c.closed[c.closedAt] = e
	c.closedAt = (c.closedAt + 1) % maxRemembered
}

// close ends a stream on our side.
func (c *conn) close(s *stream) {
	if s.done {
		return
	}
	s.done, s.body = true, nil
	if s.limited && s.wake == nil {
		c.limited--
	}
	if s.blocked {
		c.blocked = slices.DeleteFunc(c.blocked, func(other *stream) bool { return other == s })
		s.blocked = false
	}
	if s.cancel != nil {
		s.cancel()
	}
	if s.wake != nil {
		tell(s.wake) // the handler still gets what has arrived
	} else {
		c.release(s)
	}
	delete(c.streams, s.id)
	if s.cancel == nil && s.wake == nil {
		c.spare = s
	}
	c.remember(ended{s.id, s.reset})
}

// reset ends a stream with an error.
func (c *conn) reset(s *stream, code http2.ErrCode) {
	c.out = appendReset(c.out, s.id, code)
	s.reset = true
	c.close(s)
}

// resetID ends a stream, open or not.
func (c *conn) resetID(id uint32, code http2.ErrCode) {
	if s := c.streams[id]; s != nil {
		c.reset(s, code)
		return
	}
	c.out = appendReset(c.out, id, code)
}

// refuse ends a stream that was not opened.
func (c *conn) refuse(id uint32, code http2.ErrCode) {
	c.out = appendReset(c.out, id, code)
	c.remember(ended{id, true})
}

// sendBlock sends headers. The first ones of a connection tell the peer that no table of header
// compression is used.
func (c *conn) sendBlock(s *stream, block []byte, flags http2.Flags) {
	const noTable = 0x20
	size := len(block)
	if !c.sized {
		size++
	}
	c.out = appendFrame(c.out, size, http2.FrameHeaders, flags|http2.FlagHeadersEndHeaders, s.id)
	if !c.sized {
		c.out, c.sized = append(c.out, noTable), true
	}
	c.out = append(c.out, block...)
}

// sendHeaders sends the headers that begin an answer.
func (c *conn) sendHeaders(s *stream, block []byte) {
	s.headed = true
	c.sendBlock(s, block, 0)
}

// sendLast sends the headers that end an answer.
func (c *conn) sendLast(s *stream, block []byte) {
	c.sendBlock(s, block, http2.FlagHeadersEndStream)
	c.finish(s)
}

// finish handles the end of an answer. It stops a caller that still sends, unless a handler
// receives.
func (c *conn) finish(s *stream) {
	switch {
	case s.ended:
		c.close(s)
	case s.wake != nil && !s.left:
		s.over = true
	default:
		c.reset(s, http2.ErrCodeNo)
	}
}

// fail answers a call with a status alone.
func (c *conn) fail(s *stream, code int, text string) { c.sendLast(s, failure(code, text)) }

// exhausted ends a call for which there is no room. Its handler gets nothing more, because a part
// is lost.
func (c *conn) exhausted(s *stream, text string) {
	s.left = true
	if s.headed {
		c.reset(s, http2.ErrCodeEnhanceYourCalm)
		return
	}
	c.fail(s, resourceExhausted, text)
}

// sendBody sends data and the headers that end it, as far as the windows admit. The rest follows
// when they open.
func (c *conn) sendBody(s *stream, body, trailers []byte) {
	s.body, s.trailers = body, trailers
	c.advance(s)
}

// advance sends what the windows admit of a body.
func (c *conn) advance(s *stream) {
	for len(s.body) > 0 {
		n := min(int64(len(s.body)), maxFrame, c.window, s.window)
		if n <= 0 {
			c.delay(s)
			return
		}
		c.window -= n
		s.window -= n
		var flags http2.Flags
		if s.trailers == nil && !s.open && n == int64(len(s.body)) {
			flags = http2.FlagDataEndStream
		}
		c.out = appendFrame(c.out, int(n), http2.FrameData, flags, s.id)
		c.out = append(c.out, s.body[:n]...)
		s.body = s.body[n:]
		c.credit(1)
	}
	tell(s.taken)
	switch {
	case s.trailers != nil:
		c.sendLast(s, s.trailers)
	case !s.open:
		c.finish(s)
	}
}

// delay makes a stream wait for a window.
func (c *conn) delay(s *stream) {
	s.blocked, s.since = true, time.Now()
	c.blocked = append(c.blocked, s)
}

// unblock continues the streams that wait for a window, as far as that of the connection admits.
func (c *conn) unblock() {
	waiting := c.blocked
	c.blocked = nil
	for i, s := range waiting {
		if c.window <= 0 {
			c.blocked = append(c.blocked, waiting[i:]...)
			return
		}
		c.retry(s)
	}
}

// unblockStream continues a stream if it waits for its window.
func (c *conn) unblockStream(s *stream) {
	if s.blocked {
		c.blocked = slices.DeleteFunc(c.blocked, func(other *stream) bool { return other == s })
		c.retry(s)
	}
}

// retry continues a stream that is not in the list of blocked streams. One that can send nothing
// has waited all the time.
func (c *conn) retry(s *stream) {
	since, left := s.since, len(s.body)
	s.blocked = false
	if c.advance(s); s.blocked && len(s.body) == left {
		s.since = since
	}
}

// resize changes the windows of all streams.
func (c *conn) resize(size int64) error {
	change := size - c.perStream
	c.perStream = size
	for _, s := range c.streams {
		if s.window += change; s.window > maxWindow {
			return connError{http2.ErrCodeFlowControl, "a window overflows"}
		}
	}
	return nil
}

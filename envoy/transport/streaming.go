package transport

import (
	"context"
	"encoding/binary"
	"errors"
	"io"

	"golang.org/x/net/http2"
)

// streamCall implements [Stream].
type streamCall struct {
	conn   *conn
	stream *stream
	places chan struct{} // it has one of them
	ctx    context.Context
	ended  bool // End was called
}

// startStream opens the window for the largest message and starts the handler.
func (c *conn) startStream(s *stream, handler Handler) {
	call := c.newStreamCall(s, c.shared.streaming[s.head.path])
	if call == nil {
		return
	}
	c.reopen(s, c.shared.MaxMessage)
	c.shared.running.Go(func() {
		defer s.cancel()
		code, text := internal, "the call panicked"
		c.guard(func() { code, text = handler(call) })
		call.End(code, text)
		call.leave()
	})
}

// newStreamCall takes a place for the goroutine of a call. Without one it ends the call and returns
// nil.
func (c *conn) newStreamCall(s *stream, places chan struct{}) *streamCall {
	select {
	case places <- struct{}{}:
	default:
		c.fail(s, resourceExhausted, "too many calls of this method")
		return nil
	}
	s.wake = make(chan struct{}, 1)
	call := &streamCall{conn: c, stream: s, places: places}
	call.ctx, s.cancel = c.contextOf(s)
	return call
}

// contextOf returns the context of a streaming call.
func (c *conn) contextOf(s *stream) (context.Context, context.CancelFunc) {
	timeout := s.head.timeout
	if s.limited && (timeout == 0 || timeout > limitedTime) {
		timeout = limitedTime
	}
	if timeout == 0 {
		return context.WithCancel(c.ctx)
	}
	return context.WithTimeout(c.ctx, timeout)
}

// reopen returns bytes to the window of a stream.
func (c *conn) reopen(s *stream, n int) {
	if s.ended || s.done {
		return
	}
	s.room += int64(n)
	c.out = appendWindowUpdate(c.out, s.id, uint32(n))
}

// Context implements [Stream].
func (s *streamCall) Context() context.Context { return s.ctx }

// Receive implements [Stream].
func (s *streamCall) Receive(ctx context.Context) ([]byte, error) {
	for {
		message, err := s.take()
		if message != nil || err != nil {
			return message, err
		}
		select {
		case <-s.stream.wake:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// take returns the next message if it has arrived.
func (s *streamCall) take() (message []byte, err error) {
	s.conn.change(func() { message, err = s.conn.takeMessage(s.stream) })
	return message, err
}

func (c *conn) takeMessage(s *stream) ([]byte, error) {
	if len(s.message) >= prefix {
		size := binary.BigEndian.Uint32(s.message[1:])
		if s.message[0] != 0 || int64(size) > int64(c.shared.MaxMessage) {
			return nil, ErrMessage
		}
		if whole := prefix + int(size); len(s.message) >= whole {
			message := append(make([]byte, 0, size), s.message[prefix:whole]...)
			c.took(s, whole)
			return message, nil
		}
	}
	if s.ended && len(s.message) > 0 {
		return nil, ErrMessage
	}
	return nil, s.end()
}

// took drops the first n bytes that were received, and returns them to the peer's window.
func (c *conn) took(s *stream, n int) {
	if s.message = s.message[n:]; len(s.message) == 0 {
		s.message = nil // ends the use of the space
	}
	c.forget(n)
	c.reopen(s, n)
}

// end returns why nothing more will arrive; nil: more may.
func (s *stream) end() error {
	switch {
	case s.ended:
		return io.EOF
	case s.done:
		return ErrReset
	}
	return nil
}

// Send implements [Stream].
func (s *streamCall) Send(message []byte) (err error) {
	s.conn.change(func() {
		err = s.conn.sendPart(s.stream, callHeaders, appendMessage(make([]byte, 0, len(message)+prefix), message))
	})
	return err
}

// sendPart sends a part of an answer, after the headers if it is the first one. It keeps the part
// until the windows have taken it.
func (c *conn) sendPart(s *stream, headers, part []byte) error {
	switch {
	case s.done || c.failed != nil:
		return ErrReset
	case s.blocked:
		return errors.New("the caller does not take the messages")
	}
	if !s.headed {
		c.sendHeaders(s, headers)
	}
	s.open = true
	c.sendBody(s, part, nil)
	return nil
}

// End implements [Stream].
func (s *streamCall) End(code int, text string) {
	if s.ended {
		return
	}
	s.ended = true
	s.conn.change(func() { s.conn.endStream(s.stream, code, text) })
}

func (c *conn) endStream(s *stream, code int, text string) {
	block := failure(code, text)
	if s.headed {
		block = trailers(code, text)
	}
	c.endBy(s, block)
}

// endBy ends an answer by a block of headers, after the part that waits for a window.
func (c *conn) endBy(s *stream, block []byte) {
	if s.done {
		return
	}
	if s.open = false; s.blocked {
		s.trailers = block
		return
	}
	c.sendLast(s, block)
}

// givePlaceBack ends the use of a place, unless that was done before.
func (s *streamCall) givePlaceBack() {
	if s.places != nil {
		<-s.places
		s.places = nil
	}
}

// leave ends the handler's part, and stops a caller that still sends.
func (s *streamCall) leave() {
	c := s.conn
	s.givePlaceBack()
	c.change(func() {
		if s.stream.left = true; s.stream.limited {
			c.limited--
		}
		if s.stream.over && !s.stream.done {
			c.reset(s.stream, http2.ErrCodeNo)
		}
		c.release(s.stream)
	})
}

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
	ctx    context.Context
	ended  bool // End was called
}

// startStream opens the window for the largest message and starts the handler.
func (c *conn) startStream(s *stream, handler Handler) {
	s.wake = make(chan struct{}, 1)
	if !c.mayWait() {
		s.left = true
		c.fail(s, resourceExhausted, "too many streaming calls")
		return
	}
	c.reopen(s, c.shared.MaxMessage)
	ctx, cancel := context.WithCancel(c.ctx)
	if s.head.timeout > 0 {
		ctx, cancel = context.WithTimeout(c.ctx, s.head.timeout)
	}
	s.cancel = cancel
	call := &streamCall{conn: c, stream: s, ctx: ctx}
	c.shared.running.Go(func() {
		defer cancel()
		code, text := internal, "the call panicked"
		c.guard(func() { code, text = handler(call) })
		call.End(code, text)
		call.leave()
	})
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
			if s.message = s.message[whole:]; len(s.message) == 0 {
				s.message = nil // ends the use of the space
			}
			c.forget(whole)
			c.reopen(s, whole)
			return message, nil
		}
	}
	switch {
	case s.ended && len(s.message) > 0:
		return nil, ErrMessage
	case s.ended:
		return nil, io.EOF
	case s.done:
		return nil, ErrReset
	}
	return nil, nil
}

// Send implements [Stream].
func (s *streamCall) Send(message []byte) (err error) {
	s.conn.change(func() { err = s.conn.sendMessage(s.stream, message) })
	return err
}

func (c *conn) sendMessage(s *stream, message []byte) error {
	switch {
	case s.done || c.failed != nil:
		return ErrReset
	case s.blocked:
		return errors.New("the caller does not take the messages")
	}
	if !s.headed {
		c.sendHeaders(s, callHeaders)
	}
	s.open = true
	c.sendBody(s, appendMessage(make([]byte, 0, len(message)+prefix), message), nil)
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
	if s.done {
		return
	}
	block := failure(code, text)
	if s.headed {
		block = trailers(code, text)
	}
	if s.open = false; s.blocked {
		s.trailers = block
		return
	}
	c.sendLast(s, block)
}

// leave ends the handler's part, and stops a caller that still sends.
func (s *streamCall) leave() {
	c := s.conn
	c.change(func() {
		c.waited()
		s.stream.left = true
		if s.stream.over && !s.stream.done {
			c.reset(s.stream, http2.ErrCodeNo)
		}
		c.release(s.stream)
	})
}

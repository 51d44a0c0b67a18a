package transport

import (
	"context"

	"golang.org/x/net/http2"
)

// begin handles the headers of a request.
func (c *conn) begin(s *stream, end bool) error {
	h := s.head
	if !h.isCall() {
		// Only what the answer depends on is kept, because anybody may send it.
		s.head, s.dropped = &head{method: h.method, contentType: h.contentType[:min(len(h.contentType), 64)], length: h.length, tooLarge: h.tooLarge}, true
		return c.endOf(s, end)
	}
	if !c.admits(h) {
		c.fail(s, unauthenticated, "this port requires the gRPC token as authorization: Bearer TOKEN")
		return c.strike()
	}
	if handler := c.shared.Streams[h.path]; handler != nil {
		c.startStream(s, handler)
	}
	return c.endOf(s, end)
}

// endOf handles the end of a request that has headers only.
func (c *conn) endOf(s *stream, end bool) error {
	if end && !s.done {
		return c.requestEnded(s, nil)
	}
	return nil
}

// admits reports whether a caller may call a method. The answer for known headers is known as well.
func (c *conn) admits(h *head) bool {
	if !h.asked {
		h.asked, h.admitted = true, c.askWhether(h)
	}
	return h.admitted
}

func (c *conn) askWhether(h *head) bool {
	defer c.logPanic()
	return c.shared.Admit == nil || c.shared.Admit(h.path, h.authorization)
}

// hold keeps a part of a message until the rest arrives, or a handler takes it.
func (c *conn) hold(s *stream, part []byte) {
	switch {
	case s.left:
		return
	case s.wake == nil && (s.dropped || len(s.message)+len(part) > c.shared.MaxMessage+prefix):
		c.release(s)
		s.dropped = true
	case !c.keep(len(part)):
		c.exhausted(s)
		return
	default:
		s.message = append(s.message, part...)
	}
	if s.wake != nil {
		s.tell()
		return
	}
	if s.room < streamWindow/2 && !s.ended {
		c.out = appendWindowUpdate(c.out, s.id, uint32(streamWindow-s.room))
		s.room = streamWindow
	}
}

// exhausted ends a call that finds no memory.
func (c *conn) exhausted(s *stream) {
	if s.headed {
		c.reset(s, http2.ErrCodeEnhanceYourCalm)
		return
	}
	c.fail(s, resourceExhausted, "too many calls are held")
}

// requestEnded handles the end of a request; part is its last data.
func (c *conn) requestEnded(s *stream, part []byte) error {
	s.ended = true
	if s.head.length >= 0 && s.got != s.head.length {
		c.reset(s, http2.ErrCodeProtocol)
		return c.strike()
	}
	if s.wake != nil {
		if c.hold(s, part); s.over {
			c.close(s)
		}
		return nil
	}
	if s.message != nil || s.dropped {
		c.hold(s, part)
		part = s.message
	}
	if s.done {
		return c.strike()
	}
	if s.head.isCall() {
		c.answerCall(s, part)
		return nil
	}
	c.refuseRequest(s)
	return c.strike()
}

// refuseRequest answers a request that is no call.
func (c *conn) refuseRequest(s *stream) {
	switch {
	case s.head.tooLarge:
		c.sendText(s, 431, "The headers are too long.\n")
	case s.head.method != "POST":
		c.sendText(s, 405, "This port speaks gRPC, which uses POST.\n")
	default:
		c.sendText(s, 415, "This port speaks gRPC: content-type must be application/grpc.\n")
	}
}

func (c *conn) sendText(s *stream, status int, body string) {
	block := text(status, len(body))
	if s.head.method == "HEAD" {
		c.sendLast(s, block)
		return
	}
	c.sendHeaders(s, block)
	c.sendBody(s, []byte(body), nil)
}

// answerCall answers a call whose data has arrived.
func (c *conn) answerCall(s *stream, data []byte) {
	method := c.shared.Methods[s.head.path]
	if method == nil {
		c.fail(s, unimplemented, "unknown method")
		return
	}
	call := Call{Arrived: c.arrived, Timeout: s.head.timeout, TooLarge: s.dropped}
	if !s.dropped {
		if code, text := c.readMessage(&call, s.head, data); code != 0 {
			c.fail(s, code, text)
			return
		}
	}
	answer, ok, sound := c.try(method, &call)
	switch {
	case !sound:
		c.fail(s, internal, "the call panicked")
	case !ok:
		c.wait(s, method, &call)
	default:
		if c.send(s, answer); cap(answer) <= smallBuffer {
			c.answer = answer
		}
	}
}

// readMessage reads the message of a call. Decompression does not hold the connection's lock.
func (c *conn) readMessage(call *Call, h *head, data []byte) (code int, text string) {
	if len(data) > 0 && data[0] != 0 {
		c.mu.Unlock()
		defer c.mu.Lock()
	}
	return messageOf(call, h, data, c.shared.MaxMessage)
}

// try asks a method without the connection's lock. sound is false if it panics.
func (c *conn) try(method Method, call *Call) (answer []byte, ok, sound bool) {
	c.mu.Unlock()
	defer c.mu.Lock()
	defer c.logPanic()
	answer, ok = method.Try(call, c.answer[:0])
	return answer, ok, true
}

// send answers a call with a message.
func (c *conn) send(s *stream, message []byte) {
	c.credit(strikesForACall)
	c.sendHeaders(s, callHeaders)
	size := int64(len(message) + prefix)
	if size <= maxFrame && size <= c.window && size <= s.window {
		c.window -= size
		c.out = appendFrame(c.out, int(size), http2.FrameData, 0, s.id)
		c.out = appendMessage(c.out, message)
		c.sendLast(s, callTrailers)
		return
	}
	c.sendBody(s, appendMessage(make([]byte, 0, size), message), callTrailers)
}

// wait answers a call in a goroutine of its own, if it may have one.
func (c *conn) wait(s *stream, method Method, call *Call) {
	if !c.keep(len(call.Message)) {
		c.exhausted(s)
		return
	}
	if !c.mayWait() {
		c.forget(len(call.Message))
		c.refuseCall(s, method, call)
		return
	}
	later := *call
	later.Message = append([]byte(nil), call.Message...)
	ctx, cancel := context.WithCancel(c.ctx)
	s.cancel = cancel
	c.shared.running.Go(func() {
		defer cancel()
		var answer []byte
		sound := c.guard(func() { answer = method.Wait(ctx, &later, nil) })
		c.change(func() {
			c.waited()
			c.forget(len(later.Message))
			switch {
			case s.done:
			case sound:
				c.send(s, answer)
			default:
				c.fail(s, internal, "the call panicked")
			}
		})
	})
}

// refuseCall answers a call that may not wait.
func (c *conn) refuseCall(s *stream, method Method, call *Call) {
	var answer []byte
	if c.guard(func() { answer = method.Refuse(call, nil) }) {
		c.send(s, answer)
		return
	}
	c.fail(s, internal, "the call panicked")
}

package transport

import (
	"bytes"
	"context"
	"runtime"

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
	switch admission := c.admits(h); {
	case admission == Admitted:
	case admission != Limited:
		h.fields = nil
		c.fail(s, unauthenticated, "this port requires the gRPC token as authorization: Bearer TOKEN")
		return c.strike()
	case c.limited >= maxLimited:
		h.fields = nil
		c.fail(s, resourceExhausted, "too many calls at a time for a caller without the gRPC token")
		return c.strike()
	default:
		s.limited = true
		c.limited++
	}
	switch handler := c.shared.Streams[h.path]; {
	case h.fields != nil:
		c.handOver(s)
	case h.encoding != "" && h.encoding != "identity" && h.encoding != "gzip":
		c.fail(s, unimplemented, "messages can be compressed by gzip, not otherwise")
		return c.strike()
	case handler != nil:
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

// admits returns the rights of a caller. Those of known headers are known as well.
func (c *conn) admits(h *head) Admission {
	if !h.asked {
		h.admission = c.askWhether(h)
		h.asked = h.admission != Refused // Admit learns of each refusal
	}
	return h.admission
}

// askWhether asks Config.Admit without the connection's lock.
func (c *conn) askWhether(h *head) Admission {
	if c.shared.Admit == nil {
		return Admitted
	}
	c.mu.Unlock()
	defer c.mu.Lock()
	defer c.logPanic()
	return c.shared.Admit(c.net, h.path, h.authorization)
}

// hold keeps a part of a message until the rest arrives, or a handler takes it.
func (c *conn) hold(s *stream, part []byte) {
	switch {
	case s.left:
		return
	case s.wake == nil && (s.dropped || len(s.message)+len(part) > c.shared.MaxMessage+prefix):
		c.release(s)
		s.dropped = true
	case c.keep(len(part)):
		s.message = append(s.message, part...)
	case s.wake == nil && c.shared.Methods[s.head.path] != nil:
		c.release(s)
		s.dropped, s.full = true, true // the method refuses it at the end
	default:
		c.exhausted(s, "too many calls are held")
		return
	}
	if s.wake != nil {
		tell(s.wake)
		return
	}
	if s.room < streamWindow/2 && !s.ended {
		c.out = appendWindowUpdate(c.out, s.id, uint32(streamWindow-s.room))
		s.room = streamWindow
	}
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
		c.ready = append(c.ready, ready{stream: s, id: s.id, data: part})
		return nil
	}
	c.refuseRequest(s)
	return c.strike()
}

// answerReady answers the calls that have arrived whole. It does nothing for those that their peer
// has reset meanwhile.
func (c *conn) answerReady() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.ready {
		r := c.ready[i]
		c.ready[i] = ready{}
		c.forget(r.kept)
		if r.stream.id == r.id && !r.stream.done {
			c.answerCall(r.stream, r.data)
		}
		if i%maxRound == maxRound-1 {
			if err := c.yield(); err != nil {
				return err
			}
		}
	}
	if c.ready = c.ready[:0]; cap(c.ready) > maxRound {
		c.ready = nil
	}
	return nil
}

// yield sends the answers so far and lets other goroutines run.
func (c *conn) yield() error {
	c.mu.Unlock()
	runtime.Gosched()
	err := c.flush()
	c.mu.Lock()
	c.borrow()
	return err
}

// keepReady copies the calls that alias the input, so that more can be read. It reports whether
// there is room for them.
func (c *conn) keepReady() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.ready {
		r := &c.ready[i]
		if r.kept > 0 || r.stream.id != r.id || r.stream.done || r.stream.message != nil {
			continue
		}
		if !c.keep(len(r.data)) {
			return false
		}
		r.data, r.kept = bytes.Clone(r.data), len(r.data)
	}
	return true
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
	call := &c.call
	*call = Call{Arrived: s.began, Timeout: s.head.timeout, TooLarge: s.dropped}
	defer func() { call.Message = nil }()
	if s.full {
		c.refuseCall(s, method, call)
		return
	}
	if !s.dropped {
		if code, text := c.readMessage(call, s.head, data); code != 0 {
			c.fail(s, code, text)
			return
		}
	}
	answer, ok, sound := c.try(method, call)
	switch {
	case !sound:
		c.fail(s, internal, "the call panicked")
	case !ok:
		c.wait(s, method, call)
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
		c.refuseCall(s, method, call)
		return
	}
	if !c.mayWait() {
		c.forget(len(call.Message))
		c.refuseCall(s, method, call)
		return
	}
	later := *call
	later.Message = append([]byte(nil), call.Message...)
	c.release(s) // the copy replaces the parts that have arrived
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
	answer, sound := c.refusal(method, call)
	if sound {
		c.send(s, answer)
		return
	}
	c.fail(s, internal, "the call panicked")
}

// refusal asks a method without the connection's lock. sound is false if it panics.
func (c *conn) refusal(method Method, call *Call) (answer []byte, sound bool) {
	c.mu.Unlock()
	defer c.mu.Lock()
	defer c.logPanic()
	return method.Refuse(call, nil), true
}

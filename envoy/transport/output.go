package transport

import (
	"runtime/debug"
	"time"
)

// borrow takes space for the frames to be sent. flush gives it back.
func (c *conn) borrow() {
	if c.out == nil {
		c.out = (*largeBuffers.Get().(*[]byte))[:0]
	}
}

// giveOutBack ends the loan of the space of frames that were sent.
func giveOutBack(frames []byte) {
	if cap(frames) == largeBuffer {
		frames = frames[:largeBuffer]
		largeBuffers.Put(&frames)
	}
}

// flush writes what is to be sent, unless another goroutine does. It returns early only if that is
// little.
func (c *conn) flush() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.sending && len(c.out) > maxUnsent && c.failed == nil {
		c.progress.Wait()
	}
	if c.sending || c.failed != nil {
		return c.failed
	}
	c.sending = true
	for len(c.out) > 0 && c.failed == nil {
		frames := c.out
		c.out = nil
		c.mu.Unlock()
		err := c.write(frames)
		giveOutBack(frames)
		c.mu.Lock()
		if c.failed == nil {
			c.failed = err
		}
		c.progress.Broadcast()
	}
	if c.sending = false; c.out != nil {
		giveOutBack(c.out)
		c.out = nil
	}
	c.progress.Broadcast()
	return c.failed
}

func (c *conn) write(frames []byte) error {
	if err := c.net.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	_, err := c.net.Write(frames)
	return err
}

// pause sends all answers and lets the calls that wait send theirs by themselves.
func (c *conn) pause() error {
	c.mu.Lock()
	c.busy = false
	c.mu.Unlock()
	return c.flush()
}

func (c *conn) resume() {
	c.mu.Lock()
	c.busy = true
	c.borrow()
	c.mu.Unlock()
}

// rest returns io.EOF instead of waiting for a peer that has nothing more to say.
func (c *conn) rest() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.whenDone()
}

// change lets another goroutine than the connection's send frames.
func (c *conn) change(do func()) {
	c.mu.Lock()
	c.borrow()
	do()
	busy, done := c.busy, c.whenDone()
	c.mu.Unlock()
	if !busy {
		_ = c.flush() // the connection's goroutine meets the error as well
	}
	if done != nil {
		_ = c.net.SetReadDeadline(time.Now()) // its goroutine wakes and ends it
	}
}

// settle writes everything, also what another goroutine is writing.
func (c *conn) settle() {
	for c.flush() == nil {
		c.mu.Lock()
		for c.sending && c.failed == nil {
			c.progress.Wait()
		}
		all := len(c.out) == 0
		c.mu.Unlock()
		if all {
			return
		}
	}
}

// guard runs do and reports whether it returned. It logs a panic.
func (c *conn) guard(do func()) (sound bool) {
	defer c.logPanic()
	do()
	return true
}

// logPanic must be deferred. It ends a panic and logs it, without its value: that may quote a
// message.
func (c *conn) logPanic() {
	if recover() != nil {
		c.shared.Log.Error("a call panicked: report this stack, it is a fault of Keyporter", "stack", string(debug.Stack()))
	}
}

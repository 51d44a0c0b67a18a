package transport

import (
	"errors"
	"net"
	"runtime/debug"
	"time"
)

// borrow takes space for the frames to be sent. flush gives it back.
func (c *conn) borrow() {
	if c.loan == nil {
		c.loan = largeBuffers.Get().(*[]byte)
		c.out = append((*c.loan)[:0], c.out...)
	}
}

// takeOut takes the frames to be sent, and the loan of their space.
func (c *conn) takeOut() (frames []byte, loan *[]byte) {
	frames, loan = c.out, c.loan
	c.out, c.loan = nil, nil
	return frames, loan
}

// giveOutBack ends the loan of the space of frames that were sent. Frames that outgrew it were
// moved.
func giveOutBack(loan *[]byte) {
	if loan != nil {
		largeBuffers.Put(loan)
	}
}

// flush writes what is to be sent, unless another goroutine does. It returns early only while
// little is unsent.
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
		frames, loan := c.takeOut()
		c.mu.Unlock()
		err := c.write(frames)
		giveOutBack(loan)
		c.mu.Lock()
		if c.failed == nil {
			c.failed = err
		}
		c.progress.Broadcast()
	}
	_, loan := c.takeOut()
	giveOutBack(loan)
	c.sending = false
	c.progress.Broadcast()
	return c.failed
}

func (c *conn) write(frames []byte) error {
	if err := c.net.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	_, err := c.net.Write(frames)
	if isTimeout(err) {
		return peerError{Slow, "the peer does not read"}
	}
	return err
}

// isTimeout reports whether an error is that of a deadline, on any kind of connection.
func isTimeout(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
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
	busy, done := c.locked(do)
	if !busy {
		_ = c.flush() // the connection's goroutine meets the error as well
	}
	if done != nil {
		_ = c.net.SetReadDeadline(time.Now()) // its goroutine wakes and ends it
	}
}

// locked changes a connection. It reports whether the connection's goroutine will write, and
// whether that is done.
func (c *conn) locked(do func()) (busy bool, done error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.borrow()
	do()
	return c.busy, c.whenDone()
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

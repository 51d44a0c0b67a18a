package transport

import (
	"context"
	"errors"
	"log/slog"
	"time"
)

// Method answers the unary calls of one method. Each of its functions appends an answer, the bytes
// of one message, to out. They must be safe for concurrent use. The message of a call and out are
// only valid until they return.
type Method interface {
	// Try answers a call that has to wait for nothing. A call that would have to wait is left
	// undone: ok is false, and Wait is asked.
	Try(c *Call, out []byte) (answer []byte, ok bool)
	// Wait answers a call and may take its time. Its context ends when the caller has left.
	Wait(ctx context.Context, c *Call, out []byte) (answer []byte)
	// Refuse answers a call that would have to wait while as many wait as may.
	Refuse(c *Call, out []byte) (answer []byte)
}

// Call is one unary call.
type Call struct {
	Message  []byte
	TooLarge bool          // the message is longer than Config.MaxMessage, and left out
	Arrived  time.Time     // when its last byte was read
	Timeout  time.Duration // the caller's; 0: none
}

// Handler serves one call of a streaming method in a goroutine of its own. The call ends when it
// returns, with the status of gRPC that it returns.
type Handler func(Stream) (code int, text string)

// Stream is a streaming call. Its methods may be called by one goroutine at a time.
type Stream interface {
	// Context ends when the caller has gone.
	Context() context.Context
	// Receive returns the next message. It returns those that arrived before the end of the call,
	// however it ended, and then io.EOF if the caller has sent everything, or ErrReset. While it is
	// not called, the caller's window stays closed. If ctx ends first, it returns ctx's error.
	Receive(ctx context.Context) ([]byte, error)
	// Send sends a message. It does not wait for the caller's window, but fails if an earlier
	// message does.
	Send(message []byte) error
	// End sends the status that ends the call, unless that was done before. What the caller has
	// sent by then, and sends until it notices, can still be received.
	End(code int, text string)
}

var (
	// ErrReset is the result of Receive and Send when the caller, or its connection, has gone.
	ErrReset = errors.New("the caller has gone")
	// ErrMessage is the result of Receive for a message that is too long or compressed. None
	// follows.
	ErrMessage = errors.New("a message is too long or compressed")
)

// Config configures a [Server]. Zero values are the defaults.
type Config struct {
	// Methods are the unary methods by path: /package.Service/Method.
	Methods map[string]Method
	// Streams are the streaming methods by path.
	Streams map[string]Handler

	// Admit reports whether a caller with these values of the header authorization may call a
	// method. It is asked before anything of a call but its headers is held, and not again for
	// headers that repeat those of the call before, until Server.Forget. Nil: everybody may.
	Admit func(method string, authorization []string) bool

	MaxMessage int // the maximum length of a message in bytes; 0: 256 KiB
	MaxStreams int // the maximum number of open calls on a connection; 0: 1,024
	MaxWaiting int // the maximum number of calls that wait at a time; 0: 4,096, a quarter of it for a connection

	// MaxAge is the age at which a connection is asked to end, less up to a tenth, so that the peer
	// opens others, perhaps to another server. Grace is how long the calls that are left may take
	// then. 0: 5 min and 30 s.
	MaxAge, Grace time.Duration
	// PingAfter is the silence after which a peer is asked whether it is there, and PingTimeout how
	// long it may take to answer. 0: 1 min and 20 s.
	PingAfter, PingTimeout time.Duration

	Log *slog.Logger // nil: slog.Default()
}

// tick returns the interval at which a connection looks at what takes too long. An idle connection
// costs one look in it.
func (c *Config) tick() time.Duration { return min(c.PingTimeout, c.Grace) / 2 }

// withDefaults replaces zeros.
func (c Config) withDefaults() Config {
	orDefault(&c.MaxMessage, 256<<10)
	orDefault(&c.MaxStreams, 1<<10)
	orDefault(&c.MaxWaiting, 4<<10)
	orDefault(&c.MaxAge, 5*time.Minute)
	orDefault(&c.Grace, 30*time.Second)
	orDefault(&c.PingAfter, time.Minute)
	orDefault(&c.PingTimeout, 20*time.Second)
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return c
}

// orDefault replaces a zero.
func orDefault[T int | time.Duration](value *T, other T) {
	if *value == 0 {
		*value = other
	}
}

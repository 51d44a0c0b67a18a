package transport

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
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
	Arrived  time.Time     // when its headers were read
	Timeout  time.Duration // the caller's; 0: none
	Kept     bool          // a note that Try leaves for Wait
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

// Admission is the rights of a caller. The zero value refuses.
type Admission uint8

const (
	Refused  Admission = iota // the call gets UNAUTHENTICATED
	Limited                   // a connection has at most 4 such calls at a time, of at most 5 s each
	Admitted                  // within the limits of all calls
)

// Config configures a [Server]. Zero values are the defaults.
type Config struct {
	// Methods are the unary methods by path: /package.Service/Method.
	Methods map[string]Method
	// Streams are the streaming methods by path.
	Streams map[string]Handler
	// Others answers the calls of all other methods, if Admit agrees, in a goroutine for each. The
	// path of its requests is that of the call, byte for byte. An answer without grpc-status ends
	// with UNAVAILABLE. It is meant for ServeHTTP of a grpc.Server: the services behind that must
	// return when their context ends, because their goroutines are not waited for and not counted.
	// Nil: these calls get UNIMPLEMENTED.
	Others http.Handler

	// Admit decides whether the caller on a connection, with these values of the header
	// authorization, may call a method. It is asked before anything of a call but its headers is
	// held. It is not asked again about admitted headers that the next call repeats, until
	// Server.Forget. Nil: everybody may.
	Admit func(caller net.Conn, method string, authorization []string) Admission

	MaxMessage int // the maximum length of a message in bytes; 0: 256 KiB
	MaxStreams int // the maximum number of open calls on a connection; 0: 1,024
	// MaxWaiting is the maximum number of calls that wait at a time, and that of open calls of each
	// streaming method. 0: 4,096. A quarter of those that wait may be of one connection.
	MaxWaiting int

	// MaxOthers is the maximum number of calls that Others answers at a time, of all connections.
	// Callers that are Limited have a quarter as many of their own. A call above gets
	// RESOURCE_EXHAUSTED. 0: 64.
	MaxOthers int
	// MaxOtherBody is the maximum length of all messages of such a call together, in bytes,
	// prefixes included. A grpc.Server reads them as fast as they arrive, whether its service takes
	// them or not, so this bounds what it holds. It keeps each in a space of 16 KiB or more, so one
	// counts as 4 KiB at least. A call that sends more ends with RESOURCE_EXHAUSTED, or with a
	// reset if its answer has begun. 0: MaxMessage and its prefix.
	MaxOtherBody int

	// MaxAge is the age at which a connection is asked to end, less up to a tenth, so that the peer
	// opens others, perhaps to another server. Grace is how long the calls that are left may take
	// then. 0: 5 min and 30 s.
	MaxAge, Grace time.Duration
	// PingAfter is the silence after which a peer is asked whether it is there, and PingTimeout how
	// long it may take to answer. 0: 1 min and 20 s.
	PingAfter, PingTimeout time.Duration

	// Ended is called when the server ends a connection that its peer would continue. Nil: it is
	// not called.
	Ended func(caller net.Conn, cause Cause)

	Log *slog.Logger // nil: slog.Default()
}

// tick returns the interval at which a connection looks at what takes too long. An idle connection
// costs one look in it.
func (c *Config) tick() time.Duration { return min(c.PingTimeout, c.Grace) / 2 }

// handsOver reports whether Others answers the calls of this path.
func (c *Config) handsOver(path string) bool {
	return c.Others != nil && c.Methods[path] == nil && c.Streams[path] == nil
}

// withDefaults replaces zeros.
func (c Config) withDefaults() Config {
	orDefault(&c.MaxMessage, 256<<10)
	orDefault(&c.MaxStreams, 1<<10)
	orDefault(&c.MaxWaiting, 4<<10)
	orDefault(&c.MaxOthers, 64)
	orDefault(&c.MaxOtherBody, c.MaxMessage+prefix)
	orDefault(&c.MaxAge, 5*time.Minute)
	orDefault(&c.Grace, 30*time.Second)
	orDefault(&c.PingAfter, time.Minute)
	orDefault(&c.PingTimeout, 20*time.Second)
	if c.Ended == nil {
		c.Ended = func(net.Conn, Cause) {}
	}
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

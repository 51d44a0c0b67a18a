package transport

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
)

// shared is what the connections of a server share.
type shared struct {
	Config
	waiting chan struct{} // a token for each goroutine of a call
	// Tokens for the calls with a handler: by path, and those that are handed over.
	streaming             map[string]chan struct{}
	others, limitedOthers chan struct{}
	running               sync.WaitGroup // these goroutines
	held                  atomic.Int64   // bytes of messages that are not handled yet
	rights                atomic.Uint64  // how often Server.Forget was called
}

// conn is one connection.
type conn struct {
	shared *shared
	net    net.Conn
	ctx    context.Context // of the calls with a goroutine of their own
	cancel context.CancelFunc

	// Of the connection's goroutine alone.
	in      input
	headers *headers
	block   block
	rare    *http2.Framer // nil until the first rare frame
	frame   bytes.Reader  // what rare reads
	arrived time.Time     // when the last bytes did
	began   time.Time     // when the first bytes of an incomplete frame did; zero: there is none
	answer  []byte        // space for one answer
	call    Call          // the one that is being answered
	ready   []ready       // calls that have arrived whole, oldest first
	ahead   int           // reads since the oldest of them
	tickAt  time.Time     // when the connection looks at what takes too long
	rights  uint64        // the value of shared.rights when the last headers were read
	round   int           // frames since the goroutine last yielded

	mu       sync.Mutex
	out      []byte  // frames to be sent
	loan     *[]byte // the space of out, as long as that suffices; nil: none is borrowed
	sending  bool    // a goroutine writes, and continues until out is empty
	busy     bool    // the connection's goroutine writes before it waits
	failed   error   // of a write
	progress sync.Cond
	greeted  bool // the peer's first SETTINGS have arrived
	sized    bool // the peer knows that we use no table of header compression
	strikes  int  // frames that carry no call, less the calls

	streams   map[uint32]*stream
	spare     *stream // a closed one that can be used again
	last      uint32  // the highest stream that the peer has opened
	closed    [maxRemembered]ended
	closedAt  int
	window    int64     // what may be sent
	perStream int64     // what may be sent on a new stream at first
	blocked   []*stream // with data that no window admits
	received  uint32    // not returned to the peer's window for the connection
	open      int64     // the peer's window for the connection
	leaving   bool      // the peer has sent GOAWAY
	waiting   int       // goroutines of calls
	limited   int       // open calls of a caller that is Limited
	held      int       // bytes of messages that are not handled yet
	life      life
}

// ready is a call that has arrived whole and is not answered yet.
type ready struct {
	stream *stream
	id     uint32 // the stream may be used again meanwhile
	data   []byte // aliases the input, or what the stream has kept
	kept   int    // bytes of data that were copied from the input, and count as held
}

// block is a block of headers that comes in parts.
type block struct {
	stream uint32 // 0: none
	end    bool   // of the stream
	parts  int
	bytes  []byte
	began  time.Time
	self   bool // the stream depends on itself
}

// stream is one request that is not answered yet. The connection's lock guards it.
type stream struct {
	id   uint32
	head *head
	got  int64 // bytes received
	room int64 // the peer's window

	ended   bool   // the peer has sent everything
	done    bool   // closed
	reset   bool   // closed by RST_STREAM
	message []byte // received and not handled yet
	limited bool   // it counts in the connection's limited
	full    bool   // there was no room for its message
	dropped bool   // bytes were left out: of a message that is too large, or of a request that is no call
	began   time.Time

	window   int64  // what may be sent
	body     []byte // to be sent
	trailers []byte // after body; nil: none
	headed   bool   // headers are sent
	open     bool   // more may follow body
	over     bool   // our end is sent, but not the peer's
	left     bool   // the handler takes nothing more
	blocked  bool   // body waits for a window
	since    time.Time

	cancel context.CancelFunc // ends a call that waits; nil: none does
	wake   chan struct{}      // tells a streaming call that something has arrived; nil: not streaming
	taken  chan struct{}      // wakes the handler of a call that is handed over once body is sent; nil: nobody waits
}

// ended is a closed stream.
type ended struct {
	id    uint32
	reset bool // by RST_STREAM, of either side
}

// life is the age of a connection and how it ends. The connection's lock guards it.
type life struct {
	end      time.Time // when it is asked to end
	pinged   time.Time // when the peer was asked whether it is there; zero: it was not
	seen     time.Time // when the peer was seen last
	early    bool      // it is asked to end before its handshake
	draining bool      // GOAWAY is sent, and new streams are still answered
	asked    time.Time // when that was, or when it was asked to end early
	final    bool      // GOAWAY with the last stream is sent
}

func newConn(s *shared, n net.Conn) *conn {
	c := &conn{
		shared: s, net: n, headers: newHeaders(&s.Config), in: input{small: make([]byte, smallBuffer)}, busy: true,
		streams: map[uint32]*stream{}, window: 64<<10 - 1, perStream: 64<<10 - 1, open: connWindow,
	}
	c.life = lifeOf(&s.Config, time.Now())
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.progress.L = &c.mu
	return c
}

// lifeOf returns the life of a connection that begins. Those that begin together do not end
// together.
func lifeOf(c *Config, now time.Time) life {
	return life{end: now.Add(c.MaxAge - time.Duration(rand.Int64N(int64(c.MaxAge)/10+1))), seen: now}
}

// stalled reports whether the peer has taken too long to send a message, or to take an answer.
func (s *stream) stalled(now time.Time) bool {
	return s.wake == nil && !s.ended && now.Sub(s.began) > stallTimeout || s.blocked && now.Sub(s.since) > stallTimeout
}

// tell wakes what waits for a channel of one place, if anything does.
func tell(waiter chan<- struct{}) {
	select {
	case waiter <- struct{}{}:
	default:
	}
}

// strike counts a frame that carries no call.
func (c *conn) strike() error {
	if c.strikes++; c.strikes > maxStrikes {
		return connError{http2.ErrCodeEnhanceYourCalm, "too many frames that carry no call"}
	}
	return nil
}

// credit allows a peer frames that carry no call, because of one that does.
func (c *conn) credit(frames int) { c.strikes = max(0, c.strikes-frames) }

// whenDone returns io.EOF if the connection has nothing more to do.
func (c *conn) whenDone() error {
	if (c.life.final || c.leaving) && len(c.streams) == 0 {
		return io.EOF
	}
	return nil
}

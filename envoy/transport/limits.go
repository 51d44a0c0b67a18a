package transport

import (
	"time"

	"golang.org/x/net/http2"
)

// The bounds on one connection. Where a peer exceeds one, the comment names what it gets:
// RST_STREAM ends the stream, GOAWAY the connection.
const (
	// maxFrame is the maximum length of a frame in bytes, both ways: the protocol's default. More:
	// GOAWAY FRAME_SIZE_ERROR.
	maxFrame = 16 << 10
	// maxBlock is the maximum length of a compressed block of headers in bytes, and maxParts the
	// maximum number of frames that it comes in. More: GOAWAY ENHANCE_YOUR_CALM.
	maxBlock = 32 << 10
	maxParts = 8
	// maxFields is the maximum size of a list of headers in bytes, by the count of RFC 9113: names,
	// values and 32 for each. More: status 431.
	maxFields = 16 << 10
	// tableSize is the size of the table of header compression in bytes: the protocol's default.
	tableSize = 4 << 10
	// streamWindow is how much a peer may send on one stream before the handler has taken some of
	// it, in bytes: the protocol's default. More: RST_STREAM FLOW_CONTROL_ERROR.
	streamWindow = 64<<10 - 1
	// connWindow is how much a peer may send on all streams before the server has read it, in
	// bytes. More: GOAWAY FLOW_CONTROL_ERROR.
	connWindow = 1 << 20
	// maxHeld is the maximum number of bytes of messages that all connections together hold, and a
	// quarter of it that of one. A call that would need more gets RESOURCE_EXHAUSTED.
	maxHeld = 64 << 20
	// maxRequest is the maximum length of the data of a call that is not streaming, in bytes,
	// whether it is kept or not. More: RST_STREAM ENHANCE_YOUR_CALM.
	maxRequest = 17 << 20
	// maxLimited is the maximum number of open calls of a connection whose caller is Limited. More:
	// RESOURCE_EXHAUSTED.
	maxLimited = 4
	// maxUnsent is the number of unsent bytes above which a connection is not read.
	maxUnsent = 256 << 10
	// maxStrikes is the number of frames that carry no call, less some for each call, above which a
	// peer gets GOAWAY ENHANCE_YOUR_CALM.
	maxStrikes = 4 << 10
	// strikesForACall is how many such frames an answered call allows: a reset, a window update and
	// a ping. A frame of data allows one.
	strikesForACall = 3
	// maxSettings is the maximum number of settings in a frame. More: GOAWAY ENHANCE_YOUR_CALM.
	maxSettings = 32
	// maxStatusText is the maximum length of a status message in bytes. More is cut off.
	maxStatusText = 1 << 10
	// leastOther is the least that a message of a call that is handed over counts, in bytes.
	leastOther = 4 << 10
	// maxRareKept is the length of a frame in bytes above which the space to read it is not kept.
	maxRareKept = 1 << 10
	// maxRound is the number of frames, or of answers, after which the goroutine of a connection
	// lets others run.
	maxRound = 128
	// maxAhead is the maximum number of reads before calls that have arrived are answered. As many
	// full ones exceed the window for the connection.
	maxAhead = 32
	// maxRemembered is the number of closed streams that a connection remembers, to tell a frame
	// that was on its way from one out of order.
	maxRemembered = 32
)

// The times after which a connection ends.
const (
	// handshakeTimeout bounds the time from the connection to the first SETTINGS.
	handshakeTimeout = 10 * time.Second
	// writeTimeout bounds a write: a peer that does not read ends its connection.
	writeTimeout = 10 * time.Second
	// stallTimeout bounds the time that a peer may take to send the rest of a frame, a block of
	// headers or a unary message, or to open a window for an answer.
	stallTimeout = 10 * time.Second
	// aheadTimeout bounds the wait for bytes that may be on their way. On an idle machine Go waits
	// up to a millisecond.
	aheadTimeout = 200 * time.Microsecond
	// awayTimeout is how long a peer may take to answer the ping that follows GOAWAY.
	awayTimeout = 2 * time.Second
	// limitedTime is the maximum time of a streaming call whose caller is Limited.
	limitedTime = 5 * time.Second
	// lastReads is how long a connection that ends by GOAWAY is still read, so that the peer
	// receives it.
	lastReads = 500 * time.Millisecond
)

const (
	frameHead = 9 // the length of a frame's head in bytes
	prefix    = 5 // that of what precedes a message: whether it is compressed, and its length
)

const maxWindow = 1<<31 - 1

// The codes of gRPC that the transport itself answers with.
const (
	deadlineExceeded  = 4
	resourceExhausted = 8
	unimplemented     = 12
	internal          = 13
	unavailable       = 14
	unauthenticated   = 16
)

// A Cause is why the server ends a connection that its peer would continue.
type Cause string

// The causes.
const (
	NotHTTP2 Cause = "not_http2" // it does not begin like HTTP/2
	Protocol Cause = "protocol"  // a frame that HTTP/2 does not permit
	Flood    Cause = "flood"     // more of something than the bounds allow
	Slow     Cause = "slow"      // it takes too long to send, to read, or to end its last calls
	Silent   Cause = "silent"    // the peer does not answer a ping
)

// Causes returns all causes.
func Causes() []Cause { return []Cause{NotHTTP2, Protocol, Flood, Slow, Silent} }

// A peerError ends a connection without a word.
type peerError struct {
	cause Cause
	text  string
}

func (e peerError) Error() string { return e.text }

// A connError ends a connection with GOAWAY.
type connError struct {
	code http2.ErrCode
	text string
}

func (e connError) Error() string { return e.text }

func (e connError) cause() Cause {
	if e.code == http2.ErrCodeEnhanceYourCalm {
		return Flood
	}
	return Protocol
}

func broken(text string) error { return connError{http2.ErrCodeProtocol, text} }

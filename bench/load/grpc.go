package load

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// ChecksConfig configures Checks. Addr, Checks and Answer are required.
type ChecksConfig struct {
	Addr        string
	Connections int // 0: 4
	Streams     int // per connection; 0: 32
	// Checks makes the Checks of one connection, which are then sent in turn. It is called once per
	// connection, because connections must not share a Check.
	Checks func() ([]*Check, error)
	Answer Answer
	Also   Answer // a second right answer; 0: none
	// Keys are sent in turn in place of those in the Checks, each by one of the connections; nil:
	// the keys of the Checks. They must have the same length as those.
	Keys []string
	// Begin is the index in Keys of the first key to send.
	Begin int
	// Rate is the number of Checks a second that all connections together send, regardless of how
	// long answers take; 0: as many as are answered. With a rate, latencies count from the moment
	// when a Check was due.
	Rate float64
}

// Checks is a set of open connections to an authorizer.
type Checks struct {
	connections []*checkConn
	rate        float64
}

const (
	defaultConnections = 4
	defaultStreams     = 32
)

// DialChecks opens the connections.
func DialChecks(ctx context.Context, config ChecksConfig) (*Checks, error) {
	if config.Connections == 0 {
		config.Connections = defaultConnections
	}
	if config.Streams == 0 {
		config.Streams = defaultStreams
	}
	c := &Checks{rate: config.Rate}
	for i := range config.Connections {
		conn, err := dialCheckConn(ctx, config, i)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("connecting to the authorizer at %s: %w", config.Addr, err), c.Close())
		}
		c.connections = append(c.connections, conn)
	}
	return c, nil
}

// Ask keeps all streams of all connections busy with Checks, or sends them at the rate, each under
// its own number, for the given duration. The first wrong answer is an error.
func (c *Checks) Ask(ctx context.Context, duration time.Duration) (Result, error) {
	if c.rate > 0 {
		return ask(ctx, c.paced(), duration)
	}
	return ask(ctx, c.connections, duration)
}

// Close closes the connections.
func (c *Checks) Close() error {
	var errs []error
	for _, conn := range c.connections {
		errs = append(errs, conn.Close())
	}
	return errors.Join(errs...)
}

// dialed counts connections, so that no two connections of one program send the same number.
var dialed atomic.Uint64

const (
	bufferSize = 64 << 10

	// Windows large enough for any answer, so that they never slow the server down.
	streamWindow   = 1 << 20
	windowIncrease = 1 << 30

	// The protocol's values until the server sends its own.
	initialWindow   = 65535
	initialMaxFrame = 16 << 10
)

// checkConn is one HTTP/2 connection with a fixed number of streams, owned by one goroutine: it
// reads the available data, handles it, and writes all new requests at once. Under load many
// requests and answers therefore share a system call, at both ends, as they do behind a busy Envoy.
type checkConn struct {
	net.Conn
	reader *bufio.Reader
	writer *bufio.Writer
	framer *http2.Framer

	checks []*Check
	answer Answer
	also   Answer
	number uint64 // of the last Check
	next   int    // index in checks

	keys    []string // nil: the Checks have their own
	nextKey int      // index in keys
	keyStep int      // number of connections that share the keys

	headers      []byte // the encoded request header, the same for every Check but the first
	headersFirst []byte // encoded header of the first Check; nil once sent
	decoder      *hpack.Decoder
	grpcStatus   string // of the latest decoded header block

	idle       []*stream          // streams without a request
	open       map[uint32]*stream // HTTP/2 stream → its request
	lastStream uint32             // latest HTTP/2 stream opened
	sendWindow int64              // bytes that the server still accepts on this connection
	perStream  int64              // bytes that it accepts on a new stream
	maxFrame   int                // bytes that it accepts in one frame
	received   uint32             // bytes not yet returned to the server's window
	latencies  []time.Duration    // of this round
}

// stream is a slot for one request after another.
type stream struct {
	sent time.Time
	body []byte
}

// dialCheckConn opens the connection with the given index among those that share the keys.
func dialCheckConn(ctx context.Context, config ChecksConfig, index int) (*checkConn, error) {
	checks, err := config.Checks()
	if err != nil {
		return nil, err
	}
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", config.Addr)
	if err != nil {
		return nil, err
	}
	c := &checkConn{
		Conn:       conn,
		reader:     bufio.NewReaderSize(conn, bufferSize),
		writer:     bufio.NewWriterSize(conn, bufferSize),
		checks:     checks,
		answer:     config.Answer,
		also:       config.Also,
		keys:       config.Keys,
		keyStep:    config.Connections,
		number:     dialed.Add(1) * 1_000_000_000_000,
		open:       make(map[uint32]*stream),
		sendWindow: initialWindow,
		perStream:  initialWindow,
		maxFrame:   initialMaxFrame,
	}
	if len(c.keys) > 0 {
		c.nextKey = (config.Begin + index) % len(c.keys)
	}
	c.framer = http2.NewFramer(c.writer, c.reader)
	c.framer.SetReuseFrames()
	c.decoder = hpack.NewDecoder(4096, c.seeHeader)
	for range config.Streams {
		c.idle = append(c.idle, &stream{})
	}
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	defer context.AfterFunc(ctx, func() { interrupt(c) })()
	if err := c.handshake(config); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return c, nil
}

var errFewStreams = errors.New("the server allows fewer streams than the load has")

// handshake exchanges settings, so that the first request already respects those of the server.
func (c *checkConn) handshake(config ChecksConfig) error {
	if _, err := c.writer.WriteString(http2.ClientPreface); err != nil {
		return err
	}
	err := errors.Join(
		c.framer.WriteSettings(
			http2.Setting{ID: http2.SettingEnablePush, Val: 0},
			http2.Setting{ID: http2.SettingInitialWindowSize, Val: streamWindow}),
		c.framer.WriteWindowUpdate(0, windowIncrease),
		c.writer.Flush())
	if err != nil {
		return err
	}
	frame, err := c.framer.ReadFrame()
	if err != nil {
		return err
	}
	settings, ok := frame.(*http2.SettingsFrame)
	if !ok {
		return fmt.Errorf("the server began with %v and not with its settings", frame.Header())
	}
	if n, ok := settings.Value(http2.SettingMaxConcurrentStreams); ok && int64(n) < int64(config.Streams) {
		return fmt.Errorf("%w: %d < %d", errFewStreams, n, config.Streams)
	}
	table := uint32(4096)
	if n, ok := settings.Value(http2.SettingHeaderTableSize); ok {
		table = min(n, table)
	}
	if err := c.obey(settings); err != nil {
		return err
	}
	return c.encodeHeaders(config.Addr, table)
}

// encodeHeaders encodes the request header twice: the first encoding fills the server's table, and
// the second, for all later requests, only refers to it.
func (c *checkConn) encodeHeaders(authority string, table uint32) error {
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	encoder.SetMaxDynamicTableSizeLimit(table)
	for _, encoded := range []*[]byte{&c.headersFirst, &c.headers} {
		block.Reset()
		for _, field := range checkHeaders(authority) {
			if err := encoder.WriteField(field); err != nil {
				return err
			}
		}
		*encoded = slices.Clone(block.Bytes())
	}
	return nil
}

// checkHeaders returns the header of Envoy's gRPC client, with `skip_envoy_headers` as in the
// output of `keyporter envoy`. The deadline is long, because a late answer would end the run, but
// present, because the server has to set a timer for it.
func checkHeaders(authority string) []hpack.HeaderField {
	return []hpack.HeaderField{
		{Name: ":method", Value: "POST"},
		{Name: ":scheme", Value: "http"},
		{Name: ":path", Value: "/envoy.service.auth.v3.Authorization/Check"},
		{Name: ":authority", Value: authority},
		{Name: "te", Value: "trailers"},
		{Name: "grpc-timeout", Value: "5000m"},
		{Name: "content-type", Value: "application/grpc"},
		{Name: "x-envoy-expected-rq-timeout-ms", Value: "5000"},
	}
}

func (c *checkConn) ask(stop time.Time, latencies []time.Duration) ([]time.Duration, error) {
	c.latencies = latencies
	now := time.Now()
	for {
		if now.Before(stop) {
			if err := c.fill(now); err != nil {
				return nil, err
			}
		}
		if len(c.open) == 0 {
			return c.latencies, c.writer.Flush()
		}
		if c.reader.Buffered() == 0 {
			if err := c.writer.Flush(); err != nil {
				return nil, err
			}
		}
		frame, err := c.framer.ReadFrame()
		if err != nil {
			return nil, fmt.Errorf("reading answers: %w", err)
		}
		now = time.Now()
		if err := c.handle(frame, now); err != nil {
			return nil, err
		}
	}
}

// fill sends a Check on every idle stream, as far as the server's window allows.
func (c *checkConn) fill(now time.Time) error {
	for {
		if sent, err := c.sendNext(now); !sent || err != nil {
			return err
		}
	}
}

// sendNext sends one Check, with its latency counted from at, if a stream is idle and the server's
// window allows it.
func (c *checkConn) sendNext(at time.Time) (sent bool, err error) {
	if len(c.idle) == 0 {
		return false, nil
	}
	check := c.checks[c.next]
	message := check.Number(c.number + 1)
	if len(message) > c.maxFrame || int64(len(message)) > c.perStream {
		return false, fmt.Errorf("a Check of %d bytes is more than the server takes at once", len(message))
	}
	if int64(len(message)) > c.sendWindow {
		return false, nil
	}
	if len(c.keys) > 0 {
		if err := check.SetKey(c.keys[c.nextKey]); err != nil {
			return false, err
		}
		c.nextKey = (c.nextKey + c.keyStep) % len(c.keys)
	}
	s := c.idle[len(c.idle)-1]
	c.idle = c.idle[:len(c.idle)-1]
	s.sent, s.body = at, s.body[:0]
	return true, c.send(s, message)
}

func (c *checkConn) send(s *stream, message []byte) error {
	c.number++
	c.next = (c.next + 1) % len(c.checks)
	c.lastStream = (c.lastStream + 1) | 1
	c.open[c.lastStream] = s
	c.sendWindow -= int64(len(message))
	block := c.headers
	if c.headersFirst != nil {
		block, c.headersFirst = c.headersFirst, nil
	}
	err := c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: c.lastStream, BlockFragment: block, EndHeaders: true})
	if err != nil {
		return err
	}
	return c.framer.WriteData(c.lastStream, true, message)
}

func (c *checkConn) handle(frame http2.Frame, now time.Time) error {
	switch f := frame.(type) {
	case *http2.DataFrame:
		return c.handleData(f)
	case *http2.HeadersFrame:
		return c.handleHeaders(f, now)
	case *http2.SettingsFrame:
		if f.IsAck() {
			return nil
		}
		return c.obey(f)
	case *http2.PingFrame:
		if f.IsAck() {
			return nil
		}
		return c.framer.WritePing(true, f.Data)
	case *http2.WindowUpdateFrame:
		if f.StreamID == 0 {
			c.sendWindow += int64(f.Increment)
		}
		return nil
	case *http2.RSTStreamFrame:
		return fmt.Errorf("the server gave up a Check: %s", f.ErrCode)
	case *http2.GoAwayFrame:
		return fmt.Errorf("the server closes the connection: %s %q", f.ErrCode, f.DebugData())
	default:
		return fmt.Errorf("the server sent a frame that no Check needs: %v", frame.Header())
	}
}

// obey applies the server's settings and acknowledges them. The header table keeps the size first
// agreed, because the encoded header refers to it.
func (c *checkConn) obey(settings *http2.SettingsFrame) error {
	if n, ok := settings.Value(http2.SettingInitialWindowSize); ok {
		c.perStream = int64(n)
	}
	if n, ok := settings.Value(http2.SettingMaxFrameSize); ok {
		c.maxFrame = int(n)
	}
	return c.framer.WriteSettingsAck()
}

func (c *checkConn) handleData(f *http2.DataFrame) error {
	s := c.open[f.StreamID]
	if s == nil {
		return fmt.Errorf("%w: data on stream %d, which has no request", errWrongAnswer, f.StreamID)
	}
	if f.StreamEnded() {
		return fmt.Errorf("%w: no gRPC status after %x", errWrongAnswer, f.Data())
	}
	s.body = append(s.body, f.Data()...)
	c.received += f.Length
	if c.received < windowIncrease/2 {
		return nil
	}
	err := c.framer.WriteWindowUpdate(0, c.received)
	c.received = 0
	return err
}

func (c *checkConn) handleHeaders(f *http2.HeadersFrame, now time.Time) error {
	if !f.HeadersEnded() {
		return errors.New("the server split a header over several frames, which this client cannot read")
	}
	c.grpcStatus = ""
	if _, err := c.decoder.Write(f.HeaderBlockFragment()); err != nil {
		return err
	}
	if err := c.decoder.Close(); err != nil {
		return err
	}
	if !f.StreamEnded() {
		return nil
	}
	s := c.open[f.StreamID]
	if s == nil {
		return fmt.Errorf("%w: the end of stream %d, which has no request", errWrongAnswer, f.StreamID)
	}
	if err := c.verify(s.body); err != nil {
		return err
	}
	delete(c.open, f.StreamID)
	c.idle = append(c.idle, s)
	c.latencies = append(c.latencies, now.Sub(s.sent))
	return nil
}

func (c *checkConn) seeHeader(f hpack.HeaderField) {
	if f.Name == "grpc-status" {
		c.grpcStatus = f.Value
	}
}

// verify checks one complete answer.
func (c *checkConn) verify(body []byte) error {
	if c.grpcStatus != "0" {
		return fmt.Errorf("%w: gRPC status %q", errWrongAnswer, c.grpcStatus)
	}
	if len(body) < grpcPrefix || body[0] != 0 || int64(binary.BigEndian.Uint32(body[1:])) != int64(len(body)-grpcPrefix) {
		return fmt.Errorf("%w: %x is no single gRPC message", errWrongAnswer, body)
	}
	err := c.answer.verify(body[grpcPrefix:])
	if err != nil && c.also != 0 && c.also.verify(body[grpcPrefix:]) == nil {
		return nil
	}
	return err
}

//go:build lean

package envoy

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime/debug"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/envoy/codec"
	"github.com/keyporter/keyporter/envoy/wire"
)

// This prototype shows what a leaner HTTP/2 server than gRPC's would gain: `make bench-lean`. It is
// only in a binary built with -tags lean, and must not run in production: it answers Checks and
// nothing else. It has no health checks, access log, token, deadlines, limits on callers or drain;
// a Check that has to wait blocks all others of its connection, and an unusual message ends the
// connection.

// serve answers Checks on every connection, each in one goroutine, which reads the available
// Checks, answers them, and writes all answers at once. Nothing passes from one goroutine to
// another, where gRPC spends most of its time.
func (s *Server) serve(l net.Listener) error {
	if !s.callers.token.Load().IsZero() {
		return errors.New("the prototype asks nobody for a token")
	}
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		if caller, ok := conn.(*callerConn); ok {
			caller.introduce() // without a token, callers cannot be told apart
		}
		go s.serveLean(conn)
	}
}

func (s *Server) serveLean(conn net.Conn) {
	defer conn.Close()
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("a connection panicked", "stack", string(debug.Stack()))
		}
	}()
	out := bufio.NewWriterSize(conn, leanBuffer)
	c := &leanConn{
		server: s, in: bufio.NewReaderSize(conn, leanBuffer), out: out, framer: http2.NewFramer(out, nil),
		window: leanWindow, perStream: leanWindow, open: map[uint32][]byte{},
	}
	c.decoder = hpack.NewDecoder(leanTable, func(f hpack.HeaderField) {
		if f.Name == ":path" {
			c.path = f.Value
		}
	})
	if err := c.serve(); !errors.Is(err, io.EOF) {
		s.log.Warn("a connection ended", "error", err)
	}
}

const (
	leanBuffer = 64 << 10
	leanFrame  = 16 << 10 // the maximum length, in bytes: the protocol's default
	leanWindow = 64<<10 - 1
	leanTable  = 4 << 10
	frameHead  = 9
)

// leanConn is one connection.
type leanConn struct {
	server            *Server
	in                *bufio.Reader
	out               *bufio.Writer
	framer            *http2.Framer // for rare frames
	decoder           *hpack.Decoder
	open              map[uint32][]byte // stream → its data so far
	window, perStream int64             // window sizes: of the connection, of a new stream
	consumed          uint32            // data not yet returned to the caller's window

	// known is a block of headers that only refers to the table: its meaning is the same while the
	// table is.
	known []byte
	path  string // of the last block
}

// The headers of every answer.
var (
	leanHeaders  = leanBlock(hpack.HeaderField{Name: ":status", Value: "200"}, hpack.HeaderField{Name: "content-type", Value: "application/grpc"})
	leanTrailers = leanBlock(hpack.HeaderField{Name: "grpc-status", Value: "0"})
)

// leanBlock encodes headers without a table.
func leanBlock(fields ...hpack.HeaderField) []byte {
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	encoder.SetMaxDynamicTableSize(0)
	for _, f := range fields {
		encoder.WriteField(f)
	}
	return block.Bytes()[1:] // without the change of the table's size at its start
}

func (c *leanConn) serve() error {
	preface := make([]byte, len(http2.ClientPreface))
	if _, err := io.ReadFull(c.in, preface); err != nil || string(preface) != http2.ClientPreface {
		return errors.New("not HTTP/2")
	}
	err := errors.Join(
		c.framer.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: maxStreams}),
		c.framer.WriteWindowUpdate(0, 1<<20))
	for err == nil {
		err = c.next()
	}
	return err
}

// next handles one frame. It sends pending answers before it waits.
func (c *leanConn) next() error {
	head, err := c.peek(frameHead)
	if err != nil {
		return err
	}
	length := int(head[0])<<16 | int(head[1])<<8 | int(head[2])
	kind, flags, stream := http2.FrameType(head[3]), http2.Flags(head[4]), binary.BigEndian.Uint32(head[5:])&(1<<31-1)
	if length > leanFrame {
		return fmt.Errorf("a frame of %d bytes", length)
	}
	frame, err := c.peek(frameHead + length)
	if err != nil {
		return err
	}
	if err := c.handle(kind, flags, stream, frame[frameHead:]); err != nil {
		return err
	}
	_, err = c.in.Discard(len(frame))
	return err
}

func (c *leanConn) peek(n int) ([]byte, error) {
	if c.in.Buffered() < n {
		if err := c.out.Flush(); err != nil {
			return nil, err
		}
	}
	return c.in.Peek(n)
}

func (c *leanConn) handle(kind http2.FrameType, flags http2.Flags, stream uint32, payload []byte) error {
	switch kind {
	case http2.FrameHeaders:
		return c.headers(flags, stream, payload)
	case http2.FrameData:
		return c.data(flags, stream, payload)
	case http2.FrameSettings:
		return c.settings(flags, payload)
	case http2.FramePing:
		if !flags.Has(http2.FlagPingAck) {
			return c.framer.WritePing(true, [8]byte(payload))
		}
	case http2.FrameWindowUpdate:
		if stream == 0 {
			c.window += int64(binary.BigEndian.Uint32(payload))
		}
	case http2.FrameRSTStream:
		delete(c.open, stream)
	case http2.FrameGoAway:
		return io.EOF
	}
	return nil
}

func (c *leanConn) headers(flags http2.Flags, stream uint32, block []byte) error {
	if flags.Has(http2.FlagHeadersPadded) || !flags.Has(http2.FlagHeadersEndHeaders) {
		return errors.New("headers in a form that the prototype does not know")
	}
	if flags.Has(http2.FlagHeadersPriority) {
		block = block[5:]
	}
	if len(block) == 0 || !bytes.Equal(block, c.known) {
		if _, err := c.decoder.Write(block); err != nil {
			return err
		}
		if c.known = nil; onlyRefers(block) {
			c.known = bytes.Clone(block)
		}
	}
	if c.path != authv3.Authorization_Check_FullMethodName {
		return fmt.Errorf("the prototype does not know the method %q", c.path)
	}
	c.open[stream] = nil
	return nil
}

// onlyRefers reports whether a block of headers consists of short references to the table, which
// leave it unchanged.
func onlyRefers(block []byte) bool {
	for _, b := range block {
		if b < 0x80 || b == 0xff {
			return false
		}
	}
	return true
}

func (c *leanConn) settings(flags http2.Flags, payload []byte) error {
	if flags.Has(http2.FlagSettingsAck) {
		return nil
	}
	for ; len(payload) >= 6; payload = payload[6:] {
		if http2.SettingID(binary.BigEndian.Uint16(payload)) == http2.SettingInitialWindowSize {
			c.perStream = int64(binary.BigEndian.Uint32(payload[2:]))
		}
	}
	return c.framer.WriteSettingsAck()
}

func (c *leanConn) data(flags http2.Flags, stream uint32, payload []byte) error {
	before, ok := c.open[stream]
	if !ok {
		return errors.New("data of a stream that is not open")
	}
	if c.consumed += uint32(len(payload)); c.consumed > leanWindow/2 {
		if err := c.framer.WriteWindowUpdate(0, c.consumed); err != nil {
			return err
		}
		c.consumed = 0
	}
	if before != nil || !flags.Has(http2.FlagDataEndStream) {
		payload = append(before, payload...)
		c.open[stream] = payload
	}
	if !flags.Has(http2.FlagDataEndStream) {
		return nil
	}
	delete(c.open, stream)
	return c.answer(stream, payload)
}

// answer decides a Check, and writes the answer.
func (c *leanConn) answer(stream uint32, message []byte) error {
	if len(message) < 5 || message[0] != 0 || int64(binary.BigEndian.Uint32(message[1:])) != int64(len(message)-5) {
		return errors.New("not one message")
	}
	x := &exchange{}
	if !x.Call.Read(message[5:]) {
		return errors.New("a Check in a form that the prototype does not know")
	}
	var (
		d authz.Decision
		a codec.Answer
	)
	x.bound.Context = context.Background()
	c.server.answer(&x.bound, &x.Call, &d, &a)
	buffer := c.server.buffers.Get(a.Size())
	defer c.server.buffers.Put(buffer)
	w := wire.Write(*buffer)
	a.Write(&w)
	return c.reply(stream, w.Message())
}

func (c *leanConn) reply(stream uint32, message []byte) error {
	size := int64(len(message) + 5)
	if c.window -= size; c.window < 0 || size > c.perStream {
		return errors.New("the caller does not take the answer")
	}
	var prefix [5]byte
	binary.BigEndian.PutUint32(prefix[1:], uint32(len(message)))
	c.frame(http2.FrameHeaders, http2.FlagHeadersEndHeaders, stream, leanHeaders)
	c.frame(http2.FrameData, 0, stream, prefix[:], message)
	return c.frame(http2.FrameHeaders, http2.FlagHeadersEndHeaders|http2.FlagHeadersEndStream, stream, leanTrailers)
}

// frame writes a frame of several parts. A bufio.Writer keeps its first error.
func (c *leanConn) frame(kind http2.FrameType, flags http2.Flags, stream uint32, parts ...[]byte) (err error) {
	length := 0
	for _, part := range parts {
		length += len(part)
	}
	var head [frameHead]byte
	head[0], head[1], head[2], head[3], head[4] = byte(length>>16), byte(length>>8), byte(length), byte(kind), byte(flags)
	binary.BigEndian.PutUint32(head[5:], stream)
	_, err = c.out.Write(head[:])
	for _, part := range parts {
		_, err = c.out.Write(part)
	}
	return err
}

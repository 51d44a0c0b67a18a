package transport

import (
	"encoding/binary"
	"errors"

	"golang.org/x/net/http2"
)

// frame is one frame.
type frame struct {
	length  int
	kind    http2.FrameType
	flags   http2.Flags
	stream  uint32
	payload []byte
}

func parseFrame(head []byte) frame {
	return frame{
		length: int(head[0])<<16 | int(head[1])<<8 | int(head[2]), kind: http2.FrameType(head[3]), flags: http2.Flags(head[4]),
		stream: binary.BigEndian.Uint32(head[5:]) & (1<<31 - 1),
	}
}

// handle handles one frame; whole is the frame with its head.
func (c *conn) handle(f frame, whole []byte) error {
	if !c.greeted && (f.kind != http2.FrameSettings || f.flags.Has(http2.FlagSettingsAck)) {
		return broken("the first frame is not SETTINGS")
	}
	if c.block.stream != 0 && (f.kind != http2.FrameContinuation || f.stream != c.block.stream) {
		return broken("a frame between the parts of headers")
	}
	switch f.kind {
	case http2.FrameHeaders:
		return c.handleHeaders(f)
	case http2.FrameContinuation:
		return c.handleContinuation(f)
	case http2.FrameData:
		return c.handleData(f)
	}
	return c.handleRare(f, whole)
}

// unpad returns a payload without its padding.
func unpad(f frame, padded http2.Flags) ([]byte, error) {
	if !f.flags.Has(padded) {
		return f.payload, nil
	}
	if len(f.payload) == 0 {
		return nil, connError{http2.ErrCodeFrameSize, "a padded frame without a length of its padding"}
	}
	end := len(f.payload) - int(f.payload[0])
	if end < 1 {
		return nil, broken("more padding than frame")
	}
	return f.payload[1:end], nil
}

func (c *conn) handleHeaders(f frame) error {
	if f.stream == 0 {
		return broken("headers of no stream")
	}
	payload, err := unpad(f, http2.FlagHeadersPadded)
	if err != nil {
		return err
	}
	b := block{stream: f.stream, end: f.flags.Has(http2.FlagHeadersEndStream), began: c.arrived}
	if f.flags.Has(http2.FlagHeadersPriority) {
		if len(payload) < 5 {
			return connError{http2.ErrCodeFrameSize, "headers without their priority"}
		}
		b.self = binary.BigEndian.Uint32(payload)&(1<<31-1) == f.stream
		payload = payload[5:]
	}
	if f.flags.Has(http2.FlagHeadersEndHeaders) {
		b.bytes = payload
		return c.readBlock(&b)
	}
	b.bytes = append(c.block.bytes[:0], payload...)
	c.block = b
	return nil
}

func (c *conn) handleContinuation(f frame) error {
	b := &c.block
	if b.stream == 0 {
		return broken("a continuation of nothing")
	}
	b.bytes = append(b.bytes, f.payload...)
	if b.parts++; b.parts > maxParts || len(b.bytes) > maxBlock {
		return connError{http2.ErrCodeEnhanceYourCalm, "headers are too long or in too many parts"}
	}
	if !f.flags.Has(http2.FlagContinuationEndHeaders) {
		return nil
	}
	whole := *b
	c.block = block{}
	return c.readBlock(&whole)
}

// readBlock handles a complete block of headers.
func (c *conn) readBlock(b *block) error {
	if rights := c.shared.rights.Load(); rights != c.rights {
		c.rights = rights
		c.headers.forget()
	}
	h, err := c.headers.read(b.bytes)
	if err != nil {
		return connError{http2.ErrCodeCompression, "headers cannot be decompressed"}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.streams[b.stream]; s != nil {
		return c.trailers(s, h, b.end)
	}
	if b.stream <= c.last {
		return c.lateHeaders(b.stream)
	}
	if b.stream%2 == 0 {
		return broken("a stream with an even number")
	}
	if c.life.final {
		return nil // it was told not to
	}
	c.last = b.stream
	switch {
	case h.malformed || h.trailers || b.self:
		c.refuse(b.stream, http2.ErrCodeProtocol)
		return c.strike()
	case len(c.streams) >= c.shared.MaxStreams:
		c.refuse(b.stream, http2.ErrCodeRefusedStream)
		return c.strike()
	}
	return c.begin(c.newStream(b.stream, h), b.end)
}

// lateHeaders answers headers of a stream that is closed, or was never opened although a later one
// was. After a reset they may have been on their way.
func (c *conn) lateHeaders(id uint32) error {
	for _, closed := range c.closed {
		if closed.id != id {
			continue
		}
		if !closed.reset {
			return connError{http2.ErrCodeStreamClosed, "headers of a stream that has ended"}
		}
		c.out = appendReset(c.out, id, http2.ErrCodeStreamClosed)
		return c.strike()
	}
	return broken("headers of a stream that cannot be open")
}

// trailers handles the headers that end a stream.
func (c *conn) trailers(s *stream, h *head, end bool) error {
	switch {
	case s.ended:
		c.reset(s, http2.ErrCodeStreamClosed)
		return c.strike()
	case !end || !h.trailers || h.malformed:
		c.reset(s, http2.ErrCodeProtocol)
		return c.strike()
	}
	return c.requestEnded(s, nil)
}

func (c *conn) handleData(f frame) error {
	if f.stream == 0 {
		return broken("data of no stream")
	}
	payload, err := unpad(f, http2.FlagDataPadded)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open -= int64(f.length); c.open < 0 {
		return connError{http2.ErrCodeFlowControl, "more data than the window admits"}
	}
	c.giveBack(f.length)
	if s := c.streams[f.stream]; s != nil {
		return c.data(s, f, payload)
	}
	if err := c.ofClosed(f.stream); err != nil {
		return err
	}
	if f.stream <= c.last {
		c.out = appendReset(c.out, f.stream, http2.ErrCodeStreamClosed)
	}
	return c.strike()
}

// data takes the data of an open stream.
func (c *conn) data(s *stream, f frame, payload []byte) error {
	end := f.flags.Has(http2.FlagDataEndStream)
	s.got += int64(len(payload))
	code := http2.ErrCodeNo
	switch s.room -= int64(f.length); {
	case s.ended:
		code = http2.ErrCodeStreamClosed
	case s.room < 0:
		code = http2.ErrCodeFlowControl
	case s.wake == nil && s.got > maxRequest:
		code = http2.ErrCodeEnhanceYourCalm
	case s.head.length >= 0 && (s.got > s.head.length || end && s.got != s.head.length):
		code = http2.ErrCodeProtocol
	}
	if code != http2.ErrCodeNo {
		c.reset(s, code)
		return c.strike()
	}
	if padding := f.length - len(payload); padding > 0 && s.wake != nil && !end {
		c.reopen(s, padding)
	}
	if len(payload) == 0 && !end {
		return c.strike()
	}
	c.credit(1)
	if end {
		return c.requestEnded(s, payload)
	}
	c.hold(s, payload)
	return nil
}

// handleRare reads a frame of any other kind.
func (c *conn) handleRare(f frame, whole []byte) error {
	if f.kind > http2.FrameContinuation {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.strike()
	}
	if f.length > maxRareKept {
		defer func() { c.rare = nil }() // it keeps its space
	}
	if c.rare == nil {
		c.rare = http2.NewFramer(nil, &c.frame)
		c.rare.SetReuseFrames()
	}
	c.frame.Reset(whole)
	rare, err := c.rare.ReadFrame()
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		return c.brokenFrame(err)
	}
	if err := c.strike(); err != nil {
		return err
	}
	switch f := rare.(type) {
	case *http2.SettingsFrame:
		return c.settings(f)
	case *http2.PingFrame:
		if f.IsAck() {
			return c.pong(f.Data)
		}
		c.out = appendPing(c.out, http2.FlagPingAck, f.Data)
	case *http2.WindowUpdateFrame:
		return c.windowUpdate(f)
	case *http2.RSTStreamFrame:
		return c.peerReset(f)
	case *http2.PriorityFrame:
		if f.StreamDep == f.StreamID {
			c.resetID(f.StreamID, http2.ErrCodeProtocol)
		}
	case *http2.GoAwayFrame:
		c.leaving = true
	case *http2.PushPromiseFrame:
		return broken("a caller promises a push")
	}
	return nil
}

// brokenFrame returns the error of a frame that x/net/http2 refuses, or ends its stream.
func (c *conn) brokenFrame(err error) error {
	var ofConn http2.ConnectionError
	var ofStream http2.StreamError
	switch {
	case errors.As(err, &ofConn):
		return connError{http2.ErrCode(ofConn), "a frame is malformed"}
	case errors.As(err, &ofStream):
		if err := c.ofClosed(ofStream.StreamID); err != nil {
			return err
		}
		c.resetID(ofStream.StreamID, ofStream.Code)
		return c.strike()
	}
	return broken("a frame is malformed")
}

func (c *conn) settings(f *http2.SettingsFrame) error {
	if c.greeted = true; c.life.early {
		c.drain()
	}
	if f.IsAck() {
		return nil
	}
	if f.NumSettings() > maxSettings {
		return connError{http2.ErrCodeEnhanceYourCalm, "too many settings in a frame"}
	}
	perStream := c.perStream
	err := f.ForeachSetting(func(s http2.Setting) error {
		if err := s.Valid(); err != nil {
			var code http2.ConnectionError
			errors.As(err, &code)
			return connError{http2.ErrCode(code), "a setting has no valid value"}
		}
		if s.ID == http2.SettingInitialWindowSize {
			perStream = int64(s.Val)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := c.resize(perStream); err != nil {
		return err
	}
	c.out = appendFrame(c.out, 0, http2.FrameSettings, http2.FlagSettingsAck, 0)
	c.unblock()
	return nil
}

func (c *conn) windowUpdate(f *http2.WindowUpdateFrame) error {
	if f.StreamID == 0 {
		if c.window += int64(f.Increment); c.window > maxWindow {
			return connError{http2.ErrCodeFlowControl, "the connection's window overflows"}
		}
		c.unblock()
		return nil
	}
	s := c.streams[f.StreamID]
	if s == nil {
		return c.ofClosed(f.StreamID)
	}
	if s.window += int64(f.Increment); s.window > maxWindow {
		c.reset(s, http2.ErrCodeFlowControl)
		return nil
	}
	c.unblockStream(s)
	return nil
}

// ofClosed judges a frame that a closed stream may still get. After the last GOAWAY, streams that
// we have not opened may get it as well.
func (c *conn) ofClosed(id uint32) error {
	if id%2 == 0 || id > c.last && !c.life.final {
		return broken("a frame of a stream that is not open")
	}
	return nil
}

// peerReset ends a stream that the peer does not want any more.
func (c *conn) peerReset(f *http2.RSTStreamFrame) error {
	s := c.streams[f.StreamID]
	if s == nil {
		return c.ofClosed(f.StreamID)
	}
	s.reset = true
	c.close(s)
	return nil
}

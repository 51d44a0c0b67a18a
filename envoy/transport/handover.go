package transport

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"net/http"
	"net/url"

	"golang.org/x/net/http2"
)

// handOver starts Config.Others for a call, if it may have a place.
func (c *conn) handOver(s *stream) {
	fields := s.head.fields
	s.head.fields = nil // the request has them
	places := c.shared.others
	if s.limited {
		places = c.shared.limitedOthers
	}
	call := c.newStreamCall(s, places)
	if call == nil {
		return
	}
	s.taken = make(chan struct{}, 1)
	c.shared.running.Go(func() {
		defer s.cancel()
		call.serveOther(fields)
		call.leave()
	})
}

// serveOther runs the handler and ends its answer.
func (s *streamCall) serveOther(fields http.Header) {
	c := s.conn
	b := newBody(s)
	r := &response{call: s, header: http.Header{}}
	aborted := false
	sound := c.guard(func() { aborted = s.handle(r, s.request(fields, b)) })
	b.Close()
	if sound && !aborted {
		r.Flush()
	}
	s.givePlaceBack() // a caller that sees the end finds the place free
	switch {
	case aborted:
		c.change(func() { c.abort(s.stream) })
	case sound:
		r.end()
	default:
		s.End(internal, "the call panicked")
	}
}

// handle runs the handler. A handler that aborts its answer does so by a panic, as in net/http.
func (s *streamCall) handle(w http.ResponseWriter, r *http.Request) (aborted bool) {
	defer func() {
		switch reason := recover(); reason {
		case nil:
		case http.ErrAbortHandler:
			aborted = true
		default:
			panic(reason)
		}
	}()
	s.conn.shared.Others.ServeHTTP(w, r)
	return false
}

// abort ends a stream without an answer, unless it has ended.
func (c *conn) abort(s *stream) {
	if !s.done {
		c.reset(s, http2.ErrCodeInternal)
	}
}

// request returns the request of a call. Its path is not decoded: the method that Config.Admit was
// asked about is the one that is called.
func (s *streamCall) request(fields http.Header, b *body) *http.Request {
	c, h := s.conn, s.stream.head
	r := &http.Request{
		Method: h.method, URL: &url.URL{Path: h.path}, RequestURI: h.path, Host: h.authority,
		Proto: "HTTP/2.0", ProtoMajor: 2, Header: fields, Body: b, ContentLength: h.length,
		RemoteAddr: c.net.RemoteAddr().String(),
	}
	if r.Host == "" {
		r.Host = fields.Get("Host")
	}
	fields.Del("Host")
	if secure, ok := c.net.(interface{ ConnectionState() tls.ConnectionState }); ok {
		state := secure.ConnectionState()
		r.TLS = &state
	}
	return r.WithContext(context.WithValue(s.ctx, http.LocalAddrContextKey, c.net.LocalAddr()))
}

// body is the body of the request of a call that is handed over. The peer's window opens as it is
// read.
type body struct {
	call  *streamCall
	ctx   context.Context // ends with the call, and when the body is closed
	stop  context.CancelFunc
	rest  int64 // bytes of the current message that are not read
	spent int64 // of Config.MaxOtherBody
}

func newBody(s *streamCall) *body {
	b := &body{call: s}
	b.ctx, b.stop = context.WithCancel(s.ctx)
	return b
}

// errTooMuch is the result of reading more than Config.MaxOtherBody.
var errTooMuch = errors.New("the messages of the call are too long")

// Read implements [io.Reader]. It waits until a frame's worth or the rest of a message has arrived:
// a grpc.Server keeps each part in a space of its own.
func (b *body) Read(p []byte) (n int, err error) {
	for len(p) > 0 {
		b.call.conn.change(func() { n, err = b.take(p) })
		if n > 0 || err != nil {
			return n, err
		}
		select {
		case <-b.call.stream.wake:
		case <-b.ctx.Done():
			return 0, b.ctx.Err()
		}
	}
	return 0, nil
}

// Close implements [io.Closer]. It may be called while Read waits.
func (b *body) Close() error {
	b.call.conn.change(func() {
		b.call.stream.left = true
		b.call.conn.release(b.call.stream)
	})
	b.stop()
	return nil
}

// take takes the bytes for one Read; n is 0 until they have arrived.
func (b *body) take(p []byte) (n int, err error) {
	c, s := b.call.conn, b.call.stream
	if s.left {
		return 0, http.ErrBodyReadAfterClose
	}
	if !b.next() {
		return 0, errTooMuch
	}
	end := s.end()
	n = int(min(b.rest, int64(len(p)), maxFrame))
	switch {
	case end != nil && len(s.message) == 0:
		return 0, end
	case end != nil && (b.rest == 0 || n > len(s.message)):
		n = min(len(p), len(s.message)) // a message that is cut off
	case b.rest == 0 || n > len(s.message):
		return 0, nil
	}
	copy(p, s.message[:n])
	b.rest = max(0, b.rest-int64(n))
	c.took(s, n)
	return n, nil
}

// next begins the next message if its prefix has arrived. It ends a call that sends too much.
func (b *body) next() (ok bool) {
	c, s := b.call.conn, b.call.stream
	if b.rest > 0 || len(s.message) < prefix {
		return true
	}
	b.rest = prefix + int64(binary.BigEndian.Uint32(s.message[1:]))
	if b.spent += max(b.rest, leastOther); b.spent <= int64(c.shared.MaxOtherBody) {
		return true
	}
	if s.left = true; !s.done {
		c.exhausted(s, errTooMuch.Error())
	}
	return false
}

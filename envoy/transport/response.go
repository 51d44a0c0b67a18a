package transport

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// response implements [http.ResponseWriter] and [http.Flusher] for a call that is handed over. It
// holds at most one frame: while the peer's windows do not take that, the handler waits.
type response struct {
	call    *streamCall
	header  http.Header
	block   []byte // the headers as they are sent; nil: the handler may still change them
	part    []byte // written and not sent yet
	tooLong bool   // headers that cannot be sent were left out
	err     error  // of the connection or the context: nothing more is sent
}

// Header implements [http.ResponseWriter].
func (r *response) Header() http.Header { return r.header }

// WriteHeader implements [http.ResponseWriter]. An informational status is ignored.
func (r *response) WriteHeader(status int) {
	if r.block != nil || status < 200 {
		return
	}
	headers, _ := split(r.header)
	if r.header.Get("Content-Type") == "" {
		headers = append(headers, "content-type", "application/grpc")
	}
	block := encode(append([]string{":status", strconv.Itoa(status)}, headers...)...)
	if r.tooLong = len(block) >= maxFrame; r.tooLong {
		block = callHeaders
	}
	r.block = block
}

// Write implements [http.ResponseWriter].
func (r *response) Write(p []byte) (written int, err error) {
	r.WriteHeader(http.StatusOK)
	for written < len(p) && r.err == nil {
		if r.part == nil {
			r.part = make([]byte, 0, maxFrame)
		}
		n := min(len(p)-written, maxFrame-len(r.part))
		r.part = append(r.part, p[written:written+n]...)
		if written += n; len(r.part) == maxFrame {
			r.Flush()
		}
	}
	return written, r.err
}

// Flush implements [http.Flusher]. It returns when the peer's windows have taken everything, or the
// call ends.
func (r *response) Flush() {
	r.WriteHeader(http.StatusOK)
	if r.err != nil {
		return
	}
	c, s := r.call.conn, r.call.stream
	var full bool
	c.change(func() {
		r.err = c.sendPart(s, r.block, r.part)
		full = len(c.out) > maxUnsent
	})
	if full {
		_ = c.flush() // so that a handler is not faster than the connection
	}
	for r.err == nil && c.untaken(s) {
		select {
		case <-s.taken:
		case <-r.call.ctx.Done():
			r.err = r.call.ctx.Err()
		}
	}
	r.part = r.part[:0] // after an error nothing is written to it: it may still be sent
}

// untaken reports whether a part of an answer still waits for a window.
func (c *conn) untaken(s *stream) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return s.blocked
}

// end ends an answer that is flushed: with the status that its handler has set, if it has set one.
func (r *response) end() {
	_, fields := split(r.header)
	var status []byte
	switch {
	case slices.Contains(fields, "grpc-status"):
		status = encode(fields...)
	case errors.Is(r.call.ctx.Err(), context.DeadlineExceeded):
		status = trailers(deadlineExceeded, "the call took too long")
	default:
		status = trailers(unavailable, "the call was not answered")
	}
	if r.tooLong || len(status) >= maxFrame {
		status = trailers(internal, "the headers of the answer are too long")
	}
	r.call.conn.change(func() { r.call.conn.endBy(r.call.stream, status) })
}

// ofStatus are the headers that end an answer of gRPC, declared or not.
var ofStatus = []string{"Grpc-Status", "Grpc-Message", "Grpc-Status-Details-Bin"}

// notSent are headers of HTTP/1's connections, and that which announces trailers.
var notSent = []string{"Connection", "Proxy-Connection", "Keep-Alive", "Transfer-Encoding", "Upgrade", "Te", "Trailer"}

// split returns the names and values of the headers that begin an answer and of those that end it.
// As in net/http, the latter are those that Trailer announces and those with [http.TrailerPrefix].
func split(all http.Header) (begin, end []string) {
	announced := map[string]bool{}
	for _, list := range all["Trailer"] {
		for name := range strings.SplitSeq(list, ",") {
			announced[http.CanonicalHeaderKey(strings.TrimSpace(name))] = true
		}
	}
	for _, key := range slices.Sorted(maps.Keys(all)) {
		name, late := strings.CutPrefix(key, http.TrailerPrefix)
		pairs := &begin
		if late || announced[key] || slices.Contains(ofStatus, key) {
			pairs = &end
		}
		if !httpguts.ValidHeaderFieldName(name) || slices.Contains(notSent, http.CanonicalHeaderKey(name)) {
			continue
		}
		for _, value := range all[key] {
			if httpguts.ValidHeaderFieldValue(value) {
				*pairs = append(*pairs, strings.ToLower(name), value)
			}
		}
	}
	return begin, end
}

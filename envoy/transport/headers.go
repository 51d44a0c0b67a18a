package transport

import (
	"bytes"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http2/hpack"
)

// head is what the headers of a request say.
type head struct {
	method, path, scheme, authority string
	contentType, encoding           string
	authorization                   []string
	length                          int64 // content-length; -1: not given
	timeout                         time.Duration

	pseudo    bool // a pseudo header was there
	trailers  bool // it has none, so it can only be trailers
	malformed bool
	tooLarge  bool

	asked, admitted bool // whether the caller may call the method
}

// headers reads blocks of headers. Blocks that repeat the last one byte for byte, and only refer to
// the table of header compression, have the same meaning as long as the table is the same.
type headers struct {
	decoder *hpack.Decoder
	block   []byte // the last block, if it may be repeated
	last    *head

	now  *head // while a block is read
	size int
	body bool // a header that is no pseudo header was read
}

func newHeaders() *headers {
	h := &headers{}
	h.decoder = hpack.NewDecoder(tableSize, h.field)
	return h
}

// read returns what a complete block says. An error ends the connection, because the table is lost.
func (h *headers) read(block []byte) (*head, error) {
	if h.last != nil && bytes.Equal(block, h.block) {
		return h.last, nil
	}
	h.now, h.size, h.body, h.last = &head{length: -1}, 0, false, nil
	if _, err := h.decoder.Write(block); err != nil {
		return nil, err
	}
	if err := h.decoder.Close(); err != nil {
		return nil, err
	}
	h.now.check()
	if onlyRefers(block) {
		h.block, h.last = append(h.block[:0], block...), h.now
	}
	return h.now, nil
}

// forget makes the next block be read again.
func (h *headers) forget() { h.last = nil }

// onlyRefers reports whether a block consists of references to the table, which leave it unchanged.
func onlyRefers(block []byte) bool {
	for _, b := range block {
		if b < 0x80 || b == 0xff {
			return false
		}
	}
	return true
}

// field takes one header.
func (h *headers) field(f hpack.HeaderField) {
	r := h.now
	if h.size += len(f.Name) + len(f.Value) + 32; h.size > maxFields {
		r.tooLarge = true
		return
	}
	if strings.HasPrefix(f.Name, ":") {
		r.malformed = r.malformed || h.body || !r.setPseudo(f.Name, f.Value)
		return
	}
	h.body = true
	r.set(f.Name, f.Value)
}

// setPseudo reports whether a pseudo header is one of a request and the first of its name.
func (r *head) setPseudo(name, value string) bool {
	r.pseudo = true
	var field *string
	switch name {
	case ":method":
		field = &r.method
	case ":path":
		field = &r.path
	case ":scheme":
		field = &r.scheme
	case ":authority":
		field = &r.authority
	default:
		return false
	}
	if *field != "" || value == "" && name != ":authority" {
		return false
	}
	*field = value
	return true
}

func (r *head) set(name, value string) {
	switch name {
	case "content-type":
		r.contentType = value
	case "grpc-encoding":
		r.encoding = value
	case "authorization":
		r.authorization = append(r.authorization, value)
	case "grpc-timeout":
		timeout, ok := parseTimeout(value)
		r.timeout, r.malformed = max(timeout, 1), r.malformed || !ok
	case "content-length":
		n, err := strconv.ParseUint(value, 10, 63)
		r.malformed = r.malformed || err != nil || r.length >= 0 && r.length != int64(n)
		r.length = int64(n)
	case "te":
		r.malformed = r.malformed || value != "trailers"
	case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
		r.malformed = true // of one connection: RFC 9113 8.2.2
	default:
		r.malformed = r.malformed || !isName(name) || !httpguts.ValidHeaderFieldValue(value)
	}
}

// isName reports whether a name may be that of a header in HTTP/2, where names are lower case.
func isName(name string) bool {
	return httpguts.ValidHeaderFieldName(name) && !strings.ContainsFunc(name, func(c rune) bool { return 'A' <= c && c <= 'Z' })
}

// check completes what was read.
func (r *head) check() {
	r.trailers = !r.pseudo
	if r.pseudo && (r.method == "" || r.path == "" || r.scheme == "") && r.method != "CONNECT" {
		r.malformed = true
	}
}

// isCall reports whether a request is a call of gRPC.
func (r *head) isCall() bool { return r.method == "POST" && !r.tooLarge && r.isGRPC() }

// isGRPC reports whether the content of a request is that of gRPC.
func (r *head) isGRPC() bool {
	kind, _ := strings.CutPrefix(r.contentType, "application/grpc")
	return strings.HasPrefix(r.contentType, "application/grpc") && (kind == "" || kind[0] == '+' || kind[0] == ';')
}

// parseTimeout reads grpc-timeout: at most 8 digits and a unit.
func parseTimeout(s string) (time.Duration, bool) {
	if len(s) < 2 || len(s) > 9 {
		return 0, false
	}
	unit, ok := map[byte]time.Duration{
		'H': time.Hour, 'M': time.Minute, 'S': time.Second, 'm': time.Millisecond, 'u': time.Microsecond, 'n': time.Nanosecond,
	}[s[len(s)-1]]
	n, err := strconv.ParseUint(s[:len(s)-1], 10, 32)
	if !ok || err != nil {
		return 0, false
	}
	const forever = 1<<63 - 1
	if unit > 0 && n > uint64(forever/int64(unit)) {
		return forever, true
	}
	return time.Duration(n) * unit, true
}

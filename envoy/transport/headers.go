package transport

import (
	"bytes"
	"encoding/base64"
	"net/http"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http2/hpack"
)

// head is what the headers of a request say.
type head struct {
	method, path, scheme, authority string
	host                            string
	contentType, encoding           string
	authorization                   []string
	length                          int64 // content-length; -1: not given
	timeout                         time.Duration
	fields                          http.Header // all headers of a call that is handed over; nil: it is not

	pseudo    bool // a pseudo header was there
	trailers  bool // it has none, so it can only be trailers
	malformed bool
	tooLarge  bool

	asked     bool // Config.Admit was
	admission Admission
}

// headers reads blocks of headers. Blocks that repeat the last one byte for byte, and only refer to
// the table of header compression, have the same meaning as long as the table is the same.
type headers struct {
	config  *Config
	decoder *hpack.Decoder
	block   []byte // the last block, if it may be repeated
	last    *head

	now  *head // while a block is read
	size int
	body bool // a header that is no pseudo header was read
}

func newHeaders(config *Config) *headers {
	h := &headers{config: config}
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
	r := h.now
	h.now = nil // an idle connection does not hold it
	r.check()
	if r.fields == nil && onlyRefers(block) {
		h.block, h.last = append(h.block[:0], block...), r
	}
	return r, nil
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
	r.malformed = r.malformed || !httpguts.ValidHeaderFieldValue(f.Value)
	if strings.HasPrefix(f.Name, ":") {
		r.malformed = r.malformed || h.body || !r.setPseudo(f.Name, f.Value)
		return
	}
	if !h.body && r.path != "" && h.config.handsOver(r.path) {
		r.fields = http.Header{}
	}
	h.body = true
	r.set(f.Name, f.Value)
	r.collect(f.Name, f.Value)
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
	case "host":
		r.malformed = r.malformed || r.host != "" || value == ""
		r.host = value
	case "te":
		r.malformed = r.malformed || value != "trailers"
	case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
		r.malformed = true // of one connection: RFC 9113 8.2.2
	default:
		r.malformed = r.malformed || !isName(name) || strings.HasSuffix(name, "-bin") && !isBase64(value)
	}
}

// collect keeps a header of a call that is handed over.
func (r *head) collect(name, value string) {
	if r.fields != nil && !r.malformed {
		r.fields.Add(name, value)
	}
}

// isBase64 reports whether a value may be that of binary metadata: base64, padded or not.
func isBase64(value string) bool {
	encoding := base64.StdEncoding
	if len(value)%4 != 0 {
		encoding = base64.RawStdEncoding
	}
	_, err := encoding.DecodeString(value)
	return err == nil
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
	if r.isCall() && r.authority == "" && r.host == "" {
		r.malformed = true // as for grpc-go
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

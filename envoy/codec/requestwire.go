package codec

import (
	"slices"
	"strings"
	"unicode/utf8"
	"unsafe"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"

	"github.com/keyporter/keyporter/envoy/wire"
)

// The fields of a CheckRequest that lead to the values in use, named after the messages.
const (
	checkAttributes = 1<<3 | wire.Bytes

	attributesRequest    = 4<<3 | wire.Bytes
	attributesExtensions = 10<<3 | wire.Bytes // entries of a map of texts

	requestHTTP = 2<<3 | wire.Bytes

	httpID        = 1<<3 | wire.Bytes
	httpMethod    = 2<<3 | wire.Bytes
	httpHeaders   = 3<<3 | wire.Bytes
	httpPath      = 4<<3 | wire.Bytes
	httpHost      = 5<<3 | wire.Bytes
	httpHeaderMap = 13<<3 | wire.Bytes

	mapHeaders = 1<<3 | wire.Bytes

	headerRawValue = 3<<3 | wire.Bytes
)

// The messages on the way there.
var (
	checkSchema      = wire.NewSchema((&authv3.CheckRequest{}).ProtoReflect().Descriptor())
	attributesSchema = checkSchema.Field(1)
	requestSchema    = attributesSchema.Field(4)
	httpSchema       = requestSchema.Field(2)
)

// Read reads an encoded CheckRequest like [Call.Decode]. It returns false if the message is unusual
// or invalid: the generated code then has to decode it, and c's content is unusable. Nothing in c
// aliases the message when it returns.
func (c *Call) Read(message []byte) (ok bool) {
	defer func() {
		if recover() != nil { // nothing above would catch it
			ok = false
		}
	}()
	var p checkReader
	p.call = c
	if !p.check(message) {
		return false
	}
	c.own()
	return true
}

// checkReader reads one CheckRequest. Until its end the texts of the call alias the message.
type checkReader struct {
	call *Call
	// The parts seen so far. A second one of the first three would be merged with the first, and of
	// two headers in the map of joined ones only the last counts: both are left to the generated
	// code.
	attributes, request, http, headerMap, headers bool
	raw                                           []byte // the value of the header map
}

// once reports whether this is the first call for seen.
func once(seen *bool) bool {
	was := *seen
	*seen = true
	return !was
}

func (p *checkReader) check(message []byte) bool {
	r := wire.Read(message)
	for r.Next() {
		if r.Tag != checkAttributes || !once(&p.attributes) || !p.readAttributes(r.Value) {
			return false
		}
	}
	return r.Done()
}

func (p *checkReader) readAttributes(message []byte) bool {
	r := wire.Read(message)
	for r.Next() {
		good := true
		switch r.Tag {
		case attributesRequest:
			good = once(&p.request) && p.readRequest(r.Value)
		case attributesExtensions:
			good = p.readExtension(r.Value)
		default:
			good = attributesSchema.AcceptsField(&r)
		}
		if !good {
			return false
		}
	}
	return r.Done()
}

// readExtension reads an entry of the map from the configuration of a route. Of two with one key
// the last one counts.
func (p *checkReader) readExtension(message []byte) bool {
	var key, value string
	good := true
	r := wire.Read(message)
	for r.Next() {
		switch r.Tag {
		case entryKey:
			key, good = alias(r.Value)
		case headerValue: // the value in a map of texts has the number of a header's value
			value, good = alias(r.Value)
		default:
			return false
		}
		if !good {
			return false
		}
	}
	if key == RuleExtension {
		p.call.Rule = value
	}
	return r.Done()
}

func (p *checkReader) readRequest(message []byte) bool {
	r := wire.Read(message)
	for r.Next() {
		if r.Tag == requestHTTP {
			if !once(&p.http) || !p.readHTTP(r.Value) {
				return false
			}
		} else if !requestSchema.AcceptsField(&r) {
			return false
		}
	}
	return r.Done()
}

func (p *checkReader) readHTTP(message []byte) bool {
	// The headers come last: the path field is needed to judge the header :path, and may follow
	// them.
	r := wire.Read(message)
	for r.Next() {
		good := true
		switch r.Tag {
		case httpID:
			p.call.ID, good = alias(r.Value)
		case httpMethod:
			p.call.Method, good = alias(r.Value)
		case httpPath:
			p.call.Path, good = alias(r.Value)
		case httpHost:
			p.call.Host, good = alias(r.Value)
		case httpHeaders:
			p.headers = true
		case httpHeaderMap:
			p.raw, good = r.Value, once(&p.headerMap)
		default:
			good = httpSchema.AcceptsField(&r)
		}
		if !good {
			return false
		}
	}
	switch {
	case !r.Done() || p.headerMap && p.headers: // if both are present, one of them is ignored
		return false
	case p.headers:
		return p.readJoined(message)
	}
	if !p.readHeaderMap(p.raw) {
		return false
	}
	p.call.clearPath()
	return true
}

// readJoined reads the map of joined headers, after the rest of the message.
func (p *checkReader) readJoined(message []byte) bool {
	r := wire.Read(message)
	for r.Next() {
		if r.Tag == httpHeaders && !p.readHeader(r.Value) {
			return false
		}
	}
	p.call.rawPath = false
	p.call.clearPath()
	return true
}

func (p *checkReader) readHeaderMap(message []byte) bool {
	r := wire.Read(message)
	for r.Next() {
		if r.Tag != mapHeaders || !p.readHeader(r.Value) {
			return false
		}
	}
	return r.Done()
}

// readHeader reads a HeaderValue, or an entry of the map of joined headers, which has the same
// fields.
func (p *checkReader) readHeader(message []byte) bool {
	if !p.headers {
		if key, raw, ok := pair(message); ok {
			name, good := alias(key)
			p.call.header(name, unsafe.String(unsafe.SliceData(raw), len(raw)))
			return good
		}
	}
	var name, value string
	var raw []byte
	good := true
	r := wire.Read(message)
	for r.Next() {
		switch {
		case r.Tag == headerKey:
			name, good = alias(r.Value)
		case r.Tag == headerValue:
			value, good = alias(r.Value)
		case r.Tag == headerRawValue && !p.headers:
			raw = r.Value
		default:
			return false
		}
		if !good {
			return false
		}
	}
	if len(raw) > 0 {
		value = unsafe.String(unsafe.SliceData(raw), len(raw))
	}
	if p.headers && p.call.has(name) {
		return false
	}
	p.call.header(name, value)
	return r.Done()
}

// pair splits a header that consists of a short name and short non-empty bytes, as most do.
func pair(b []byte) (key, raw []byte, ok bool) {
	if len(b) < 5 || wire.Tag(b[0]) != headerKey || b[1] >= 0x80 || int(b[1])+4 >= len(b) {
		return nil, nil, false
	}
	key, b = b[2:2+b[1]], b[2+b[1]:]
	if wire.Tag(b[0]) != headerRawValue || b[1] >= 0x80 || int(b[1])+2 != len(b) {
		return nil, nil, false
	}
	return key, b[2:], true
}

// alias returns a text without a copy, or false if it is not UTF-8. It is valid as long as the
// message.
func alias(b []byte) (string, bool) {
	return unsafe.String(unsafe.SliceData(b), len(b)), utf8.Valid(b)
}

// has reports whether a header of this name, in any case, may have been processed already.
func (c *Call) has(name string) bool {
	switch name = strings.ToLower(name); name {
	case headerAPIKey:
		return len(c.APIKey) > 0
	case headerAuthorization:
		return len(c.Authorization) > 0
	case headerCookie:
		return len(c.Cookie) > 0
	case headerAccept:
		return c.Accept != ""
	case headerProtocols:
		return len(c.Protocols) > 0
	case headerOrigin:
		return c.Origin != ""
	case headerRequestMethod:
		return c.RequestMethod != ""
	case headerLength:
		return c.Length != ""
	case headerTransferEncoding:
		return c.TransferEncoding != "" || slices.Contains(c.spoofed, name)
	case headerContentType:
		return c.grpc
	case headerPath:
		return c.Path == "" // perhaps by another one
	}
	return slices.Contains(c.spoofed, name)
}

// own copies the texts of c out of the message, into one piece of memory.
func (c *Call) own() {
	var all [24]*string
	texts := append(all[:0], &c.Method, &c.Host, &c.Path, &c.Rule, &c.ID, &c.Accept, &c.Origin, &c.RequestMethod, &c.Length, &c.TransferEncoding)
	for _, list := range [...][]string{c.APIKey, c.Authorization, c.Cookie, c.Protocols, c.spoofed} {
		for i := range list {
			texts = append(texts, &list[i])
		}
	}
	size := 0
	for _, text := range texts {
		size += len(*text)
	}
	memory := c.texts[:0]
	if size > len(c.texts) {
		memory = make([]byte, 0, size)
	}
	for _, text := range texts {
		from := len(memory)
		memory = append(memory, *text...)
		*text = unsafe.String(unsafe.SliceData(memory[from:]), len(*text)) // not written again
	}
}

package codec

import (
	"strings"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"

	"github.com/keyporter/keyporter/authz"
)

// Call is a decoded CheckRequest: the inputs of the decision and of the answer.
type Call struct {
	authz.Request
	grpc     bool     // the client speaks gRPC and reads grpc-status
	TooLarge bool     // the message is longer than MaxMessageSize
	rawPath  bool     // Path is exactly what the client sent, byte for byte
	spoofed  []string // client headers that imitate ours, to be removed

	// Room for headers that come once, as nearly all do, and for the texts of an ordinary call.
	room  struct{ apiKey, authorization, cookie [1]string }
	texts [256]byte
}

// RuleExtension is the context extension with the name of the rule that an Envoy route asks for.
const RuleExtension = "keyporter-rule"

// one appends a value to those of a header. The first value uses room.
func one(values []string, room *[1]string, value string) []string {
	if values == nil {
		values = room[:0]
	}
	return append(values, value)
}

// Decode fills c from in. Any part of in may be missing. Path and method come from their fields.
// Headers come from header_map, which keeps repeated ones apart, else from headers, which joins
// them.
func (c *Call) Decode(in *authv3.CheckRequest) {
	http := in.GetAttributes().GetRequest().GetHttp()
	*c = Call{Request: authz.Request{
		Method: http.GetMethod(), Host: http.GetHost(), Path: http.GetPath(), ID: http.GetId(), Rule: in.GetAttributes().GetContextExtensions()[RuleExtension],
	}}
	if raw := http.GetHeaderMap(); raw != nil {
		for _, h := range raw.GetHeaders() {
			value := h.GetValue()
			if len(h.GetRawValue()) > 0 {
				value = string(h.GetRawValue())
			}
			c.header(h.GetKey(), value)
		}
		c.clearPath()
		return
	}
	for name, value := range http.GetHeaders() {
		c.header(name, value)
	}
	c.rawPath = false
	c.clearPath()
}

// clearPath sets whether a '!' in the path may stand for another byte. Without a raw header with
// the path, it may replace a byte that the field, which is UTF-8, could not hold.
func (c *Call) clearPath() { c.UnclearPath = !c.rawPath && strings.IndexByte(c.Path, '!') >= 0 }

// concerns reports whether a header may be in use. It rejects most others without reading the whole
// name.
func concerns(name string) bool {
	switch {
	case name == "":
		return false
	case name[0]|0x20 == 'x':
		return len(name) >= len(headerAPIKey) && (name[2]|0x20 == headerAPIKey[2] || name[2]|0x20 == headerPrefix[2])
	}
	switch len(name) {
	// Headers in use; accept and origin are as long as cookie.
	case len(headerAuthorization), len(headerCookie), len(headerPath), len(headerContentType),
		len(headerProtocols), len(headerRequestMethod), len(headerLength):
		return true
	}
	return false
}

// header processes one header of the client.
func (c *Call) header(name, value string) {
	if !concerns(name) {
		return
	}
	switch name = strings.ToLower(name); name {
	case headerAPIKey:
		c.APIKey = one(c.APIKey, &c.room.apiKey, value)
	case headerAuthorization:
		c.Authorization = one(c.Authorization, &c.room.authorization, value)
	case headerCookie:
		c.Cookie = one(c.Cookie, &c.room.cookie, value)
	case headerAccept:
		c.Accept = joined(c.Accept, value)
	case headerProtocols:
		c.Protocols = append(c.Protocols, value)
	case headerOrigin:
		c.Origin = joined(c.Origin, value)
	case headerRequestMethod:
		c.RequestMethod = joined(c.RequestMethod, value)
	case headerLength:
		c.Length = joined(c.Length, value)
	case headerPath:
		// The field replaces bytes that are not UTF-8. A decision by it, and forwarding it without
		// its key, would change the request: if the header and the field differ, the path is
		// refused like a missing one.
		if c.rawPath = value == c.Path; !c.rawPath {
			c.Path = ""
		}
	case headerContentType:
		c.grpc = c.grpc || isGRPC(value)
	case headerTransferEncoding:
		c.TransferEncoding = joined(c.TransferEncoding, value)
		c.spoofed = append(c.spoofed, name)
	default:
		if imitates(name) {
			c.spoofed = append(c.spoofed, name)
		}
	}
}

// joined returns the value of a repeated header.
func joined(before, value string) string {
	switch "" {
	case before:
		return value
	case value:
		return before
	}
	return before + "," + value
}

// imitates reports whether an upstream could mistake a header for one of ours. Our own names are
// set or removed in every answer, and need no mention.
func imitates(name string) bool {
	return len(name) == len(headerAPIKey) && readsAs(name, headerAPIKey) ||
		readsAs(name, headerPrefix) && !isIdentityHeader(name)
}

// readsAs reports whether a name begins like another one to an upstream that reads other characters
// as a hyphen: CGI, WSGI and similar interfaces turn x_keyporter_user and x-keyporter-user into the
// same variable, and some do so with every punctuation mark allowed in a name.
func readsAs(name, other string) bool {
	if len(name) < len(other) {
		return false
	}
	for i := range len(other) {
		if c := name[i]; c != other[i] && (other[i] != '-' || isAlphanumeric(c)) {
			return false
		}
	}
	return true
}

func isAlphanumeric(c byte) bool { return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' }

// isGRPC reports whether Envoy treats a content type as gRPC. gRPC-Web is not.
func isGRPC(contentType string) bool {
	rest, ok := strings.CutPrefix(strings.ToLower(contentType), "application/grpc")
	return ok && (rest == "" || rest[0] == '+')
}

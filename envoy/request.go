package envoy

import (
	"strings"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"

	"github.com/keyporter/keyporter/authz"
)

// call is a CheckRequest, decoded: what the decision depends on, and what the answer does.
type call struct {
	authz.Request
	grpc     bool     // the client speaks gRPC and reads grpc-status
	tooLarge bool     // the message is longer than what is read
	rawPath  bool     // Path is what the client has sent, byte for byte
	imposing []string // headers of the client that imitate ours, to be removed

	// Room for the headers that come once, as nearly all do, and for the texts of an ordinary call.
	room  struct{ apiKey, authorization, cookie [1]string }
	texts [256]byte
}

// ruleExtension is the context extension by which a route of Envoy's asks for a rule by its name.
const ruleExtension = "keyporter-rule"

// one appends to the values of a header, of which the first has a room.
func one(values []string, room *[1]string, value string) []string {
	if values == nil {
		values = room[:0]
	}
	return append(values, value)
}

// decode makes c the call that in is, of which any part may be missing. Path and method are taken from their fields.
// Headers are taken from header_map, where repeated ones are kept apart, else from headers, where they
// are joined.
func (c *call) decode(in *authv3.CheckRequest) {
	http := in.GetAttributes().GetRequest().GetHttp()
	*c = call{Request: authz.Request{
		Method: http.GetMethod(), Host: http.GetHost(), Path: http.GetPath(), ID: http.GetId(), Rule: in.GetAttributes().GetContextExtensions()[ruleExtension],
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

// clearPath says whether a '!' in the path is one. Where no raw header has told the path, it may be
// a byte that the field, which is UTF-8, could not hold.
func (c *call) clearPath() { c.UnclearPath = !c.rawPath && strings.IndexByte(c.Path, '!') >= 0 }

// concerns reports whether a header may be one that is looked at. It says no to most of the others, without looking
// at all of the name.
func concerns(name string) bool {
	switch {
	case name == "":
		return false
	case name[0]|0x20 == 'x':
		return len(name) >= len(headerAPIKey) && (name[2]|0x20 == headerAPIKey[2] || name[2]|0x20 == headerPrefix[2])
	}
	switch len(name) {
	case len(headerAuthorization), len(headerCookie), len(headerPath), len(headerContentType), // accept and origin are as long as cookie
		len(headerProtocols), len(headerRequestMethod), len(headerLength):
		return true
	}
	return false
}

// header takes one header of the client into account.
func (c *call) header(name, value string) {
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
		// The field replaces bytes that are not UTF-8. To decide by it, and to send it on without its
		// key, would change the request: a path of two minds is refused as none.
		if c.rawPath = value == c.Path; !c.rawPath {
			c.Path = ""
		}
	case headerContentType:
		c.grpc = c.grpc || isGRPC(value)
	case headerTransferEncoding:
		c.TransferEncoding = joined(c.TransferEncoding, value)
		c.imposing = append(c.imposing, name)
	default:
		if imitates(name) {
			c.imposing = append(c.imposing, name)
		}
	}
}

// joined returns the value of a header that came once more.
func joined(before, value string) string {
	switch "" {
	case before:
		return value
	case value:
		return before
	}
	return before + "," + value
}

// imitates reports whether an upstream could take a header for one of ours. Our own names are set or
// removed in every answer and need no mention.
func imitates(name string) bool {
	return len(name) == len(headerAPIKey) && readsAs(name, headerAPIKey) ||
		readsAs(name, headerPrefix) && !isIdentityHeader(name)
}

// readsAs reports whether a name begins like another one to an upstream that reads a hyphen in what
// is none: CGI, WSGI and their kin turn x_keyporter_user and x-keyporter-user into the same
// variable, and some do so with every mark that may stand in a name.
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

// isGRPC reports whether a content type is one of those that Envoy treats as gRPC. gRPC-Web is not.
func isGRPC(contentType string) bool {
	rest, ok := strings.CutPrefix(strings.ToLower(contentType), "application/grpc")
	return ok && (rest == "" || rest[0] == '+')
}

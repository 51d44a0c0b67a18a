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
	imposing []string // headers of the client that imitate ours, to be removed

	// Room for the headers that come once, as nearly all do, and for the texts of an ordinary call.
	room  struct{ apiKey, authorization, cookie [1]string }
	texts [256]byte
}

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
	*c = call{Request: authz.Request{Method: http.GetMethod(), Path: http.GetPath(), ID: http.GetId()}}
	if raw := http.GetHeaderMap(); raw != nil {
		for _, h := range raw.GetHeaders() {
			value := h.GetValue()
			if len(h.GetRawValue()) > 0 {
				value = string(h.GetRawValue())
			}
			c.header(h.GetKey(), value)
		}
		return
	}
	for name, value := range http.GetHeaders() {
		c.header(name, value)
	}
}

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
	case len(headerAuthorization), len(headerCookie), len(headerPath), len(headerContentType): // accept is as long as cookie
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
		if c.Accept != "" {
			value = c.Accept + "," + value
		}
		c.Accept = value
	case headerPath:
		// The field replaces bytes that are not UTF-8. To decide by it, and to send it on without its
		// key, would change the request: a path of two minds is refused as none.
		if value != c.Path {
			c.Path = ""
		}
	case headerContentType:
		c.grpc = c.grpc || isGRPC(value)
	default:
		if imitates(name) {
			c.imposing = append(c.imposing, name)
		}
	}
}

// imitates reports whether an upstream could take a header for one of ours. Our own names are set or
// removed in every answer and need no mention.
func imitates(name string) bool {
	return len(name) == len(headerAPIKey) && readsAs(name, headerAPIKey) ||
		readsAs(name, headerPrefix) && !isIdentityHeader(name)
}

// readsAs reports whether a name begins like another one to an upstream that reads a hyphen in what is none:
// CGI, WSGI and their kin turn x_keyporter_user and x-keyporter-user into the same variable.
func readsAs(name, other string) bool {
	if len(name) < len(other) {
		return false
	}
	for i := range len(other) {
		if c := name[i]; c != other[i] && (other[i] != '-' || c != '_' && c != '.') {
			return false
		}
	}
	return true
}

// isGRPC reports whether a content type is one of those that Envoy treats as gRPC. gRPC-Web is not.
func isGRPC(contentType string) bool {
	rest, ok := strings.CutPrefix(strings.ToLower(contentType), "application/grpc")
	return ok && (rest == "" || rest[0] == '+')
}

package authz

import (
	"net/url"
	"strings"
	"unicode/utf8"
)

// queryKey is the name of the query parameter that may carry a key.
const queryKey = "api_key"

// maxPath is the longest path that is decided, in bytes, without the query.
const maxPath = 8 << 10

// target is a request's path and query, taken apart.
type target struct {
	path  string
	query string // with its leading '?', or empty
	key   string // the first value of api_key that is not empty, decoded
	keys  int    // how many values of api_key are not empty
	named bool   // api_key occurs at all
}

// parseTarget takes a path with query apart. The reason is [Allowed] if the path is canonical and
// no parameter name only decodes to api_key.
func parseTarget(s string) (target, Reason) {
	t := target{path: s}
	if i := strings.IndexByte(s, '?'); i >= 0 {
		t.path, t.query = s[:i], s[i:]
	}
	simple, ok := plain(t.query)
	if !ok || !canonical(t.path) {
		return target{}, BadPath
	}
	if simple && !strings.Contains(t.query, queryKey) { // no parameter has that name, nor one that decodes to it
		return t, Allowed
	}
	for parameter := range strings.SplitSeq(t.query[1:], "&") {
		name, value, _ := strings.Cut(parameter, "=")
		if name != queryKey {
			if disguised(parameter) {
				return target{}, DisguisedKey
			}
			continue
		}
		t.named = true
		if value = percentDecoded(value); trimBlanks(value) == "" {
			continue
		}
		if t.keys == 0 {
			t.key = value
		}
		t.keys++
	}
	return t, Allowed
}

// disguised reports whether an upstream might read a parameter as api_key although its raw name is
// another: it would then hold a key that we neither looked at nor removed. A ';' separates
// parameters for some.
func disguised(parameter string) bool {
	if !strings.ContainsAny(parameter, "%+;") {
		return false
	}
	for part := range strings.SplitSeq(parameter, ";") {
		name := nameOf(part)
		if decoded, err := url.QueryUnescape(name); err == nil && decoded == queryKey {
			return true
		}
	}
	return false
}

// percentDecoded decodes s, or returns it as it is where an escape is invalid: no key has a '%',
// so such a value is refused as malformed.
func percentDecoded(s string) string {
	if strings.IndexByte(s, '%') < 0 {
		return s
	}
	if decoded, err := url.PathUnescape(s); err == nil {
		return decoded
	}
	return s
}

// rewritten returns the path and query that the upstream shall see, or "" where they do not change.
// The rest of the query stays byte for byte as it is.
func (t *target) rewritten(rule *Rule) string {
	if !t.named && rule.Rewrite == "" {
		return ""
	}
	query := t.query
	if t.named {
		query = withoutKey(query)
	}
	return rule.rewritten(t.path) + query
}

// withoutKey removes every api_key from a query with its leading '?'.
func withoutKey(query string) string {
	var b strings.Builder
	separator := byte('?')
	for parameter := range strings.SplitSeq(query[1:], "&") {
		if nameOf(parameter) == queryKey {
			continue
		}
		b.WriteByte(separator)
		b.WriteString(parameter)
		separator = '&'
	}
	return b.String()
}

// plain reports whether a query has no fragment, control byte or blank in it. It is simple if it holds nothing
// that means something else to some, either.
func plain(query string) (simple, ok bool) {
	simple = true
	for i := range len(query) {
		switch c := query[i]; {
		case c <= ' ', c == 0x7f, c == '#':
			return false, false
		case c == '%', c == '+', c == ';':
			simple = false
		}
	}
	return simple, true
}

// canonical reports whether every program on the way reads path alike. What is refused are forms
// that one program resolves and the next does not: dot segments, empty segments, parameters, encoded
// separators and letters that need no encoding.
func canonical(path string) bool {
	if len(path) == 0 || len(path) > maxPath || path[0] != '/' {
		return false
	}
	encoded := false
	for i := 0; i < len(path); i++ {
		switch c := path[i]; {
		case ordinary[c]:
		case c == '%':
			if !canonicalEscape(path[i:]) {
				return false
			}
			encoded = true
		case c != '/' || !canonicalSegment(path[i+1:]):
			return false
		}
	}
	return !encoded || validText(path)
}

// ordinary are the bytes that mean only themselves in a path: visible ASCII but \ ; # ? % and /.
var ordinary = makeOrdinary()

func makeOrdinary() (ordinary [256]bool) {
	for c := byte(' ' + 1); c < 0x7f; c++ {
		ordinary[c] = strings.IndexByte(`\;#?%/`, c) < 0
	}
	return ordinary
}

// canonicalSegment looks at what follows a slash. An empty segment is right only at the end.
func canonicalSegment(rest string) bool {
	switch {
	case rest == "":
		return true
	case rest[0] == '/':
		return false
	case rest[0] != '.':
		return true
	}
	segment, _, _ := strings.Cut(rest, "/")
	return segment != "." && segment != ".."
}

// canonicalEscape reports whether s begins with an escape that must be one and separates nothing.
func canonicalEscape(s string) bool {
	if len(s) < 3 {
		return false
	}
	decoded, err := url.PathUnescape(s[:3])
	if err != nil {
		return false
	}
	c := decoded[0]
	return c >= ' ' && c != 0x7f && !isUnreserved(c) && strings.IndexByte(`/\;#?%`, c) < 0
}

// isUnreserved reports whether c never needs an escape in a path (RFC 3986 section 2.3).
func isUnreserved(c byte) bool { return isAlphanumeric(c) || strings.IndexByte("-._~", c) >= 0 }

// validText reports whether path decodes to UTF-8: an overlong form of a slash does not.
func validText(path string) bool {
	decoded, err := url.PathUnescape(path)
	return err == nil && utf8.ValidString(decoded)
}

// nameOf returns a query parameter's raw name.
func nameOf(parameter string) string {
	name, _, _ := strings.Cut(parameter, "=")
	return name
}

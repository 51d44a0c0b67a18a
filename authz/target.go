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
	shape shape  // of the path
}

// parseTarget takes a path with query apart. There is no problem if the path is canonical and no
// parameter name only decodes to api_key.
func parseTarget(s string) (t target, _ Problem) {
	t.path = s
	if i := strings.IndexByte(s, '?'); i >= 0 {
		t.path, t.query = s[:i], s[i:]
	}
	var problem Problem
	if t.shape, problem = shapeOf(t.path); problem != NoProblem {
		return target{}, problem
	}
	simple, problem := plain(t.query)
	if problem != NoProblem {
		return target{}, problem
	}
	if simple && !strings.Contains(t.query, queryKey) { // no parameter has that name, nor one that decodes to it
		return t, NoProblem
	}
	for parameter := range strings.SplitSeq(t.query[1:], "&") {
		name, value, _ := strings.Cut(parameter, "=")
		if name != queryKey {
			if disguised(parameter) {
				return target{}, QueryDisguisedKey
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
	return t, NoProblem
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

// changes reports whether the upstream shall see another path or query than the client has sent.
func (t *target) changes(rule *Rule) bool { return t.named || rule.Rewrite != "" }

// rewritten returns the path and query that the upstream shall see, or "" where they do not change.
// The rest of the query stays byte for byte as it is.
func (t *target) rewritten(rule *Rule) string {
	if !t.changes(rule) {
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

// plain looks for bytes in a query that may not stand there. It is simple if it holds nothing that
// means something else to some, either.
func plain(query string) (simple bool, _ Problem) {
	simple = true
	for i := range len(query) {
		switch c := query[i]; {
		case c <= ' ', c == 0x7f, c == '#':
			return false, QueryCharacter
		case c >= 0x80: // HTTP/1 and HTTP/2 carry it, and the next server may refuse it
			return false, QueryNotASCII
		case c == '%', c == '+', c == ';':
			simple = false
		}
	}
	return simple, NoProblem
}

// shape is what a look at each byte of a canonical path tells.
type shape struct {
	// odd says that the path holds something else than lower-case letters, digits, - and _, so that an
	// upstream may read it as another one. See [normalForm].
	odd bool
	// encoded says that it holds an escape of # or ?, or of a % that begins no escape: canonical only
	// where a rule permits it. See [Rule.Encoded].
	encoded bool
}

// canonical reports whether every program on the way reads path alike.
func canonical(path string) bool {
	s, problem := shapeOf(path)
	return problem == NoProblem && !s.encoded
}

// shapeOf looks for what one program resolves and the next does not: dot segments, empty segments,
// parameters, encoded separators and letters that need no encoding.
func shapeOf(path string) (s shape, _ Problem) {
	switch {
	case path == "":
		return s, PathMissing
	case path[0] != '/':
		return s, PathRelative
	case len(path) > maxPath:
		return s, PathTooLong
	}
	escaped := false
	for i := 0; i < len(path); i++ {
		var problem Problem
		switch c := path[i]; classes[c] {
		case common:
		case separator:
			problem = segmentProblem(path[i+1:])
		case ordinary:
			s.odd = true
		case escape:
			escaped, s.odd = true, true
			problem = s.escapeProblem(path[i:])
		default:
			problem = PathCharacter
		}
		if problem != NoProblem {
			return s, problem
		}
	}
	if escaped && !validText(path) {
		return s, PathNotText
	}
	return s, NoProblem
}

// class is what a byte of a path may mean.
type class uint8

const (
	foreign   class = iota // must be encoded, or separates for some
	common                 // no program reads it in two ways: lower-case letters, digits, - and _
	ordinary               // means only itself in a path, yet some fold it or cut it off
	separator              // of segments
	escape                 // begins one
)

var classes = makeClasses()

func makeClasses() (classes [256]class) {
	for c := byte(' ' + 1); c < 0x7f; c++ {
		switch {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_':
			classes[c] = common
		case c == '/':
			classes[c] = separator
		case c == '%':
			classes[c] = escape
		case strings.IndexByte(`\;#?`, c) < 0:
			classes[c] = ordinary
		}
	}
	return classes
}

// segmentProblem looks at what follows a slash. An empty segment is right only at the end.
func segmentProblem(rest string) Problem {
	switch {
	case rest == "":
		return NoProblem
	case rest[0] == '/':
		return PathEmptySegment
	case rest[0] != '.':
		return NoProblem
	}
	if segment, _, _ := strings.Cut(rest, "/"); segment == "." || segment == ".." {
		return PathDotSegment
	}
	return NoProblem
}

// escapeProblem looks at the escape with which rest begins: it must be one, must be needed and may
// separate nothing, but for what a rule may permit.
func (s *shape) escapeProblem(rest string) Problem {
	c, ok := unescaped(rest)
	switch {
	case !ok:
		return PathEscape
	case isUnreserved(c):
		return PathNeedless
	case c < ' ', c == 0x7f, strings.IndexByte(`/\;`, c) >= 0:
		return PathSeparator
	case c == '%':
		if _, twice := unescaped("%" + rest[3:min(len(rest), 5)]); twice {
			return PathSeparator
		}
		s.encoded = true
	case c == '#', c == '?':
		s.encoded = true
	}
	return NoProblem
}

// unescaped returns the byte that the escape means with which s begins, or false where it is none.
func unescaped(s string) (byte, bool) {
	if len(s) < 3 {
		return 0, false
	}
	decoded, err := url.PathUnescape(s[:3])
	if err != nil {
		return 0, false
	}
	return decoded[0], true
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

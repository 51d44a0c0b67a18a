package authz

import (
	"net/url"
	"strings"
	"unicode/utf8"
)

// queryKey is the name of the query parameter that may carry a key.
const queryKey = "api_key"

// maxPath is the longest accepted path in bytes, without the query.
const maxPath = 8 << 10

// target is the parsed path and query of a request.
type target struct {
	path  string
	query string // with its leading '?', or empty
	key   string // the first non-empty value of api_key, decoded
	keys  int    // the number of non-empty values of api_key
	named bool   // api_key occurs at all
	shape shape  // of the path
}

// parseTarget parses a path with its query. It returns a problem if the path is not canonical, if
// the query holds an illegal byte, or if a parameter name becomes api_key only when decoded.
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
	if simple && !strings.Contains(t.query, queryKey) { // no parameter has that name
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

// disguised reports whether an upstream might read a parameter as api_key although its raw name
// differs: its key would be neither checked nor removed. Some upstreams also separate parameters at
// a ';'.
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

// percentDecoded decodes s, or returns it unchanged if an escape is invalid: no key has a '%', so
// such a value is refused as malformed.
func percentDecoded(s string) string {
	if strings.IndexByte(s, '%') < 0 {
		return s
	}
	if decoded, err := url.PathUnescape(s); err == nil {
		return decoded
	}
	return s
}

// changes reports whether the upstream must see a path or query other than the client's.
func (t *target) changes(rule *Rule) bool { return t.named || rule.Rewrite != "" }

// rewritten returns the path and query for the upstream, or "" if they do not change. The rest of
// the query stays byte for byte as it is.
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

// plain checks a query for illegal bytes. The result simple is true if the query also has no byte
// with a special meaning to some program.
func plain(query string) (simple bool, _ Problem) {
	simple = true
	for i := range len(query) {
		switch c := query[i]; {
		case c <= ' ', c == 0x7f, c == '#':
			return false, QueryCharacter
		case c >= 0x80: // HTTP/1 and HTTP/2 carry it, but the next server may refuse it
			return false, QueryNotASCII
		case c == '%', c == '+', c == ';':
			simple = false
		}
	}
	return simple, NoProblem
}

// shape is the result of scanning the bytes of a path.
type shape struct {
	// odd reports that the path holds something other than lower-case letters, digits, -, _ and
	// slashes, so an upstream may read it as another path. See [normalForm].
	odd bool
	// encoded reports that the path holds an escape of #, ? or a literal %, which is canonical only
	// if a rule permits it. See [Rule.Encoded].
	encoded bool
}

// canonical reports whether all programs on the way read path alike.
func canonical(path string) bool {
	s, problem := shapeOf(path)
	return problem == NoProblem && !s.encoded
}

// shapeOf scans a path for parts that programs resolve differently: dot segments, empty segments,
// parameters, encoded separators, and escaped characters that need no escape.
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

// class is the meaning of a byte in a path.
type class uint8

const (
	foreign   class = iota // must be encoded, or is a separator to some programs
	common                 // unambiguous: lower-case letters, digits, - and _
	ordinary               // has no special meaning, but some programs fold it or cut it off
	separator              // between segments
	escape                 // begins an escape
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

// segmentProblem checks the segment after a slash. Only the last segment may be empty.
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

// escapeProblem checks the escape at the start of rest. It must be complete and needed, and must
// not encode a separator, except for those that a rule may permit.
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

// unescaped returns the byte that the escape at the start of s encodes, or false if there is none.
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

// validText reports whether path decodes to UTF-8. An overlong form of a slash does not.
func validText(path string) bool {
	decoded, err := url.PathUnescape(path)
	return err == nil && utf8.ValidString(decoded)
}

// nameOf returns the raw name of a query parameter.
func nameOf(parameter string) string {
	name, _, _ := strings.Cut(parameter, "=")
	return name
}

func (r *Rule) rewritten(path string) string {
	if r.Rewrite == "" {
		return path
	}
	base, _ := r.Base()
	return r.Rewrite + path[len(base):]
}

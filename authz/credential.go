package authz

import (
	"errors"
	"iter"
	"strings"

	"github.com/keyporter/keyporter/apikey"
)

// Place is where a key was found.
type Place uint8

// The places in the order in which they are looked at.
const (
	PlaceNone   Place = iota
	PlaceHeader       // X-API-Key
	PlaceBearer       // Authorization: Bearer
	PlaceQuery        // ?api_key=
)

// String names p for people.
func (p Place) String() string {
	switch p {
	case PlaceHeader:
		return "X-API-Key header"
	case PlaceBearer:
		return "Authorization header (Bearer)"
	case PlaceQuery:
		return "api_key query parameter"
	}
	return "no place"
}

// credential returns the value of the first place that is not empty. Later places are then not
// looked at, even when the value is bad. The reason is [Allowed] when there is one value to parse.
func credential(r *Request, t *target) (Place, string, Reason) {
	if value, n := single(r.APIKey); n > 0 {
		return PlaceHeader, value, oneOnly(n)
	}
	if value, reason := bearer(r.Authorization); reason != MissingKey {
		return PlaceBearer, value, reason
	}
	if t.keys > 0 {
		return PlaceQuery, t.key, oneOnly(t.keys)
	}
	return PlaceNone, "", MissingKey
}

func oneOnly(n int) Reason {
	if n > 1 {
		return AmbiguousKey
	}
	return Allowed
}

// items are the values of a header, split at commas and without the empty ones, since a proxy may
// have joined repeated headers.
func items(values []string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, value := range values {
			for value = skipEmpty(value); value != ""; value = skipEmpty(value) {
				var item string
				item, value, _ = strings.Cut(value, ",")
				if !yield(trimBlanks(item)) {
					return
				}
			}
		}
	}
}

// skipEmpty cuts off the empty items at the start of a list.
func skipEmpty(list string) string {
	for list != "" && (list[0] == ',' || isBlank(list[0])) {
		list = list[1:]
	}
	return list
}

// single returns the first item of a header and how many there are; it counts no further than 2.
func single(values []string) (first string, n int) {
	for item := range items(values) {
		if n++; n > 1 {
			break
		}
		first = item
	}
	return first, n
}

// mostItems is how many items of a header are looked at: several times those of any scheme. Tens of
// thousands would take longer than all else about a request.
const mostItems = 256

// bearer returns the token of an Authorization header. [MissingKey] means that the search goes on:
// no item has the scheme Bearer, or it is "Bearer" alone. Items of another scheme matter only
// beside one that has it: parameters of Digest, for example, are items too.
func bearer(values []string) (string, Reason) {
	token, n, found := "", 0, false
	for item := range items(values) {
		if scheme := schemeLength(item); strings.EqualFold(item[:scheme], "Bearer") {
			token, found = item[scheme:], true
		}
		if n++; found && n > 1 || n > mostItems {
			return "", AmbiguousKey // whatever follows
		}
	}
	if token == "" {
		return "", MissingKey
	}
	token, ok := strings.CutPrefix(token, " ")
	if !ok || token == "" || strings.ContainsAny(token, " \t") {
		return "", MalformedKey
	}
	return token, Allowed
}

// schemeLength counts the bytes of the authentication scheme at the start of s, a token of
// RFC 9110 section 5.6.2.
func schemeLength(s string) int {
	for i := range len(s) {
		if c := s[i]; !isAlphanumeric(c) && strings.IndexByte("!#$%&'*+-.^_`|~", c) < 0 {
			return i
		}
	}
	return len(s)
}

func isAlphanumeric(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

// blanks are what may stand around the items of a header.
const blanks = " \t"

func isBlank(c byte) bool { return c == ' ' || c == '\t' }

func trimBlanks(s string) string {
	for s != "" && isBlank(s[0]) {
		s = s[1:]
	}
	for s != "" && isBlank(s[len(s)-1]) {
		s = s[:len(s)-1]
	}
	return s
}

// keyProblem is the reason for a value that is not a key.
func keyProblem(err error) Reason {
	if errors.Is(err, apikey.ErrWrongTag) {
		return ForgedKey
	}
	return MalformedKey
}

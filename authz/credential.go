package authz

import (
	"errors"
	"iter"
	"strings"

	"github.com/keyporter/keyporter/apikey"
)

// Place names the part of a request that held the key.
type Place uint8

// The places, in order of precedence.
const (
	PlaceNone   Place = iota
	PlaceHeader       // X-API-Key
	PlaceBearer       // Authorization: Bearer
	PlaceQuery        // ?api_key=
)

// String describes p in words.
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

// credential returns the value of the first place that is not empty. It ignores later places, even
// if the value is bad. The reason is [Allowed] if there is exactly one value to parse.
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

// items yields the values of a header, split at commas, without the empty ones. Proxies may have
// joined repeated headers.
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

// single returns the first item of a header and the number of items, counting up to 2.
func single(values []string) (first string, n int) {
	for item := range items(values) {
		if n++; n > 1 {
			break
		}
		first = item
	}
	return first, n
}

// maxItems limits the items of a header that are read; real schemes use a fraction of it. Tens of
// thousands of items would cost more than the rest of a Check.
const maxItems = 256

// bearer returns the token of an Authorization header. [MissingKey] means that the search goes on:
// no item has the scheme Bearer, or the only one is "Bearer" without a token. Items of other
// schemes matter only beside one with Bearer, because the parameters of schemes such as Digest are
// items too.
func bearer(values []string) (string, Reason) {
	token, n, found := "", 0, false
	for item := range items(values) {
		if scheme := schemeLength(item); strings.EqualFold(item[:scheme], "Bearer") {
			token, found = item[scheme:], true
		}
		if n++; found && n > 1 || n > maxItems {
			return "", AmbiguousKey // regardless of the rest
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

// keyProblem returns the reason for a value that is not a key.
func keyProblem(err error) Reason {
	if errors.Is(err, apikey.ErrWrongTag) {
		return ForgedKey
	}
	return MalformedKey
}

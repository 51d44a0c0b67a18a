package authz

import (
	"iter"
	"strings"
)

// SessionValue returns the value of the session cookie in the Cookie headers. The reason is
// [Allowed] if there is exactly one, else [MissingSession] or [BadSession].
//
// A comma does not separate cookies here, although withoutSession removes a session behind one.
// Browsers send commas in values. A neighbouring domain could set
// theme=x,__Host-keyporter_session=… and thereby log the user in as somebody else; only we can
// set the real cookie.
func SessionValue(headers []string, insecure bool) (string, Reason) {
	return cookieValue(headers, cookieName(insecure))
}

func cookieValue(headers []string, name string) (string, Reason) {
	value, n := "", 0
	for _, header := range headers {
		for v := range valuesOf(header, name) {
			value = v
			n++
		}
	}
	switch n {
	case 0:
		return "", MissingSession
	case 1:
		return value, Allowed
	}
	return "", BadSession
}

// valuesOf yields the values of all cookies with this name in a header. It searches for the name
// and does not parse the other cookies: see edited.
func valuesOf(header, name string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for end := 0; name != ""; {
			start := strings.Index(header[end:], name)
			if start < 0 {
				return
			}
			start += end
			end = start + len(name)
			before := strings.TrimRight(header[:start], blanks)
			value, isCookie := strings.CutPrefix(strings.TrimLeft(header[end:], blanks), "=")
			if !isCookie || before != "" && !strings.HasSuffix(before, ";") {
				continue
			}
			if value, _, _ = strings.Cut(value, ";"); !yield(trimBlanks(value)) {
				return
			}
		}
	}
}

func cookieName(insecure bool) string {
	if insecure {
		return InsecureSessionCookie
	}
	return SessionCookie
}

// edited applies change to the items in which find finds something, and drops those that change
// does not keep. It neither changes nor parses the others: splitting a long header of many small
// items would cost ten times the rest of a Check, and such a request needs no key.
func edited(list, separator string, find func(string) int, change func(item string) (_ string, keep bool)) string {
	var kept []string
	for more := true; more; {
		at := find(list)
		if at < 0 {
			kept = append(kept, list)
			break
		}
		if end := strings.LastIndex(list[:at], separator); end >= 0 {
			kept = append(kept, list[:end])
			list = list[end+len(separator):]
		}
		var item string
		item, list, more = strings.Cut(list, separator)
		if item, keep := change(item); keep {
			kept = append(kept, item)
		}
	}
	return strings.Join(kept, separator)
}

// The names of the session cookie.
const (
	SessionCookie         = "__Host-keyporter_session"
	InsecureSessionCookie = "keyporter_session"
)

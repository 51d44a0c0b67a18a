package authz

import "strings"

// SessionValue returns the value of the session cookie among Cookie headers. The reason is
// [Allowed] where there is exactly one, else [MissingSession] or [BadSession].
func SessionValue(headers []string, insecure bool) (string, Reason) {
	want := cookieName(insecure)
	value, n := "", 0
	for _, header := range headers {
		for pair := range strings.SplitSeq(header, ";") {
			if name, v, ok := strings.Cut(pair, "="); ok && trimBlanks(name) == want {
				value = trimBlanks(v)
				n++
			}
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

func cookieName(insecure bool) string {
	if insecure {
		return InsecureSessionCookie
	}
	return SessionCookie
}

// withoutSession returns the cookie header without our session, or remove when nothing is left, or
// neither when there was no session in it. The other cookies stay byte for byte as they are.
func (a *Authorizer) withoutSession(headers []string) (rest string, remove bool) {
	mentioned := false
	for _, header := range headers {
		mentioned = mentioned || strings.Contains(header, a.cookie)
	}
	if !mentioned {
		return "", false
	}
	var kept []string
	for _, header := range headers {
		for pair := range strings.SplitSeq(header, ";") {
			if p := a.cutSession(pair); trimBlanks(p) != "" {
				kept = append(kept, trimBlanks(p))
			}
		}
	}
	if len(kept) == 0 {
		return "", true
	}
	return strings.Join(kept, "; "), false
}

// cutSession removes our session from a pair: the whole pair if it is ours, or what follows a comma,
// where a proxy joined two cookie headers.
func (a *Authorizer) cutSession(pair string) string {
	rest := pair
	for at := 0; ; {
		name := trimBlanks(nameOf(rest[at:]))
		if name == a.cookie {
			return strings.TrimRight(rest[:at], ",")
		}
		next := strings.IndexByte(rest[at:], ',')
		if next < 0 {
			return rest
		}
		at += next + 1
	}
}

func nameOf(pair string) string {
	name, _, _ := strings.Cut(pair, "=")
	return name
}

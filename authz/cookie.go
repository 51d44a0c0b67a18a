package authz

import "strings"

// SessionValue returns the value of the session cookie among Cookie headers. The reason is
// [Allowed] where there is exactly one, else [MissingSession] or [BadSession].
//
// A comma separates nothing here, though withoutSession takes out what stands behind one: browsers
// send commas in values, so a cookie theme=x,__Host-keyporter_session=… that a neighbouring domain has
// set would pass for the cookie that only we can set, and log somebody in as somebody else.
func SessionValue(headers []string, insecure bool) (string, Reason) {
	return cookieValue(headers, cookieName(insecure))
}

func cookieValue(headers []string, name string) (string, Reason) {
	value, n := "", 0
	for _, header := range headers {
		for pair := range strings.SplitSeq(header, ";") {
			if v, ok := sessionIn(pair, name); ok && name != "" && strings.Contains(pair, "=") {
				value = v
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

// sessionIn returns the value of our cookie where item is one.
func sessionIn(item, want string) (string, bool) {
	name, value, _ := strings.Cut(item, "=")
	return trimBlanks(value), trimBlanks(name) == want
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
	var kept []string
	found := false
	for _, header := range headers {
		others, ours := a.cutSession(header)
		found = found || ours
		if strings.Trim(others, " \t;") != "" {
			kept = append(kept, strings.TrimLeft(others, " \t"))
		}
	}
	if !found {
		return "", false
	}
	return strings.Join(kept, "; "), len(kept) == 0
}

// cutSession removes our session from one header, with the separator before it. A proxy may have
// joined two headers with a comma, so that our cookie may stand behind one too.
func (a *Authorizer) cutSession(header string) (others string, found bool) {
	if !strings.Contains(header, a.cookie) {
		return header, false
	}
	var pairs []string
	for pair := range strings.SplitSeq(header, ";") {
		var items []string
		for item := range strings.SplitSeq(pair, ",") {
			if _, ours := sessionIn(item, a.cookie); !ours {
				items = append(items, item)
			}
		}
		if len(items) > 0 {
			pairs = append(pairs, strings.Join(items, ","))
		}
	}
	others = strings.Join(pairs, ";")
	return others, len(others) < len(header)
}

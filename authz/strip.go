package authz

import (
	"slices"
	"strings"

	"github.com/keyporter/keyporter/apikey"
)

// withoutSession returns the cookie header without our session. It returns remove if nothing is
// left, and neither if there was no session. The other cookies stay byte for byte as they are.
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
// joined two headers with a comma, so our cookie may also follow one.
func (a *Authorizer) cutSession(header string) (others string, found bool) {
	name := func(s string) int { return strings.Index(s, a.cookie) }
	others = edited(header, ";", name, func(pair string) (string, bool) {
		pair = edited(pair, ",", name, func(item string) (string, bool) {
			name, _, _ := strings.Cut(item, "=")
			return item, trimBlanks(name) != a.cookie
		})
		return pair, pair != ""
	})
	return others, len(others) < len(header)
}

// withoutKey returns a sec-websocket-protocol header without the items that hold a key, or "" if
// there are none. The other items stay byte for byte as they are. A header of nothing but keys is a
// problem: without the header, the client would get a WebSocket with a protocol that it did not ask
// for.
func (a *Authorizer) withoutKey(foreign *apikey.Foreign, values []string) (rest string, _ Problem) {
	var kept []string
	found := false
	for _, value := range values {
		others := edited(value, ",", a.config.Keys.IndexIn, func(string) (string, bool) {
			found = true
			return "", false
		})
		if foreign.FoundIn(others) {
			found = true
			others = strings.Join(slices.DeleteFunc(strings.Split(others, ","), foreign.FoundIn), ",")
		}
		if strings.Trim(others, blanks+",") != "" {
			kept = append(kept, strings.TrimLeft(others, blanks))
		}
	}
	switch {
	case !found:
		return "", NoProblem
	case len(kept) == 0:
		return "", ProtocolsEmpty
	}
	return strings.Join(kept, ", "), NoProblem
}

// HoldsImported reports whether a text holds a key of another system that has a prefix.
func (a *Authorizer) HoldsImported(text string) bool { return a.routes.Load().foreign.FoundIn(text) }

// Masked returns a text with … in place of each key of another system that has a prefix.
func (a *Authorizer) Masked(text string) string { return a.routes.Load().foreign.Masked(text) }

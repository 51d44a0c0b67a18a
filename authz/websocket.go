package authz

import "strings"

// withoutKey returns a sec-websocket-protocol header without the items that hold a key, or "" if
// there are none. The other items stay byte for byte as they are. A header of nothing but keys is a
// problem: without the header, the client would get a WebSocket with a protocol that it did not ask
// for.
func (a *Authorizer) withoutKey(values []string) (rest string, _ Problem) {
	var kept []string
	found := false
	for _, value := range values {
		others := edited(value, ",", a.config.Keys.IndexIn, func(string) (string, bool) {
			found = true
			return "", false
		})
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

package authz

import "strings"

// withoutKey returns a header sec-websocket-protocol without the items that hold a key, or "" where
// there is none. The other items stay byte for byte as they are. To take all of them out would
// leave the client with a WebSocket of a protocol that it did not ask for: that is a problem.
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

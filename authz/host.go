package authz

import (
	"fmt"
	"net/netip"
	"regexp"
	"strings"
)

// hostOf returns the name in the header host: in lower case, without a port and a dot at its end.
// An empty header is no host, which only rules without hosts match. What no two programs read
// alike, such as two hosts that were joined, is a problem.
func hostOf(s string) (string, Problem) {
	name, port, hasPort := strings.Cut(s, ":")
	if strings.HasPrefix(s, "[") {
		end := strings.IndexByte(s, ']')
		if end < 0 {
			return "", HostMalformed
		}
		name, port, hasPort = s[:end+1], "", end+1 < len(s)
		if hasPort {
			if s[end+1] != ':' {
				return "", HostMalformed
			}
			port = s[end+2:]
		}
	}
	switch {
	case s == "":
		return "", NoProblem
	case hasPort && !isPort(port):
		return "", HostMalformed
	case name != "" && name[0] == '[':
		if a, err := netip.ParseAddr(name[1 : len(name)-1]); err != nil || a.Zone() != "" {
			return "", HostMalformed
		}
		return strings.ToLower(name), NoProblem
	}
	name = strings.TrimSuffix(name, ".")
	if !isHostName(name) {
		return "", HostMalformed
	}
	return strings.ToLower(name), NoProblem
}

func isPort(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return len(s) > 0 && len(s) <= 5
}

// isHostName reports whether s is labels with dots between them. Some private names have
// underscores.
func isHostName(s string) bool {
	const longest = 253
	if s == "" || len(s) > longest || s[0] == '.' || s[len(s)-1] == '.' {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case isAlphanumeric(c), c == '-', c == '_':
		case c == '.' && s[i-1] != '.':
		default:
			return false
		}
	}
	return true
}

var hostPattern = regexp.MustCompile(`^(\*\.)?[a-z0-9-]+(\.[a-z0-9-]+)*$`)

// hostsProblem says what is wrong with the hosts that r names, or returns nil.
func (r *Rule) hostsProblem() error {
	for i, host := range r.Hosts {
		if len(host) > 253 || !hostPattern.MatchString(host) {
			return fmt.Errorf("host %.80q is not a name such as api.example.com, or *.example.com for all below it, in lower case and without a port", host)
		}
		for _, other := range r.Hosts[:i] {
			if other == host {
				return fmt.Errorf("host %q is there twice", host)
			}
		}
	}
	return nil
}

// hasHost reports whether r is about a host: it names none, or this one.
func (r *Rule) hasHost(host string) bool {
	for _, pattern := range r.Hosts {
		if suffix, below := strings.CutPrefix(pattern, "*"); pattern == host || below && len(host) > len(suffix) && strings.HasSuffix(host, suffix) {
			return true
		}
	}
	return len(r.Hosts) == 0
}

// For returns the rules that requests to a host are decided by: those of its exact name, else of
// the longest suffix, and with them those without hosts; else the latter alone. The host is in
// lower case and without a port.
func (t *RouteTable) For(host string) *HostRoutes {
	if len(t.inOrder) == 0 || host == "" {
		return t.rest
	}
	if routes := t.hosts[host]; routes != nil {
		return routes
	}
	for i := range len(host) {
		if host[i] != '.' || i == 0 {
			continue
		}
		if routes := t.below[host[i:]]; routes != nil {
			return routes
		}
	}
	return t.rest
}

// HostRoutes are the rules of one host, or of all that no rule names.
type HostRoutes struct {
	// Host is the name, as rules write it; "" for all others.
	Host string

	rules  []*Rule // with a path, each once
	paths  index   // by their paths
	normal index   // by the normal forms of their paths
	folds  bool    // a path of some rule is not its own normal form
}

// Rules returns the rules. Do not change them.
func (h *HostRoutes) Rules() []*Rule { return h.rules }

// Hosts returns the rules of each host that a rule names, in the order in which they are first
// named, and last those of all others.
func (t *RouteTable) Hosts() []*HostRoutes {
	return append(t.inOrder[:len(t.inOrder):len(t.inOrder)], t.rest)
}

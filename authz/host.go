package authz

import (
	"fmt"
	"net/netip"
	"regexp"
	"strings"
)

// hostOf returns the name in a host header, in lower case and without a port or trailing dot. An
// empty header means no host, which only rules without hosts match. A value that programs read
// differently, such as two joined hosts, is a problem.
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

// isHostName reports whether s consists of labels separated by dots. Underscores are accepted,
// because some private names have them.
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

// hostsProblem returns an error if the hosts of r are invalid.
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

// hasHost reports whether r applies to host: it names this host, or none at all.
func (r *Rule) hasHost(host string) bool {
	for _, pattern := range r.Hosts {
		if suffix, below := strings.CutPrefix(pattern, "*"); pattern == host || below && len(host) > len(suffix) && strings.HasSuffix(host, suffix) {
			return true
		}
	}
	return len(r.Hosts) == 0
}

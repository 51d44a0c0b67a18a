package bootstrap

import (
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
)

// address is a place to listen on or to connect to: a socket's path, or a host and a port.
type address struct {
	path string // of a Unix socket, else empty
	host string
	port uint16
}

var (
	// Paths and names go into YAML and into a comment; these characters have no meaning there.
	socketPath = regexp.MustCompile(`^/[A-Za-z0-9._/@:+=-]{1,106}$`) // Linux allows 107 bytes
	hostName   = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})$`)
	zoneName   = regexp.MustCompile(`^[A-Za-z0-9_.-]*$`) // of IPv6; for ParseAddr it is any text
)

// parseAddress reads HOST:PORT or unix:///PATH.
func parseAddress(s string) (address, error) {
	if path, ok := strings.CutPrefix(s, "unix://"); ok {
		if !socketPath.MatchString(path) {
			return address{}, fmt.Errorf("%q is not unix:///PATH with an absolute path of at most 107 plain characters", s)
		}
		return address{path: path}, nil
	}
	host, portText, err := net.SplitHostPort(s)
	if err != nil {
		return address{}, fmt.Errorf("%q is neither HOST:PORT nor unix:///PATH", s)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return address{}, fmt.Errorf("%q has a port that is not a number from 0 to 65535", s)
	}
	if !isIP(host) && !hostName.MatchString(host) {
		return address{}, fmt.Errorf("%q has a host that is neither an IP address nor a name", s)
	}
	return address{host: host, port: uint16(port)}, nil
}

// parseTarget reads an address to connect to.
func parseTarget(s string) (address, error) {
	a, err := parseAddress(s)
	if err == nil && a.path == "" && a.port == 0 {
		return address{}, fmt.Errorf("%q needs a port other than 0 to connect to", s)
	}
	return a, err
}

// parseListen reads an address to listen on: Envoy resolves no name there.
func parseListen(s string) (address, error) {
	a, err := parseAddress(s)
	if err == nil && a.path == "" && !isIP(a.host) {
		return address{}, fmt.Errorf("%q needs an IP address to listen on, such as 0.0.0.0 for all", s)
	}
	return a, err
}

func isIP(host string) bool {
	ip, err := netip.ParseAddr(host)
	return err == nil && zoneName.MatchString(ip.Zone())
}

// Named reports whether Envoy has to resolve a name.
func (a address) Named() bool { return a.path == "" && !isIP(a.host) }

// Discovery is the type of a cluster at a.
func (a address) Discovery() string {
	if a.Named() {
		return "STRICT_DNS"
	}
	return "STATIC"
}

// String returns a as YAML for Envoy.
func (a address) String() string {
	if a.path != "" {
		return fmt.Sprintf("{ pipe: { path: %q } }", a.path)
	}
	return fmt.Sprintf("{ socket_address: { address: %q, port_value: %d } }", a.host, a.port)
}

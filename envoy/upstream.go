package envoy

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
)

// upstream is a server that requests are passed on to, and how Envoy speaks to it.
type upstream struct {
	Address address
	HTTP2   bool         // h2c, and https unless the server chooses HTTP/1.1; else HTTP/1.1
	TLS     *upstreamTLS // of https; else nil
}

// upstreamTLS says which certificate of the upstream Envoy takes.
type upstreamTLS struct {
	SNI      string // the name that is asked for; "": none, as for an IP address
	SANType  string // of SAN, in Envoy's terms
	SAN      string // what the certificate must be for
	CAFile   string // the authorities that it must be signed by
	Insecure bool   // any certificate will do
}

// systemCAFile has the authorities that Debian, Ubuntu, Alpine and Envoy's own images trust. Envoy does not look
// for those of its system by itself.
const systemCAFile = "/etc/ssl/certs/ca-certificates.crt"

// schemes are those of an upstream's URL → the port that each means by itself.
var schemes = map[string]string{"http": "80", "https": "443", "h2c": "", "unix": ""}

// filePath is that of a file that Envoy reads. It goes into YAML and into a comment.
var filePath = regexp.MustCompile(`^/[A-Za-z0-9._/@:+=-]+$`)

// parseUpstream reads HOST:PORT or a URL, and what the certificate of an https upstream is verified by: the
// authorities in caFile ("": those of the system), or nothing.
func parseUpstream(s, caFile string, insecure bool) (upstream, error) {
	scheme, rest, isURL := strings.Cut(s, "://")
	if !isURL {
		scheme, rest = "http", s
	}
	scheme = strings.ToLower(scheme)
	defaultPort, known := schemes[scheme]
	var u upstream
	var err error
	switch {
	case scheme == "unix":
		u.Address, err = parseTarget("unix://" + rest)
	case !known:
		err = fmt.Errorf("the scheme %q is none of http, https, h2c (HTTP/2 without TLS, as for gRPC) and unix", scheme)
	case isURL:
		u.Address, err = parseHost(scheme, rest, defaultPort)
	default:
		u.Address, err = parseHost("", rest, "")
	}
	if err != nil {
		return upstream{}, err
	}
	u.HTTP2 = scheme == "h2c" || scheme == "https"
	if scheme == "https" {
		u.TLS, err = newUpstreamTLS(u.Address.host, caFile, insecure)
	} else if caFile != "" || insecure {
		err = fmt.Errorf("%q is not https, so it has no certificate to verify: write https://…, or leave out --upstream-ca-file and --upstream-insecure", s)
	}
	return u, err
}

// parseHost reads what follows the scheme. Its errors do not repeat what may be a secret.
func parseHost(scheme, rest, defaultPort string) (address, error) {
	if strings.Contains(rest, "@") {
		return address{}, errors.New(`a user or a password before the host ("@") would not be sent: write the host and the port alone`)
	}
	host := rest
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		host = rest[:i]
		if rest[i:] != "/" {
			return address{}, fmt.Errorf("after %q there is a path, a query or a fragment, and the upstream gets those of its clients: write the host and the port alone", host)
		}
	}
	hasPort := strings.LastIndexByte(host, ':') > strings.LastIndexByte(host, ']')
	switch {
	case hasPort:
	case defaultPort != "":
		host += ":" + defaultPort
	case scheme != "":
		return address{}, fmt.Errorf("%q needs a port, since %s means none by itself", rest, scheme)
	default:
		return address{}, fmt.Errorf("%q is neither HOST:PORT nor a URL such as https://HOST, h2c://HOST:PORT or unix:///PATH", rest)
	}
	return parseTarget(host)
}

func newUpstreamTLS(host, caFile string, insecure bool) (*upstreamTLS, error) {
	switch {
	case insecure && caFile != "":
		return nil, errors.New("with --upstream-insecure nothing is verified, by no --upstream-ca-file either: leave one of them out")
	case caFile != "" && !filePath.MatchString(caFile):
		return nil, fmt.Errorf("--upstream-ca-file %q is not an absolute path of plain characters, as Envoy sees it", caFile)
	}
	t := &upstreamTLS{CAFile: cmp.Or(caFile, systemCAFile), Insecure: insecure}
	if ip, err := netip.ParseAddr(host); err == nil {
		t.SANType, t.SAN = "IP_ADDRESS", ip.WithZone("").String()
		return t, nil
	}
	t.SNI = strings.ToLower(strings.TrimSuffix(host, ".")) // certificates do not know the dot of the root
	t.SANType, t.SAN = "DNS", t.SNI
	return t, nil
}

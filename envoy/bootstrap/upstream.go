package bootstrap

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/keyporter/keyporter/authz"
)

// Upstream is a server that receives the requests.
type Upstream struct {
	URL      string // an address, or http://, h2c:// or https:// before its host
	CAFile   string // PEM file as Envoy sees it: CAs of an https upstream; "": the system's
	Insecure bool   // an https upstream is not verified
}

// Problem returns an error that says what is wrong with u, or nil.
func (u Upstream) Problem() error {
	_, err := parseUpstream(u.URL, u.CAFile, u.Insecure)
	return err
}

// flags are the flags of `keyporter envoy` for u.
func (u Upstream) flags() []string {
	words := []string{"--upstream", u.URL}
	if u.CAFile != "" {
		words = append(words, "--upstream-ca-file", u.CAFile)
	}
	if u.Insecure {
		words = append(words, "--upstream-insecure")
	}
	return words
}

// clusterOf returns the name of a destination's cluster.
func clusterOf(to authz.Destination) string {
	if to == authz.ToUpstream {
		return "upstream"
	}
	return "upstream_" + string(to)
}

// withDefaultUpstream returns c with the upstream for rules that name none.
func (c Config) withDefaultUpstream() Config {
	if named, ok := c.Upstreams[authz.DefaultUpstream]; ok && c.Upstream == "" {
		c.Upstream, c.UpstreamCAFile = named.URL, cmp.Or(c.UpstreamCAFile, named.CAFile)
		c.UpstreamInsecure = c.UpstreamInsecure || named.Insecure
	}
	c.Upstream = cmp.Or(c.Upstream, DefaultUpstream)
	return c
}

// upstreams returns all upstreams: first the one for rules that name none, unless no rule needs it,
// then the named ones, sorted by name. The error joins all problems.
func (c *Config) upstreams() (all []upstream, _ error) {
	var problems []error
	add := func(to authz.Destination, what string, u Upstream) {
		parsed, err := parseUpstream(u.URL, u.CAFile, u.Insecure)
		if err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", what, err))
		}
		parsed.Cluster = clusterOf(to)
		all = append(all, parsed)
	}
	leads := map[authz.Destination]bool{}
	if c.Routes != nil {
		for _, rule := range c.Routes.Rules() {
			leads[rule.To] = leads[rule.To] || rule.Name == "" && rule.Kind != authz.KindNone
		}
	}
	if leads[authz.ToUpstream] || len(c.Upstreams) == 0 {
		add(authz.ToUpstream, "upstream address", Upstream{c.Upstream, c.UpstreamCAFile, c.UpstreamInsecure})
	}
	for _, name := range slices.Sorted(maps.Keys(c.Upstreams)) {
		if name != authz.DefaultUpstream {
			add(authz.Destination(name), "upstream "+name, c.Upstreams[name])
		}
	}
	for to := range leads {
		if _, ok := c.Upstreams[string(to)]; !ok && to != authz.ToUpstream && to != authz.ToPage && leads[to] {
			problems = append(problems, fmt.Errorf("there is no upstream called %q, to which rules lead", to))
		}
	}
	return all, errors.Join(problems...)
}

// upstream is a server that receives requests, and how Envoy speaks to it.
type upstream struct {
	Cluster string // its name in Envoy's configuration
	Address address
	HTTP2   bool         // h2c, and https unless the server chooses HTTP/1.1; else HTTP/1.1
	TLS     *upstreamTLS // of https; else nil
}

// upstreamTLS describes the upstream's certificates that Envoy accepts.
type upstreamTLS struct {
	SNI      string // the requested name; "": none, as for an IP address
	SANType  string // of SAN, in Envoy's terms
	SAN      string // the certificate's required name or address
	CAFile   string // the certificate authorities
	Insecure bool   // any certificate will do
}

// systemCAFile has the certificate authorities that Debian, Ubuntu, Alpine and Envoy's own images
// trust. Envoy does not look for its system's by itself.
const systemCAFile = "/etc/ssl/certs/ca-certificates.crt"

// schemes maps the schemes of an upstream's URL to their default ports.
var schemes = map[string]string{"http": "80", "https": "443", "h2c": "", "unix": ""}

// filePath matches the path of a file that Envoy reads. It goes into YAML and into a comment.
var filePath = regexp.MustCompile(`^/[A-Za-z0-9._/@:+=-]+$`)

// parseUpstream reads HOST:PORT or a URL. An https upstream's certificate is verified by the
// authorities in caFile ("": those of the system), or not at all.
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

// parseHost reads the part after the scheme. Its errors do not contain a possible secret.
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
	t.SNI = strings.ToLower(strings.TrimSuffix(host, ".")) // certificates omit the root's dot
	t.SANType, t.SAN = "DNS", t.SNI
	return t, nil
}

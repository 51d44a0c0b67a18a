package tlsport

import (
	"crypto/x509"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// names are what a caller's certificate may be for; none: anything.
type names []string

var (
	dnsName    = regexp.MustCompile(`^([A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9])?\.)*[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9])?$`)
	spiffeName = regexp.MustCompile(`^spiffe://[a-z0-9._-]+((/[A-Za-z0-9._-]+)*|(/[A-Za-z0-9._-]+)*/\*)$`)
	dots       = regexp.MustCompile(`/\.\.?(/|$)`)
)

const spiffeScheme = "spiffe://"

// CheckName validates a name of callers: a DNS name, which a certificate has as it is, or a SPIFFE
// ID, perhaps with /* at its end for all that are below it.
func CheckName(name string) error {
	if strings.HasPrefix(name, spiffeScheme) {
		if !spiffeName.MatchString(name) || dots.MatchString(name) {
			return fmt.Errorf("%.200q is no SPIFFE ID such as spiffe://example.org/ns/envoy/sa/edge or spiffe://example.org/ns/envoy/*", name)
		}
		return nil
	}
	if !dnsName.MatchString(name) {
		return fmt.Errorf("%.200q is neither a DNS name, without *, nor a SPIFFE ID that begins with %s", name, spiffeScheme)
	}
	return nil
}

// NamesOf returns the names that a certificate is for, in the form of [CheckName]: its DNS names in
// lower case, and its SPIFFE ID. The common name is none, and a certificate with several URIs has
// no SPIFFE ID.
func NamesOf(certificate *x509.Certificate) (all []string) {
	for _, name := range certificate.DNSNames {
		all = append(all, strings.ToLower(name))
	}
	if len(certificate.URIs) != 1 {
		return all
	}
	if id := certificate.URIs[0].String(); spiffeName.MatchString(id) && !dots.MatchString(id) && !strings.HasSuffix(id, "*") {
		all = append(all, id)
	}
	return all
}

// Matches reports whether a name in the form of [CheckName] stands for one that [NamesOf] returned.
func Matches(name, one string) bool {
	if !strings.HasPrefix(name, spiffeScheme) {
		return strings.EqualFold(name, one)
	}
	base, below := strings.CutSuffix(name, "*")
	return name == one || below && strings.HasPrefix(one, base)
}

var errName = errors.New("the caller's certificate is for none of the allowed names")

func (n names) check(leaf *x509.Certificate) error {
	if len(n) == 0 {
		return nil
	}
	of := NamesOf(leaf)
	for _, name := range n {
		if slices.ContainsFunc(of, func(one string) bool { return Matches(name, one) }) {
			return nil
		}
	}
	return errName
}

package jwt

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Algorithms returns the algorithms that can be allowed. All use public keys: with a symmetric
// algorithm, everybody with the verification key could also make tokens.
func Algorithms() []string {
	return []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
}

// Config defines the accepted tokens. Keys, Issuer and Audience are required.
type Config struct {
	Keys       string   // the JWKS: a file, or an https:// URL; http:// on loopback only
	Issuer     string   // the claim iss
	Audience   string   // a value of the claim aud
	Algorithms []string // of [Algorithms]; nil: RS256, ES256 and EdDSA
	Types      []string // the permitted values of the header typ, if present; nil: JWT and at+jwt
	Claim      string   // the claim that names the user; "": sub
	// MaxAge limits the trust in keys that cannot be read again; 0 means no limit. Beyond it,
	// Verify cannot decide about any token.
	MaxAge time.Duration
	Log    *slog.Logger // nil: slog.Default()
}

// DefaultAlgorithms returns the algorithms of a [Config] without any.
func DefaultAlgorithms() []string { return []string{"RS256", "ES256", "EdDSA"} }

// DefaultTypes returns the types of a [Config] without any: plain tokens (RFC 7519) and access
// tokens (RFC 9068). Tokens of other types may be signed with the same keys, but have other
// purposes.
func DefaultTypes() []string { return []string{"JWT", "at+jwt"} }

// Check returns an error that joins all problems of c. It does no I/O.
func (c Config) Check() error {
	problems := []error{checkSource(c.Keys)}
	if c.Issuer == "" {
		problems = append(problems, errors.New("no issuer: a token of any app that uses the same keys would be good"))
	}
	if c.Audience == "" {
		problems = append(problems, errors.New("no audience: a token for any other API would be good"))
	}
	for _, a := range c.Algorithms {
		if !slices.Contains(Algorithms(), a) {
			problems = append(problems, fmt.Errorf("the algorithm %.20q is none of %s", a, strings.Join(Algorithms(), ", ")))
		}
	}
	if slices.Contains(c.Types, "") {
		problems = append(problems, errors.New("an empty type of tokens: name those that may log in, such as JWT"))
	}
	return errors.Join(problems...)
}

func checkSource(source string) error {
	if !isURL(source) {
		if source == "" {
			return errors.New("no keys: name a file or a URL with a JWKS")
		}
		return nil
	}
	u, err := url.Parse(source)
	if err != nil || u.Host == "" || u.User != nil {
		return errors.New("the URL of the keys is not of the form https://HOST/PATH")
	}
	ip := net.ParseIP(u.Hostname())
	if u.Scheme != "https" && !(u.Scheme == "http" && (u.Hostname() == "localhost" || ip != nil && ip.IsLoopback())) {
		return errors.New("the URL of the keys must begin with https://: whoever can change the answer can log in as anybody")
	}
	return nil
}

func isURL(source string) bool { return strings.Contains(source, "://") }

// FromFile reports whether the keys are in a file and not at a URL.
func (c Config) FromFile() bool { return c.Keys != "" && !isURL(c.Keys) }

func (c Config) algorithms() []string {
	if len(c.Algorithms) == 0 {
		return DefaultAlgorithms()
	}
	return c.Algorithms
}

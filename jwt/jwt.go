// Package jwt verifies the signed tokens (JWT, RFC 7519) with which a provider's web app says who is logged
// in. What it trusts is a set of public keys (JWKS, RFC 7517), an issuer, an audience and a list of
// algorithms, all from the configuration: nothing that a token says of itself.
package jwt

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// ErrInvalid is returned, wrapped with why, for a token that says nothing. The text holds nothing of it.
var ErrInvalid = errors.New("the token is not valid")

const (
	// Leeway is by how much the clocks of the web app and of this machine may differ.
	Leeway = 5 * time.Second
	// maxToken is the length of the longest token that is looked at, in bytes.
	maxToken = 8 << 10
)

// Algorithms are those that can be allowed: with public keys only, since whoever has the key of another
// kind could make tokens.
func Algorithms() []string {
	return []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
}

// Config says which tokens are good. Keys, Issuer and Audience are required.
type Config struct {
	Keys       string   // the JWKS: a file, or a URL that begins with https://, or with http:// on loopback
	Issuer     string   // the claim iss
	Audience   string   // one of the claim aud
	Algorithms []string // of [Algorithms]; nil: RS256, ES256 and EdDSA
	Claim      string   // the claim that names the user; "": sub
}

// DefaultAlgorithms are those of a [Config] without any.
func DefaultAlgorithms() []string { return []string{"RS256", "ES256", "EdDSA"} }

// Check returns an error that joins all that is wrong with c. It asks nobody.
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
	return errors.Join(problems...)
}

// Claims is what a token says.
type Claims struct {
	Subject  string
	IssuedAt time.Time
}

// Verifier verifies tokens. It is safe for concurrent use.
type Verifier struct {
	config     Config
	algorithms []jose.SignatureAlgorithm
	keys       *keySet
}

// New returns a Verifier. It reads the keys when the first token comes.
func New(c Config) (*Verifier, error) {
	if len(c.Algorithms) == 0 {
		c.Algorithms = DefaultAlgorithms()
	}
	if c.Claim == "" {
		c.Claim = "sub"
	}
	if err := c.Check(); err != nil {
		return nil, err
	}
	v := &Verifier{config: c, keys: newKeySet(c.Keys)}
	for _, a := range c.Algorithms {
		v.algorithms = append(v.algorithms, jose.SignatureAlgorithm(a))
	}
	return v, nil
}

// Verify returns what a token says. The error is [ErrInvalid] if that is nothing, and any other one if it
// could not be told, as where the keys cannot be read.
func (v *Verifier) Verify(ctx context.Context, token string) (Claims, error) {
	if len(token) > maxToken {
		return Claims{}, fmt.Errorf("%w: it is longer than %d bytes", ErrInvalid, maxToken)
	}
	parsed, err := jwt.ParseSigned(token, v.algorithms)
	if err != nil || len(parsed.Headers) != 1 {
		return Claims{}, fmt.Errorf("%w: no signed token, or signed in a way that is not allowed", ErrInvalid)
	}
	keys, err := v.keys.find(ctx, parsed.Headers[0].KeyID, parsed.Headers[0].Algorithm)
	if err != nil {
		return Claims{}, err
	}
	for _, key := range keys {
		var claims jwt.Claims
		var all map[string]json.RawMessage
		if err := parsed.Claims(key.Key, &claims, &all); err == nil {
			return v.judge(claims, all)
		}
	}
	return Claims{}, fmt.Errorf("%w: no key that we know has signed it", ErrInvalid)
}

// judge looks at the claims of a token whose signature is right.
func (v *Verifier) judge(claims jwt.Claims, all map[string]json.RawMessage) (Claims, error) {
	// A token without an end would be good for ever, and one without a beginning could not be revoked.
	if claims.Expiry == nil || claims.IssuedAt == nil {
		return Claims{}, fmt.Errorf("%w: it does not say when it was issued and until when it is good", ErrInvalid)
	}
	err := claims.ValidateWithLeeway(jwt.Expected{Issuer: v.config.Issuer, AnyAudience: jwt.Audience{v.config.Audience}, Time: time.Now()}, Leeway)
	if err != nil {
		return Claims{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	subject, err := textOf(all[v.config.Claim])
	if err != nil {
		return Claims{}, fmt.Errorf("%w: its claim %s names nobody", ErrInvalid, v.config.Claim)
	}
	return Claims{Subject: subject, IssuedAt: claims.IssuedAt.Time()}, nil
}

// textOf reads a claim that is a text or a whole number, as the ids of some apps are.
func textOf(claim json.RawMessage) (string, error) {
	var text string
	if err := json.Unmarshal(claim, &text); err == nil && text != "" {
		return text, nil
	}
	var number json.Number
	if err := json.Unmarshal(claim, &number); err != nil {
		return "", err
	}
	if _, err := number.Int64(); err != nil {
		return "", err
	}
	return number.String(), nil
}

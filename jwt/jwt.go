// Package jwt verifies the signed tokens (JWT, RFC 7519) with which a provider's web app identifies
// its users. It trusts a set of public keys (JWKS, RFC 7517), an issuer, an audience and a list of
// algorithms. All of them come from the configuration, and none from the token itself.
package jwt

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/keyporter/keyporter/nowait"
)

const (
	// Leeway is the tolerated difference between the clocks of the web app and this machine.
	Leeway = 5 * time.Second
	// maxToken is the longest accepted token, in bytes.
	maxToken = 8 << 10
)

// Claims holds the verified claims of a token.
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

// New returns a Verifier. The caller must close it. New reads keys from a file at once and returns
// an error if it cannot. Keys at a URL are read when [Verifier.Run] begins or the first token
// arrives.
func New(c Config) (*Verifier, error) {
	if len(c.Algorithms) == 0 {
		c.Algorithms = DefaultAlgorithms()
	}
	if len(c.Types) == 0 {
		c.Types = DefaultTypes()
	}
	if c.Claim == "" {
		c.Claim = "sub"
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if err := c.Check(); err != nil {
		return nil, err
	}
	v := &Verifier{config: c, keys: newKeySet(c)}
	for _, a := range c.Algorithms {
		v.algorithms = append(v.algorithms, jose.SignatureAlgorithm(a))
	}
	if isURL(c.Keys) {
		return v, nil
	}
	if err := v.keys.refresh(context.Background()); err != nil {
		v.Close()
		return nil, err
	}
	return v, nil
}

// Run reads the keys periodically until ctx ends, so that a failure is logged even without tokens.
func (v *Verifier) Run(ctx context.Context) { v.keys.run(ctx) }

// Close stops reading keys and waits for pending reads.
func (v *Verifier) Close() { v.keys.close() }

// KeysAge returns the time since the keys were last read, or since New if they never were.
func (v *Verifier) KeysAge() time.Duration { return v.keys.ageNow() }

// Verify verifies a token and returns its claims. The error is a [RefusedError] if the token is
// invalid. Any other error means that it could not decide, for example because the keys cannot be
// read. A call that may not wait is not verified: a signature takes longer than all else in a
// decision, and a refused token is counted once.
func (v *Verifier) Verify(ctx context.Context, token string) (Claims, error) {
	if err := nowait.Err(ctx); err != nil {
		return Claims{}, err
	}
	if len(token) > maxToken {
		return Claims{}, refuse(TooLong, fmt.Sprintf("it is longer than %d bytes", maxToken))
	}
	parsed, err := jwt.ParseSigned(token, v.algorithms)
	if unexpected := (*jose.ErrUnexpectedSignatureAlgorithm)(nil); errors.As(err, &unexpected) {
		return Claims{}, refuse(BadAlgorithm, "its header alg names none that is allowed")
	}
	if err != nil || len(parsed.Headers) != 1 {
		return Claims{}, refuse(Malformed, "it is no signed token of three parts")
	}
	header := parsed.Headers[0]
	if !v.config.permits(header.ExtraHeaders) {
		return Claims{}, refuse(BadType, "its header typ names another kind of token")
	}
	keys, err := v.keys.find(ctx, header.KeyID, header.Algorithm)
	if err != nil {
		return Claims{}, err
	}
	claims, err := v.read(parsed, keys.found)
	if errors.Is(err, ErrInvalid) && !keys.named { // a new key may have replaced one of them
		again, unknown := v.keys.readAgain(ctx, keys, header.KeyID, header.Algorithm)
		if unknown != nil {
			return Claims{}, unknown
		}
		if again.found != nil {
			return v.read(parsed, again.found)
		}
	}
	return claims, err
}

// permits reports whether the header typ is a type that may log in. The header is optional, and so
// is the prefix of a media type (RFC 7515, 4.1.9).
func (c *Config) permits(header map[jose.HeaderKey]any) bool {
	value, given := header[jose.HeaderType]
	if !given {
		return true
	}
	kind, isText := value.(string)
	const media = "application/"
	if len(kind) > len(media) && strings.EqualFold(kind[:len(media)], media) {
		kind = kind[len(media):]
	}
	return isText && slices.ContainsFunc(c.Types, func(permitted string) bool { return strings.EqualFold(kind, permitted) })
}

// read returns the claims of a token that is signed with one of the keys.
func (v *Verifier) read(token *jwt.JSONWebToken, keys []jose.JSONWebKey) (Claims, error) {
	for _, key := range keys {
		var claims validity
		var all map[string]json.RawMessage
		switch err := token.Claims(key.Key, &claims, &all); {
		case err == nil:
			return v.judge(claims, all)
		case !errors.Is(err, jose.ErrCryptoFailure):
			return Claims{}, refuse(Malformed, "its claims cannot be read")
		}
	}
	return Claims{}, refuse(BadSignature, "no key that its header kid may mean has signed it")
}

// validity holds the claims that decide whether a token is valid here and now.
type validity struct {
	Issuer    string           `json:"iss"`
	Audience  jwt.Audience     `json:"aud"`
	Expiry    *jwt.NumericDate `json:"exp"`
	NotBefore *jwt.NumericDate `json:"nbf"`
	IssuedAt  *jwt.NumericDate `json:"iat"`
}

// judge checks the claims of a token with a valid signature.
func (v *Verifier) judge(claims validity, all map[string]json.RawMessage) (Claims, error) {
	// A token without exp would be valid forever, and one without iat could not be revoked.
	switch {
	case claims.Expiry == nil:
		return Claims{}, refuse(Expired, "it has no claim exp")
	case claims.IssuedAt == nil:
		return Claims{}, refuse(IssuedLater, "it has no claim iat")
	}
	expected := jwt.Expected{Issuer: v.config.Issuer, AnyAudience: jwt.Audience{v.config.Audience}, Time: time.Now()}
	standard := jwt.Claims{Issuer: claims.Issuer, Audience: claims.Audience, Expiry: claims.Expiry, NotBefore: claims.NotBefore, IssuedAt: claims.IssuedAt}
	if err := standard.ValidateWithLeeway(expected, Leeway); err != nil {
		return Claims{}, refusal(err)
	}
	subject, err := textOf(all[v.config.Claim])
	if err != nil {
		return Claims{}, refuse(BadSubject, "its claim "+v.config.Claim+" is no valid text and no whole number")
	}
	return Claims{Subject: subject, IssuedAt: claims.IssuedAt.Time()}, nil
}

// Package jwt verifies the signed tokens (JWT, RFC 7519) with which a provider's web app says who is logged
// in. What it trusts is a set of public keys (JWKS, RFC 7517), an issuer, an audience and a list of
// algorithms, all from the configuration: nothing that a token says of itself.
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
)

// ErrInvalid is a token that says nothing; [Verifier.Verify] returns it as a [RefusedError].
var ErrInvalid = errors.New("the token is not valid")

// ErrClosed is returned for a token whose keys would have to be read after [Verifier.Close].
var ErrClosed = errors.New("no keys are read any more")

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
	Types      []string // what the header typ may say, if there is one; nil: JWT and at+jwt
	Claim      string   // the claim that names the user; "": sub
	// MaxAge is for how long keys are trusted that cannot be read again; 0: for ever. Afterwards it
	// cannot be told of any token whether it is good.
	MaxAge time.Duration
	Log    *slog.Logger // nil: slog.Default()
}

// DefaultAlgorithms are those of a [Config] without any.
func DefaultAlgorithms() []string { return []string{"RS256", "ES256", "EdDSA"} }

// DefaultTypes are those of a [Config] without any: of a plain token (RFC 7519), and of one that
// gives access (RFC 9068). Other kinds are signed with the same keys and say something else.
func DefaultTypes() []string { return []string{"JWT", "at+jwt"} }

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
	if slices.Contains(c.Types, "") {
		problems = append(problems, errors.New("an empty type of tokens: name those that may log in, such as JWT"))
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

// New returns a Verifier, which the caller closes. Keys in a file are read at once, and there is an
// error where they cannot be; those at a URL are read when [Verifier.Run] begins or the first token
// comes.
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

// Run reads the keys again and again until ctx ends, so that it is told when they cannot be read,
// whether tokens come or not.
func (v *Verifier) Run(ctx context.Context) { v.keys.run(ctx) }

// Close ends what reads keys, and returns when it has ended.
func (v *Verifier) Close() { v.keys.close() }

// KeysAge is for how long the keys have not been read; since New if they never were.
func (v *Verifier) KeysAge() time.Duration { return v.keys.ageNow() }

// Verify returns what a token says. The error is a [RefusedError] if that is nothing, and any other
// one if it could not be told, as where the keys cannot be read.
func (v *Verifier) Verify(ctx context.Context, token string) (Claims, error) {
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
	if errors.Is(err, ErrInvalid) && !keys.named { // it may be signed with the successor of one of them
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

// permits reports whether the header typ is that of a token that may log in. It may be left out,
// and so may the beginning of a media type (RFC 7515, 4.1.9).
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

// read returns what a token says that one of the keys has signed.
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

// validity is the claims that say whether a token is good here and now.
type validity struct {
	Issuer    string           `json:"iss"`
	Audience  jwt.Audience     `json:"aud"`
	Expiry    *jwt.NumericDate `json:"exp"`
	NotBefore *jwt.NumericDate `json:"nbf"`
	IssuedAt  *jwt.NumericDate `json:"iat"`
}

// judge looks at the claims of a token whose signature is right.
func (v *Verifier) judge(claims validity, all map[string]json.RawMessage) (Claims, error) {
	// A token without an end would be good for ever, and one without a beginning could not be revoked.
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

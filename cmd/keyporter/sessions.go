package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/jwt"
)

// checkJWT says what is missing for tokens of a web app.
func (c *config) checkJWT() error {
	if c.JWT.Keys == "" {
		if c.JWT.Issuer != "" || c.JWT.Audience != "" || c.JWTCookie != "" {
			return errors.New("--jwt-keys: needed as well, or no token can be verified")
		}
		return nil
	}
	if err := c.JWT.Check(); err != nil {
		return fmt.Errorf("--jwt-keys, --jwt-issuer, --jwt-audience, --jwt-algorithms: %w", err)
	}
	return nil
}

func checkCookieName(s string) error {
	if s == "" {
		return nil
	}
	if err := (&http.Cookie{Name: s, Value: "x"}).Valid(); err != nil {
		return fmt.Errorf("%.80q is not the name of a cookie", s)
	}
	if s == authz.SessionCookie || s == authz.InsecureSessionCookie {
		return fmt.Errorf("%s is Keyporter's own cookie", s)
	}
	return nil
}

// acceptTokens lets sessions take the tokens of the provider's web app, if any are configured.
func (c *config) acceptTokens(find func(context.Context, string) (authz.Principal, error), several ...*authz.Sessions) error {
	if c.JWT.Keys == "" {
		return nil
	}
	verifier, err := jwt.New(c.JWT)
	if err != nil {
		return err
	}
	for _, s := range several {
		s.TokenCookie, s.FindSubject = c.JWTCookie, find
		s.Verify = func(ctx context.Context, token string) (authz.WebToken, error) {
			claims, err := verifier.Verify(ctx, token)
			if errors.Is(err, jwt.ErrInvalid) {
				return authz.WebToken{}, fmt.Errorf("%w: %w", authz.ErrUnknown, err)
			}
			return authz.WebToken{Subject: claims.Subject, IssuedAt: claims.IssuedAt.Add(-jwt.Leeway)}, err
		}
	}
	return nil
}

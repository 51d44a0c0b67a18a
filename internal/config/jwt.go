package config

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/keyporter/keyporter/authz"
)

// checkJWT returns an error if settings for tokens of a web app are missing.
func (c *Config) checkJWT() error {
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

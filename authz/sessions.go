package authz

import (
	"context"
	"errors"
	"fmt"

	"github.com/keyporter/keyporter/apikey"
)

// Login is who is logged in, and by what.
type Login struct {
	Principal Principal
	// Session is the digest of the session that says so, which can be ended here; zero where what says so
	// is not in Keyporter's own table.
	Session apikey.Digest
}

// Sessions tells who is logged in. The decision and the users' page ask the same one, so that they
// cannot disagree. It is safe for concurrent use.
type Sessions struct {
	// Format is the form of a session's secret. Nil: no session is live.
	Format *apikey.Format
	// Find resolves the digest of a session of Keyporter's own table.
	Find FindFunc
	// InsecureCookies takes the session cookie keyporter_session, which a browser also sends
	// without TLS, in place of __Host-keyporter_session.
	InsecureCookies bool
}

// Identify returns who is logged in by the values of the headers cookie and authorization. The reason is
// [Allowed], or why nobody is; a disabled user is not. An error means that it could not tell.
func (s *Sessions) Identify(ctx context.Context, cookies, _ []string) (Login, Reason, error) {
	value, reason := SessionValue(cookies, s.InsecureCookies)
	if reason != Allowed {
		return Login{}, reason, nil
	}
	if s.Format == nil {
		return Login{}, UnknownSession, nil
	}
	token, err := s.Format.Parse(value)
	if err != nil {
		return Login{}, BadSession, nil
	}
	p, err := s.Find(ctx, token.Digest())
	switch {
	case errors.Is(err, ErrUnknown):
		return Login{}, UnknownSession, nil
	case errors.Is(err, ErrRevoked):
		return Login{}, RevokedSession, nil
	case err != nil:
		return Login{}, Undecided, fmt.Errorf("looking up a session: %w", err)
	case !p.UserActive:
		return Login{Principal: p}, RevokedSession, nil
	}
	return Login{Principal: p, Session: token.Digest()}, Allowed, nil
}

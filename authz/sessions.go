package authz

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/keyporter/keyporter/apikey"
)

// Login is who is logged in, and by what.
type Login struct {
	Principal Principal
	// Session is the digest of the session that says so, which can be ended here; zero where what says so
	// is not in Keyporter's own table.
	Session apikey.Digest
	// Why says what is wrong with a token of the web app, for who explains a decision; nil where
	// there was none, or nothing is wrong. It holds no part of the token.
	Why error
}

// What is wrong with a token that is good by itself.
var (
	errNoSubject = errors.New("no user has the subject that the token names: `keyporter user set NAME --subject` gives it to one")
	errTooEarly  = errors.New("the token was issued before the sessions of its user were revoked, or its user is disabled")
)

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

	// Verify returns what a token of the provider's web app says, or [ErrUnknown] if that is nothing. Nil:
	// there are no such tokens.
	Verify func(ctx context.Context, token string) (WebToken, error)
	// FindSubject resolves what the web app calls a user.
	FindSubject func(ctx context.Context, subject string) (Principal, error)
	TokenCookie string // the cookie that may hold a token; "": it comes as a bearer only
}

// WebToken is what a token of the provider's web app says.
type WebToken struct {
	Subject string
	// IssuedAt is when it was issued at the earliest: the clock of the web app may be fast.
	IssuedAt time.Time
}

// Identify returns who is logged in by the values of the headers cookie and authorization. The reason is
// [Allowed], or why nobody is; a disabled user is not. An error means that it could not tell. Our own cookie
// is asked first, then the web app's, then the bearer: one that opens nothing, such as a session that has
// ended, does not keep the next from being asked.
func (s *Sessions) Identify(ctx context.Context, cookies, authorization []string) (Login, Reason, error) {
	login, reason, err := s.ownSession(ctx, cookies)
	if s.Verify == nil || reason == Allowed || err != nil {
		return login, reason, err
	}
	for _, place := range []func() (string, Reason){
		func() (string, Reason) { return cookieValue(cookies, s.TokenCookie) },
		func() (string, Reason) { return bearerToken(authorization) },
	} {
		token, found := place()
		if found == MissingSession {
			continue
		}
		if reason = found; found == Allowed {
			login, reason, err = s.webSession(ctx, token)
		}
		if reason == Allowed || err != nil {
			return login, reason, err
		}
	}
	return login, reason, nil
}

// webSession asks for the user of a token.
func (s *Sessions) webSession(ctx context.Context, token string) (Login, Reason, error) {
	said, err := s.Verify(ctx, token)
	if err != nil {
		login, reason, undecided := problemOf(err, BadSession)
		login.Why = err
		return login, reason, undecided
	}
	p, err := s.FindSubject(ctx, said.Subject)
	switch {
	case err != nil:
		login, reason, undecided := problemOf(err, UnknownSession)
		if login.Why = errTooEarly; reason == UnknownSession {
			login.Why = errNoSubject
		}
		return login, reason, undecided
	case !p.UserActive || said.IssuedAt.Before(p.NotBefore):
		return Login{Principal: p, Why: errTooEarly}, RevokedSession, nil
	}
	return Login{Principal: p}, Allowed, nil
}

// problemOf tells a no, with a reason, from an error.
func problemOf(err error, unknown Reason) (Login, Reason, error) {
	switch {
	case errors.Is(err, ErrUnknown):
		return Login{}, unknown, nil
	case errors.Is(err, ErrRevoked):
		return Login{}, RevokedSession, nil
	}
	return Login{}, Undecided, fmt.Errorf("looking up a session: %w", err)
}

// bearerToken returns what may be a token of the web app: three parts with dots between them, which no key
// has.
func bearerToken(authorization []string) (string, Reason) {
	if len(authorization) != 1 {
		return "", MissingSession
	}
	scheme, token, _ := strings.Cut(authorization[0], " ")
	if !strings.EqualFold(scheme, "Bearer") || strings.Count(token, ".") != 2 || strings.ContainsAny(token, " ,\t") {
		return "", MissingSession
	}
	return token, Allowed
}

func (s *Sessions) ownSession(ctx context.Context, cookies []string) (Login, Reason, error) {
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
	case err != nil:
		return problemOf(err, UnknownSession)
	case !p.UserActive:
		return Login{Principal: p}, RevokedSession, nil
	}
	return Login{Principal: p, Session: token.Digest()}, Allowed, nil
}

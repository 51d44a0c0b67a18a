package authz

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/keyporter/keyporter/apikey"
)

// Login identifies a logged-in user and the session used.
type Login struct {
	Principal Principal
	// Session is the digest of the session, which can be ended here. It is zero for tokens of the
	// web app, because Keyporter does not store those.
	Session apikey.Digest
	// Why describes the problem with a token of the web app, for explanations; nil if there was no
	// token or no problem. It holds no part of the token.
	Why error
}

// The problems with a token that is valid by itself.
var (
	errNoSubject = errors.New("no user has the subject that the token names: `keyporter user set NAME --subject` gives it to one")
	errTooEarly  = errors.New("the token was issued before the sessions of its user were revoked, or its user is disabled")
)

// Sessions identifies users by their sessions. The decision and the users' page share one instance,
// so they cannot disagree. It is safe for concurrent use.
type Sessions struct {
	// Format is the format of session secrets. If nil, no session is valid.
	Format *apikey.Format
	// Find resolves the digest of a session in Keyporter's own table.
	Find FindFunc
	// InsecureCookies uses the session cookie keyporter_session, which browsers also send without
	// TLS, in place of __Host-keyporter_session.
	InsecureCookies bool

	// Verify returns the claims of a token of the provider's web app, or [ErrUnknown] if the token
	// is invalid. If Verify is nil, tokens are not accepted.
	Verify func(ctx context.Context, token string) (WebToken, error)
	// FindSubject resolves the web app's name of a user.
	FindSubject func(ctx context.Context, subject string) (Principal, error)
	TokenCookie string // the cookie that may hold a token; empty: bearer tokens only
}

// WebToken holds the claims of a token of the provider's web app.
type WebToken struct {
	Subject string
	// IssuedAt is the earliest possible time of issue: the web app's clock may be fast.
	IssuedAt time.Time
}

// Identify identifies the user by the values of the headers cookie and authorization. The reason is
// [Allowed], or says why nobody is logged in; a disabled user is not logged in. An error means that
// it could not decide. The order is our own cookie, the web app's cookie, the bearer token. An
// invalid one, such as an expired session, does not prevent the next from being tried.
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

// webSession identifies the user of a token.
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

// problemOf distinguishes a definite no, with its reason, from a failed look-up.
func problemOf(err error, unknown Reason) (Login, Reason, error) {
	switch {
	case errors.Is(err, ErrUnknown):
		return Login{}, unknown, nil
	case errors.Is(err, ErrRevoked):
		return Login{}, RevokedSession, nil
	}
	return Login{}, Undecided, fmt.Errorf("looking up a session: %w", err)
}

// bearerToken returns a value that may be a token of the web app: three parts separated by dots. No
// key has this shape.
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

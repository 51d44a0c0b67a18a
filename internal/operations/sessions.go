package operations

import (
	"context"
	"time"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/portal"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
	"github.com/keyporter/keyporter/store/feed"
)

// Page is how browsers reach the users' page.
type Page struct {
	URL             string // scheme and host; "" if unknown
	Path            string
	InsecureCookies bool // it is served without TLS
}

// Sessions are the browser sessions of users, and links that log in.
type Sessions struct {
	db   *store.DB
	in   *directory.Sessions
	page Page
}

// Sessions returns the operations on sessions for a page.
func (o Operator) Sessions(p Page) Sessions { return Sessions{o.db, directory.NewSessions(o.db), p} }

// MadeSession is a session that was made, as the cookie that a browser sends.
type MadeSession struct {
	Cookie  string    `json:"cookie"`
	Expires time.Time `json:"expires"`
}

// Create makes a session of a user that ends after ttl.
func (s Sessions) Create(ctx context.Context, user string, ttl time.Duration) (MadeSession, error) {
	formats, err := ReadFormats(ctx, s.db, apikey.FormatConfig{})
	if err != nil {
		return MadeSession{}, err
	}
	session, token, err := s.in.CreateSession(ctx, user, ttl, formats.Sessions)
	if err != nil {
		return MadeSession{}, err
	}
	name := authz.SessionCookie
	if s.page.InsecureCookies {
		name = authz.InsecureSessionCookie
	}
	return MadeSession{name + "=" + token.Reveal(), session.ExpiresAt}, nil
}

// MadeLink is a login link that was made. Without the URL of the page it has no host.
type MadeLink struct {
	Link    string    `json:"link"`
	Expires time.Time `json:"expires"`
}

// CreateLink makes a link that logs a user in once.
func (s Sessions) CreateLink(ctx context.Context, user string) (MadeLink, error) {
	formats, err := ReadFormats(ctx, s.db, apikey.FormatConfig{})
	if err != nil {
		return MadeLink{}, err
	}
	link, token, err := s.in.CreateLoginLink(ctx, user, formats.Links)
	if err != nil {
		return MadeLink{}, err
	}
	return MadeLink{s.page.URL + portal.LoginPath(s.page.Path) + "?token=" + token.Reveal(), link.ExpiresAt}, nil
}

// RevokedSessions is the number of a user's sessions that were ended.
type RevokedSessions struct {
	User    string `json:"user"`
	Revoked int    `json:"revoked"`
}

// Revoke ends all sessions of a user, and makes unused login links and earlier tokens of the web
// app invalid.
func (s Sessions) Revoke(ctx context.Context, user string, once feed.IdempotencyKey) (Committed[RevokedSessions], error) {
	n, done, err := s.in.RevokeSessions(ctx, user, once)
	return committed(RevokedSessions{user, n}, done, err)
}

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

// UserPage is how browsers reach the users' page.
type UserPage struct {
	URL             string // scheme and host; "" if unknown
	Path            string
	InsecureCookies bool // it is served without TLS
}

// Sessions are the browser sessions of users, and links that log in.
type Sessions struct {
	db   *store.DB
	in   *directory.Sessions
	page UserPage
}

// Sessions returns the operations on sessions for a page.
func (o Operator) Sessions(p UserPage) Sessions {
	return Sessions{o.db, directory.NewSessions(o.db), p}
}

// MadeSession is a session that was made, as the cookie that a browser sends. Cookie is nil if an
// earlier call with the same idempotency key has shown it.
type MadeSession struct {
	User    string    `json:"user"`
	Cookie  *string   `json:"cookie"`
	Expires time.Time `json:"expires"`
}

// Create makes a session of a user that ends after ttl. A repeated call makes no second one.
func (s Sessions) Create(ctx context.Context, user string, ttl time.Duration, once feed.IdempotencyKey) (Committed[MadeSession], error) {
	formats, err := ReadFormats(ctx, s.db, apikey.FormatConfig{})
	if err != nil {
		return Committed[MadeSession]{}, err
	}
	session, token, done, err := s.in.CreateSessionOnce(ctx, user, ttl, formats.Sessions, once)
	name := authz.SessionCookie
	if s.page.InsecureCookies {
		name = authz.InsecureSessionCookie
	}
	return committed(MadeSession{user, shown(name+"=", token), session.ExpiresAt}, done, err)
}

// shown returns a new secret behind a text, or nil if there is none to show.
func shown(before string, token apikey.Token) *string {
	plain := token.Reveal()
	if plain == "" {
		return nil
	}
	plain = before + plain
	return &plain
}

// MadeLink is a login link that was made. Without the URL of the page it has no host. Link is nil
// if an earlier call with the same idempotency key has shown it.
type MadeLink struct {
	User    string    `json:"user"`
	Link    *string   `json:"link"`
	Expires time.Time `json:"expires"`
}

// CreateLink makes a link that logs a user in once. A repeated call makes no second one.
func (s Sessions) CreateLink(ctx context.Context, user string, once feed.IdempotencyKey) (Committed[MadeLink], error) {
	formats, err := ReadFormats(ctx, s.db, apikey.FormatConfig{})
	if err != nil {
		return Committed[MadeLink]{}, err
	}
	link, token, done, err := s.in.CreateLoginLinkOnce(ctx, user, formats.Links, once)
	return committed(MadeLink{user, shown(s.page.URL+portal.LoginPath(s.page.Path)+"?token=", token), link.ExpiresAt}, done, err)
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

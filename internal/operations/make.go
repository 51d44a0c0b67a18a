package operations

import (
	"context"
	"time"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/internal/config"
	"github.com/keyporter/keyporter/portal"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
	"github.com/keyporter/keyporter/store/feed"
)

// MadeKey is a key that was made. Key is nil if an earlier call with the same idempotency key has
// shown it.
type MadeKey struct {
	ID   string  `json:"id"`
	User string  `json:"user"`
	Key  *string `json:"key"`
	Code string  `json:"code,omitempty"`
}

func newMadeKey(key directory.Key, token apikey.Token) MadeKey {
	made := MadeKey{ID: key.ID, User: key.User, Code: "key_shown_once"}
	if plain := token.Reveal(); plain != "" {
		made.Key, made.Code = &plain, ""
	}
	return made
}

// CreateKey makes a key for a user without one. With [lease.ErrUnconfirmed] it was made.
func CreateKey(ctx context.Context, db *store.DB, c config.Config, user string, once feed.IdempotencyKey) (MadeKey, feed.Confirmation, error) {
	format, _, err := Formats(ctx, db, c)
	if err != nil {
		return MadeKey{}, feed.Confirmation{}, err
	}
	key, token, done, err := directory.NewKeys(db).CreateKeyOnce(ctx, user, format, once)
	return newMadeKey(key, token), done, err
}

// RegenerateKey replaces the key of a user. With [lease.ErrUnconfirmed] it was replaced.
func RegenerateKey(ctx context.Context, db *store.DB, c config.Config, user string, once feed.IdempotencyKey) (MadeKey, feed.Confirmation, error) {
	format, _, err := Formats(ctx, db, c)
	if err != nil {
		return MadeKey{}, feed.Confirmation{}, err
	}
	key, token, done, err := directory.NewKeys(db).RegenerateKey(ctx, user, format, directory.Rate{}, once)
	return newMadeKey(key, token), done, err
}

// MadeSession is a session that was made, as the cookie that a browser sends.
type MadeSession struct {
	Cookie  string    `json:"cookie"`
	Expires time.Time `json:"expires"`
}

// CreateSession makes a session of a user.
func CreateSession(ctx context.Context, db *store.DB, c config.Config, user string, life time.Duration) (MadeSession, error) {
	_, format, err := Formats(ctx, db, c)
	if err != nil {
		return MadeSession{}, err
	}
	session, token, err := directory.NewSessions(db).CreateSession(ctx, user, life, format)
	if err != nil {
		return MadeSession{}, err
	}
	name := authz.SessionCookie
	if c.InsecureCookies {
		name = authz.InsecureSessionCookie
	}
	return MadeSession{name + "=" + token.Reveal(), session.ExpiresAt}, nil
}

// MadeLink is a login link that was made. Without a page URL it has no host.
type MadeLink struct {
	Link    string    `json:"link"`
	Expires time.Time `json:"expires"`
}

// CreateLink makes a link that logs a user in once.
func CreateLink(ctx context.Context, db *store.DB, c config.Config, user string) (MadeLink, error) {
	format, err := LinkFormat(ctx, db)
	if err != nil {
		return MadeLink{}, err
	}
	link, token, err := directory.NewSessions(db).CreateLoginLink(ctx, user, format)
	if err != nil {
		return MadeLink{}, err
	}
	return MadeLink{c.PageURL + portal.LoginPath(c.PagePath) + "?token=" + token.Reveal(), link.ExpiresAt}, nil
}

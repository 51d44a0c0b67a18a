package admin

import (
	"cmp"
	"context"
	"time"

	"github.com/keyporter/keyporter/internal/operations"
	"github.com/keyporter/keyporter/store/directory"
)

type (
	keysOf struct {
		paged
		User *string `query:"user" form:"name" doc:"only keys of this user"`
	}
	userChange struct {
		ofUser
		repeatable
	}
	keyRegenerate struct {
		userChange
		Replaces *string `json:"replaces" length:"64" doc:"the id of the key to replace; if another one is live, nothing changes"`
	}
	sessionCreate struct {
		userChange
		TTL *period `json:"ttl" doc:"how long the session lasts, one second to 2160h; 12h by default"`
	}
)

// defaultSession is how long a session lasts if nobody says it, as of those that a login begins.
const defaultSession = period(12 * time.Hour)

func listKeys(ctx context.Context, c *call, in keysOf) (operations.Page[directory.Key], error) {
	cursor, n := in.page()
	return c.keys().Page(ctx, text(in.User), cursor, n)
}

func findKey(ctx context.Context, c *call, in ofUser) (directory.Key, error) {
	return c.keys().Live(ctx, in.User)
}

func createKey(ctx context.Context, c *call, in userChange) (done operations.Committed[operations.MadeKey], err error) {
	once, err := in.key(c)
	if err != nil {
		return done, err
	}
	return c.keys().Create(ctx, in.User, once)
}

func regenerateKey(ctx context.Context, c *call, in keyRegenerate) (done operations.Committed[operations.MadeKey], err error) {
	once, err := in.key(c)
	if err != nil {
		return done, err
	}
	return c.keys().Regenerate(ctx, in.User, text(in.Replaces), once)
}

func revokeKey(ctx context.Context, c *call, in userChange) (done operations.Committed[directory.Key], err error) {
	once, err := in.key(c)
	if err != nil {
		return done, err
	}
	return c.keys().Revoke(ctx, in.User, once)
}

// revealKey shows a key. Its log names the key, and has nothing of it.
func revealKey(ctx context.Context, c *call, in ofUser) (operations.RevealedKey, error) {
	shown, err := c.keys().Reveal(ctx, in.User, c.config.Unseal)
	if err == nil {
		c.config.Log.Info("a key shown by the operators' API", "caller", c.caller.Name, "user", in.User, "key", shown.ID)
	}
	return shown, err
}

func createSession(ctx context.Context, c *call, in sessionCreate) (done operations.Committed[operations.MadeSession], err error) {
	once, err := in.key(c)
	if err != nil {
		return done, err
	}
	ttl := *cmp.Or(in.TTL, new(defaultSession))
	return c.sessions().Create(ctx, in.User, time.Duration(ttl), once)
}

func createLink(ctx context.Context, c *call, in userChange) (done operations.Committed[operations.MadeLink], err error) {
	once, err := in.key(c)
	if err != nil {
		return done, err
	}
	return c.sessions().CreateLink(ctx, in.User, once)
}

func revokeSessions(ctx context.Context, c *call, in userChange) (done operations.Committed[operations.RevokedSessions], err error) {
	once, err := in.key(c)
	if err != nil {
		return done, err
	}
	return c.sessions().Revoke(ctx, in.User, once)
}

func (c *call) keys() operations.Keys { return c.by.Keys(c.config.Prefix) }

func (c *call) sessions() operations.Sessions { return c.by.Sessions(c.config.Page) }

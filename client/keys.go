package client

import (
	"context"
	"iter"
	"net/http"
	"time"
)

// Key is a key of a user, without the key itself.
type Key struct {
	ID        string     `json:"id"`
	User      string     `json:"user"`
	CreatedAt time.Time  `json:"created_at"`
	RevokedAt *time.Time `json:"revoked_at"` // nil while the key is live
	Imported  bool       `json:"imported"`   // it was made by another system
}

// MadeKey is a key that was made.
type MadeKey struct {
	ID   string `json:"id"`
	User string `json:"user"`
	Key  Secret `json:"key"`  // empty if an earlier call with the same Idempotency-Key has shown it
	Code string `json:"code"` // key_shown_once if it is empty
}

// MadeSession is a browser session that was made.
type MadeSession struct {
	User    string    `json:"user"`
	Cookie  Secret    `json:"cookie"` // NAME=VALUE; empty if an earlier call has shown it
	Expires time.Time `json:"expires"`
}

// MadeLink is a login link that was made.
type MadeLink struct {
	User    string    `json:"user"`
	Link    Secret    `json:"link"` // empty if an earlier call has shown it
	Expires time.Time `json:"expires"`
}

// RevealedKey is the live key of a user.
type RevealedKey struct {
	ID   string `json:"id"`
	User string `json:"user"`
	Key  Secret `json:"key"`
}

// RevokedSessions is the number of a user's sessions that were ended.
type RevokedSessions struct {
	User    string `json:"user"`
	Revoked int    `json:"revoked"`
}

// Keys lists the keys of a user, or of all users if the name is "", revoked ones included, by user
// and newest first.
func (c *Client) Keys(ctx context.Context, user string) iter.Seq2[Key, error] {
	return pages[Key](ctx, c, "/v1/keys", filter("user", user))
}

// Key returns the live key of a user, without the key itself.
func (c *Client) Key(ctx context.Context, user string) (Key, error) {
	return read[Key](ctx, c, path("/v1/users/", user, "/key"), nil)
}

// CreateKey makes a key for a user without one.
func (c *Client) CreateKey(ctx context.Context, user string) (Changed[MadeKey], error) {
	return change[MadeKey](ctx, c, http.MethodPost, path("/v1/users/", user, "/key:create"), nil)
}

// RegenerateKey replaces the key of a user at once: the one with the id replaces, or any if that is
// "".
func (c *Client) RegenerateKey(ctx context.Context, user, replaces string) (Changed[MadeKey], error) {
	body := struct {
		Replaces string `json:"replaces,omitempty"`
	}{replaces}
	return change[MadeKey](ctx, c, http.MethodPost, path("/v1/users/", user, "/key:regenerate"), body)
}

// RevokeKey revokes the key of a user.
func (c *Client) RevokeKey(ctx context.Context, user string) (Changed[Key], error) {
	return change[Key](ctx, c, http.MethodPost, path("/v1/users/", user, "/key:revoke"), nil)
}

// RevealKey shows the live key of a user, where the service keeps a sealed copy. The audit records
// each call.
func (c *Client) RevealKey(ctx context.Context, user string) (RevealedKey, error) {
	return ask[RevealedKey](ctx, c, path("/v1/users/", user, "/key:reveal"), nil, true)
}

// CreateSession makes a browser session of a user that ends after ttl, or after twelve hours if
// that is 0.
func (c *Client) CreateSession(ctx context.Context, user string, ttl time.Duration) (Changed[MadeSession], error) {
	body := struct {
		TTL *Span `json:"ttl,omitempty"`
	}{}
	if ttl != 0 {
		body.TTL = new(Span(ttl))
	}
	return change[MadeSession](ctx, c, http.MethodPost, path("/v1/users/", user, "/sessions"), body)
}

// RevokeSessions ends all sessions of a user, their login links, and the tokens that your web app
// has signed so far.
func (c *Client) RevokeSessions(ctx context.Context, user string) (Changed[RevokedSessions], error) {
	return change[RevokedSessions](ctx, c, http.MethodPost, path("/v1/users/", user, "/sessions:revoke"), nil)
}

// CreateLoginLink makes a link that logs a user in once, within ten minutes.
func (c *Client) CreateLoginLink(ctx context.Context, user string) (Changed[MadeLink], error) {
	return change[MadeLink](ctx, c, http.MethodPost, path("/v1/users/", user, "/login-links"), nil)
}

// Question asks what a key is.
type Question struct {
	Key  Secret
	Rule string // the name of a rule of kind api_key, for its cost; "": a request costs 1 credit
	// Charge counts the question like a request. Without a Request it is not sent again if its answer
	// is lost.
	Charge bool
	// Request names the client's request: for as long as a repeated Check would be charged once, so is
	// a repeated question with the same request, key and rule.
	Request string
}

// Verified is what a key is.
type Verified struct {
	Valid   bool           `json:"valid"`
	Status  int            `json:"status"` // of the answer to the client with the key
	Code    string         `json:"code"`   // of that answer; "ok" if valid
	Reason  *string        `json:"reason"` // nil unless the token has the scope read
	KeyID   *string        `json:"key_id"` // nil unless the key is live, or the token has the scope read
	User    *string        `json:"user"`   // likewise
	Account *string        `json:"account"`
	Plan    *string        `json:"plan"`
	Rate    *RateState     `json:"rate_limit"`
	Credits *CreditsOfUser `json:"credits"` // nil if unknown
	Charge  *Charge        `json:"charge"`  // nil if nothing was charged
}

// RateState is how much of a rate limit is left.
type RateState struct {
	Limit     Limit `json:"limit"`
	Remaining Limit `json:"remaining"`
	ResetMS   int64 `json:"reset_ms"` // until the oldest request makes room
}

// CreditsOfUser is how many credits are left.
type CreditsOfUser struct {
	Used      int64 `json:"used"`
	Limit     Limit `json:"limit"`
	Remaining Limit `json:"remaining"`
}

// Charge is what a question was charged.
type Charge struct {
	ID      string `json:"id"` // for the settle port
	Credits int64  `json:"credits"`
}

// VerifyKey asks what a key is, from the memory of the replica that answers. An error means that
// nobody knows: refuse the client's request with 503.
func (c *Client) VerifyKey(ctx context.Context, q Question) (Verified, error) {
	body := struct {
		Key     string `json:"key"`
		Rule    string `json:"rule,omitempty"`
		Charge  bool   `json:"charge,omitempty"`
		Request string `json:"request,omitempty"`
	}{q.Key.Reveal(), q.Rule, q.Charge, q.Request}
	return ask[Verified](ctx, c, "/v1/keys:verify", body, !q.Charge || q.Request != "")
}

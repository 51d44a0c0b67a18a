package directory

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/feed"
	"github.com/keyporter/keyporter/store/lease"
)

// LinkLife is how long a login link is valid.
const LinkLife = 10 * time.Minute

// Link describes a login link without its secret.
type Link struct {
	User      string
	ExpiresAt time.Time
}

// CreateLoginLink makes a link with which a user can log in once, within [LinkLife] by this
// machine's clock. Only the digest of the returned secret is kept.
func (s *Sessions) CreateLoginLink(ctx context.Context, user string, format *apikey.Format) (Link, apikey.Token, error) {
	link, token, _, err := s.CreateLoginLinkOnce(ctx, user, format, "")
	return link, token, err
}

// CreateLoginLinkOnce is CreateLoginLink with an idempotency key. A repeated call returns the zero
// Token, since only the first one returned the secret.
func (s *Sessions) CreateLoginLinkOnce(ctx context.Context, user string, format *apikey.Format, once feed.IdempotencyKey) (Link, apikey.Token, feed.Confirmation, error) {
	token := format.Generate()
	link, c, err := feed.Once(ctx, s.db, once, "session create "+user+" --link", func(ctx context.Context, tx *sql.Tx) (Link, error) {
		if err := mustLockUser(ctx, s.db, tx, user); err != nil {
			return Link{}, err
		}
		digest, created := token.Digest(), store.NowMillis()
		expires := created + LinkLife.Milliseconds()
		_, err := tx.ExecContext(ctx, `INSERT INTO login_links (digest, user_name, created_at, expires_at) VALUES ($1, $2, $3, $4)`,
			digest[:], user, created, expires)
		return Link{User: user, ExpiresAt: store.FromMillis(expires)}, err
	})
	if err != nil {
		return Link{}, apikey.Token{}, c, fmt.Errorf("creating a login link for user %s: %w", user, err)
	}
	if c.Repeated {
		token = apikey.Token{}
	}
	return link, token, c, nil
}

// usable ends a query for the login link $1 if it is valid at the time $2. Any other link is not
// found: an answer does not distinguish a used link from one that never existed.
const usable = ` FROM login_links l JOIN users u ON u.name = l.user_name
	WHERE l.digest = $1 AND l.used_at IS NULL AND l.expires_at > $2 AND u.status = 'active'`

// FindLoginLink returns a login link, or [store.ErrNotFound] if it is unknown, used or expired, or
// its user is disabled. It does not spend the link.
func (s *Sessions) FindLoginLink(ctx context.Context, digest apikey.Digest) (Link, error) {
	links, err := store.List(ctx, s.db, func(row store.Scanner) (l Link, err error) {
		var expires int64
		err = row.Scan(&l.User, &expires)
		l.ExpiresAt = store.FromMillis(expires)
		return l, err
	}, `SELECT l.user_name, l.expires_at`+usable, digest[:], store.NowMillis())
	if err == nil && len(links) == 0 {
		err = store.ErrNotFound
	}
	if err != nil {
		return Link{}, fmt.Errorf("finding a login link: %w", err)
	}
	return links[0], nil
}

// UseLoginLink spends a login link and creates a session for its user with the given ttl. Of
// several concurrent calls one succeeds; the others get [store.ErrNotFound]. In the same
// transaction it ends the session before, unless that is the zero digest, and returns once this is
// enforced. If that is not certain, it returns the session together with [lease.ErrUnconfirmed].
func (s *Sessions) UseLoginLink(ctx context.Context, digest, before apikey.Digest, ttl time.Duration, format *apikey.Format) (Session, apikey.Token, error) {
	token := format.Generate()
	use := func(ctx context.Context, tx *sql.Tx) (session Session, err error) {
		if session.User, err = s.spendLink(ctx, tx, digest); err != nil {
			return session, err
		}
		if before != (apikey.Digest{}) {
			if _, err := endSession(ctx, tx, before); err != nil {
				return session, err
			}
		}
		return insertSession(ctx, tx, session.User, token.Digest(), ttl)
	}
	var session Session
	var err error
	if before == (apikey.Digest{}) { // nothing is revoked, so no barrier is needed
		_, err = s.db.Change(ctx, func(ctx context.Context, tx *sql.Tx) (err error) {
			session, err = use(ctx, tx)
			return err
		})
	} else {
		session, _, err = feed.Change(ctx, s.db, "", "login", use)
	}
	if err != nil {
		err = fmt.Errorf("using a login link: %w", err)
	}
	if err != nil && !errors.Is(err, lease.ErrUnconfirmed) {
		return Session{}, apikey.Token{}, err
	}
	return session, token, err
}

// spendLink marks a valid link as used and returns its user.
func (s *Sessions) spendLink(ctx context.Context, tx *sql.Tx, digest apikey.Digest) (user string, err error) {
	at := store.NowMillis()
	err = tx.QueryRowContext(ctx, `SELECT l.user_name`+usable, digest[:], at).Scan(&user)
	if errors.Is(err, sql.ErrNoRows) {
		return "", store.ErrNotFound
	}
	if err != nil {
		return "", err
	}
	// The user's row is the lock for everything about the user; earlier reads may be outdated.
	if err := mustLockUser(ctx, s.db, tx, user); err != nil {
		return "", err
	}
	spent, err := store.Affected(tx.ExecContext(ctx, `UPDATE login_links SET used_at = $2 WHERE digest = $1 AND used_at IS NULL
		AND EXISTS (SELECT 1 FROM users WHERE name = $3 AND status = 'active')`, digest[:], at, user))
	if err == nil && !spent {
		err = store.ErrNotFound
	}
	return user, err
}

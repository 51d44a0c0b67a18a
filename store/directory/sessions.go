package directory

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/feed"
)

// MaxSession is the maximum TTL of a session.
const MaxSession = 90 * 24 * time.Hour

// Sessions is the browser sessions and login links in a database. It is safe for concurrent use.
type Sessions struct{ db *store.DB }

// NewSessions returns the sessions in a database.
func NewSessions(db *store.DB) *Sessions { return &Sessions{db} }

// Session describes a browser session without its secret.
type Session struct {
	User      string
	ExpiresAt time.Time
}

// CreateSession makes a session of a user that ends after ttl, by this machine's clock; it opens
// nothing while the user is disabled. Only the digest of the returned secret is kept.
func (s *Sessions) CreateSession(ctx context.Context, user string, ttl time.Duration, format *apikey.Format) (Session, apikey.Token, error) {
	session, token, _, err := s.CreateSessionOnce(ctx, user, ttl, format, "")
	return session, token, err
}

// CreateSessionOnce is CreateSession with an idempotency key. A repeated call returns the zero
// Token, since only the first one returned the secret.
func (s *Sessions) CreateSessionOnce(ctx context.Context, user string, ttl time.Duration, format *apikey.Format, once feed.IdempotencyKey) (Session, apikey.Token, feed.Confirmation, error) {
	if ttl < time.Second || ttl > MaxSession {
		return Session{}, apikey.Token{}, feed.Confirmation{}, store.FieldError{Field: "ttl", Err: fmt.Errorf("session life %v is %w: one second to %v", ttl, store.ErrInvalid, MaxSession)}
	}
	token := format.Generate()
	session, c, err := feed.Once(ctx, s.db, once, fmt.Sprintf("session create %s --ttl=%v", user, ttl), func(ctx context.Context, tx *sql.Tx) (Session, error) {
		if err := mustLockUser(ctx, s.db, tx, user); err != nil {
			return Session{}, err
		}
		return insertSession(ctx, tx, user, token.Digest(), ttl)
	})
	if err != nil {
		return Session{}, apikey.Token{}, c, fmt.Errorf("creating a session for user %s: %w", user, err)
	}
	if c.Repeated {
		token = apikey.Token{}
	}
	return session, token, c, nil
}

func insertSession(ctx context.Context, tx *sql.Tx, user string, digest apikey.Digest, ttl time.Duration) (Session, error) {
	created := store.NowMillis()
	expires := created + ttl.Milliseconds()
	_, err := tx.ExecContext(ctx, `INSERT INTO sessions (digest, user_name, created_at, expires_at) VALUES ($1, $2, $3, $4)`,
		digest[:], user, created, expires)
	return Session{User: user, ExpiresAt: store.FromMillis(expires)}, err
}

// EndSession ends one session, if it is live, and returns once that is enforced.
func (s *Sessions) EndSession(ctx context.Context, digest apikey.Digest) (feed.Confirmation, error) {
	_, c, err := feed.Change(ctx, s.db, "", "session end", func(ctx context.Context, tx *sql.Tx) (bool, error) {
		return endSession(ctx, tx, digest)
	})
	if err != nil {
		err = fmt.Errorf("ending a session: %w", err)
	}
	return c, err
}

func endSession(ctx context.Context, tx *sql.Tx, digest apikey.Digest) (bool, error) {
	return store.Affected(tx.ExecContext(ctx, `UPDATE sessions SET revoked_at = $2 WHERE digest = $1 AND revoked_at IS NULL`, digest[:], store.NowMillis()))
}

// RevokeSessions ends all live sessions of a user and returns their number. It also invalidates the
// user's login links and all tokens that the provider's web app has signed for the user until now.
// It returns once all that is enforced.
func (s *Sessions) RevokeSessions(ctx context.Context, user string, once feed.IdempotencyKey) (int, feed.Confirmation, error) {
	n, c, err := feed.Change(ctx, s.db, once, "session revoke "+user, func(ctx context.Context, tx *sql.Tx) (int64, error) {
		if err := mustLockUser(ctx, s.db, tx, user); err != nil {
			return 0, err
		}
		at := store.NowMillis()
		if _, err := tx.ExecContext(ctx, `UPDATE users SET not_before = $2 WHERE name = $1 AND not_before < $2`, user, at); err != nil {
			return 0, err
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM login_links WHERE user_name = $1`, user); err != nil {
			return 0, err
		}
		result, err := tx.ExecContext(ctx, `UPDATE sessions SET revoked_at = $2
			WHERE user_name = $1 AND revoked_at IS NULL AND expires_at > $2`, user, at)
		if err != nil {
			return 0, err
		}
		return result.RowsAffected()
	})
	if err != nil {
		err = fmt.Errorf("revoking the sessions of user %s: %w", user, err)
	}
	return int(n), c, err
}

// Tidy deletes login links that expired a day ago.
func (s *Sessions) Tidy(ctx context.Context) error {
	db := s.db.Calling(store.ForHousekeeping)
	_, err := db.Write(ctx, db.Changes, func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `DELETE FROM login_links WHERE expires_at < $1`, store.NowMillis()-(24*time.Hour).Milliseconds())
		return err
	})
	return err
}

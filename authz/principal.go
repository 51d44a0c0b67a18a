package authz

import (
	"context"
	"errors"
	"time"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/usage"
)

// Principal is the owner of a key or session, with the state of their account and plan.
type Principal struct {
	KeyID   string // empty for a session
	User    string
	Account string
	Plan    string

	UserActive    bool
	AccountActive bool
	APIAccess     bool

	RateLimit  usage.Limit    // of the plan: requests in any RateWindow
	RateWindow time.Duration  // positive
	Credits    usage.Limit    // of the plan: credits per month
	Pool       usage.PoolKind // of the plan: who shares the credits

	// NotBefore is the earliest valid issue time of the web app's tokens; older ones are rejected.
	NotBefore time.Time

	// Epoch numbers the database state that the principal was read from. A higher number is newer.
	Epoch int64
}

// Look-ups return these errors for a definite no. Any other error means that they could not decide.
var (
	ErrUnknown = errors.New("unknown")
	ErrRevoked = errors.New("revoked")
)

// RevokedError is an [ErrRevoked] that names the key and its owner, so that the user can see which
// client still sends an old key.
type RevokedError struct{ User, KeyID string }

func (e RevokedError) Error() string { return "of user " + e.User + ": " + ErrRevoked.Error() }

// Is reports whether the target is [ErrRevoked].
func (e RevokedError) Is(target error) bool { return target == ErrRevoked }

// A FindFunc resolves the digest of a key or a session. It returns [ErrUnknown] or [ErrRevoked],
// possibly wrapped, for a definite no, and any other error if it could not decide. It must respect
// ctx and be safe for concurrent use.
type FindFunc func(ctx context.Context, d apikey.Digest) (Principal, error)
